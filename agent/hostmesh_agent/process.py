"""Envoy as a process that may be somebody else's child: found by its record, held by a pidfd."""

import contextlib
import json
import os
import select
import signal
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import launch, rights

log = structlog.get_logger(__name__)

RECORD: Final = "envoy.pid.json"


@dataclass(frozen=True, slots=True)
class Record:
    """The Envoy that was started last: who it is (`pid`, `start_ticks`, `boot_id`) and what it was started from.

    `arguments` are for `EnvoyCommand.with_arguments`; "": an agent before this one did not write them.
    """

    pid: int
    start_ticks: int
    boot_id: str
    binary: str
    version: str
    sha256: str
    bootstrap_sha256: str
    command_sha256: str
    arguments: str = ""

    def runs(self) -> bool:
        """Whether exactly this process is alive: a recycled pid has another start, another boot another boot id."""
        try:
            return launch.boot_id() == self.boot_id and launch.start_ticks(self.pid) == self.start_ticks
        except ProcessLookupError:
            return False


def read_record(directory: Path) -> Record | None:
    """Return the record, or None where there is none that can be trusted.

    It names a process that root will signal, so only a file that this user (root) wrote counts: Envoy's own user may
    create files in the directory.
    """
    try:
        descriptor = os.open(directory / RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if info.st_uid != os.geteuid() or not stat.S_ISREG(info.st_mode):
            return None
        try:
            document = {"arguments": "", **json.loads(file.read(1 << 16))}
            return Record(**{name: kind(document[name]) for name, kind in _RECORD_FIELDS.items()})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


_RECORD_FIELDS: Final[dict[str, type]] = dict(Record.__annotations__)


def remove_record(directory: Path) -> None:
    (directory / RECORD).unlink(missing_ok=True)


class Process:
    """A running process, by pidfd: no signal ever meets a recycled pid. Close it after use."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError where there is none."""
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process ends."""
        return self._descriptor

    def signal(self, number: signal.Signals) -> None:
        """Send it, where the process is there still. One that is not ours to end is told of, and goes on."""
        try:
            rights.here().signal(self._descriptor, self.pid, number)
        except ProcessLookupError:
            pass
        except rights.RightsError as error:
            log.error("a process cannot be signalled", pid=self.pid, reason=str(error))

    def wait(self, timeout_s: float) -> bool:
        """Whether the process ended within the time. Blocks."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def exit_status(self) -> str:
        """Say how the ended process ended, and reap it if it was our child."""
        try:
            result = os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            # Started by an earlier agent: init is its parent and alone learns the code.
            return "ended (exit code unknown: it was started by an earlier agent)"
        if result is None:
            return "still running"
        if result.si_code == os.CLD_EXITED:
            return f"exit code {result.si_status}"
        return killed_by(result.si_status)

    def close(self) -> None:
        os.close(self._descriptor)


def killed_by(number: int) -> str:
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(number).name}"
    return f"killed by signal {number}"


def open_recorded(directory: Path) -> tuple[Record, Process] | None:
    """Return the recorded Envoy if it runs, with a hold on it."""
    record = read_record(directory)
    if record is None or not record.runs():
        return None
    try:
        process = Process(record.pid)
    except ProcessLookupError:
        return None
    # Asked again with the pidfd in hand: between the first look and the open the pid may have changed hands.
    if not record.runs():
        process.close()
        return None
    return record, process


def recorded_runs(directory: Path) -> bool:
    record = read_record(directory)
    return record is not None and record.runs()


def stop_recorded(directory: Path, grace_s: float) -> bool:
    """End the recorded Envoy, whoever started it; return whether there was one. Blocks for `grace_s` and a little."""
    found = open_recorded(directory)
    if found is not None:
        _, process = found
        try:
            process.signal(signal.SIGTERM)
            if not process.wait(grace_s):
                process.signal(signal.SIGKILL)
                process.wait(grace_s)
        finally:
            process.close()
    remove_record(directory)
    return found is not None


def spawn(spec: launch.Spec, log_descriptor: int) -> Process:
    """Start Envoy through `launch`, in a session of its own, with nothing of ours but its log."""
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", launch.__file__, json.dumps(spec)],
        {},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log_descriptor, 1),
            (os.POSIX_SPAWN_DUP2, log_descriptor, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
    )
    return Process(pid)
