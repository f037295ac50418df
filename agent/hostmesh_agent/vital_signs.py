"""How an agent looks at its host beside its own work, and what follows: the loop around `vitals`."""

import asyncio
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import vitals
from hostmesh_agent.alarms import Alarm, Alarms
from hostmesh_agent.vitals import Reading, Room

LOOK_S: Final = 10.0
_OURS: Final = (
    "disk.full",
    "disk.read-only",
    "limits.files",
    "limits.memory",
    "clock.behind",
    "clock.certificate-ended",
    "clock.jumped",
    "address.changed",
)
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PAGE_BYTES: Final = resource.getpagesize()

log = structlog.get_logger(__name__)


def read(directories: Iterable[Path], cgroups: Path = _CGROUPS) -> Reading:
    """Look at this process and where it writes. Costs some ten system calls.

    Raises:
        OSError: there is no descriptor left to look with.
    """
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    limit, of_group = _memory_limit(cgroups)
    return Reading(
        wall_s=time.time(),
        boottime_s=time.clock_gettime(time.CLOCK_BOOTTIME),
        monotonic_s=time.monotonic(),
        rooms=tuple(room(each) for each in directories),
        files=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names are enough
        max_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        memory_bytes=max(used, of_group),
        max_memory_bytes=limit,
    )


def room(directory: Path) -> Room:
    """Say what can be written below the directory."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return Room(str(directory), None, read_only=False)
    blocks = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    # Some file systems count no blocks.
    free = blocks * found.f_frsize if found.f_blocks else None
    return Room(str(directory), free, bool(found.f_flag & os.ST_RDONLY))


def _memory_limit(cgroups: Path) -> tuple[int, int]:
    """Return MemoryMax of our cgroup and what it uses; (0, 0) where there is none."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            if line.startswith("0::"):
                group = cgroups / line.removeprefix("0::").lstrip("/")
                limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max" is none
                # Of what is counted, the page cache goes by itself when room is wanted.
                stat = dict(each.split() for each in (group / "memory.stat").read_text(encoding="ascii").splitlines())
                return limit, int(stat["anon"])
    return 0, 0


class Vigil:
    """Looks until cancelled.

    Args:
        directories: where the agent writes.
        alarms: of the agent.
        certificate: returns beginning and end of the host's own certificate; None: not known.
        used: returns each workload with its address.
        addresses: returns the host's.
        shifted: is called with how the clock went when what is due by the time of day must be looked at anew.
        changed: is called when there are other alarms.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        alarms: Alarms,
        certificate: Callable[[], tuple[datetime, datetime] | None],
        used: Callable[[], Sequence[tuple[str, str]]],
        addresses: Callable[[], Sequence[str]],
        shifted: Callable[[vitals.Shift], None],
        changed: Callable[[], None],
        look_s: float = LOOK_S,
        look: Callable[[Iterable[Path]], Reading] = read,
    ) -> None:
        self._directories = directories
        self._alarms = alarms
        self._certificate = certificate
        self._used = used
        self._addresses = addresses
        self._shifted = shifted
        self._changed = changed
        self._look_s = look_s
        self._read = look
        self._before: Reading | None = None
        self._jumped: vitals.Jumped | None = None

    async def run(self) -> None:
        while True:
            try:
                self.look()
            except OSError as error:
                self._alarms.up("limits.files", f"the agent cannot open a file: {error}: raise LimitNOFILE")
            await asyncio.sleep(self._look_s)

    def look(self) -> None:
        """Look once.

        Raises:
            OSError: there is no descriptor left to look with.
        """
        now = self._read(self._directories)
        before, self._before = self._before or now, now
        went = vitals.shift(before, now)
        if went.matters:
            log.warning("the clock went", jump_s=round(went.jump_s, 1), slept_s=round(went.slept_s, 1))
            self._shifted(went)
        self._raise(self._found(now, went))

    def _found(self, now: Reading, went: vitals.Shift) -> list[Alarm]:
        at = datetime.fromtimestamp(now.wall_s, UTC)
        self._jumped = vitals.jumped(self._jumped, went, now)
        found = [*vitals.of_disk(now.rooms), *vitals.of_limits(now)]
        if self._jumped is not None:
            found.append(self._jumped.alarm)
        certificate = self._certificate()
        if certificate is not None:
            found += vitals.of_certificate(at, *certificate)
        used = self._used()
        return found + (vitals.of_addresses(used, self._addresses()) if used else [])

    def _raise(self, found: Sequence[Alarm]) -> None:
        before = [each.code for each in self._alarms]
        up = {each.code: "; ".join(one.text for one in found if one.code == each.code) for each in found}
        for code in _OURS:
            if code in up:
                self._alarms.up(code, up[code])
            else:
                self._alarms.down(code)
        if [each.code for each in self._alarms] != before:
            self._changed()
