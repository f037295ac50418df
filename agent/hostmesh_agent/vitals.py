"""What an agent notices of its host beside its own work: disk, limits, clock, addresses. Pure: readings in, alarms out.

Of the clock: wall time and time since boot advance together. Where they part, somebody has set the clock; where the
time since boot has advanced and the monotonic time has not, the machine has slept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from hostmesh_agent.alarms import Alarm
from hostmesh_agent.budget import ENOUGH_FILES

FULL_BYTES: Final = 4 << 20
"""A renewed certificate and a batch of configuration fit in; there is no room for much more."""
_NEAR: Final = 0.85
JUMP_S: Final = 60.0
SLEEP_S: Final = 10.0
TOLD_FOR_S: Final = 3600.0
"""A jump of the clock is over at once: its alarm stays up for as long, for people to see, unless it is put back."""


@dataclass(frozen=True, slots=True)
class Room:
    """Of one directory. `free_bytes` for this process; None where the disk does not say."""

    path: str
    free_bytes: int | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """One look. Times in seconds: of the day, since boot with sleep, since boot without. Limits 0: none is set."""

    wall_s: float
    boottime_s: float
    monotonic_s: float
    rooms: tuple[Room, ...]
    files: int
    max_files: int
    memory_bytes: int
    max_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Shift:
    """How the clock went between two looks: `jump_s` by which it was set (negative: back), `slept_s`."""

    jump_s: float = 0.0
    slept_s: float = 0.0

    @property
    def slept(self) -> bool:
        """Whether the machine slept for so long that its connections may have ended without a word."""
        return self.slept_s >= SLEEP_S

    @property
    def matters(self) -> bool:
        """Whether what is due by the time of day must be looked at anew."""
        return abs(self.jump_s) >= JUMP_S or self.slept


def shift(before: Reading, now: Reading) -> Shift:
    """Return how the clock went; the work of a clock's daemon, which slews, is far below what counts."""
    passed_s = now.boottime_s - before.boottime_s
    return Shift((now.wall_s - before.wall_s) - passed_s, passed_s - (now.monotonic_s - before.monotonic_s))


def of_disk(rooms: Iterable[Room]) -> list[Alarm]:
    """Say where nothing can be written any more."""
    found: list[Alarm] = []
    for room in rooms:
        if room.read_only:
            found.append(
                Alarm(
                    "disk.read-only", f"{room.path} is on a read-only file system: what runs goes on, nothing is kept"
                )
            )
        elif room.free_bytes is not None and room.free_bytes < FULL_BYTES:
            text = f"{room.path} has {room.free_bytes >> 10} KiB left: what runs goes on; make room before a reboot"
            found.append(Alarm("disk.full", text))
    return found


def of_limits(now: Reading) -> list[Alarm]:
    """Say which limit of this process is near."""
    found: list[Alarm] = []
    if now.max_files and (now.files >= _NEAR * now.max_files or now.max_files < ENOUGH_FILES):
        text = f"{now.files} of {now.max_files} files are open: raise LimitNOFILE of hostmesh-agent.service"
        found.append(Alarm("limits.files", text))
    if now.max_memory_bytes and now.memory_bytes >= _NEAR * now.max_memory_bytes:
        used, limit = now.memory_bytes >> 20, now.max_memory_bytes >> 20
        found.append(
            Alarm("limits.memory", f"{used} of {limit} MiB are used: raise MemoryMax of hostmesh-agent.service")
        )
    return found


def of_certificate(now: datetime, not_before: datetime, not_after: datetime) -> list[Alarm]:
    """Say what the host's own certificate tells of its clock.

    A clock before the certificate's beginning is wrong for certain. One behind its end may be right.
    """
    told = f"this host's clock says {now:%Y-%m-%d %H:%M}Z"
    if now < not_before:
        text = f"{told}, its certificate begins at {not_before:%Y-%m-%d %H:%M}Z: set the clock; nothing is thrown away"
        return [Alarm("clock.behind", text)]
    if now >= not_after:
        text = (
            f"{told}, its certificate ended at {not_after:%Y-%m-%d %H:%M}Z: if the clock is right the host comes back "
            "by its last key, else set the clock; nothing is thrown away"
        )
        return [Alarm("clock.certificate-ended", text)]
    return []


@dataclass(frozen=True, slots=True)
class Jumped:
    """The clock was set: `alarm` tells of the last time, at `boottime_s`; `off_s` is by how much in all."""

    alarm: Alarm
    boottime_s: float
    off_s: float


def jumped(before: Jumped | None, found: Shift, now: Reading) -> Jumped | None:
    """Return what is to be told of a clock that was set; None once it is back, or after some time."""
    if before is not None and now.boottime_s - before.boottime_s >= TOLD_FOR_S:
        before = None
    if abs(found.jump_s) < JUMP_S:
        return before
    off_s = found.jump_s + (0.0 if before is None else before.off_s)
    if abs(off_s) < JUMP_S:
        return None
    way, at = "forward" if found.jump_s > 0 else "back", datetime.fromtimestamp(now.wall_s, UTC)
    text = f"the clock was set {way} by {abs(found.jump_s):.0f} s, to {at:%Y-%m-%d %H:%M}Z"
    return Jumped(Alarm("clock.jumped", text), now.boottime_s, off_s)


def of_addresses(used: Iterable[tuple[str, str]], here: Sequence[str]) -> list[Alarm]:
    """Say which workloads have addresses that the host has no more.

    Args:
        used: workload (NAMESPACE/NAME) and its address, "" where it has none of its own.
        here: the host's addresses; none: they could not be read.
    """
    if not here:
        return []
    found = []
    for name, address in used:
        if address and address not in here:
            text = (
                f"{name} has the address {address}, which this host has no more (it has {', '.join(here[:8])}): "
                "callers do not reach it before the controller has followed; address.not-followed says why it does not"
            )
            found.append(Alarm("address.changed", text))
    return found
