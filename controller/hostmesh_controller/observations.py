"""Who calls whom, kept: in memory, and less often in the store.

A report that says nothing new costs nothing here. What is lost with this process the agents tell the next one: they
tell all they know to whoever has another memory of it.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from hostmesh_api.v1.hostmesh_pb2 import HostReport
from hostmesh_controller.flow_memory import FlowMemory, FlowStore
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.observed import (
    MAX_CALLERS,
    MAX_EPOCH_CHARS,
    MAX_RECORDS,
    MAX_TOLD,
    NOT_TOLD_APART,
    Source,
    added,
    key_of,
    speaker,
    uncounted,
    watched,
)
from hostmesh_controller.store import CallKey, CallRecord, PortKey, StoreError, WatchedPort

WRITE_S: Final = 60.0
"""How often new callers are written, all in one transaction."""
_WRITES_OF_COUNTS: Final = 10
"""Of known callers only counts and times change: they are written with each so-manieth write."""
_WRITES_OF_PRUNING: Final = 60

_log: Final = structlog.get_logger(__name__)


class ObservationStore(FlowStore, Protocol):
    """What observed calls need of the store."""

    def calls(self) -> list[CallRecord]: ...
    def watched_ports(self) -> list[WatchedPort]: ...
    def put_observations(
        self,
        calls: Sequence[CallRecord] = (),
        ports: Sequence[WatchedPort] = (),
        *,
        calls_gone: Iterable[CallKey] = (),
        ports_gone: Iterable[PortKey] = (),
    ) -> None: ...


class Observations:
    """For one event loop."""

    def __init__(self, store: ObservationStore, now: Callable[[], datetime], keep: timedelta) -> None:
        self._store = store
        self._now = now
        self._keep = keep
        self.memory: Final = secrets.token_hex(8)
        """What agents know this memory by."""
        self.flows: Final = FlowMemory(store, now, keep)
        """Connections as hosts see them themselves."""
        self._calls: dict[CallKey, CallRecord] = {}
        self._callers: Counter[PortKey] = Counter()
        self._ports: dict[PortKey, WatchedPort] = {}
        self._by_host: dict[str, frozenset[PortKey]] = {}
        self._new: set[CallKey] = set()
        self._more: set[CallKey] = set()
        self._ports_changed: set[PortKey] = set()
        self._gone: set[CallKey] = set()
        self._writes = 0

    async def open(self) -> None:
        """Read what is stored.

        Raises:
            StoreError: the store cannot be read.
        """
        calls, ports = await asyncio.to_thread(lambda: (self._store.calls(), self._store.watched_ports()))
        await self.flows.open()
        self._calls = {each.key: each for each in calls}
        self._callers = Counter(each.key.of for each in calls)
        self._ports = {each.key: each for each in ports}
        by_host: dict[str, set[PortKey]] = {}
        for each in ports:
            by_host.setdefault(each.host, set()).add(each.key)
        self._by_host = {host: frozenset(keys) for host, keys in by_host.items()}

    @property
    def calls(self) -> Mapping[CallKey, CallRecord]:
        """All that is known of calls. It changes with each report."""
        return self._calls

    @property
    def ports(self) -> Mapping[PortKey, WatchedPort]:
        """The ports that are watched. It changes with each report."""
        return self._ports

    def reported(self, host: str, report: HostReport, mesh: Mesh) -> None:
        """Take what a host's agent tells. An agent that tells nothing of calls watches no port."""
        self.flows.reported(host, report)
        if not report.HasField("calls"):
            self._watch(host, frozenset())
            return
        self._watch(host, watched(host, report, (each.key for each in mesh.workloads_of(host))))
        if report.calls.calls:
            by, now = speaker(mesh, host), self._now()
            source = Source(host, report.calls.epoch[:MAX_EPOCH_CHARS])
            for call in report.calls.calls[:MAX_TOLD]:
                key = key_of(call, by)
                if key is not None:
                    self._take(added(self._calls.get(key), call, key, source, now))

    def _take(self, record: CallRecord) -> None:
        before = self._calls.get(record.key)
        if before is record:
            return
        if before is None and not self._has_room(record.key):
            rest = record.key._replace(caller=NOT_TOLD_APART)
            before = self._calls.get(rest)
            if before is None and len(self._calls) >= MAX_RECORDS + MAX_CALLERS:
                _log.warning("observed_calls_full", host=record.host, records=len(self._calls))
                return
            record = uncounted(before, record, rest)
        self._calls[record.key] = record
        self._gone.discard(record.key)
        if before is None:
            self._callers[record.key.of] += 1
        (self._new if before is None or before.methods != record.methods else self._more).add(record.key)

    def _has_room(self, key: CallKey) -> bool:
        return self._callers[key.of] < MAX_CALLERS and len(self._calls) < MAX_RECORDS

    def _watch(self, host: str, ports: frozenset[PortKey]) -> None:
        before = self._by_host.get(host, frozenset())
        if ports == before:
            return
        now = self._now()
        self._by_host[host] = ports
        for key in before - ports:
            if (known := self._ports.get(key)) is not None and known.host == host:
                del self._ports[key]
                self._ports_changed.add(key)
        for key in ports - before:
            self._ports[key] = WatchedPort(key, host, now)
            self._ports_changed.add(key)

    async def run(self) -> None:
        """Write until cancelled; then once more."""
        try:
            while True:
                await asyncio.sleep(WRITE_S)
                await self.write()
        finally:
            await self.write(everything=True)

    async def write(self, *, everything: bool = False) -> None:
        """Write what is due; a store that fails is tried again the next time."""
        self._writes += 1
        await self.flows.write(everything=everything)
        if self._writes % _WRITES_OF_PRUNING == 0:
            self._prune()
        due = set(self._new)
        if everything or self._writes % _WRITES_OF_COUNTS == 0:
            due |= self._more
        gone, ports = set(self._gone), set(self._ports_changed)
        if not due and not gone and not ports:
            return
        records = [self._calls[key] for key in sorted(due & self._calls.keys())]
        watched_now = [self._ports[key] for key in sorted(ports & self._ports.keys())]
        # Noted before, and again where it failed: what comes while the store works is for the next time.
        self._new -= due
        self._more -= due
        self._gone -= gone
        self._ports_changed -= ports
        try:
            await asyncio.to_thread(
                lambda: self._store.put_observations(
                    records, watched_now, calls_gone=gone, ports_gone=ports - self._ports.keys()
                )
            )
        except StoreError as error:
            _log.error("observed_calls_not_kept", error=str(error))
            self._new |= due & self._calls.keys()
            self._gone |= gone - self._calls.keys()
            self._ports_changed |= ports

    def _prune(self) -> None:
        oldest = self._now() - self._keep
        for key in [key for key, each in self._calls.items() if each.last_seen < oldest]:
            del self._calls[key]
            self._callers[key.of] -= 1
            self._gone.add(key)
            self._new.discard(key)
            self._more.discard(key)
