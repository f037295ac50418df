"""The key that signs the repositories, in a keyring that lives as long as one run.

`KEY=FILE` is an exported secret key (`gpg --export-secret-keys --armor`), `KEY=FINGERPRINT` one of the keyring of
whoever calls make, with its agent, passphrase or card. Without KEY a key is made once and kept in .keys (which git
ignores and `make clean` leaves alone: hosts trust it), readable by its owner alone: good for trying out, and for one
machine's own repository.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from shipping.places import PROJECT
from shipping.running import BuildError, run

KEPT: Final = PROJECT / ".keys" / "packages.asc"
_NAME: Final = "hostmesh packages"
_KIND: Final = "rsa3072"
"""What rpm of every distribution that is promised can check."""
_FINGERPRINT: Final = re.compile(r"(0x)?([0-9A-Fa-f]{40})")


@dataclass(frozen=True, slots=True)
class Key:
    """`home` is gpg's directory, None for that of whoever calls."""

    fingerprint: str
    home: Path | None

    @property
    def gpg(self) -> list[str]:
        return [*_gpg(self.home), "--local-user", self.fingerprint]

    def sign(self, source: Path, target: Path, *how: str) -> None:
        """Sign a file, as `how` says (`--clearsign`, `--detach-sign`)."""
        target.unlink(missing_ok=True)
        run([*self.gpg, "--armor", "--digest-algo", "SHA512", *how, "--output", str(target), str(source)])

    def public(self, *, armor: bool) -> bytes:
        """Return the public key, as text (dnf) or as bytes (apt's Signed-By takes either)."""
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory) / "key"
            words = ["--armor"] if armor else []
            run([*_gpg(self.home), *words, "--output", str(target), "--export", self.fingerprint])
            return target.read_bytes()


def _gpg(home: Path | None) -> list[str]:
    where = [] if home is None else ["--homedir", str(home)]
    return ["gpg", "--batch", "--no-tty", "--quiet", "--yes", *where]


@contextmanager
def key(given: str) -> Iterator[Key]:
    """Yield the key to sign with; `given` is KEY."""
    found = _FINGERPRINT.fullmatch(given)
    if found:
        yield Key(found[2].upper(), None)
        return
    if given and not Path(given).is_file():
        raise BuildError(f"KEY={given}: is neither a file with a secret key nor the fingerprint of one (40 digits)")
    # A short path: the agent's socket is in it, and its path has 108 bytes at most.
    with tempfile.TemporaryDirectory(prefix="hm-key-") as directory:
        home = Path(directory)
        home.chmod(0o700)
        try:
            yield Key(_imported(home, Path(given) if given else _kept(home)), home)
        finally:
            run(["gpgconf", "--homedir", str(home), "--kill", "all"])


def _kept(home: Path) -> Path:
    """Return the file with our own key, made at first use."""
    if not KEPT.is_file():
        run([*_gpg(home), "--passphrase", "", "--quick-generate-key", _NAME, _KIND, "sign", "never"])
        text = run([*_gpg(home), "--armor", "--export-secret-keys"])
        KEPT.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(KEPT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    return KEPT


def _imported(home: Path, file: Path) -> str:
    run([*_gpg(home), "--import", str(file)])
    rows = [line.split(":") for line in run([*_gpg(home), "--with-colons", "--list-secret-keys"]).splitlines()]
    fingerprints = [row[9] for before, row in pairwise(rows) if before[0] == "sec" and row[0] == "fpr"]
    if len(fingerprints) != 1:
        raise BuildError(f"{file}: has {len(fingerprints)} secret keys, not one")
    return fingerprints[0]
