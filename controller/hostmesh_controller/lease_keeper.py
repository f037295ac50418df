"""The leases at work: a clock, knocks at the doors of hosts whose agents are away, and who is told of what follows."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog

from hostmesh_controller.leases import Leases, PanicLimits, Sign

AT_ONCE: Final = 64
"""Knocks under way."""
_TOGETHER_S: Final = 0.1
"""Streams of many hosts end together: they are judged together."""
_NOT_SERVING: Final = frozenset({"starting", "down", "held"})
"""States of Envoy in a report (`EnvoyState.state`)."""

_log: Final = structlog.stdlib.get_logger(__name__)


class LeaseKeeper:
    """Keeps the leases of all hosts. For one event loop.

    Args:
        changed: is called with a host that is withdrawn now, or back, or whose Envoy is down for long.
        addresses: of a host, for knocking.
        knock: tells whether one of these addresses answers; None: it cannot be told.
        limits: of the panic guard.
    """

    def __init__(
        self,
        changed: Callable[[str], None],
        addresses: Callable[[str], Sequence[str]],
        knock: Callable[[Sequence[str]], Awaitable[bool | None]],
        limits: PanicLimits | None = None,
    ) -> None:
        self._leases = Leases(limits)
        self._changed = changed
        self._addresses = addresses
        self._knock = knock
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._wake = asyncio.Event()
        self._panicked = False

    @property
    def leases(self) -> Leases:
        """What is known now."""
        return self._leases

    def start(self, hosts: Iterable[str], out: Collection[str] = ()) -> None:
        """Begin with the hosts that have joined; `out` are those that were withdrawn before this process began."""
        self._leases.start(hosts, self._now(), out)
        self._wake.set()

    def awaits(self, is_here: Callable[[str], bool]) -> bool:
        """Tell whether a host that lived before this controller started may still be on its way to it."""
        return self._leases.awaits(self._now(), is_here)

    def connected(self, host: str) -> None:
        """Take note that a host has opened its stream."""
        self._leases.connected(host, self._now())
        # A storm of hosts that come up is no reason to look.
        if self._leases.is_out(host) or self._leases.panic:
            self._wake.set()

    def ended(self, host: str) -> None:
        """Take note that a stream of a host has ended."""
        self._leases.ended(host, self._now())
        self._wake.set()

    def reported(self, host: str, envoy: str) -> None:
        """Take note of a report, and of the state of Envoy in it."""
        self._leases.reported(host, serves=envoy not in _NOT_SERVING, now=self._now())
        if self._leases.is_undecided(host):
            self._wake.set()

    def forget(self, host: str) -> None:
        """Drop a host that left or was removed."""
        self._leases.forget(host)

    def missing_since(self, host: str, now: datetime) -> datetime | None:
        """Return when a host that has no stream was last known to live, by the clock of `now`."""
        since = self._leases.missing_since(host)
        return None if since is None else now - timedelta(seconds=self._now() - since)

    async def run(self) -> None:
        """Judge until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                todo = self._leases.todo(self._now())
                for host in todo.knock:
                    group.create_task(self._knock_at(host), name=f"knock {host}")
                for host in todo.changed:
                    self._tell(host)
                self._tell_of_panic()
                await self._wait()

    async def _wait(self) -> None:
        next_at = self._leases.next_at(self._now())
        wait_s = None if next_at is None else max(next_at - self._now(), _TOGETHER_S)
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_TOGETHER_S)

    async def _knock_at(self, host: str) -> None:
        async with self._turns:
            answered = await self._knock(self._addresses(host))
        # Where nothing can be told the host keeps its place.
        self._leases.knocked(host, answered=answered is not False, now=self._now())
        self._wake.set()

    def _tell(self, host: str) -> None:
        sign = self._leases.sign(host)
        if sign is Sign.WITHDRAWN:
            _log.warning("host withdrawn: it is silent; services that have others do without it", host=host)
        else:
            _log.info("host judged anew", host=host, sign=str(sign), envoy_down=self._leases.is_stalled(host))
        self._changed(host)

    def _tell_of_panic(self) -> None:
        if self._leases.panic == self._panicked:
            return
        self._panicked = self._leases.panic
        if self._panicked:
            _log.error("panic guard: too many hosts are missing at once; none is withdrawn", signs=self._signs())
        else:
            _log.warning("panic guard: it is over; hosts are judged one by one again", signs=self._signs())

    def _signs(self) -> dict[str, int]:
        return {str(sign): count for sign, count in self._leases.counts().items() if count}

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
