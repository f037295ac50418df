"""What a host's report says of a rollout. Pure."""

from hostmesh_api.v1.hostmesh_pb2 import CallFigures, HostReport, UpdateState
from hostmesh_controller.rollout.plan import Figures, Seen
from hostmesh_controller.rollout.progress import Order


def seen_of(report: HostReport, rollout: str, order: Order | None, *, alive: bool, fits: bool, refuses: str) -> Seen:
    """Return how a host is that reports; `order` is what it was told.

    Args:
        report: its last.
        rollout: the name that its orders have.
        order: None if it was told nothing.
        alive: it is heard of.
        fits: there is an artifact for it.
        refuses: what it has refused of its configuration since it was told.
    """
    told = next((each for each in report.updates if order is not None and _is_of(each, rollout, order)), None)
    envoy = report.envoy
    return Seen(
        alive=alive,
        version=envoy.version,
        fits=fits,
        serves=envoy.state == "live" and envoy.stage in {"", "steady", "draining"} and not envoy.hung,
        state="" if told is None else told.state,
        reason="" if told is None else told.reason,
        restarts=envoy.restarts,
        refuses=refuses,
        before=Figures() if told is None else _figures(told.before),
        after=Figures() if told is None else _figures(told.after),
    )


def _is_of(state: UpdateState, rollout: str, order: Order) -> bool:
    """Tell whether a state is of the present order, and not of an earlier one."""
    theirs = state.rollout, state.version, state.attempt, state.back
    return theirs == (rollout, order.version, order.attempt, order.back)


def _figures(said: CallFigures) -> Figures:
    return Figures(said.calls, said.failed, said.timed, said.time_ms)
