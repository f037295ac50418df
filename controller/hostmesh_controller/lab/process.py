"""Processes the lab started: known by pid and start time, reached through a pidfd, so that no other is ever hit."""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hostmesh_controller.lab.errors import LabError


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process for all time: its pid, when it started (clock ticks since the boot), and which boot."""

    pid: int
    started_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Record a running process.

        Raises:
            ProcessLookupError: it has ended already.
        """
        started_ticks = _started_ticks(pid)
        if started_ticks is None:
            raise ProcessLookupError(pid)
        return cls(pid, started_ticks, _boot_id())

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        return cls(document["pid"], document["started_ticks"], document["boot_id"])

    def to_dict(self) -> dict[str, Any]:
        return {"pid": self.pid, "started_ticks": self.started_ticks, "boot_id": self.boot_id}


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None when there is no such process or only its exit status is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name, in parentheses, may hold anything: count from behind it.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


@contextmanager
def opened(record: ProcessRecord | None) -> Iterator[int | None]:
    """Hold a pidfd of exactly the recorded process, None when it has ended."""
    if record is None or record.boot_id != _boot_id():
        yield None
        return
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Looked at after opening: what the pidfd names cannot change any more.
        yield pidfd if _started_ticks(record.pid) == record.started_ticks else None
    finally:
        os.close(pidfd)


def alive(record: ProcessRecord | None) -> bool:
    with opened(record) as pidfd:
        return pidfd is not None


def end(record: ProcessRecord | None, number: signal.Signals, wait_s: float) -> bool:
    """Send the signal and wait for the end; False when there was no such process any more.

    Raises:
        LabError: it has not ended within `wait_s`.
    """
    with opened(record) as pidfd:
        if pidfd is None or record is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(wait_s * 1000):
            raise LabError(f"process {record.pid} has not ended {wait_s:.0f} s after {number.name}")
        return True


def in_pid_namespace_of(record: ProcessRecord) -> list[ProcessRecord]:
    """Every process that shares the recorded process's PID namespace, itself excluded."""
    with opened(record) as pidfd:
        if pidfd is None:
            return []
        wanted = _pid_namespace(record.pid)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != record.pid and _pid_namespace(int(entry.name)) == wanted:
            with contextlib.suppress(ProcessLookupError):
                found.append(ProcessRecord.of(int(entry.name)))
    return found


def _pid_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - a magic link, not a path
    except OSError:
        return None


def command_line(pid: int) -> list[str]:
    """The process's arguments, empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def executable(pid: int) -> str:
    """Name of the program file the process runs, "" when that cannot be seen."""
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name.removesuffix(" (deleted)")  # noqa: PTH115 - a magic link
    except OSError:
        return ""
