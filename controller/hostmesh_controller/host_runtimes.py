"""What is true of each host while the mesh runs: what it reports, and whether it, or what it had, is refused."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from hostmesh_controller.enrolments import Enrolments
from hostmesh_controller.lease_keeper import LeaseKeeper
from hostmesh_controller.mesh import HostRuntime, Update
from hostmesh_controller.reports import HostStates, Workload, runtime_of
from hostmesh_controller.store import HostState, StoreError
from hostmesh_controller.table import Table

FORMERLY: Final = timedelta(seconds=60)
"""How long callers take the identity that a workload had, whatever its agent says: longer than agents take to report
that the new one is in use. From then on it counts what they report."""
_NOTHING_KNOWN: Final = HostRuntime()

_log: Final = structlog.get_logger(__name__)


class HostRuntimes:
    """Reports and enrolments of all hosts as the mesh takes them. For one event loop."""

    def __init__(
        self,
        states: HostStates,
        enrolments: Enrolments,
        registered: Callable[[str], bool],
        leases: LeaseKeeper,
        updates: Callable[[str], tuple[Update, ...]] = lambda _: (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`registered` tells whether there is a Host object of a name; `updates` what rollouts tell a host."""
        self._updates = updates
        self._now = now
        self._formerly: dict[str, dict[tuple[Workload, str], datetime]] = {}
        """By host: under which other identity a workload was served, and until when that counts."""
        self._states = states
        self._enrolments = enrolments
        self._registered = registered
        self._leases = leases
        self._table: Table[str, HostRuntime] = Table()

    @property
    def table(self) -> Table[str, HostRuntime]:
        """By host, as it was when it was last looked at; a new one after each change."""
        return self._table

    def open(self, states: Mapping[str, HostState]) -> None:
        """Look at every host that is known; `states` are those of the store."""
        hosts = {*states, *self._enrolments.hosts()}
        self._table = Table[str, HostRuntime]().changed(
            {host: self._of(host, states.get(host, HostState())) for host in hosts}
        )
        joined = [host for host, runtime in self._table.items() if runtime.joined]
        out = {host for host in joined if states[host].silent_at is not None}
        self._leases.start(joined, out)
        self._table = self._table.changed({host: replace(self._table[host], silent=True) for host in out})

    def note_former(self, host: str, workload: Workload, spiffe_id: str) -> None:
        """Take note that a workload is to be served under another identity than this one; look at the host then."""
        self._formerly.setdefault(host, {})[workload, spiffe_id] = self._now() + FORMERLY

    def _former(self, host: str) -> frozenset[tuple[Workload, str]]:
        known = self._formerly.get(host)
        if known is None:
            return frozenset()
        for each in [each for each, until in known.items() if self._now() >= until]:
            del known[each]
        if not known:
            del self._formerly[host]
        return frozenset(known)

    async def look(self, hosts: Iterable[str]) -> None:
        """Look at some hosts again."""
        self._table = self._table.changed({host: self._of(host, await self._states.state(host)) for host in hosts})

    async def keep(self, hosts: Iterable[str]) -> None:
        """Keep which of some hosts are withdrawn. Where that fails, a restart has them called for seconds more."""
        for host in hosts:
            runtime = self._table.get(host, _NOTHING_KNOWN)
            try:
                if runtime.joined:
                    await self._states.silent(host, silent=runtime.silent)
            except StoreError as error:
                _log.warning("withdrawal_not_kept", host=host, error=str(error))

    def lapsed(self) -> list[str]:
        """Return the hosts of which certificates that were refused have ended since they were looked at."""
        return [
            host
            for host in self._enrolments.hosts()
            if self._table.get(host, _NOTHING_KNOWN).denied != self._enrolments.denied(host)
        ]

    def _of(self, host: str, state: HostState) -> HostRuntime | None:
        """Return what is true of a host; None if there is nothing to know. What was issued to one outlives it."""
        denied, known = self._enrolments.denied(host), self._registered(host)
        if not known:
            self._leases.forget(host)
            return HostRuntime(denied=denied) if denied else None
        runtime, leases = runtime_of(state), self._leases.leases
        if not runtime.joined:
            self._leases.forget(host)
        silent, stalled = leases.is_out(host), leases.is_stalled(host)
        expelled = self._enrolments.is_out(host)
        return replace(
            runtime,
            expelled=expelled,
            denied=denied,
            silent=silent,
            stalled=stalled,
            updates=self._updates(host),
            presented=runtime.presented | self._former(host),
        )
