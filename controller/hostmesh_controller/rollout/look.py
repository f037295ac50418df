"""What a host's report says of a rollout. Pure."""

from hostmesh_api.manifest import AGENT
from hostmesh_api.v1.hostmesh_pb2 import CallFigures, HostReport, UpdateState
from hostmesh_controller.model.rollout import RolloutSpec
from hostmesh_controller.rollout.health import Figures, Seen
from hostmesh_controller.rollout.progress import Order


def seen_of(
    report: HostReport,
    what: RolloutSpec,
    rollout: str,
    order: Order | None,
    *,
    alive: bool,
    fits: bool,
    refuses: str,
    refused: tuple[str, ...],
    absent_s: float,
    selected: bool,
    joined_anew: bool,
) -> Seen:
    """Return how a host is that reports; `order` is what it was told.

    Args:
        report: its last.
        what: is rolled out.
        rollout: the name that its orders have.
        order: None if it was told nothing.
        alive: it is heard of.
        fits: there is an artifact for it.
        refuses: what it has refused of its configuration since it was told.
        refused: marks of what it had refused before.
        absent_s: for how long it has not been heard of.
        selected: it has the labels of the rollout.
        joined_anew: it has joined since it was told.
    """
    told = next((each for each in report.updates if order is not None and _is_of(each, rollout, order)), None)
    envoy = report.envoy
    of_agent = what.component == AGENT
    return Seen(
        alive=alive,
        version=_version(report, what),
        fits=fits,
        serves=envoy.state == "live" and envoy.stage in {"", "steady", "draining"} and not envoy.hung,
        state="" if told is None else told.state,
        reason="" if told is None else told.reason,
        restarts=envoy.restarts if not of_agent else 0 if told is None else told.restarts,
        refuses=refuses,
        refused=refused,
        before=Figures() if told is None else _figures(told.before),
        after=Figures() if told is None else _figures(told.after),
        absent_s=absent_s,
        selected=selected,
        joined_anew=joined_anew,
    )


def _version(report: HostReport, what: RolloutSpec) -> str:
    if what.component == AGENT:
        return report.facts.agent_version
    return report.facts.envoy_package if what.source == "packages" else report.envoy.version


def _is_of(state: UpdateState, rollout: str, order: Order) -> bool:
    """Tell whether a state is of the present order, and not of an earlier one."""
    theirs = state.rollout, state.version, state.attempt, state.back
    return theirs == (rollout, order.version, order.attempt, order.back)


def _figures(said: CallFigures) -> Figures:
    return Figures(said.calls, said.failed, said.timed, said.time_ms)
