"""How long a direction was without a proxy, and what became of connections meanwhile. Pure: the time comes in.

A gap begins when Envoy is gone from a direction that is captured. In mode `closed` it ends when Envoy serves again. In
mode `open` connections are refused until the redirects are taken out, pass by from then on, and the gap ends when they
are captured again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hostmesh_agent.capture.who import Direction


@dataclass(frozen=True, slots=True)
class Gap:
    """One of them; times are of a clock that only goes on, in seconds.

    `passed_from` None: nothing has passed; `ended` None: it lasts. `before_s` and `count` are those of all before it
    and the number of all.
    """

    direction: Direction
    open: bool
    began: float
    passed_from: float | None = None
    ended: float | None = None
    count: int = 1
    before_s: float = 0.0

    def refused_s(self, now: float) -> float:
        return self._until(self.passed_from, now) - self.began

    def passed_s(self, now: float) -> float:
        return 0.0 if self.passed_from is None else self._until(None, now) - self.passed_from

    def total_s(self, now: float) -> float:
        """Return the length of all gaps of the direction."""
        return self.before_s + self._until(None, now) - self.began

    def _until(self, at: float | None, now: float) -> float:
        return next(each for each in (at, self.ended, now) if each is not None)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is true of a direction now: it is captured, may pass by (the mode `open`), and does."""

    captured: bool
    open: bool
    passes: bool


Gaps = Mapping[Direction, Gap]


def after(gaps: Gaps, seen: Mapping[Direction, Seen], *, gone: bool, now: float) -> Gaps:
    """Return the last gap of each direction that had one; `gone`: no proxy is there."""
    result = dict(gaps)
    for direction, each in seen.items():
        last = result.get(direction)
        lasting = last if last is not None and last.ended is None else None
        if lasting is None and gone and (each.captured or each.passes):
            count, before_s = (1, 0.0) if last is None else (last.count + 1, last.total_s(now))
            lasting = Gap(direction, each.open, now, count=count, before_s=before_s)
        if lasting is None:
            continue
        if each.passes and lasting.passed_from is None:
            lasting = replace(lasting, passed_from=now)
        if not gone and not each.passes:
            lasting = replace(lasting, ended=now)
        result[direction] = lasting
    return result
