"""When to renew which certificate. The decision is pure; `Rotation` is the thin loop around it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

import structlog

from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.state import StateError

JITTER: Final = 0.1
"""Share of a certificate's life over which renewals of hosts that joined together are spread."""
BACKOFF_FIRST: Final = timedelta(seconds=5)
BACKOFF_LAST: Final = timedelta(minutes=5)
LOOK_AGAIN: Final = timedelta(minutes=10)
"""Timers stand still while a machine sleeps, and clocks get set: no wait is longer than this."""

_SERIAL_DIGITS: Final = 8
_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Validity:
    """Of one certificate; `serial` in hexadecimal, `root` the SHA-256 of the root that it leads to.

    `stale`: another should be in its place, though it has not ended.
    """

    serial: str
    not_before: datetime
    not_after: datetime
    root: str = ""
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Taint:
    """Certificates of a root are to be renewed, spread over `within` from the moment at which this host heard of it."""

    since: datetime
    within: timedelta


@dataclass(frozen=True, slots=True)
class Failure:
    """The last `count` attempts failed, the latest at `at`."""

    count: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew this one now."""

    name: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due before `until`."""

    until: datetime


def renew_at(not_before: datetime, not_after: datetime) -> datetime:
    """Return the moment to renew: half-way through the certificate's life.

    Half leaves as much time to retry as the certificate has been in use. The caller adds jitter, drawn once
    per certificate: drawing it at each check lets the early end always win.

    Args:
        not_before: start of validity, aware.
        not_after: end of validity, aware.

    Raises:
        ValueError: `not_after` is not later than `not_before`.
    """
    if not_after <= not_before:
        msg = f"a certificate that ends at {not_after} cannot begin at {not_before}"
        raise ValueError(msg)
    return not_before + (not_after - not_before) / 2


def due_at(validity: Validity) -> datetime:
    """Return when to renew this certificate, jitter included.

    The jitter comes from the serial, which is random: so it is drawn once per certificate, and the same after a
    restart of the agent.
    """
    draw = _draw(validity)
    life = validity.not_after - validity.not_before
    return renew_at(validity.not_before, validity.not_after) + life * JITTER * (draw - 0.5)


def _draw(validity: Validity) -> float:
    return int(validity.serial[-_SERIAL_DIGITS:], 16) / 16**_SERIAL_DIGITS


def tainted_due_at(validity: Validity, taint: Taint) -> datetime:
    """Return when to renew a certificate whose root is tainted: not later than when it is due anyway."""
    return min(due_at(validity), taint.since + taint.within * _draw(validity))


def next_action(
    certificates: Mapping[str, Validity | None],
    failures: Mapping[str, Failure],
    now: datetime,
    taints: Mapping[str, Taint] = MappingProxyType({}),
) -> Renew | Wait:
    """Return what to do next.

    Args:
        certificates: by name; None where there is none yet. One that has ended is renewed like any other.
        failures: of names whose last attempt failed.
        now: aware.
        taints: by root.
    """
    moments = {name: _moment(validity, failures.get(name), now, taints) for name, validity in certificates.items()}
    latest = now + LOOK_AGAIN
    if not moments:
        return Wait(latest)
    # Of those that are due, the one whose certificate ends first.
    due = [name for name, moment in moments.items() if moment <= now]
    if due:
        return Renew(min(due, key=lambda name: (_end(certificates[name]), name)))
    return Wait(min(latest, *moments.values()))


def backoff(count: int) -> timedelta:
    """Return how long to wait after the `count`-th failure in a row."""
    return min(BACKOFF_LAST, BACKOFF_FIRST * int(2 ** min(count - 1, 16)))


def _moment(validity: Validity | None, failure: Failure | None, now: datetime, taints: Mapping[str, Taint]) -> datetime:
    due = now
    if validity is not None and not validity.stale:
        taint = taints.get(validity.root)
        due = due_at(validity) if taint is None else tainted_due_at(validity, taint)
    if failure is None:
        return due
    if failure.at > now:
        return due  # The clock was set back: the failure's time means nothing.
    return max(due, failure.at + backoff(failure.count))


def _end(validity: Validity | None) -> float:
    return 0.0 if validity is None else validity.not_after.timestamp()


@dataclass(slots=True)
class Renewal:
    """One certificate that the loop keeps alive: `renew` replaces it and returns the new one's validity."""

    validity: Validity | None
    renew: Callable[[], Awaitable[Validity]] = field(repr=False)


class Rotation:
    """The loop. `keep` tells it what to keep alive; it may be called at any time."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._renewals: dict[str, Renewal] = {}
        self._failures: dict[str, Failure] = {}
        self._taints: dict[str, Taint] = {}
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()

    def keep(
        self, renewals: Mapping[str, Renewal], tainted: Iterable[str] = (), within: timedelta = timedelta()
    ) -> None:
        """Keep these alive from now on, and no others; renew those of tainted roots soon."""
        self._renewals = dict(renewals)
        now = self._now()
        self._taints = {root: self._taints.get(root) or Taint(now, within) for root in tainted}
        self._failures = {name: each for name, each in self._failures.items() if name in self._renewals}
        self._changed.set()

    def validities(self) -> Mapping[str, Validity | None]:
        """Return what is known of each certificate that is kept."""
        return {name: renewal.validity for name, renewal in self._renewals.items()}

    def look_again(self) -> None:
        """Look at once at what is due; what failed by another clock is tried again."""
        self._failures.clear()
        self._changed.set()

    def replaced(self, name: str, validity: Validity) -> None:
        """Take note that a certificate was replaced from outside, and that what failed may succeed now."""
        if name in self._renewals:
            self._renewals[name].validity = validity
        self._failures.clear()
        self._changed.set()

    async def tried(self) -> None:
        """Wait until all that was due when the loop began has come or failed once."""
        await self._tried.wait()

    async def run(self) -> None:
        """Renew what is due, until cancelled."""
        while True:
            self._changed.clear()
            match next_action(self.validities(), self._failures, self._now(), self._taints):
                case Renew(name):
                    await self._renew(name, self._renewals[name])
                case Wait(until):
                    self._tried.set()
                    await self._wait((until - self._now()).total_seconds())

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _renew(self, name: str, renewal: Renewal) -> None:
        try:
            before, renewal.validity = renewal.validity, await renewal.renew()
            if before is not None and before.root in self._taints and before.root == renewal.validity.root:
                raise EnrolError(f"the controller signs with the tainted root {before.root[:12]} still")
        except Exception as error:
            # Whatever it was, the certificate has to be renewed: a loop that ends ends the host's identity.
            count = self._failures[name].count + 1 if name in self._failures else 1
            self._failures[name] = Failure(count, self._now())
            ends = None if renewal.validity is None else renewal.validity.not_after.isoformat()
            expected = isinstance(error, EnrolError | StateError)
            _log.error(
                "renewal_failed",
                certificate=name,
                attempt=count,
                not_after=ends,
                reason=str(error),
                exc_info=not expected,
            )
        else:
            self._failures.pop(name, None)
