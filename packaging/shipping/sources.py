"""The interpreter's sources: Debian's source packages, with its security patches, checked by apt against its keys.

Which versions are taken is in the repository (packaging/sources.json), so that another machine builds of the same.
Where Debian's mirror has one no more the newest is taken, which is said: the packages are others then. `REFRESH=1`
takes the newest ones and writes them there. What was fetched is kept in .cache, and needs no mirror.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shipping.mirror import KEYRING, Mirror, mirror
from shipping.places import CACHE, PACKAGING
from shipping.running import BuildError, run

SUITE: Final = "trixie"
NAMES: Final = ("python3.13", "openssl", "sqlite3", "zlib", "libffi")
PINNED: Final = PACKAGING / "sources.json"
"""By source package: its version."""
_TAKEN: Final = "versions.json"
_FOR: Final = "pinned.json"
"""What was pinned when they were fetched."""


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
    """Return the sources of the pinned versions, fetched if they are not here; `refresh`: the newest, which are pinned.

    Raises:
        BuildError: the mirror has none of a package.
    """
    directory = CACHE / "sources"
    wanted = {} if refresh else pins(PINNED)
    if not refresh and (directory / _FOR).is_file() and json.loads((directory / _FOR).read_text()) == wanted:
        return Sources(directory, json.loads((directory / _TAKEN).read_text()))
    draft = CACHE / "sources.draft"
    shutil.rmtree(draft, ignore_errors=True)
    apt = _private_apt(draft / "apt", mirror())
    run([*apt, "update"])
    versions = {name: _fetch(apt, draft, name, wanted.get(name, "")) for name in NAMES}
    shutil.rmtree(draft / "apt")
    (draft / _TAKEN).write_text(written(versions))
    (draft / _FOR).write_text(written(wanted or versions))
    shutil.rmtree(directory, ignore_errors=True)
    draft.rename(directory)
    if refresh:
        PINNED.write_text(written(versions))
    return Sources(directory, versions)


def written(versions: Mapping[str, str]) -> str:
    return json.dumps(versions, indent=2, sort_keys=True) + "\n"


def pins(file: Path) -> dict[str, str]:
    """Return the pinned version of each source package. Raises BuildError where it does not name them all."""
    found: dict[str, str] = json.loads(file.read_text())
    if sorted(found) != sorted(NAMES):
        raise BuildError(f"{file} has to name the versions of {', '.join(NAMES)}: REFRESH=1 writes it")
    return found


def in_order(listed: list[str], wanted: str) -> list[str]:
    """Return the listed versions as they are tried: the pinned one first ("": none is)."""
    return sorted(listed, key=lambda each: each != wanted)


def said_of(name: str, taken: str, wanted: str) -> str:
    """Return what is to be said where another version than the pinned one was taken; "" where it was that one."""
    if wanted in ("", taken):
        return ""
    return (
        f"the mirror does not have {name} {wanted}, which packaging/sources.json names: built of {taken}, and the "
        "packages are not those of a machine that had it; REFRESH=1 pins what there is\n"
    )


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


def _fetch(apt: list[str], into: Path, name: str, wanted: str) -> str:
    """Fetch the wanted version, else the newest that the mirror has: it may list what it does not have yet."""
    said = "it lists none"
    for version in in_order(_listed(apt, name), wanted):
        try:
            run([*apt, "source", "--download-only", "--only-source", f"{name}={version}"], cwd=into)
        except BuildError as error:
            said = str(error)
            for partial in into.glob(f"{name}_*"):
                partial.unlink()
            continue
        sys.stderr.write(said_of(name, version, wanted))
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
