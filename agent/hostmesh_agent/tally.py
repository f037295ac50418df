"""Sums up what Envoy counts of calls, through restarts of Envoy, and keeps the sums small.

Envoy's counters begin at 0 again when it restarts, and when one was not used for long: what is read is compared with
what was read before, and only what is more is added. All that callers can make up is bounded here, as in Envoy.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from hostmesh_api.call_stats import (
    MAX_ADDRESSES,
    MAX_IDENTIFIED,
    NO_METHOD,
    CallCounter,
    Security,
    chain_of,
    parse_counter,
)

NOT_TOLD_APART: Final = ""
"""The caller that stands for all those for whom there is no room."""
MAX_CALLERS: Final = 256
"""Of one filter chain without mutual TLS; a chain with it has room for all, within `MAX_ROWS`."""
MAX_ROWS: Final = 4096
FORGET_AFTER_S: Final = 7 * 86_400.0
"""Whoever has not called for so long makes room. The controller remembers them for longer."""


class Who(NamedTuple):
    """A caller, and the filter chain through which it calls."""

    chain: str
    caller: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Calls of one caller. `count` is of those that ended; times are seconds since the epoch."""

    methods: frozenset[str]
    count: int
    denied: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Tally:
    """`readings` are Envoy's counters as they were last read, `seen` all calls since the host booted."""

    readings: Mapping[str, int] = field(default_factory=dict)
    seen: Mapping[Who, Seen] = field(default_factory=dict)


def read(tally: Tally, readings: Mapping[str, int], now_s: float) -> Tally:
    """Return the tally after Envoy's counters were read again; the same one if they stand where they stood."""
    more = _increases(tally.readings, readings)
    full = _full_chains(readings)
    if not more and not full:
        return tally if readings == tally.readings else replace(tally, readings=readings)
    seen = {who: each for who, each in tally.seen.items() if now_s - each.last_s < FORGET_AFTER_S}
    room = _Room(seen)
    for counter, increase in more:
        who = room.of(Who(counter.chain, counter.caller))
        seen[who] = _added(seen.get(who), counter, increase, now_s)
    for chain in full:
        # Envoy has dropped calls of whoever came too late: how many is not known.
        rest = Who(chain, NOT_TOLD_APART)
        before = seen.get(rest, Seen(frozenset(), 0, 0, now_s, now_s))
        seen[rest] = replace(before, last_s=now_s)
    return Tally(readings, seen)


def _increases(before: Mapping[str, int], readings: Mapping[str, int]) -> list[tuple[CallCounter, int]]:
    result = []
    for name, value in sorted(readings.items()):
        known = before.get(name, 0)
        increase = value - known if value >= known else value
        counter = parse_counter(name) if increase else None
        if counter is not None and chain_of(counter.chain) is not None:
            result.append((counter, increase))
    return result


def _full_chains(readings: Mapping[str, int]) -> list[str]:
    """Return the chains in which Envoy has as many counters as it may have."""
    if len(readings) < min(MAX_ADDRESSES, MAX_IDENTIFIED):
        return []
    sizes = Counter(counter.chain for counter in map(parse_counter, readings) if counter is not None)
    return sorted(name for name, size in sizes.items() if size >= _most(name))


def _most(name: str) -> int:
    return MAX_IDENTIFIED if _identified(name) else MAX_ADDRESSES


def _identified(name: str) -> bool:
    chain = chain_of(name)
    return chain is not None and chain.security is Security.MUTUAL_TLS


class _Room:
    """Who has a row of their own, or gets one."""

    def __init__(self, seen: Mapping[Who, Seen]) -> None:
        self._known = set(seen)
        self._by_chain = Counter(who.chain for who in seen)

    def of(self, who: Who) -> Who:
        if who in self._known:
            return who
        full = len(self._known) >= MAX_ROWS or (not _identified(who.chain) and self._by_chain[who.chain] >= MAX_CALLERS)
        if full:
            return Who(who.chain, NOT_TOLD_APART)
        self._known.add(who)
        self._by_chain[who.chain] += 1
        return who


def _added(before: Seen | None, counter: CallCounter, increase: int, now_s: float) -> Seen:
    ended = increase if counter.ended else 0
    methods = frozenset({counter.method} - {NO_METHOD})
    denied = ended if counter.denied else 0
    if before is None:
        return Seen(methods, ended, denied, now_s, now_s)
    return Seen(before.methods | methods, before.count + ended, before.denied + denied, before.first_s, now_s)
