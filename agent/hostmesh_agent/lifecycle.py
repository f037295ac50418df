"""When Envoy is started, restarted and left alone. Sans-IO: events and the time in, actions out.

    DOWN ──Start──▶ STARTING ──Live──▶ LIVE
     ▲                 │                 │
     └──── Exited ─────┴─────────────────┘      a hold keeps DOWN; a stop keeps it for good

A running Envoy is never stopped because something about it looks odd: its death would cut connections, its oddness is
reported. The only action that ends it is the one a caller asked for (`StopRequested`).
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

STABLE_S: Final = 60.0
"""An Envoy that ran so long starts with a clean record."""
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
CRASH_LOOP: Final = 3
"""Exits in a row, none of them after a stable run, from which on it is called a crash loop."""
HOLD_CHECK_S: Final = 1.0
STOP_GRACE_S: Final = 10.0


class Phase(enum.StrEnum):
    DOWN = "down"
    STARTING = "starting"
    LIVE = "live"
    HELD = "held"
    STOPPED = "stopped"


# What happened.


@dataclass(frozen=True, slots=True)
class Adopted:
    """An Envoy of an earlier agent runs."""

    pid: int


@dataclass(frozen=True, slots=True)
class Started:
    pid: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    status: str


@dataclass(frozen=True, slots=True)
class Live:
    """Envoy's admin interface says that it serves."""


@dataclass(frozen=True, slots=True)
class Held:
    """The owner of the host does not want Envoy to be started now."""

    hold: bool


@dataclass(frozen=True, slots=True)
class StopRequested:
    pass


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


Event = Adopted | Started | StartFailed | Exited | Live | Held | StopRequested | Tick


# What to do.


@dataclass(frozen=True, slots=True)
class Start:
    """Start Envoy; answer with Started or StartFailed."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask Envoy to end, and end it after `grace_s`; answer with Exited."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Come back with Held and Tick at `at` at the latest (same clock as the events' `now`)."""

    at: float


Action = Start | Terminate | WaitUntil


@dataclass(frozen=True, slots=True)
class View:
    """The state as it is reported. `exits` counts since the agent started; `last_exit` is empty before the first."""

    phase: Phase
    pid: int | None
    adopted: bool
    restarts: int
    crash_looping: bool
    last_exit: str
    since: float


class Lifecycle:
    """One Envoy's life. Give every event to `handle` and carry out what it returns, in order.

    Args:
        jitter: returns a number in [0, 1); spreads the restarts of a fleet that crashes together.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._phase = Phase.DOWN
        self._since = 0.0
        self._pid: int | None = None
        self._adopted = False
        self._hold = False
        self._stop = False
        self._started_at: float | None = None
        self._start_at = 0.0
        self._failures = 0
        self._restarts = 0
        self._last_exit = ""
        self._starting = False

    def view(self) -> View:
        return View(
            phase=self._phase,
            pid=self._pid,
            adopted=self._adopted,
            restarts=self._restarts,
            crash_looping=self._failures >= CRASH_LOOP,
            last_exit=self._last_exit,
            since=self._since,
        )

    def handle(self, event: Event, now: float) -> tuple[Action, ...]:
        match event:
            case Adopted(pid):
                return self._running(pid, adopted=True, now=now)
            case Started(pid):
                return self._running(pid, adopted=False, now=now)
            case StartFailed(reason):
                self._starting = False
                return self._ended(f"could not be started: {reason}", now)
            case Exited(status):
                return self._ended(status, now)
            case Live():
                if self._phase is Phase.STARTING:
                    self._enter(Phase.LIVE, now)
                return ()
            case Held(hold):
                self._hold = hold
                return ()
            case StopRequested():
                return self._request_stop(now)
            case Tick():
                return self._decide(now)

    def _running(self, pid: int, *, adopted: bool, now: float) -> tuple[Action, ...]:
        self._starting = False
        self._pid = pid
        self._adopted = adopted
        self._started_at = now
        self._enter(Phase.STARTING, now)
        return (Terminate(STOP_GRACE_S),) if self._stop else ()

    def _ended(self, status: str, now: float) -> tuple[Action, ...]:
        self._forgive_if_stable(now)
        self._pid = None
        self._started_at = None
        self._last_exit = status
        self._failures += 1
        self._start_at = now + self._backoff_s()
        self._enter(Phase.STOPPED if self._stop else Phase.DOWN, now)
        return self._decide(now)

    def _forgive_if_stable(self, now: float) -> None:
        if self._started_at is not None and now - self._started_at >= STABLE_S:
            self._failures = 0

    def _backoff_s(self) -> float:
        """The first restart is immediate: a crash after a stable run costs as little as it can."""
        if self._failures <= 1:
            return 0.0
        # 2 ** 16 is far above the cap, and the exponent must not grow without bound.
        full = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures - 2, 16))
        return float(full * (0.5 + 0.5 * self._jitter()))

    def _request_stop(self, now: float) -> tuple[Action, ...]:
        self._stop = True
        if self._pid is not None:
            return (Terminate(STOP_GRACE_S),)
        if not self._starting:
            self._enter(Phase.STOPPED, now)
        return ()

    def _decide(self, now: float) -> tuple[Action, ...]:
        if self._pid is not None:
            self._forgive_if_stable(now)
            started_at = self._started_at
            return (WaitUntil(started_at + STABLE_S),) if self._failures and started_at is not None else ()
        if self._stop or self._starting:
            return ()
        if self._hold:
            self._enter(Phase.HELD, now)
            return (WaitUntil(now + HOLD_CHECK_S),)
        if now < self._start_at:
            self._enter(Phase.DOWN, now)
            return (WaitUntil(self._start_at),)
        self._starting = True
        if self._last_exit:
            self._restarts += 1
        self._enter(Phase.STARTING, now)
        return (Start(),)

    def _enter(self, phase: Phase, now: float) -> None:
        if phase is not self._phase:
            self._phase = phase
            self._since = now
