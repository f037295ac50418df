"""Which hosts are dead, judged from what is seen of them. No I/O: events in, what to do out.

    stream ends ─▶ knock at the host ─▶ it answers: the agent is away, the host serves on
                                    └─▶ it does not, twice: silent ─▶ its lease runs out ─▶ withdrawn

The heartbeats are the kernel's: TCP keepalive on the agents' connections (`tcp_keepalive`), which ends the stream of a
host that does not answer any more. So a host that is well costs nothing here. A stream that ended says nothing yet:
agents are restarted, stopped and killed. The host's kernel is asked, and only one that is silent is withdrawn.

Where many hosts are missing at once it is this side's network, or the controller was away: nobody is withdrawn then
(the panic guard), until it is over and those who can have come back.

Times are seconds of a clock that nobody sets.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LEASE_S: Final = 4.0
"""How long a silent host keeps its place after the last sign of life that was seen here.

The kernel takes 4 to 7 s to see that a host is dead (`tcp_keepalive`), so hosts that die together are all missed within
3 s: before the first of them is withdrawn. The last one is withdrawn 11 s after its end.
"""
MISSES: Final = 2
"""Knocks in a row that a host must leave unanswered."""
AGAIN_S: Final = 5.0
"""Between knocks at a host that answers though its agent is away: it may be on its way down."""
KNOCKS_PER_S: Final = 10.0
"""At all such hosts together, at most."""
START_GRACE_S: Final = 30.0
"""How long hosts may take to come back after a start of the controller: twice the longest pause of an agent."""
START_RETURN_S: Final = 16.0
"""When those whose agents live have come back after a start: the longest pause of an agent, and a moment."""
START_LOOK_S: Final = 5.0
"""When it is looked after a start who of them is dead, and not just on its way: most have come back by then."""
CALM_S: Final = 30.0
"""How long the panic guard holds on after what called it is over."""
STALL_S: Final = 3.0
"""How long an Envoy may be down before its captured ports are called no more: a restart takes a second."""
RETURN_S: Final = 10.0
"""How long the first report of a host that comes back is waited for: it may have booted, and serve nothing yet."""


@dataclass(frozen=True, slots=True)
class PanicLimits:
    """More than this share of the hosts, and at least so many, missing at once: the guard holds them.

    In controller.toml: `leases.panic_percent` and `leases.panic_hosts`. A percentage of 100 is never exceeded.
    """

    percent: int = 30
    hosts: int = 3


class Sign(StrEnum):
    """What is known of a host."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    AGENT_AWAY = "agent-away"
    MISSING = "missing"
    SILENT = "silent"
    HELD = "held"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Todo:
    """Whom to knock at now, and of whom something else is true now."""

    knock: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(slots=True)
class _Lease:
    """`life_at` is the last sign of life; `knock_at` None while a knock is under way or none is due."""

    streams: int = 0
    life_at: float = 0.0
    missed: int = 0
    answered: bool = False
    knock_at: float | None = None
    out: bool = False
    back_at: float | None = None
    stalled_at: float | None = None
    stalled: bool = False
    awaited_until: float = 0.0
    """Until then it may take to come back after a start of the controller."""

    def missing(self, now: float) -> bool:
        return self.streams == 0 and not self.answered and (now >= self.awaited_until or self.missed > 0 or self.out)


