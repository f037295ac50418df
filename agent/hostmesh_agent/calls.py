"""Who calls this host's workloads: read from Envoy, remembered, and told to the controller until it has it.

What is told are sums. A report that was lost, or taken though its answer was lost, or told twice, makes no difference.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import structlog

from hostmesh_agent import tally
from hostmesh_agent.admin import AdminError
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.state import write_private
from hostmesh_agent.tally import Seen, Tally, Who
from hostmesh_api.v1.hostmesh_pb2 import ObservedCall, ObservedCalls, ReportResponse

LOOK_S: Final = 10.0
_REST: Final = 500
"""A reading takes a millisecond or two; in an Envoy that has very many statistics it may take 0.2 % of its time."""
MAX_TOLD: Final = 1000
"""In one report; the rest follows in the next."""

log = structlog.get_logger(__name__)


class CallMemory:
    """What was read and summed up, in a file that does not count after a reboot: Envoy's counters do not either."""

    def __init__(self, path: Path, boot_id: str, alarms: Alarms | None = None) -> None:
        self._path = path
        self._boot_id = boot_id
        self._alarms = Alarms() if alarms is None else alarms

    def read(self) -> tuple[str, Tally]:
        """Return the epoch and the tally; new ones where nothing is known."""
        try:
            document = json.loads(self._path.read_bytes())
            if document["boot_id"] == self._boot_id:
                return str(document["epoch"]), _tally(document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        return os.urandom(8).hex(), Tally()

    def write(self, epoch: str, kept: Tally) -> None:
        seen = [
            [*who, sorted(each.methods), each.count, each.denied, each.first_s, each.last_s]
            for who, each in kept.seen.items()
        ]
        document = {"boot_id": self._boot_id, "epoch": epoch, "readings": dict(kept.readings), "seen": seen}
        try:
            write_private(self._path, json.dumps(document).encode())
        except OSError as error:
            self._alarms.up("memory.not-written", f"{self._path}: {error}", "calls")
        else:
            self._alarms.down("memory.not-written", "calls")


def _tally(document: Mapping[str, Any]) -> Tally:
    seen = {
        Who(str(chain), str(caller)): Seen(frozenset(methods), int(count), int(denied), float(first), float(last))
        for chain, caller, methods, count, denied, first, last in document["seen"]
    }
    return Tally({str(name): int(value) for name, value in document["readings"].items()}, seen)


class Calls:
    """Looks until cancelled.

    Args:
        read: returns Envoy's counters of calls; raises AdminError.
        memory: of the last agent, and for the next one.
        changed: is called when there is somebody new.
        now: the time of day.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Mapping[str, int]]],
        memory: CallMemory,
        changed: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        self._read = read
        self._memory = memory
        self._changed = changed
        self._now = now
        self._epoch, self._tally = memory.read()
        self._holder = ""
        self._pending = set(self._tally.seen)
        self._told: dict[Who, Seen] = {}

    async def run(self) -> None:
        while True:
            started_s = time.monotonic()
            await self.look()
            await asyncio.sleep(max(LOOK_S, (time.monotonic() - started_s) * _REST))

    async def look(self) -> None:
        """Read Envoy's counters. An Envoy that does not answer is down or just starts: it is read the next time."""
        try:
            readings = await self._read()
        except AdminError:
            return
        before = self._tally
        self._tally = tally.read(before, readings, self._now().timestamp())
        if self._tally is before:
            return
        await asyncio.to_thread(self._memory.write, self._epoch, self._tally)
        if self._tally.seen is before.seen:
            return
        seen = self._tally.seen
        self._pending = {who for who in self._pending if who in seen} | {
            who for who, each in seen.items() if before.seen.get(who) != each
        }
        if seen.keys() - before.seen.keys():
            self._changed()

    def tell(self) -> ObservedCalls:
        """Return what the controller has not taken yet."""
        now_s = self._now().timestamp()
        chosen = sorted(self._pending)[:MAX_TOLD]
        self._told = {who: self._tally.seen[who] for who in chosen}
        return ObservedCalls(epoch=self._epoch, calls=[_call(who, each, now_s) for who, each in self._told.items()])

    def taken(self, response: ReportResponse) -> None:
        """Note that the controller took what was last told."""
        if response.calls_memory != self._holder:
            self._holder = response.calls_memory
            # What is remembered there is not what was told to another one.
            self._pending = set(self._tally.seen)
        self._pending -= {who for who, each in self._told.items() if self._tally.seen.get(who) == each}
        self._told = {}
        if self._pending:
            self._changed()


def _call(who: Who, each: Seen, now_s: float) -> ObservedCall:
    return ObservedCall(
        chain=who.chain,
        caller=who.caller,
        methods=sorted(each.methods),
        count=each.count,
        denied=each.denied,
        first_seen_s=max(0, int(now_s - each.first_s)),
        last_seen_s=max(0, int(now_s - each.last_s)),
    )
