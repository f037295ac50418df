"""Envoy as a unit of systemd's, hostmesh-envoy@INSTANCE.service: hardened by itself, and nobody's child.

The agent decides when it starts and ends, as with a child. systemd does it, and knows how one ended that an agent
before this one had started.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from hostmesh_agent import launch, process, rights, workdir
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.launch import NET_BIND_SERVICE, NET_RAW
from hostmesh_agent.notify import STATE_DIR, SYSTEMD_RUNS, of_the_units
from hostmesh_agent.notify import UNIT as AGENTS_UNIT
from hostmesh_agent.places import Instance
from hostmesh_api.wire import ENVOY_SLICES

_GRANTED: Final = frozenset({NET_BIND_SERVICE, NET_RAW})
"""The unit's AmbientCapabilities."""
_RUN_DIR: Final = Path("/run/hostmesh")
"""That of the units."""
IN_ORDER: Final = "ended in order (systemd says no more)"
LAUNCH: Final = "launch"
"""Where the units read what they are to become, below the agent's run directory."""
_REAPED_WITHIN_S: Final = 1.0
_POLL_S: Final = 0.01
_NOT_STARTED: Final = str(launch.EXIT_NOT_STARTED)
_EXITED: Final = "1"  # CLD_EXITED
_ASKED: Final = ("LoadState", "User", "ActiveState", "MainPID", "ExecMainPID", "ExecMainCode", "ExecMainStatus")


class Launching(Protocol):
    """How one of the two Envoys comes to be."""

    def spawn(self, command: EnvoyCommand, cgroup: str) -> process.Process:
        """Start it, by which there is a record of it. `cgroup` is where it is to be. Raises OSError. Blocks."""

    def recover(self) -> None:
        """Write the record of one that runs and has none, for an agent was killed in between."""

    def find(self) -> tuple[process.Record, process.Process] | None:
        """Return the one that runs, with a hold on it."""


