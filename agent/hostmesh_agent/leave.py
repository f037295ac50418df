"""The host leaves the mesh: it is as it was before. Works with the controller gone and the agent dead.

    agent ends ▶ controller told ▶ names ▶ capture ▶ Envoy ▶ certificates ▶ cache ▶ identity

In this order: rules go before the Envoy they lead to, and the identity goes last, so that a `leave` that was cut short
can be called again.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from hostmesh_agent import (
    arming,
    capture,
    cgroup,
    chosen_binary,
    control,
    drain,
    drained,
    enrol,
    guard,
    hold,
    life_file,
    lock,
    process,
    widening,
)
from hostmesh_agent.admin import Admin
from hostmesh_agent.bootstrap import ADMIN_SOCKET
from hostmesh_agent.cgroup import EnvoyGroup
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.dns import ResolverError
from hostmesh_agent.places import Instance
from hostmesh_agent.resolution import Resolution
from hostmesh_agent.state import State, StateError
from hostmesh_agent.status import CAPTURE_OFF
from hostmesh_agent.workload_api import svids

AGENT_ENDS_WITHIN_S: Final = 15.0
ENVOY_ENDS_WITHIN_S: Final = 10.0
TELL_WITHIN_S: Final = 10.0

Step = tuple[str, Callable[[], str]]
"""What is done, and the doing; that returns what is worth telling, or "" if nothing was to be done."""


def leave(config: AgentConfig, *, purge: bool, tell: Callable[[str], None]) -> bool:
    """Leave; return whether everything was undone. Each step is tried whatever became of the ones before.

    Raises:
        LockedError: the agent does not end.
    """
    with suppress(control.AgentAbsentError):
        control.call(config.control_socket, control.RELEASE)
    with suppress(control.ControlError):
        # Else it would put back, later, what was in force before the trial.
        arming.tell(config.run_dir, arming.UNDO)
    done = True
    with lock.held(config.state_dir, AGENT_ENDS_WITHIN_S):
        for what, act in _steps(config):
            try:
                told = act()
            except (OSError, StateError, ResolverError, capture.CaptureError) as error:
                tell(f"{what}: {error}")
                done = False
            else:
                if told:
                    tell(f"{what}: {told}")
        if done and purge:
            shutil.rmtree(config.state_dir, ignore_errors=True)
            shutil.rmtree(config.run_dir, ignore_errors=True)
            tell(f"{config.state_dir} and {config.run_dir}: removed")
    return done


def _steps(config: AgentConfig) -> Iterator[Step]:
    state = State(config.state_dir)
    yield "controller", lambda: _tell_controller(state)
    yield "name resolution", lambda: _restore_names(config)
    yield "capture", _clear_capture
    yield "Envoy", lambda: _stop_envoy(config)
    yield "Envoy's files", lambda: _remove_tree(config)
    yield "identity", lambda: _forget(state)


def _tell_controller(state: State) -> str:
    """Best effort: a controller that is gone keeps nobody in the mesh."""
    if not state.joined:
        return ""
    try:
        asyncio.run(asyncio.wait_for(enrol.leave(state, lambda: datetime.now(UTC)), TELL_WITHIN_S))
    except (enrol.EnrolError, StateError, TimeoutError) as error:
        why = str(error) or f"no answer within {TELL_WITHIN_S:g} s"
        return f"could not be told ({why}): remove the host there (hostmesh host remove)"
    return "told"


def _restore_names(config: AgentConfig) -> str:
    Resolution(config.dns.resolv_conf, config.state_dir).restore()
    return ""


def _clear_capture() -> str:
    had_rules = capture.Capture().state().state != "off"
    capture.clear()
    return "removed" if had_rules else ""


def _stop_envoy(config: AgentConfig) -> str:
    """Nothing new comes to it any more, once capture is gone; what is under way may finish."""
    active = life_file.active_directory(config)
    if process.recorded_runs(active):
        asyncio.run(drain.drained(Admin(active / ADMIN_SOCKET), drain.noted_s(config.envoy_dir)))
    stopped = [process.stop_recorded(config.directory_of(each), ENVOY_ENDS_WITHIN_S) for each in Instance]
    EnvoyGroup(*cgroup.usable()).remove()
    return "stopped" if any(stopped) else ""


def _remove_tree(config: AgentConfig) -> str:
    """The binary stays: it holds nothing of this mesh, and is verified again before it is used."""
    for directory in (
        *(config.directory_of(each) for each in Instance),
        config.state_dir / "cache",
        config.state_dir / svids.DIRECTORY,
        config.workload_api_dir,
    ):
        if directory.exists():
            shutil.rmtree(directory)
    for path in (
        config.xds_socket,
        config.control_socket,
        config.workload_socket,
        config.state_dir / CAPTURE_OFF,
        config.state_dir / hold.FILE,
        config.state_dir / widening.LAST_GOOD,
        config.state_dir / guard.FILE,
        config.state_dir / guard.SPARE,
        config.state_dir / life_file.FILE,
        config.state_dir / chosen_binary.FILE,
        config.state_dir / drained.FILE,
    ):
        path.unlink(missing_ok=True)
    return ""


def _forget(state: State) -> str:
    joined = state.joined
    state.forget()
    return "removed" if joined else ""
