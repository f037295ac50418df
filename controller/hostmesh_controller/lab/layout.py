"""What a lab keeps on disk, all of it in one directory, and who may own that.

DIR/lab.json  world.json  world.log  lock  controller/{controller.toml,state/,admin.sock,controller.log,process.json}
DIR/hosts/NAME/{host.json,init.json,init.log,agent.json,agent.log,log/,disk/{etc,var-lib}/{upper,work}}
"""

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.process import ProcessRecord
from hostmesh_controller.lab.subnet import Subnet

# sun_path holds 108 bytes with the final zero; the longest socket below the lab's directory is this one.
_SOCKET: Final = "controller/admin.sock"
_LONGEST_DIR: Final = 107 - len(_SOCKET) - 1
# Characters with a meaning in overlayfs's options.
_REFUSED: Final = frozenset(",:\\\n")


@dataclass(frozen=True, slots=True)
class LabFacts:
    """What is decided once per lab."""

    id: str
    subnet: int
    # As an ordinary user: the world is below a user namespace.
    user: bool
    ipv6: bool
    # Directories that did not exist before, outermost first: `down` removes them again.
    made: tuple[str, ...]

    @property
    def net(self) -> Subnet:
        return Subnet(self.subnet)

    @property
    def shell_link(self) -> str:
        """Name of the interface in root's own network namespace."""
        return f"hml-{self.id}"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What is decided once per host."""

    name: str
    index: int


@dataclass(frozen=True, slots=True)
class HostLayout:
    root: Path

    @property
    def facts(self) -> Path:
        return self.root / "host.json"

    @property
    def init(self) -> Path:
        return self.root / "init.json"

    @property
    def init_log(self) -> Path:
        """What the host's process 1 had to say, which is nothing as long as all is well."""
        return self.root / "init.log"

    @property
    def agent(self) -> Path:
        return self.root / "agent.json"

    @property
    def agent_log(self) -> Path:
        return self.root / "agent.log"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    def disk(self, name: str) -> Path:
        return self.root / "disk" / name


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of the lab in `root`; nothing is read or made by asking for one."""

    root: Path

    @property
    def facts(self) -> Path:
        return self.root / "lab.json"

    @property
    def world(self) -> Path:
        return self.root / "world.json"

    @property
    def world_log(self) -> Path:
        return self.root / "world.log"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def controller(self) -> Path:
        return self.root / "controller"

    @property
    def controller_config(self) -> Path:
        return self.controller / "controller.toml"

    @property
    def controller_state(self) -> Path:
        return self.controller / "state"

    @property
    def controller_log(self) -> Path:
        return self.controller / "controller.log"

    @property
    def controller_process(self) -> Path:
        return self.controller / "process.json"

    @property
    def admin_socket(self) -> Path:
        return self.root / _SOCKET

    @property
    def hosts(self) -> Path:
        return self.root / "hosts"

    def host(self, name: str) -> HostLayout:
        return HostLayout(self.hosts / name)


def default_dir(environment: dict[str, str]) -> Path:
    base = environment.get("XDG_STATE_HOME") or f"{environment.get('HOME') or '/root'}/.local/state"
    return Path(base) / "hostmesh" / "lab"


def checked(root: Path) -> Layout:
    """Return the layout of a directory that can hold a lab, existing or not.

    Raises:
        LabError: its path cannot be used, or others may write there.
    """
    root = root.absolute()
    if len(os.fsencode(root)) > _LONGEST_DIR:
        raise LabError(f"--dir {root}: longer than {_LONGEST_DIR} bytes, too long for the sockets in it")
    if _REFUSED & set(str(root)):
        raise LabError(f"--dir {root}: a comma, colon, backslash or line break cannot be part of the path")
    if root.exists():
        status = root.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise LabError(f"--dir {root}: not a directory")
        if status.st_uid != os.getuid():
            raise LabError(f"--dir {root}: belongs to user id {status.st_uid}, not to you ({os.getuid()})")
        if status.st_mode & 0o022:
            raise LabError(f"--dir {root}: others may write to it; cure: chmod go-w {root}")
    return Layout(root)


@contextmanager
def made_and_locked(layout: Layout) -> Iterator[tuple[str, ...]]:
    """Make the lab's directory where there is none, hold its lock, and yield which directories that made.

    Leaves again what it made when no lab came of it.

    Raises:
        LabError: there is something in it that is not a lab's.
    """
    missing = [path for path in (layout.root, *layout.root.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    made = tuple(str(path) for path in reversed(missing))
    with locked(layout):
        strangers = sorted(entry.name for entry in layout.root.iterdir() if entry != layout.lock)
        try:
            if strangers and not layout.facts.exists():
                raise LabError(f"--dir {layout.root}: is not empty ({', '.join(strangers[:3])}) and not a lab")
            yield made
        finally:
            if not layout.facts.exists():
                layout.lock.unlink(missing_ok=True)
                remove_directories(made)


def remove_directories(made: tuple[str, ...]) -> None:
    """Remove the directories innermost first, as far as they are empty."""
    for path in reversed(made):
        try:
            Path(path).rmdir()
        except OSError:
            break


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write atomically: a reader sees the old document or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `write_json` wrote, None when there is no such file."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return document


def write_lab(layout: Layout, facts: LabFacts) -> None:
    write_json(layout.facts, asdict(facts))


def read_lab(layout: Layout) -> LabFacts | None:
    document = read_json(layout.facts)
    if document is None:
        return None
    return LabFacts(**{**document, "made": tuple(document["made"])})


def write_host(layout: HostLayout, facts: HostFacts) -> None:
    write_json(layout.facts, asdict(facts))


def read_hosts(layout: Layout) -> dict[str, HostFacts]:
    """Every host of the lab by name, in the order of its addresses."""
    if not layout.hosts.is_dir():
        return {}
    documents = (read_json(entry / "host.json") for entry in layout.hosts.iterdir())
    found = sorted((HostFacts(**document) for document in documents if document), key=lambda host: host.index)
    return {host.name: host for host in found}


def read_process(path: Path) -> ProcessRecord | None:
    document = read_json(path)
    return None if document is None else ProcessRecord.from_dict(document)


def write_process(path: Path, record: ProcessRecord) -> None:
    write_json(path, record.to_dict())


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the lab for a verb that changes it; a second one waits for the first."""
    try:
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise LabError(f"there is no lab in {layout.root}; start one: hostmesh lab up HOST…") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
