"""The supervisor of one Envoy: carries out what `lifecycle` decides, on a real process.

The agent may end in any way and Envoy goes on; the next agent finds it by its record and watches it by pidfd.
"""

import asyncio
import random
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import process, workdir
from hostmesh_agent.admin import Admin, AdminError
from hostmesh_agent.cgroup import CgroupError
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.envoy_unit import IN_ORDER, Launching
from hostmesh_agent.lifecycle import (
    Action,
    Adopted,
    Event,
    Exited,
    Held,
    Lifecycle,
    Live,
    Phase,
    Start,
    Started,
    StartFailed,
    StopRequested,
    Terminate,
    Tick,
    View,
    WaitUntil,
)

MAX_FILES: Final = 1 << 20
"""Wanted limit of open files: Envoy needs two per proxied connection. Also the kernel's default for fs.nr_open."""
_SAYS_ALL: Final = ("exit code 0", "killed by SIGTERM", "killed by SIGKILL", IN_ORDER)
"""Ends that somebody wanted: what Envoy said before has nothing to do with them."""
_HOUSEKEEPING_S: Final = 60.0
_FIRST_PROBE_S: Final = 0.02
_MAX_PROBE_S: Final = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EnvoyStatus:
    """`restart_needed` says why the running Envoy is not what would be started now; empty if it is."""

    view: View
    version: str
    restart_needed: str


