"""What befalls the clock: it jumps on one host, or time goes on while the controller is away.

Every host is moved on by two hours first, so that certificates are as old as in a fleet, where few were issued in the
last hour: a clock that is an hour behind finds them valid.
"""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from e2e.driver import eventually
from faults import clock
from faults.clock import DAY_S, HOUR_S
from faults.fault import Fault, PromiseBrokenError
from faults.scene import MESH, SERVER, STATE, Scene
from faults.seen import Bounds
from hostmesh_controller.lab import envoy, machine
from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.process import in_pid_namespace_of

_AGED_S: Final = 2 * HOUR_S
_WRONG_S: Final = 12.0
_FAR_S: Final = 8.0
_BACK_S: Final = 60.0
_STEP_S: Final = 0.6
_ASLEEP_S: Final = 25.0
_NIGHT_S: Final = 8 * HOUR_S
_AWAKE_S: Final = 20.0


def aged(scene: Scene) -> None:
    """Give all hosts and the controller clocks that can be set, two hours on."""
    scene.stop("controller")
    for host in MESH:
        clock.fit(scene, host)
        clock.jump(scene, host, _AGED_S)
        scene.stop(f"agent/{host}")
        envoy.kill(scene.layout, host)
    _controller(scene, _AGED_S)
    for host in MESH:
        scene.start(f"agent/{host}")
    scene.settle()
    off_s = clock.of(scene, SERVER) - time.time()
    assert abs(off_s - _AGED_S) < 5, f"the clock of the host is off by {off_s} s"


def _controller(scene: Scene, offset_s: int) -> None:
    """Start the controller with a clock of its own."""
    library, offset = clock.library(scene, scene.folder / "offset")
    clock.write(offset, offset_s)
    place = scene.layout
    program = str(machine.own_program("hostmesh-controller"))
    command = ["env", f"LD_PRELOAD={library}", program, "run", "--config", str(place.controller_config)]
    disk.write_process(place.controller_process, scene.world().start(command, place.controller_log))
    scene.start("controller")


def hour(scene: Scene) -> str:
    """The callee's clock is an hour ahead, then an hour behind, then right again."""
    for offset_s in (HOUR_S, -HOUR_S, 0):
        clock.jump(scene, SERVER, _AGED_S + offset_s)
        time.sleep(_WRONG_S if offset_s else 1)  # not a wait: how long it is wrong
        if not scene.calls("shop", 8301):
            raise PromiseBrokenError(f"a call fails with a clock that is off by {offset_s} s")
    return f"{_WRONG_S:g} s each"


def far(scene: Scene) -> str:
    """The callee's clock is 400 days ahead: every certificate that it sees has ended."""
    before = _leaf(scene)
    clock.jump(scene, SERVER, _AGED_S + 400 * DAY_S)
    eventually(lambda: not scene.calls("shop", 8301), "the callee refuses what has ended by its clock", 30)
    time.sleep(_FAR_S)  # not a wait: how long it is wrong
    said = "; ".join(scene.agent(SERVER).get("problems", []))
    clock.jump(scene, SERVER, _AGED_S)
    began_s = time.monotonic()
    scene.wait_for_calls(_BACK_S)
    if _leaf(scene).issuer != before.issuer:
        raise PromiseBrokenError("the certificate is of another authority")
    if not said:
        raise PromiseBrokenError("the agent says nothing of certificates that have ended")
    return f"said: {said[:160]}; calls succeed {time.monotonic() - began_s:.1f} s after the clock is right"


def right(scene: Scene) -> None:
    """Set the callee's clock right."""
    clock.jump(scene, SERVER, _AGED_S)


def _leaf(scene: Scene) -> x509.Certificate:
    return x509.load_pem_x509_certificate(scene.upper(SERVER, f"{STATE}/identity/chain.pem").read_bytes())


