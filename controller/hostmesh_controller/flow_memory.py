"""Observed flows, kept: in memory, and less often in the store. A report that says nothing new costs nothing here."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from hostmesh_api.v1.hostmesh_pb2 import HostReport
from hostmesh_controller.flows import MAX_EPOCH_CHARS, MAX_OF_HOST, MAX_RECORDS, MAX_TOLD, added, key_of
from hostmesh_controller.store import FlowKey, FlowRecord, StoreError

_WRITES_OF_COUNTS: Final = 10
"""Of known flows only counts and times change: they are written with each so-manieth write."""
_WRITES_OF_PRUNING: Final = 60

_log: Final = structlog.get_logger(__name__)


class FlowStore(Protocol):
    """What observed flows need of the store."""

    def flows(self) -> list[FlowRecord]: ...
    def put_flows(self, flows: Sequence[FlowRecord], gone: Iterable[FlowKey] = ()) -> None: ...


class FlowMemory:
    """For one event loop. Whoever calls `write` decides when."""

    def __init__(self, store: FlowStore, now: Callable[[], datetime], keep: timedelta) -> None:
        self._store = store
        self._now = now
        self._keep = keep
        self._flows: dict[FlowKey, FlowRecord] = {}
        self._of_host: Counter[str] = Counter()
        self._new: set[FlowKey] = set()
        self._more: set[FlowKey] = set()
        self._gone: set[FlowKey] = set()
        self._writes = 0

    async def open(self) -> None:
        """Read what is stored.

        Raises:
            StoreError: the store cannot be read.
        """
        self._flows = {each.key: each for each in await asyncio.to_thread(self._store.flows)}
        self._of_host = Counter(key.host for key in self._flows)

    @property
    def flows(self) -> Mapping[FlowKey, FlowRecord]:
        """All that is known. It changes with each report."""
        return self._flows

    def reported(self, host: str, report: HostReport) -> None:
        """Take what a host's agent tells."""
        now, epoch = self._now(), report.flows.epoch[:MAX_EPOCH_CHARS]
        for flow in report.flows.flows[:MAX_TOLD]:
            key = key_of(flow, host)
            if key is None:
                continue
            before = self._flows.get(key)
            if before is None and (self._of_host[host] >= MAX_OF_HOST or len(self._flows) >= MAX_RECORDS):
                continue
            record = added(before, flow, key, epoch, now)
            if record is not before:
                self._flows[key] = record
                self._gone.discard(key)
                if before is None:
                    self._of_host[host] += 1
                (self._new if before is None else self._more).add(key)

    async def write(self, *, everything: bool = False) -> None:
        """Write what is due; a store that fails is tried again the next time."""
        self._writes += 1
        if self._writes % _WRITES_OF_PRUNING == 0:
            self._prune()
        due = set(self._new)
        if everything or self._writes % _WRITES_OF_COUNTS == 0:
            due |= self._more
        gone = set(self._gone)
        if not due and not gone:
            return
        records = [self._flows[key] for key in sorted(due & self._flows.keys())]
        # Noted before, and again where it failed: what comes while the store works is for the next time.
        self._new -= due
        self._more -= due
        self._gone -= gone
        try:
            await asyncio.to_thread(self._store.put_flows, records, gone)
        except StoreError as error:
            _log.error("observed_flows_not_kept", error=str(error))
            self._new |= due & self._flows.keys()
            self._gone |= gone - self._flows.keys()

    def _prune(self) -> None:
        oldest = self._now() - self._keep
        for key in [key for key, each in self._flows.items() if each.last_seen < oldest]:
            del self._flows[key]
            self._of_host[key.host] -= 1
            self._gone.add(key)
            self._new.discard(key)
            self._more.discard(key)
