"""The interpreter's sources: Debian's source packages, with its security patches, checked by apt against its keys.

Which versions were taken is kept beside them, and they are taken again until `REFRESH=1` asks for the newest ones: what
is built twice is built of the same.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shipping.mirror import KEYRING, Mirror, mirror
from shipping.places import CACHE
from shipping.running import BuildError, run

SUITE: Final = "trixie"
NAMES: Final = ("python3.13", "openssl", "sqlite3", "zlib", "libffi")
_TAKEN: Final = "versions.json"


@dataclass(frozen=True, slots=True)
class Sources:
    """`versions`: of each source package, as Debian numbers them."""

    directory: Path
    versions: dict[str, str]

    def upstream(self, name: str) -> str:
        """Return the version without epoch, Debian's revision, and what marks a repacked archive."""
        number = self.versions[name].rpartition(":")[2].rpartition("-")[0]
        return number.rpartition("+really")[2]


def sources(*, refresh: bool = False) -> Sources:
    directory = CACHE / "sources"
    kept = directory / _TAKEN
    if not refresh and kept.is_file():
        return Sources(directory, json.loads(kept.read_text()))
    draft = CACHE / "sources.draft"
    shutil.rmtree(draft, ignore_errors=True)
    apt = _private_apt(draft / "apt", mirror())
    run([*apt, "update"])
    versions = {name: _fetch(apt, draft, name) for name in NAMES}
    shutil.rmtree(draft / "apt")
    (draft / _TAKEN).write_text(json.dumps(versions, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    draft.rename(directory)
    return Sources(directory, versions)


def _private_apt(home: Path, found: Mirror) -> list[str]:
    """Return the words of an apt-get that has a configuration of its own and leaves the machine's alone."""
    for each in ("lists/partial", "cache/archives/partial"):
        (home / each).mkdir(parents=True)
    lines = [f"deb-src [signed-by={KEYRING}] {found.main} {SUITE} main"]
    if found.security:
        lines.append(f"deb-src [signed-by={KEYRING}] {found.security} {SUITE}-security main")
    (home / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    options = {
        "Dir::Etc::SourceList": str(home / "sources.list"),
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": str(home / "lists"),
        "Dir::Cache": str(home / "cache"),
        "APT::Sandbox::User": "root",
        "Acquire::Retries": "3",
    }
    return ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]


def _fetch(apt: list[str], into: Path, name: str) -> str:
    """Fetch the newest version that the mirror has: one that is behind lists what it does not have yet."""
    said = "it lists none"
    for version in _listed(apt, name):
        try:
            run([*apt, "source", "--download-only", "--only-source", f"{name}={version}"], cwd=into)
        except BuildError as error:
            said = str(error)
            for partial in into.glob(f"{name}_*"):
                partial.unlink()
            continue
        return version
    raise BuildError(f"the mirror has no source of {name}: {said}")


def _listed(apt: list[str], name: str) -> list[str]:
    """Return the versions of a source package, newest first."""
    told = run(["apt-cache", *apt[1:], "madison", name])
    rows = [[part.strip() for part in line.split("|")] for line in told.splitlines()]
    found = {row[1] for row in rows if len(row) == 3 and row[0] == name and row[2].endswith("Sources")}
    return newest_first(found)


def newest_first(versions: set[str]) -> list[str]:
    """Sort as dpkg does. Its own program compares two, and there are few."""
    ordered: list[str] = []
    for version in sorted(versions):
        place = next((at for at, other in enumerate(ordered) if _newer(version, other)), len(ordered))
        ordered.insert(place, version)
    return ordered


def _newer(one: str, other: str) -> bool:
    try:
        run(["dpkg", "--compare-versions", one, "gt", other])
    except BuildError:
        return False
    return True
