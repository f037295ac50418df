"""What the controller says of capture, in the planner's words. Pure."""

from hostmesh_agent.capture.who import Match, Narrowing
from hostmesh_api.v1.hostmesh_pb2 import Capture, CaptureDirection, CaptureRule


def narrowing(direction: CaptureDirection) -> Narrowing:
    return Narrowing(tuple(map(_match, direction.include)), tuple(map(_match, direction.exclude)))


def named(capture: Capture) -> tuple[Match, ...]:
    """Return all matches that may name users and units."""
    outbound = narrowing(capture.outbound)
    return (*outbound.include, *outbound.exclude)


def _match(rule: CaptureRule) -> Match:
    return Match(
        ports=frozenset(rule.ports),
        cidrs=frozenset(rule.cidrs),
        users=frozenset(rule.users),
        units=frozenset(rule.units),
        interfaces=frozenset(rule.interfaces),
    )
