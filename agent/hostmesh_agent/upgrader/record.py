"""What the program remembers, in a directory of root's: floors, what was there before, and what is under way.

record.json, record.spare.json   the same, twice: what is damaged is read from the other
pending.json                     there while a new agent has not shown yet that it comes up
back/                            the package that is put back then; the unit's last line knows it, too
kept/                            packages of versions that there is a way back to
results/TOKEN.json               what became of a request, for everybody to read
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from hostmesh_agent.upgrader import trusted
from hostmesh_agent.upgrader.request import Request

STATE: Final = Path("/var/lib/hostmesh-upgrade")
"""That of the unit."""
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
REFUSED: Final = "refused"
_FILES: Final = ("record.json", "record.spare.json")
_RESULTS: Final = 8
"""So many are kept."""


class DamagedError(Exception):
    """What is remembered cannot be read, and so the floor is not known. The text says what helps."""


@dataclass(frozen=True, slots=True)
class Record:
    """By package: the floor, and the version that was there before."""

    floors: Mapping[str, str] = field(default_factory=dict)
    former: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pending:
    """A package that has not shown yet that it is good.

    `connected`: the agent before reached a controller. `back`: it is what was there before.
    """

    package: str
    version: str
    before: str
    token: str
    connected: bool
    back: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a request. `until`: seconds since the epoch, after which it is not under way any more."""

    state: str
    reason: str = ""
    until: float = 0.0


class Memory:
    """The directory."""

    def __init__(self, directory: Path = STATE) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """Make what is missing. Raises OSError."""
        for each in (self.directory, self.results, self.kept, self.back):
            each.mkdir(mode=0o755, parents=True, exist_ok=True)

    def incoming(self) -> Path:
        """Return a new directory for what comes; what an earlier one left goes. For whoever works alone."""
        place = self.directory / "incoming"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o755)
        return place

    @property
    def results(self) -> Path:
        return self.directory / "results"

    @property
    def kept(self) -> Path:
        return self.directory / "kept"

    @property
    def back(self) -> Path:
        return self.directory / "back"

    def read(self) -> Record:
        """Return what is remembered. Raises DamagedError."""
        there = [self.directory / each for each in _FILES if (self.directory / each).exists()]
        for each in there:
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, trusted.UntrustedError):
                return _record(json.loads(trusted.read(each)))
        if there:
            raise DamagedError(f"{there[0]} is damaged, and so is its copy: set min_package in agent.toml, remove both")
        return Record()

    def write(self, record: Record) -> None:
        """Remember it. Raises OSError."""
        said = asdict(record)
        data = json.dumps({**said, "checksum": _checksum(said)}, indent=1).encode() + b"\n"
        for name in _FILES:
            _write(self.directory / name, data)

    def keep(self, path: Path, package: str, version: str) -> Path:
        """Keep a package; return where."""
        place = self.kept / f"{package}_{version}{path.suffix}"
        if path != place:
            path.replace(place)
        place.chmod(0o644)
        return place

    def find_kept(self, package: str, version: str) -> Path | None:
        return next(iter(sorted(self.kept.glob(f"{package}_{version}.*"))), None)

    def forget_kept(self, package: str, versions: Collection[str]) -> None:
        """Remove the packages of other versions than these."""
        wanted = {f"{package}_{each}" for each in versions}
        for each in self.kept.glob(f"{package}_*"):
            if each.stem not in wanted:
                each.unlink()

    # What is under way

    def begin(self, pending: Pending, former: Path) -> None:
        """From now on `former` is put back unless `end` is called, also by the next boot. Raises OSError."""
        self._empty_back()
        shutil.copyfile(former, self.back / former.name)
        _sync(self.back / former.name)
        _write(self.directory / "pending.json", json.dumps(asdict(pending)).encode())

    def pending(self) -> Pending | None:
        try:
            return Pending(**json.loads(trusted.read(self.directory / "pending.json")))
        except (FileNotFoundError, ValueError, TypeError, trusted.UntrustedError):
            return None

    def end(self) -> None:
        (self.directory / "pending.json").unlink(missing_ok=True)
        self._empty_back()

    def _empty_back(self) -> None:
        for each in self.back.iterdir():
            each.unlink()

    # What is told

    def tell(self, token: str, result: Result) -> None:
        """Write what became of a request where the agent reads it."""
        _write(self.results / f"{token}.json", json.dumps(asdict(result)).encode() + b"\n")
        found = sorted(self.results.glob("*.json"), key=lambda each: each.stat().st_mtime_ns, reverse=True)
        for each in found[_RESULTS:]:
            each.unlink(missing_ok=True)


def told(request: Request, directory: Path = STATE) -> Result | None:
    """Return what became of a request; None while nothing is known of it."""
    try:
        return Result(**json.loads(trusted.read(directory / "results" / f"{request.token}.json")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, trusted.UntrustedError) as error:
        return Result(FAILED, f"what became of it cannot be read: {error}")


def _record(said: Any) -> Record:
    checksum = said.pop("checksum")
    if checksum != _checksum(said):
        raise ValueError("the checksum does not match")
    return Record(**{name: {str(key): str(value) for key, value in each.items()} for name, each in said.items()})


def _checksum(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(data)
    draft.chmod(0o644)
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