def day_without_controller(scene: Scene) -> str:
    """Stop the controller and let a day pass by every host's wall clock, hour by hour."""
    scene.stop("controller")
    for number in range(1, 25):
        for host in MESH:
            clock.jump(scene, host, _AGED_S + number * HOUR_S)
        time.sleep(_STEP_S)  # not a wait: how long an hour takes
    left_s = _leaf(scene).not_valid_after_utc.timestamp() - clock.of(scene, SERVER)
    if left_s <= 0:
        raise PromiseBrokenError(f"the certificate had ended {-left_s:.0f} s ago by the host's clock")
    today = datetime.fromtimestamp(clock.of(scene, SERVER), UTC)
    if not scene.calls("shop", 8301):
        raise PromiseBrokenError("a call fails after a day")
    _controller(scene, _AGED_S + DAY_S)
    # A clock that is a day ahead of where it was has been set, and is not put back.
    scene.wait_until_well(_BACK_S, but="clock.jumped")
    return f"{left_s / HOUR_S:.0f} h of the certificates left at {today:%H:%M} of the next day"


def asleep(scene: Scene) -> str:
    """The callee's machine is suspended: nothing runs, its network is down, and eight hours pass for everybody."""
    link = hosts.link_name(disk.read_hosts(scene.layout)[SERVER])
    frozen = _programs(scene, SERVER)
    scene.world().run(["ip", "link", "set", link, "down"])
    try:
        _signal(frozen, signal.SIGSTOP)
        time.sleep(_ASLEEP_S)  # not a wait: how long it sleeps
        for host in MESH:
            clock.jump(scene, host, _AGED_S + _NIGHT_S)
        clock.write(scene.folder / "offset", _AGED_S + _NIGHT_S)
        clock.slept(scene, SERVER, _NIGHT_S)
    finally:
        scene.world().run(["ip", "link", "set", link, "up"])
        _signal(frozen, signal.SIGCONT)
    woke_s, woke = time.monotonic(), datetime.fromtimestamp(time.time() + _AGED_S + _NIGHT_S - 1, UTC)
    try:
        eventually(lambda: _connected_since(scene) > woke, "", _AWAKE_S)
    except AssertionError:
        told = scene.agent(SERVER)
        raise PromiseBrokenError(f"not connected anew since {woke}: {told['controller']} {told['problems']}") from None
    connected_s = time.monotonic() - woke_s
    scene.wait_for_calls(_AWAKE_S)
    called_s = time.monotonic() - woke_s
    scene.wait_until_well(_BACK_S, but="clock.jumped")
    return f"{len(frozen)} programs slept; connected anew {connected_s:.1f} s, called {called_s:.1f} s after they woke"


def _connected_since(scene: Scene) -> datetime:
    told = scene.agent(SERVER)["controller"]
    if not told["connected"]:
        return datetime.min.replace(tzinfo=UTC)
    return datetime.fromisoformat(told["since"])


def _programs(scene: Scene, host: str) -> list[int]:
    """Everything that runs on the host but its init."""
    init = disk.read_process(scene.layout.host(host).init)
    assert init is not None
    return [each.pid for each in in_pid_namespace_of(init)]


def _signal(programs: Iterable[int], number: signal.Signals) -> None:
    for pid in programs:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


CLOCKS: Final = (
    Fault(
        "clock-hour",
        "the callee's wall clock jumps an hour ahead, then an hour behind, then is right",
        "No call fails: certificates are of yesterday and of tomorrow.",
        hour,
        prepare=aged,
        mend=right,
    ),
    Fault(
        "clock-400-days",
        "the callee's wall clock jumps 400 days ahead for some seconds, then is right",
        "SSH, rules and STRICT stay; the agent says why calls fail; with the right clock they succeed again within "
        "60 s and nothing was lost.",
        far,
        Bounds(gap_s=90, gaps=2, late=200, endpoints=None, rules_same=False),
        prepare=aged,
        mend=right,
    ),
    Fault(
        "host-slept",
        "the callee's machine is suspended: its programs stand still, its network is down, and 8 h pass meanwhile "
        "(25 s of the lab's)",
        "Calls and SSH fail while it sleeps; 20 s after it woke its agent is connected anew, not by a connection that "
        "others gave up, and calls succeed.",
        asleep,
        Bounds(gap_s=60, late=500, endpoints=None, ssh_gap_s={SERVER: 45}, rules_gap_s={SERVER: 45}),
        prepare=aged,
        last=True,
    ),
    Fault(
        "controller-down-24h",
        "the controller is stopped, and every host's wall clock is set an hour on each 0.6 s, 24 times; then it is "
        "back (timers, which go by another clock, see 15 s)",
        "No call fails; certificates of 72 h stay inside their life; all are connected again by themselves.",
        day_without_controller,
        prepare=aged,
        last=True,
    ),
)
