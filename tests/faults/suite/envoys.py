"""What befalls Envoy: it is in everybody's way, so the gap is promised and measured."""

import signal
import time
from typing import Final

from e2e.driver import eventually
from faults.fault import Fault
from faults.scene import CLIENT, HTTP_PORT, SERVER, Scene
from faults.seen import Bounds
from hostmesh_controller.lab import envoy

_BACK_S: Final = 15.0


def killed(scene: Scene) -> str:
    """Kill the callee's and the caller's Envoy, one after the other."""
    gaps = []
    for host in (SERVER, CLIENT):
        began_s = time.monotonic()
        envoy.kill(scene.layout, host)
        eventually(lambda: scene.calls("shop", HTTP_PORT), f"calls succeed again after the Envoy of {host}", _BACK_S)
        gaps.append(time.monotonic() - began_s)
    return f"calls succeed again after {gaps[0]:.1f} s (callee's Envoy) and {gaps[1]:.1f} s (caller's)"


def killed_without_agent(scene: Scene) -> str:
    """Kill agent and Envoy of the callee together; the agent is started again 3 s later."""
    from hostmesh_controller.lab import agent

    agent.stop(scene.layout, SERVER, signal.SIGKILL)
    envoy.kill(scene.layout, SERVER)
    time.sleep(3)  # not a wait: for so long there is nobody
    scene.start(f"agent/{SERVER}")
    scene.wait_for_calls()
    return "for 3 s the callee has neither agent nor Envoy"


ENVOYS: Final = (
    Fault(
        "envoy-killed",
        "SIGKILL of the callee's Envoy, then of the caller's",
        "Its agent starts another: calls fail for 4 s at most; STRICT is kept, the rules stay.",
        killed,
        Bounds(gap_s=4, gaps=2, late=60, endpoints=None),
    ),
    Fault(
        "envoy-and-agent-killed",
        "SIGKILL of the callee's agent and Envoy together; the agent comes back 3 s later",
        "STRICT is kept with nobody there; calls fail for 3 s and the start of both, 20 s at most.",
        killed_without_agent,
        Bounds(gap_s=20, gaps=1, late=200),
    ),
)
