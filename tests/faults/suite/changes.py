"""Operators change things all the time, one at a time and several at once, and wait for nothing."""

from typing import Final

from faults import changes, wishes
from faults.fault import Fault, PromiseBrokenError
from faults.scene import CLIENT, TWIN, Scene
from faults.seen import Bounds

_STEPS: Final = 50
_SHARE: Final = 0.25
_LIFE: Final = ("agent-kill", "agent-stop", "controller-restart", "drain", "flip", "root")


def changed(scene: Scene) -> str:
    seed = scene.random.randrange(1_000_000)
    run, told, calls = changes.play(
        scene,
        changes.base_of(scene),
        seed,
        _STEPS,
        tuple(wishes.STEPS),
        _LIFE,
        _SHARE,
        loads=((TWIN, "shop", changes.SHOP), (CLIENT, "solo", changes.SOLO)),
    )
    if told:
        raise PromiseBrokenError(" / ".join(told))
    return f"{sum(run.counts.values())} steps of seed {seed}, {calls} calls more from two hosts, none failed"


def prepare(scene: Scene) -> None:
    changes.prepare(scene)


CHANGES: Final = (
    Fault(
        "changes",
        "50 random steps of operators: services, ports, workloads, service accounts, rules, policies, drains, roots; "
        "agents and controller are killed meanwhile",
        "No call fails. What is open for ever may be ended with the listener that let it in, once that has drained.",
        changed,
        Bounds(late=200, rules_same=False, plaintext=True, endpoints=None, unjudged=changes.FOR_EVER),
        prepare=prepare,
        last=True,
    ),
)
