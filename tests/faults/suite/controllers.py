"""What befalls the controller: it is needed for changes, and for nothing else."""

import time
from typing import Final

from e2e.driver import eventually
from faults.fault import Fault, PromiseBrokenError
from faults.fleet import LabFleet
from faults.oracles import wait_for_endpoints
from faults.scene import CLIENT, PAIR_PORT, SERVER, Scene
from faults.seen import Bounds

_FLEET: Final = 200
_KILLS: Final = 3
_HOST_BACK_S: Final = 60.0
SHELF: Final = """
apiVersion: v1
kind: Service
metadata: {name: shelf}
spec: {selector: {tier: pair}, ports: [{name: http, port: 8304}]}
"""


def host_restarted_without(scene: Scene) -> str:
    """A power cut of the callee and of the caller's agent while there is no controller."""
    scene.stop("controller")
    began_s = time.monotonic()
    scene.kill(f"host/{SERVER}")
    scene.boot(SERVER)
    scene.wait_for_calls()
    took_s = time.monotonic() - began_s
    if scene.agent(SERVER).get("controller", {}).get("connected"):
        raise PromiseBrokenError("the controller was there")
    return f"the callee serves again {took_s:.1f} s after the power cut, with its last configuration"


def first_call_without(scene: Scene) -> str:
    """Call a service for the first time while the controller is away, before and after the caller's restart."""
    scene.lab.apply(SHELF)
    eventually(
        lambda: scene.agent(CLIENT).get("configuration", {}).get("cold_copy", {}).get("services", 0) >= 3,
        "the copy has the new service",
        60,
    )
    scene.stop("controller")
    began_s = time.monotonic()
    if not scene.calls("shelf", PAIR_PORT):
        raise PromiseBrokenError("the first call of a service fails without the controller")
    return f"the first call took {time.monotonic() - began_s:.1f} s with its start of curl"


def unshelved(scene: Scene) -> None:
    scene.start("controller")
    scene.lab.hostmesh("delete", "-f", "-", text_in=SHELF)


def with_controller(scene: Scene) -> None:
    scene.start("controller")


def killed(scene: Scene) -> str:
    for _ in range(_KILLS):
        scene.kill("controller")
        scene.start("controller")
    scene.wait_until_well(60)
    return f"{_KILLS} kills"


def back_with_a_fleet(scene: Scene) -> str:
    """The controller is killed under 203 connected agents, and all of them are back at once."""
    with LabFleet(scene, _FLEET) as fleet:
        fleet.connect()
        scene.kill("controller")
        fleet.lost()
        scene.start("controller")
        began_s = time.monotonic()
        fleet.connect()
        took_s = time.monotonic() - began_s
        scene.wait_until_well(60)
        wait_for_endpoints(scene, "pair", 2, 10)
        return f"{_FLEET} simulated agents have all they asked for {took_s:.1f} s after the controller is back"


CONTROLLERS: Final = (
    Fault(
        "controller-killed",
        f"SIGKILL of the controller {_KILLS} times, each time started again",
        "No call fails; nothing is sent again that hosts hold; agents are connected again by themselves.",
        killed,
        mend=with_controller,
    ),
    Fault(
        "controller-down-host-restart",
        "The controller is stopped; the callee's power is cut and comes back",
        "The callee serves again with its last configuration, STRICT from the first moment; other hosts notice "
        "nothing but its absence.",
        host_restarted_without,
        Bounds(gap_s=_HOST_BACK_S, gaps=1, late=600, ssh_gap_s={SERVER: _HOST_BACK_S}, rules_gap_s={SERVER: 10}),
        mend=with_controller,
    ),
    Fault(
        "controller-down-first-call",
        "The controller is stopped; a service is called that its caller never called before",
        "The first call succeeds, from the host's own copy.",
        first_call_without,
        Bounds(rules_same=False),
        mend=unshelved,
    ),
    Fault(
        "controller-back-200",
        "SIGKILL of the controller under 203 connected agents (200 simulated: mutual TLS and delta ADS each); "
        "all return at once when it is back",
        "Everybody has all within 60 s, no call fails.",
        back_with_a_fleet,
        mend=with_controller,
    ),
)
