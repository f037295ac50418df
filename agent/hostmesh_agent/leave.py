"""The host leaves the mesh: it is as it was before. Works with the controller gone, and with the agent dead or hung.

    agent ends ▶ controller told ▶ names ▶ capture ▶ Envoy ▶ certificates ▶ cache ▶ identity

In this order: rules go before the Envoy they lead to, and the identity goes last, so that a `leave` that was cut short
can be called again. Who does not answer is ended: the agent (its lock and its table in the kernel are free then, and
its end changes no rule), Envoy, and an Envoy of which no record tells.
"""

import asyncio
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hostmesh_agent import (
    arming,
    artifact_fetch,
    as_root,
    capture,
    cgroup,
    chosen_binary,
    control,
    controller_addresses,
    drain,
    drained,
    enrol,
    envoy_unit,
    guard,
    hold,
    holders,
    life_file,
    lock,
    notify,
    process,
    resolution,
    standing_in,
    update_ledger,
    widening,
)
from hostmesh_agent.admin import Admin, AdminError
from hostmesh_agent.bootstrap import ADMIN_SOCKET
from hostmesh_agent.cgroup import EnvoyGroup
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.dns import ResolverError
from hostmesh_agent.own_unit import UnitError
from hostmesh_agent.places import Instance
from hostmesh_agent.state import State, StateError
from hostmesh_agent.status import CAPTURE_OFF
from hostmesh_agent.upgrader import record
from hostmesh_agent.workload_api import svids

AGENT_ANSWERS_WITHIN_S: Final = 5.0
AGENT_ENDS_WITHIN_S: Final = 15.0
ENVOY_ENDS_WITHIN_S: Final = 10.0
HUNG_ENVOY_ENDS_WITHIN_S: Final = 1.0
"""Of one that does not answer: it is asked all the same, as it may only have been slow."""
TELL_WITHIN_S: Final = 10.0
TIMER_ENDS_WITHIN_S: Final = 5.0
_LOCK_IS_FREE_WITHIN_S: Final = 5.0
_RULES_ARE_FREE_WITHIN_S: Final = 5.0
_POLL_S: Final = 0.05

_CAPTURE: Final = "capture"
Step = tuple[str, Callable[[], str]]
"""What is done, and the doing; that returns what is worth telling, or "" if nothing was to be done."""


def leave(config: AgentConfig, *, purge: bool, tell: Callable[[str], None]) -> bool:
    """Leave; return whether everything was undone.

    Each step is tried whatever became of the ones before; but while rules lead to Envoy it stays, and the identity with
    which a `leave` that is called again, or an agent, can mend that.

    Args:
        config: where the agent's files are.
        purge: its directories go too, with Envoy's binary; else they stay, without anything of this mesh.
        tell: is given each thing that was done, or could not be.

    Raises:
        LockedError: another `leave` is at work.
    """
    had_state = config.state_dir.exists()
    with _alone(config, tell):
        undone = []
        for what, act in _steps(config):
            if not _tried(what, act, tell):
                undone.append(what)
                if what == _CAPTURE and _rules_are_there():
                    tell("Envoy and the identity stay: the rules lead there; mend that, and call leave again")
                    break
        done = not undone
        if done:
            notify.left_well(config.state_dir)
        if done and (purge or not had_state):
            done = _tried("unit", lambda: _no_more_as_root(config), tell)
            done = _tried("directories", lambda: _remove_directories(config), tell) and done
    return done


def _tried(what: str, act: Callable[[], str], tell: Callable[[str], None]) -> bool:
    try:
        told = act()
    except (OSError, StateError, ResolverError, capture.CaptureError, UnitError) as error:
        tell(f"{what}: {error}")
        return False
    if told:
        tell(f"{what}: {told}")
    return True


@contextmanager
def _alone(config: AgentConfig, tell: Callable[[str], None]) -> Iterator[None]:
    """Be the only one who works on the host: the agent ends, by itself or by force.

    Raises:
        LockedError: who holds the lock is no agent.
    """
    patience_s = AGENT_ENDS_WITHIN_S
    with ExitStack() as stack:
        agents = stack.enter_context(holders.held(holders.is_agent_of(config.state_dir)))
        notify.stay_down(config.state_dir)
        try:
            control.call(config.control_socket, control.RELEASE, AGENT_ANSWERS_WITHIN_S)
        except control.AgentAbsentError:
            pass  # none runs, or one that is only starting, or ending
        except control.ControlError as error:
            # Who ends hangs up; who hangs does not.
            if isinstance(error.__cause__, TimeoutError):
                patience_s = 0.0
        _end_timers(config)
        try:
            stack.enter_context(_lock(config, patience_s))
        except lock.LockedError:
            if holders.end(holders.is_agent_of(config.state_dir)):
                tell("agent: it did not answer and was killed")
            elif holders.found(holders.holds_lock(config.state_dir / lock.FILE)):
                raise
            stack.enter_context(_lock(config, _LOCK_IS_FREE_WITHIN_S))
        # An agent lets go of its lock before it ends. Until then its table is its own, and a thread may be at work.
        for each in agents:
            if not each.wait(AGENT_ENDS_WITHIN_S):
                each.signal(signal.SIGKILL)
                each.wait(_LOCK_IS_FREE_WITHIN_S)
                tell("agent: it did not end and was killed")
        yield


