"""What a change costs: until everybody has it, on the wire, and in the controller."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench import mesh
from bench.figure import Figure
from bench.fleet import FleetError, Wire
from bench.stage import Stage

ROUNDS: Final = 15
_WITHIN_S: Final = 60.0
_QUIET_S: Final = 1.0
"""How long to look for messages that should not come: a hundred times the controller's window of coalescing."""


@dataclass(frozen=True, slots=True)
class Round:
    """One change of the shared service's endpoint, until the last proxy acknowledged it."""

    took_s: float
    wire: Wire
    message_bytes: int


def _change(stage: Stage, service: str, number: int, concerned: int) -> Round:
    """Change an endpoint, and serve until so many responses have been acknowledged."""
    fleet = stage.fleet
    wire, messages, message_bytes = fleet.wire(), fleet.responses, fleet.response_bytes
    started_s = time.monotonic()
    applied = stage.start(lambda: stage.controller.apply([mesh.endpoint(service, number)]))
    try:
        fleet.run(lambda: fleet.responses >= messages + concerned, within_s=_WITHIN_S)
    except FleetError as error:
        came = fleet.responses - messages
        raise FleetError(f"change {number}: {came} of {concerned} proxies were told; {error}\n{stage.log()}") from error
    last_s = max(proxy.acked_at_s for proxy in fleet.proxies)
    applied()
    return Round(last_s - started_s, fleet.wire() - wire, fleet.response_bytes - message_bytes)


def push(stage: Stage) -> Sequence[Figure]:
    """Measure changes that concern every proxy."""
    fleet, controller, count = stage.connected(), stage.controller, stage.proxies
    _change(stage, mesh.SHARED, 1, count)  # the first one warms up
    cpu_s = controller.cpu_s()
    rounds = [_change(stage, mesh.SHARED, 2 + number, count) for number in range(ROUNDS)]
    cpu_us = (controller.cpu_s() - cpu_s) / (ROUNDS * count) * 1e6
    took_s = sorted(each.took_s for each in rounds)
    down = median(each.wire.received for each in rounds) / count
    up = median(each.wire.sent for each in rounds) / count
    message = median(each.message_bytes for each in rounds) / count
    assert not fleet.failures(), fleet.failures()[0]
    return (
        Figure(
            f"one endpoint change to the last of {count} ACKs, median of {ROUNDS}",
            median(took_s) * 1e3,
            "ms",
            300,
            f"from the request to the admin API; {took_s[0] * 1e3:.0f} to {took_s[-1] * 1e3:.0f} ms",
        ),
        Figure(
            "bytes per proxy for it, sent by the controller",
            down,
            "B",
            450,
            f"over TCP, with TLS; the message alone is {message:.0f} B, the ACK {up:.0f} B over TCP",
        ),
        Figure("controller CPU per proxy and push, with its ACK", cpu_us, "us"),
    )


def few(stage: Stage) -> Sequence[Figure]:
    """Measure a change that concerns few."""
    fleet, concerned = stage.connected(), min(mesh.CALLERS_OF_RARE, stage.proxies)
    messages = fleet.responses
    change = _change(stage, mesh.RARE, 1, concerned)
    fleet.serve(_QUIET_S)
    sent = fleet.responses - messages
    wrong = "" if sent == concerned else f"MISSED: exactly {concerned} are concerned; "
    return (
        Figure(
            f"messages for a change that concerns {concerned} of {stage.proxies}",
            sent,
            "",
            concerned,
            f"{wrong}the last ACK after {change.took_s * 1e3:.0f} ms",
        ),
    )
