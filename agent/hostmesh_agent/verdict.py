"""Is the new Envoy worse than the old one was? Judged from what both count of the calls they served. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PATTERN: Final = (
    "^(http|cluster|listener)[.].*(downstream_rq_completed|downstream_rq_5xx|upstream_cx_total|upstream_cx_connect_fail"
    "|ssl.handshake|ssl.connection_error|ssl.fail_verify_error|downstream_rq_overload_close)$"
)
"""Of Envoy's counters; see `Admin.stats`."""
_NOT_CALLS: Final = re.compile(r"^(http|cluster)\.(admin|hostmesh-)|^listener\.(admin|.*\.http\.)")
"""The agent's own; and what Envoy counts of HTTP for each listener is counted for all of them too."""
MIN_CALLS: Final = 20
"""Fewer say nothing."""
TOLERATED: Final = 0.05
"""The share of failures that is never held against an Envoy: others have bad moments too."""
FACTOR: Final = 2.0
"""How many times worse than the old one it may be."""
ANSWERED: Final = "calls that were answered with 5xx"
_KINDS: Final = {
    ANSWERED: (
        ("downstream_rq_completed",),
        ("downstream_rq_5xx", "downstream_rq_overload_close"),
    ),
    "connections to programs and hosts that failed": (("upstream_cx_total",), ("upstream_cx_connect_fail",)),
    "TLS handshakes that failed": (
        ("ssl.handshake", "ssl.connection_error"),
        ("ssl.connection_error", "ssl.fail_verify_error"),
    ),
}


@dataclass(frozen=True, slots=True)
class Count:
    """Of one kind: how many there were, and how many of them failed."""

    all: int = 0
    failed: int = 0

    @property
    def share(self) -> float:
        return self.failed / self.all if self.all else 0.0


Counts = Mapping[str, Count]
"""Kind to count; kinds are words for people."""


def counts(stats: Mapping[str, int]) -> Counts:
    """Sum up what Envoy counts, without the agent's own calls."""
    own = {name: value for name, value in stats.items() if not _NOT_CALLS.search(name)}

    def summed(endings: tuple[str, ...]) -> int:
        return sum(value for name, value in own.items() if name.endswith(tuple(f".{each}" for each in endings)))

    return {kind: Count(summed(everything), summed(failed)) for kind, (everything, failed) in _KINDS.items()}


def worse(old: Counts, new: Counts) -> str:
    """Say in what the new one is worse than the old one; "" if in nothing that counts."""
    for kind, count in new.items():
        before = old.get(kind, Count())
        bound = max(TOLERATED, FACTOR * before.share)
        if count.all >= MIN_CALLS and count.share > bound:
            return f"{kind}: {count.failed} of {count.all}, and {before.failed} of {before.all} with the one before"
    return ""
