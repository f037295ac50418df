"""What befalls the agent: it is in nobody's way, so nobody notices."""

import os
import signal
import time
from typing import Final

from faults.fault import Fault, PromiseBrokenError
from faults.scene import CLIENT, MESH, SERVER, Scene, signalled
from faults.seen import Bounds
from hostmesh_controller.lab import agent

_KILLS: Final = 100
_LONGEST_LIFE_S: Final = 1.5
_STOPPED_S: Final = 600.0 if os.environ.get("FULL") else 20.0


def killed_often(scene: Scene) -> str:
    """Kill the agent at any moment of its start and its life, then start it again."""
    for number in range(_KILLS):
        host = scene.random.choice((CLIENT, SERVER))
        agent.start(scene.layout, scene.facts, host)
        time.sleep(scene.random.uniform(0, _LONGEST_LIFE_S))  # not a wait: the moment of the kill
        agent.stop(scene.layout, host, signal.SIGKILL)
        if number % 20 == 19:
            _restarted(scene)
    _restarted(scene)
    return f"{_KILLS} kills at random moments of the agents' first {_LONGEST_LIFE_S:g} s"


def _restarted(scene: Scene) -> None:
    for host in (CLIENT, SERVER):
        scene.start(f"agent/{host}")


def killed(scene: Scene) -> str:
    for host in MESH:
        agent.stop(scene.layout, host, signal.SIGKILL)
    for host in MESH:
        scene.start(f"agent/{host}")
    return f"{len(MESH)} agents killed together"


def stopped(scene: Scene) -> str:
    """SIGSTOP: the process is there and does nothing, so its sockets take what nobody reads."""
    go_on = [signalled(scene, host, signal.SIGSTOP) for host in MESH]
    try:
        time.sleep(_STOPPED_S)  # not a wait: how long they stand still
        if not scene.calls("pair", 8304):
            raise PromiseBrokenError("a call fails while the agents stand still")
    finally:
        for each in go_on:
            each()
    began_s = time.monotonic()
    scene.wait_until_well(30)
    return f"stood still for {_STOPPED_S:g} s; all agents well again {time.monotonic() - began_s:.1f} s after SIGCONT"


AGENTS: Final = (
    Fault(
        "agent-killed",
        "SIGKILL of every agent at once, then started again",
        "No call fails; rules and certificates stay; the next agents take over what is there.",
        killed,
    ),
    Fault(
        "agent-killed-100",
        "SIGKILL of an agent 100 times, at random moments of its start and life",
        "No call fails, the rules are all there after any of them.",
        killed_often,
    ),
    Fault(
        "agent-stopped",
        "SIGSTOP of every agent for 20 s (`FULL=1`: for 10 min), then SIGCONT",
        "No call fails while they stand still; afterwards they are well within 30 s.",
        stopped,
        Bounds(),
    ),
)
