"""Where the cgroups of version 2 are, and Envoy's own among them, by which rules know it (units: see `units`).

Envoy runs in `hostmesh.slice/hostmesh-envoy.slice/INSTANCE`, where systemd would put a unit with
`Slice=hostmesh-envoy.slice`. Rules name the slice, so that every instance is Envoy. The kernel keeps a cgroup's id, not
its name: a slice that was removed and made again is another one. So its id is looked up each time the rules are
compared, and no Envoy starts while the rules name another.

Where there is no such place (no cgroup v2, a kernel before 5.13, an agent that may not write there) Envoy is known by
its user alone, and `EnvoyGroup.why_not` says why.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_api.wire import ENVOY_SLICES

LEVEL: Final = len(ENVOY_SLICES)
INSTANCE: Final = "envoy"
PROCESSES: Final = "cgroup.procs"

_FIRST_KERNEL: Final = (5, 13)  # nft "socket cgroupv2"
_FIRST_KERNEL_OF_NAMESPACES: Final = (6, 11)
"""Since then a rule's level counts from the root of the cgroup namespace in which it is written; before, from the
machine's."""
_INITIAL_NAMESPACE: Final = "cgroup:[4026531835]"  # PROC_CGROUP_INIT_INO
_NOT_MOUNTED: Final = "cgroup v2 is not mounted"
_NO_SUCH: Final = (FileNotFoundError, NotADirectoryError, ProcessLookupError)


class CgroupError(OSError):
    """Envoy cannot be in its cgroup now."""


def mount_point(mountinfo: str, *, whole: bool = True) -> Path | None:
    """Return where all of cgroup v2 is mounted, from what /proc/self/mountinfo says (proc(5)); None if nowhere.

    `whole` False: or else a part of it.
    """
    part: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if not after.startswith("cgroup2 ") or len(fields) <= 4:
            continue
        found = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # Another root than "/" is a part of the hierarchy, or what is outside this cgroup namespace.
        if fields[3] == "/":
            return found
        part = part or found
    return None if whole else part


def root(proc: Path = Path("/proc"), *, whole: bool = True) -> Path | None:
    """Return where cgroup v2 is mounted for this process, None if nowhere. `whole` as with `mount_point`."""
    found = mount_point((proc / "self/mountinfo").read_text(encoding="utf-8"), whole=whole)
    # Something else may be mounted upon it: ids of its directories would be no cgroups'.
    return found if found is not None and (found / PROCESSES).exists() else None


def kernel_lacks(release: str, namespace: str) -> str:
    """Return why the kernel cannot match cgroups in rules; "" if it can. `namespace`: what /proc/self/ns/cgroup is."""
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < _FIRST_KERNEL:
        return f"rules know no cgroups before Linux 5.13, this is {release}"
    if namespace != _INITIAL_NAMESPACE and version < _FIRST_KERNEL_OF_NAMESPACES:
        return f"rules know no cgroups of a container before Linux 6.11, this is {release}"
    return ""


def usable(proc: Path = Path("/proc")) -> tuple[Path | None, str]:
    """Return where cgroup v2 is mounted, and why it is of no use ("" if it is)."""
    lacks = kernel_lacks(os.uname().release, str((proc / "self/ns/cgroup").readlink()))
    found = root(proc)
    return found, lacks or ("" if found is not None else _NOT_MOUNTED)


class EnvoyGroup:
    """Envoy's place. `in_force` is what the rules in the kernel name: whoever puts them there notes it here.

    Args:
        root: where cgroup v2 is mounted; None: nowhere.
        why_not: why Envoy has no cgroup of its own; "" if it may have one.
        makes: whether cgroups are made here; else systemd has them, and Envoy is a unit.
    """

    def __init__(self, root: Path | None, why_not: str = "", *, makes: bool = True) -> None:
        self._root = root
        self._makes = makes
        self.why_not = why_not or ("" if root is not None else _NOT_MOUNTED)
        self.in_force: ByCgroup | None = None
        if not self.why_not:
            try:
                self._make()
                if makes:
                    # Somebody else may have made it: root, where this is an ordinary user's lab.
                    with (self._slice() / PROCESSES).open("ab"):
                        pass
            except OSError as error:
                self.why_not = f"the cgroup cannot be made: {error}"

    def current(self) -> ByCgroup | None:
        """Return what is Envoy's now, made if it is not there; None where Envoy is known by its user.

        Raises:
            OSError: it was there and cannot be made again.
        """
        return None if self.why_not else self._make()

    def prepare(self, instance: str = INSTANCE) -> str:
        """Make the cgroup of an instance that is about to start, and return its path; "" where there is none.

        Raises:
            CgroupError: the rules name another one: they must be put right first, or Envoy would capture itself.
            OSError: it cannot be made.
        """
        current = self.current()
        if self.in_force is not None and self.in_force != current:
            raise CgroupError("the rules know it by another cgroup than it would have; they are put right first")
        if current is None or not self._makes:
            return ""
        path = self._slice() / instance
        path.mkdir(exist_ok=True)
        return str(path)

    def admit(self, pid: int, instance: str = INSTANCE) -> bool:
        """Take a running process in that was started elsewhere; return whether it is in Envoy's cgroup now.

        Its open sockets keep the cgroup that they were made in, those that it makes from now on have this one. Rules
        look at a connection once, when it begins.
        """
        if self.why_not:
            return False
        if self.holds(pid):
            return True
        try:
            self._make()
            path = self._slice() / instance
            path.mkdir(exist_ok=True)
            (path / PROCESSES).write_text(f"{pid}\n", encoding="ascii")
        except OSError as error:
            self.why_not = f"the running Envoy cannot be moved into its cgroup: {error}"
            return False
        return self.holds(pid)

    def holds(self, pid: int) -> bool:
        """Tell whether a process is in Envoy's cgroup."""
        with suppress(*_NO_SUCH):
            return str(pid) in {each for path in self._instances() for each in _processes(path)}
        return False

    def remove(self) -> None:
        """Leave nothing behind, as far as nobody is in it any more."""
        if self._root is None:
            return
        for path in (*self._instances(), self._slice(), self._slice().parent):
            with suppress(OSError):
                path.rmdir()

    def _make(self) -> ByCgroup:
        path = self._slice()
        if self._makes:
            path.mkdir(parents=True, exist_ok=True)
        return ByCgroup(LEVEL, path.stat().st_ino)

    def _slice(self) -> Path:
        assert self._root is not None
        return self._root.joinpath(*ENVOY_SLICES)

    def _instances(self) -> tuple[Path, ...]:
        with suppress(*_NO_SUCH):
            return tuple(each for each in self._slice().iterdir() if each.is_dir())
        return ()


def _processes(path: Path) -> list[str]:
    return (path / PROCESSES).read_text(encoding="ascii").split()