class Leases:
    """The leases of all hosts that have joined."""

    def __init__(self, limits: PanicLimits | None = None) -> None:
        self._limits = limits or PanicLimits()
        self._leases: dict[str, _Lease] = {}
        self._open: dict[str, _Lease] = {}
        """Those of which something is undecided; the others cost nothing."""
        self._calm_at: float | None = None
        self._panic = False
        self._awaited: set[str] = set()
        self._awaited_until = 0.0

    @property
    def limits(self) -> PanicLimits:
        """What calls the panic guard."""
        return self._limits

    @property
    def panic(self) -> bool:
        """Whether the guard holds hosts that are missing."""
        return self._panic

    def sign(self, host: str) -> Sign:
        lease = self._leases.get(host)
        if lease is None:
            return Sign.UNKNOWN
        if lease.out:
            return Sign.WITHDRAWN
        if lease.streams:
            return Sign.ALIVE
        if lease.answered:
            return Sign.AGENT_AWAY
        if self._panic:
            return Sign.HELD
        return Sign.SILENT if lease.missed else Sign.MISSING

    def missing_since(self, host: str) -> float | None:
        """Return when the last sign of life was seen of a host that has no stream; None: it has one."""
        lease = self._leases.get(host)
        return None if lease is None or lease.streams else lease.life_at

    def is_out(self, host: str) -> bool:
        """Tell whether nobody should call a host while another one does the same."""
        lease = self._leases.get(host)
        return lease is not None and lease.out

    def is_stalled(self, host: str) -> bool:
        """Tell whether what is captured on a host is served by nobody: its Envoy is down."""
        lease = self._leases.get(host)
        return lease is not None and lease.stalled

    def awaits(self, now: float, is_here: Callable[[str], bool]) -> bool:
        """Tell whether a host that lived before this controller started may still be on its way to it.

        It calls others by what it was told then. `is_here` tells whether it has said by now what it calls. All that is
        over `START_RETURN_S` after the start.
        """
        if now >= self._awaited_until:
            self._awaited.clear()
        self._awaited = {host for host in self._awaited if self._may_come(host) and not is_here(host)}
        return bool(self._awaited)

    def _may_come(self, host: str) -> bool:
        lease = self._leases.get(host)
        return lease is not None and not lease.out

    def is_undecided(self, host: str) -> bool:
        """Tell whether something is to be judged of a host."""
        return host in self._open

    def counts(self) -> dict[Sign, int]:
        """Return how many hosts there are of each sign."""
        found: dict[Sign, int] = dict.fromkeys((each for each in Sign if each is not Sign.UNKNOWN), 0)
        found[Sign.ALIVE] = len(self._leases) - len(self._open)
        for host in self._open:
            found[self.sign(host)] += 1
        return found

    def stalled_count(self) -> int:
        """Return how many hosts have an Envoy that is down."""
        return sum(lease.stalled for lease in self._open.values())

    # Events

    def start(self, hosts: Iterable[str], now: float, out: Collection[str] = ()) -> None:
        """Begin with hosts that joined in an earlier life of the controller: they are given time to come back.

        Those that answer no knock until agents that live are back (`START_RETURN_S`) are dead. Who is `out` was
        withdrawn in that life, and stays so until it comes back: its callers were told long ago.
        """
        self._awaited_until = now + START_RETURN_S
        for host in hosts:
            lease = self._leases.setdefault(host, _Lease(life_at=now))
            if lease.streams:
                continue
            self._awaited.add(host)
            lease.awaited_until, lease.knock_at = now + START_GRACE_S, now + START_LOOK_S
            if host in out:
                lease.out, lease.knock_at, lease.life_at = True, None, now - CALM_S
            self._open[host] = lease

    def connected(self, host: str, now: float) -> None:
        lease = self._leases.setdefault(host, _Lease())
        lease.streams += 1
        lease.life_at, lease.missed, lease.answered, lease.knock_at, lease.awaited_until = now, 0, False, None, 0.0
        lease.back_at = now if lease.out else None
        self._settle(host, lease)

    def ended(self, host: str, now: float) -> None:
        """Take note that a stream has ended, for whatever reason."""
        lease = self._leases.get(host)
        if lease is None or lease.streams == 0:
            return
        lease.streams -= 1
        if lease.streams == 0:
            lease.life_at, lease.back_at = now, None
            lease.missed, lease.answered, lease.knock_at = 0, False, now
        self._settle(host, lease)

    def reported(self, host: str, *, serves: bool, now: float) -> None:
        """Take a report. `serves`: Envoy runs, as far as the agent says."""
        lease = self._leases.setdefault(host, _Lease(life_at=now))
        if serves:
            lease.stalled_at = None
        elif lease.stalled_at is None:
            lease.stalled_at = now
        if lease.streams and lease.back_at is not None:
            lease.back_at = now - RETURN_S
        self._settle(host, lease)

    def knocked(self, host: str, *, answered: bool, now: float) -> None:
        """Take the outcome of a knock; one whose host has come back meanwhile tells nothing."""
        lease = self._leases.get(host)
        if lease is None or lease.streams:
            return
        lease.answered = answered
        if answered:
            lease.life_at, lease.missed = now, 0
            away = sum(each.answered for each in self._open.values())
            lease.knock_at = now + max(AGAIN_S, away / KNOCKS_PER_S)
        else:
            lease.missed, lease.knock_at = lease.missed + 1, now
        self._settle(host, lease)

    def forget(self, host: str) -> None:
        """Drop a host that left, or that is not registered any more."""
        self._leases.pop(host, None)
        self._open.pop(host, None)

    def _settle(self, host: str, lease: _Lease) -> None:
        if lease.streams and not lease.out and not lease.stalled and lease.stalled_at is None:
            self._open.pop(host, None)
        else:
            self._open[host] = lease

    # Judgement

    def todo(self, now: float) -> Todo:
        """Return what follows from what is known now."""
        self._look_for_panic(now)
        knock: list[str] = []
        changed: list[str] = []
        for host, lease in list(self._open.items()):
            before = lease.out, lease.stalled
            lease.stalled = lease.stalled_at is not None and now >= lease.stalled_at + STALL_S
            lease.out = self._judged(lease, now)
            if not lease.out:
                lease.back_at = None
            if (lease.out, lease.stalled) != before:
                changed.append(host)
            if lease.out:
                # Only its agent can say that it serves again: it may have booted without.
                lease.knock_at = None
            elif self._is_due(lease, now):
                lease.knock_at = None
                knock.append(host)
            self._settle(host, lease)
        return Todo(tuple(knock), tuple(changed))

    def _is_due(self, lease: _Lease, now: float) -> bool:
        """Tell whether to knock. While the guard holds there is nothing to find out about those who are missing."""
        return lease.knock_at is not None and now >= lease.knock_at and not (self._panic and lease.missing(now))

    def _look_for_panic(self, now: float) -> None:
        """Count who is missing and was not given up long ago; more than the limits allow is a panic."""
        missing = [each for each in self._open.values() if each.missing(now)]
        given_up = sum(each.out and now >= each.life_at + CALM_S for each in missing)
        count, fleet = len(missing) - given_up, len(self._leases) - given_up
        if count >= self._limits.hosts and count * 100 > self._limits.percent * fleet:
            self._panic, self._calm_at = True, None
        elif self._panic and self._calm_at is None:
            self._calm_at = now + CALM_S
        elif self._panic and self._calm_at is not None and now >= self._calm_at:
            self._panic = False
            for lease in missing:
                # What was found out before counts no more.
                lease.missed, lease.knock_at = 0, now

    def _judged(self, lease: _Lease, now: float) -> bool:
        if lease.streams:
            return lease.out and lease.back_at is not None and now < lease.back_at + RETURN_S
        if lease.answered:
            return False
        if self._panic:
            return lease.out and now >= lease.life_at + CALM_S
        return lease.out or (lease.missed >= MISSES and now >= self._over_at(lease))

    def _over_at(self, lease: _Lease) -> float:
        """Return when the lease of a silent host is over: not while its agent may be on its way after a start.

        A firewall that drops knocks makes a host silent that lives, and while there was no controller agents pause.
        """
        return max(lease.life_at + LEASE_S, self._awaited_until if lease.awaited_until else 0.0)

    def next_at(self, now: float) -> float | None:
        """Return when to look again though nothing happens; None: not before something does."""
        moments: list[float] = [self._calm_at] if self._panic and self._calm_at is not None else []
        for lease in self._open.values():
            if lease.knock_at is not None and not (self._panic and lease.missing(now)):
                moments.append(lease.knock_at)
            if lease.stalled_at is not None and not lease.stalled:
                moments.append(lease.stalled_at + STALL_S)
            if lease.streams and lease.back_at is not None:
                moments.append(lease.back_at + RETURN_S)
            elif lease.missed >= MISSES and not lease.out and not self._panic:
                moments.append(self._over_at(lease))
        return max(min(moments), now) if moments else None