def files_limit(wanted: int = MAX_FILES) -> int:
    """Return how many open files Envoy can be given: as wanted if the agent may raise its limit, else what it has.

    The agent raises its own hard limit to find out: CAP_SYS_RESOURCE is no proof, in a user namespace it has no power.
    """
    wanted = min(wanted, int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii")))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, wanted))
    except ValueError:
        return hard
    return wanted


class Supervisor:
    """Keeps one Envoy running.

    Args:
        command: asked before each start, so that a changed configuration is used by the next Envoy.
        changed: called whenever `status` would answer differently.
        tried: called with "" when an Envoy serves, and with its last words when one ended before it did.
        place: prepares the cgroup in which Envoy is to run, and returns its path; "": where the agent does.
        launching: how it is started and found.
    """

    def __init__(
        self,
        command: Callable[[], EnvoyCommand],
        changed: Callable[[], None],
        launching: Launching,
        tried: Callable[[str], None] = lambda _: None,
        place: Callable[[], str] = str,
    ) -> None:
        self._command = command
        self._changed = changed
        self._tried = tried
        self._place = place
        self._launching = launching
        self._directory = command().directory
        self._admin = Admin(self._directory / "admin.sock")
        # Jitter needs no secret randomness.
        self._lifecycle = Lifecycle(random.random)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._process: process.Process | None = None
        self._record: process.Record | None = None
        self._wake_at: float | None = None
        self._status = EnvoyStatus(self._lifecycle.view(), "", "")

    def status(self) -> EnvoyStatus:
        return self._status

    def command_changed(self) -> None:
        """Look again at what the running Envoy was started with: it keeps that, and the next one is another."""
        record = process.read_record(self._directory)
        if record is None or self._process is None:
            return
        self._status = replace(self._status, restart_needed=self._command().differences(record))
        self._changed()

    def request_stop(self) -> None:
        """End Envoy and start no other; `run` returns when that is done."""
        self._events.put_nowait(StopRequested())

    async def run(self) -> None:
        """Supervise until cancelled (Envoy goes on) or until a requested stop is done."""
        loop = asyncio.get_running_loop()
        workdir.prepare(self._directory, self._command().owner)
        self._adopt()
        async with asyncio.TaskGroup() as tasks:
            probing: asyncio.Task[None] | None = None
            try:
                while self._lifecycle.view().phase is not Phase.STOPPED:
                    event = await self._next(loop.time())
                    self._handle(Held((self._directory / workdir.HOLD).exists()), loop.time())
                    self._handle(event, loop.time())
                    self._handle(Tick(), loop.time())
                    self._publish()
                    if isinstance(event, Adopted | Started):
                        if probing is not None:
                            probing.cancel()
                        probing = tasks.create_task(self._probe(), name="envoy-probe")
            finally:
                if probing is not None:
                    probing.cancel()
                self._let_go()

    async def _next(self, now: float) -> Event:
        workdir.bound_log(self._directory)
        until = min(self._wake_at or now + _HOUSEKEEPING_S, now + _HOUSEKEEPING_S)
        try:
            async with asyncio.timeout_at(until):
                return await self._events.get()
        except TimeoutError:
            return Tick()

    def _handle(self, event: Event, now: float) -> None:
        if isinstance(event, Exited):
            view = self._lifecycle.view()
            log.warning("envoy ended", status=event.status, crash_looping=view.crash_looping)
            if view.phase is Phase.STARTING:
                self._tried(event.status)
        if isinstance(event, Live):
            self._tried("")
        if isinstance(event, Tick):
            self._wake_at = None  # what is still to be waited for, the answer says again
        for action in self._lifecycle.handle(event, now):
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Start():
                self._events.put_nowait(self._start())
            case Terminate(grace_s):
                self._terminate(grace_s)
            case WaitUntil(at):
                self._wake_at = at

    def _start(self) -> Event:
        try:
            command = self._command()
            cgroup = self._place()
            workdir.prepare(command.directory, command.owner)
            workdir.remove_sockets(command.directory)
            workdir.check_reachable(command.installed.path, command.owner)
            workdir.write_bootstrap(command.directory, command.bootstrap, command.owner)
            started = self._launching.spawn(command, cgroup)
        except (OSError, workdir.WorkdirError) as error:
            log.error("envoy cannot be started", error=str(error))
            if isinstance(error, CgroupError):
                # Whoever keeps the rules looks again, and the next try comes after that.
                self._changed()
            return StartFailed(str(error))
        self._watch(started)
        self._status = replace(self._status, version=command.installed.version, restart_needed="")
        log.info("envoy started", pid=started.pid, version=command.installed.version)
        return Started(started.pid)

    def _adopt(self) -> None:
        found = self._launching.find()
        if found is None:
            self._events.put_nowait(Tick())
            return
        record, running = found
        self._watch(running)
        differences = self._command().differences(record)
        self._status = replace(self._status, version=record.version, restart_needed=differences)
        log.info("envoy adopted", pid=record.pid, version=record.version, restart_needed=differences)
        self._events.put_nowait(Adopted(record.pid))

    def _watch(self, running: process.Process) -> None:
        self._process = running
        asyncio.get_running_loop().add_reader(running.fileno(), self._ended, running)

    def _ended(self, ended: process.Process) -> None:
        asyncio.get_running_loop().remove_reader(ended.fileno())
        status = ended.exit_status()
        words = "" if status in _SAYS_ALL else workdir.last_words(self._directory)
        ended.close()
        self._process = None
        self._events.put_nowait(Exited(f"{status}: {words}" if words else status))

    def _let_go(self) -> None:
        if self._process is not None:
            asyncio.get_running_loop().remove_reader(self._process.fileno())
            self._process.close()
            self._process = None

    def _terminate(self, grace_s: float) -> None:
        target = self._process
        if target is None:
            return
        target.signal(signal.SIGTERM)

        def kill() -> None:
            if self._process is target:
                target.signal(signal.SIGKILL)

        asyncio.get_running_loop().call_later(grace_s, kill)

    async def _probe(self) -> None:
        """Ask a starting Envoy until it serves, and then no more."""
        pause_s = _FIRST_PROBE_S
        while True:
            try:
                if await self._admin.live():
                    self._events.put_nowait(Live())
                    return
            except AdminError:
                pass  # not yet: the socket comes with Envoy
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _MAX_PROBE_S)

    def _publish(self) -> None:
        view = self._lifecycle.view()
        if view != self._status.view:
            self._status = replace(self._status, view=view)
            self._changed()
