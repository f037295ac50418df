"""Everything is restarted, in any order; or everything is dead, and the host leaves."""

from typing import Final

from faults.fault import Fault, PromiseBrokenError
from faults.scene import MESH, Scene
from faults.seen import Bounds
from hostmesh_controller.lab import agent, controller, envoy
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.demo.snapshot import Snapshot, difference

_RESTARTS: Final = 20
GUEST: Final = "guest"


def restarted(scene: Scene) -> str:
    """Restart parts at random, some in order and some by SIGKILL, one after the other."""
    parts = ("controller", *(f"agent/{host}" for host in MESH), *(f"envoy/{host}" for host in MESH))
    order = []
    for _ in range(_RESTARTS):
        part, way = scene.random.choice(parts), scene.random.choice(("stop", "kill"))
        getattr(scene, way)(part)
        scene.start(part)
        order.append(f"{way} {part}")
    scene.settle()
    envoys = sum("envoy" in each for each in order)
    return f"{_RESTARTS} restarts, {envoys} of them of Envoys: {', '.join(order)}"


def dead_and_left(scene: Scene) -> str:
    """A host joins and serves; then its agent and Envoy are killed and the controller is gone, and it leaves."""
    scene.lab.verb("up", "--no-join", GUEST)
    space = scene.space(GUEST)
    before = Snapshot.of(space)
    index = disk.read_hosts(scene.layout)[GUEST].index
    agent.join(scene.layout, scene.facts, GUEST, controller.register(scene.layout, scene.facts, GUEST, index))
    scene.start(f"agent/{GUEST}")
    if not scene.calls("pair", 8304, GUEST):
        raise PromiseBrokenError("the guest does not call the mesh")
    if not difference(before, Snapshot.of(space)):
        raise PromiseBrokenError("joining changed nothing: nothing can be told")
    scene.stop("controller")
    scene.kill(f"agent/{GUEST}")
    envoy.kill(scene.layout, GUEST)
    said = scene.run(GUEST, "hostmesh-agent", "leave", "--purge")
    if changed := difference(before, Snapshot.of(space)):
        raise PromiseBrokenError(f"the host is not as it was: {changed}")
    if left := space.run(["ls", "-A", "/var/lib/hostmesh"]).stdout.split():
        raise PromiseBrokenError(f"/var/lib/hostmesh has {left}")
    if envoy.processes(scene.layout, GUEST):
        raise PromiseBrokenError("an Envoy runs")
    return f"leave said {len(said.splitlines())} lines; rules, routes, rules of routing, resolver, files as before"


def with_controller(scene: Scene) -> None:
    scene.start("controller")


ORDERS: Final = (
    Fault(
        "restarts-20",
        "20 restarts of controller, agents and Envoys in random order, half of them by SIGKILL",
        "Calls fail only while an Envoy starts, 6 s at most each; STRICT, SSH and rules stay; in the end all is well.",
        restarted,
        Bounds(gap_s=6, gaps=_RESTARTS, late=400, endpoints=None),
    ),
    Fault(
        "leave-dead",
        "`leave --purge` on a host whose agent and Envoy were killed, with the controller gone",
        "The host is as before it joined: rules, routes, rules of routing, resolver, files, processes.",
        dead_and_left,
        mend=with_controller,
    ),
)