@contextmanager
def _lock(config: AgentConfig, wait_s: float) -> Iterator[None]:
    """Hold the agent's lock, made by whom the agent is."""
    with ExitStack() as stack:
        with standing_in.for_a_while(config.state_dir):
            stack.enter_context(lock.held(config.state_dir, wait_s))
        yield


def _as_agent(config: AgentConfig, act: Callable[[], str]) -> str:
    with standing_in.for_a_while(config.state_dir):
        return act()


def _end_timers(config: AgentConfig) -> None:
    """End what would put back, later, what was in force before a change of capture.

    It undoes the change itself where it answers; it must be gone before anything is cleared.
    """
    with suppress(control.ControlError):
        arming.tell(config.run_dir, arming.UNDO, why="the host leaves the mesh")
    until = time.monotonic() + TIMER_ENDS_WITHIN_S
    while holders.found(holders.is_timer) and time.monotonic() < until:
        time.sleep(_POLL_S)
    holders.end(holders.is_timer)


def _steps(config: AgentConfig) -> Iterator[Step]:
    state = State(config.state_dir)
    yield "controller", lambda: _as_agent(config, lambda: _tell_controller(state))
    yield "name resolution", lambda: _restore_names(config)
    yield _CAPTURE, _clear_capture
    yield "Envoy", lambda: _stop_envoy(config)
    yield "Envoy's files", lambda: _as_agent(config, lambda: _remove_tree(config))
    yield "identity", lambda: _as_agent(config, lambda: _forget(state))


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
    resolution.take_back(config.dns.resolv_conf, config.state_dir)
    return ""


def _clear_capture() -> str:
    had_rules = capture.Capture().state().state != "off"
    until = time.monotonic() + _RULES_ARE_FREE_WITHIN_S
    while True:
        try:
            capture.clear()
        except capture.CaptureError:
            # They may belong to a process of ours that no longer answers, such as an agent of another state directory;
            # or to one that is ending just now, and is not found any more.
            if not holders.end(holders.holds_netfilter) and time.monotonic() > until:
                raise
            time.sleep(_POLL_S)
        else:
            return "removed" if had_rules else ""


def _rules_are_there() -> bool:
    return capture.Capture().state().rules_hash != ""


def _stop_envoy(config: AgentConfig) -> str:
    """Nothing new comes to it any more, once capture is gone; what is under way may finish."""
    grace_s = HUNG_ENVOY_ENDS_WITHIN_S
    with standing_in.for_a_while(config.state_dir):
        active = life_file.active_directory(config)
        runs = process.recorded_runs(active)
    if runs:
        admin = Admin(active / ADMIN_SOCKET)
        if asyncio.run(_answers(admin)):
            grace_s = ENVOY_ENDS_WITHIN_S
            asyncio.run(drain.drained(admin, drain.noted_s(config.envoy_dir)))
    stopped = [process.stop_recorded(config.directory_of(each), grace_s) for each in Instance]
    envoy_unit.stop_all(config.state_dir)
    strays = holders.end(holders.is_envoy_of(config.state_dir), grace_s)
    EnvoyGroup(*cgroup.usable()).remove()
    return "stopped" if any(stopped) or strays else ""


async def _answers(admin: Admin) -> bool:
    try:
        await admin.live()
    except AdminError:
        return False
    return True


def _remove_tree(config: AgentConfig) -> str:
    """The binary stays: it holds nothing of this mesh, and is verified again before it is used."""
    for directory in (
        *(config.directory_of(each) for each in Instance),
        config.state_dir / "cache",
        config.state_dir / artifact_fetch.DIRECTORY,
        config.state_dir / svids.DIRECTORY,
        config.run_dir / envoy_unit.LAUNCH,
        config.workload_api_dir,
    ):
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
    for path in (
        config.xds_socket,
        config.control_socket,
        config.workload_socket,
        config.state_dir / CAPTURE_OFF,
        config.state_dir / hold.FILE,
        config.state_dir / widening.LAST_GOOD,
        config.state_dir / controller_addresses.FILE,
        config.state_dir / guard.FILE,
        config.state_dir / guard.SPARE,
        config.state_dir / life_file.FILE,
        config.state_dir / chosen_binary.FILE,
        *(config.state_dir / each for each in update_ledger.FILES),
        config.state_dir / drained.FILE,
        config.run_dir / drained.FILE,
    ):
        path.unlink(missing_ok=True)
    return ""


def _forget(state: State) -> str:
    joined = state.joined
    state.forget()
    return "removed" if joined else ""


def _empty(directory: Path) -> None:
    for each in directory.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)


def _no_more_as_root(config: AgentConfig) -> str:
    done = as_root.possible(config.state_dir) and as_root.switch(on=False)
    return "it is as the package has it" if done else ""


def _remove_directories(config: AgentConfig) -> str:
    """Remove the directories and all that is in them, also what an agent of another version left there.

    What upgrades of the package left goes, too, where the host's own agent leaves. A directory that is a mount stays,
    empty: whoever mounted it takes it away.
    """
    removed = []
    of_upgrades = (record.STATE,) if notify.of_the_units(config.state_dir) else ()
    for directory in (config.run_dir, config.state_dir, *of_upgrades):
        if not directory.exists():
            continue
        with standing_in.for_a_while(config.state_dir):
            _empty(directory)
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or not os.path.ismount(directory):
                raise
        removed.append(str(directory))
    return f"{' and '.join(removed)} removed" if removed else ""