class AsChild:
    """The agent starts it, where there is no systemd or agent.toml wants it so."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def spawn(self, command: EnvoyCommand, cgroup: str) -> process.Process:
        log_descriptor = workdir.open_log(command.directory)
        try:
            return process.spawn(command.spec(cgroup), log_descriptor)
        finally:
            os.close(log_descriptor)

    def recover(self) -> None:
        """Do nothing: it writes its record before it is Envoy."""

    def find(self) -> tuple[process.Record, process.Process] | None:
        return process.open_recorded(self._directory)


class AsUnit:
    """systemd starts it. What the unit has no right for is started as a child."""

    def __init__(
        self, instance: Instance, directory: Path, run_dir: Path = _RUN_DIR, systemctl: str = "systemctl"
    ) -> None:
        self._unit = unit_of(instance)
        self._directory = directory
        self._spec = run_dir / LAUNCH / f"{instance}.json"
        self._systemctl = systemctl
        self._child = AsChild(directory)

    def spawn(self, command: EnvoyCommand, cgroup: str) -> process.Process:
        spec = command.spec("")
        if not _GRANTED.issuperset(spec["capabilities"]):
            return self._child.spawn(command, cgroup)
        # It is Envoy's user already, within the unit's limits; the record is written here, for that user's word counts
        # for nothing.
        spec["uid"], spec["max_files"], spec["record"] = None, 0, ""
        spec["log"] = str(command.directory / workdir.LOG)
        # An agent that is not root gets at Envoy's sockets by Envoy's group.
        spec["umask"] = 0o007
        os.close(workdir.open_log(command.directory))
        _write(self._spec, json.dumps(spec))
        # Not `start`: systemd may not have seen yet that the one before has ended.
        _call(self._systemctl, "restart", self._unit)
        pid = _main_pid(_show(self._systemctl, self._unit))
        try:
            launch.write_record(str(self._directory / process.RECORD), spec["facts"], pid)
            return UnitProcess(pid, self._unit, self._systemctl)
        except ProcessLookupError:
            how, words = _ending(self._systemctl, self._unit, None), workdir.last_words(self._directory)
            raise OSError(f"{self._unit}: it ended at once: {how}: {words}") from None

    def recover(self) -> None:
        if process.recorded_runs(self._directory):
            return
        with suppress(OSError, ValueError, KeyError, TypeError):
            pid = _main_pid(_show(self._systemctl, self._unit))
            if pid:
                facts = json.loads(self._spec.read_bytes())["facts"]
                launch.write_record(str(self._directory / process.RECORD), facts, pid)

    def find(self) -> tuple[process.Record, process.Process] | None:
        found = self._child.find()
        if found is None:
            return None
        record, running = found
        with suppress(OSError):
            if _main_pid(_show(self._systemctl, self._unit)) == record.pid:
                running.close()
                return record, UnitProcess(record.pid, self._unit, self._systemctl)
        return record, running


class UnitProcess(process.Process):
    """The main process of a unit."""

    def __init__(self, pid: int, unit: str, systemctl: str) -> None:
        """Raises ProcessLookupError where there is none."""
        super().__init__(pid)
        self._unit = unit
        self._systemctl = systemctl

    def exit_status(self) -> str:
        try:
            return _ending(self._systemctl, self._unit, self.pid)
        except OSError:
            return super().exit_status()


def unit_of(instance: Instance) -> str:
    return f"hostmesh-envoy@{instance}.service"


def why_not(
    config: AgentConfig, proc: Path = Path("/proc"), runs: Path = SYSTEMD_RUNS, systemctl: str = "systemctl"
) -> str:
    """Return why Envoy is no unit here; "" if it is to be one. Blocks for some milliseconds."""
    if config.envoy.supervisor == "builtin":
        return 'agent.toml says envoy.supervisor = "builtin"'
    if not runs.is_dir():
        return "systemd does not run here"
    own = (proc / "self/cgroup").read_text(encoding="utf-8")
    if f"/{AGENTS_UNIT}" not in own:
        return f"the agent does not run as {AGENTS_UNIT}"
    if (config.state_dir, config.run_dir) != (STATE_DIR, _RUN_DIR):
        return f"the unit is for {STATE_DIR} and {_RUN_DIR}"
    try:
        said = _show(systemctl, unit_of(Instance.BLUE))
    except OSError as error:
        return str(error)
    if said.get("LoadState") != "loaded":
        return f"there is no {unit_of(Instance.BLUE)}"
    if said.get("User") != config.envoy.user:
        return f"the unit is for user {said.get('User')!r}, agent.toml says {config.envoy.user!r}"
    return ""


def launching(instance: Instance, config: AgentConfig, why_no_unit: str) -> Launching:
    directory = config.directory_of(instance)
    return AsChild(directory) if why_no_unit else AsUnit(instance, directory)


def stop_all(state_dir: Path, systemctl: str = "systemctl") -> None:
    """End both units and their slices, where they are of this state directory: of one there may be no record."""
    if of_the_units(state_dir):
        for each in (*map(unit_of, Instance), *reversed(ENVOY_SLICES)):
            with suppress(OSError):
                _call(systemctl, "stop", each)


def _ending(systemctl: str, unit: str, pid: int | None) -> str:
    """Say how the main process (None: whichever was the last) ended, of a unit whose main process has ended.

    Where the unit failed, systemd is told that somebody knows: the host would stay degraded.
    """
    said = _when_it_knows(systemctl, unit)
    if said.get("ActiveState") == "failed":
        _call(systemctl, "reset-failed", unit)
    code, status = said.get("ExecMainCode", ""), said.get("ExecMainStatus", "")
    if code in {"", "0"} or said.get("ExecMainPID") != str(pid or said.get("ExecMainPID")):
        # It keeps nothing of a unit that ended as it should.
        return IN_ORDER if said.get("ActiveState") == "inactive" else "ended (systemd does not say how)"
    if code != _EXITED:
        return process.killed_by(int(status))
    return f"exit code {status}" + (f" (journalctl -u {unit} says why)" if status == _NOT_STARTED else "")


def _when_it_knows(systemctl: str, unit: str) -> dict[str, str]:
    """Ask until it has seen that the main process ended, which it hears of when we do."""
    until = time.monotonic() + _REAPED_WITHIN_S
    while _main_pid(said := _show(systemctl, unit)) and time.monotonic() < until:
        time.sleep(_POLL_S)
    return said


def _main_pid(said: Mapping[str, str]) -> int:
    """Return the main process's number, 0 if there is none."""
    found = said.get("MainPID", "")
    return int(found) if found.isdecimal() else 0


def _show(systemctl: str, unit: str) -> dict[str, str]:
    lines = _call(systemctl, "show", unit, _ASKED).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _call(systemctl: str, verb: str, unit: str, properties: Sequence[str] = ()) -> str:
    return rights.here().systemctl(systemctl, verb, unit, properties)


def _write(path: Path, text: str) -> None:
    """Put it there for everybody to read, and for us to write."""
    path.parent.mkdir(exist_ok=True)
    # Whatever the umask is just now: while a socket is made it is another one.
    path.parent.chmod(0o755)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o644)
        file.write(text)
    draft.replace(path)
