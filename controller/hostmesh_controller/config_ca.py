"""The table [ca] of controller.toml: whose root signs, and how to reach them. Pure."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostmesh_controller.config_reader import Reader

PROVIDERS: Final = ("self-signed", "files", "vault")
_SETTINGS: Final = frozenset({"dir", "url", "mount", "token_file", "ca_file", "ttl_hours"})


@dataclass(frozen=True, slots=True)
class Ca:
    """Whose root signs. `dir` is where the files of the provider "files" are, the rest is for "vault".

    `url` is the signer's, `ca_file` the roots by which its certificate is good ("": the system's), `mount` the path of
    its PKI engine, `token_file` holds what it lets us in with.
    """

    provider: str = "self-signed"
    dir: Path | None = None
    url: str = ""
    mount: str = "pki"
    token_file: Path | None = None
    ca_file: Path | None = None
    ttl_hours: int = 8760


def certificate_authority(reader: Reader) -> Ca:
    """Read [ca]."""
    found = Ca(
        provider=reader.choice("ca.provider", "self-signed", PROVIDERS),
        dir=reader.optional_path("ca.dir"),
        url=reader.text("ca.url", ""),
        mount=reader.text("ca.mount", "pki"),
        token_file=reader.optional_path("ca.token_file"),
        ca_file=reader.optional_path("ca.ca_file"),
        # Shorter than a day leaves no time to mend the signer; leaves are cut at its end.
        ttl_hours=reader.integer("ca.ttl_hours", 8760, 24, 87_600),
    )
    _check(reader, found)
    return found


def _check(reader: Reader, ca: Ca) -> None:
    """Say what the provider lacks, and what is set that it does not look at."""
    wanted = {"files": {"dir"}, "vault": {"url", "token_file"}}.get(ca.provider, set())
    allowed = wanted | ({"mount", "ca_file", "ttl_hours"} if ca.provider == "vault" else set())
    given = reader.names("ca")
    for name in sorted(wanted - given):
        reader.refuse("ca.provider", f"'{ca.provider}' needs the setting ca.{name}")
    for name in sorted((given & _SETTINGS) - allowed):
        reader.refuse(f"ca.{name}", f"is not for the provider '{ca.provider}'")
    if ca.url and not re.fullmatch(r"https://[^/?#@\s]+(/[^?#\s]*)?", ca.url):
        reader.refuse("ca.url", f"'{ca.url}' is not https://HOST[:PORT][/PATH]")
    if not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", ca.mount):
        reader.refuse("ca.mount", f"'{ca.mount}' is not the path of a mount, such as 'pki' or 'pki/mesh'")
