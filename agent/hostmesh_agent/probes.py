"""Are the host's programs well? Each workload that has a probe is looked at, and judged by Kubernetes' rules.

What counts is the judgement, not the last look: so many successes in a row make a workload healthy, so many failures
unhealthy. A new workload is not healthy before its first success. One that was healthy stays so until its probe says
otherwise: through a change of the probe, when it gets its first one, and through a restart of the agent, which finds
what it knew on the run directory. A reboot ends that: the programs have ended too.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from hostmesh_agent.alarms import Alarms
from hostmesh_agent.state import write_private
from hostmesh_api.v1.hostmesh_pb2 import Probe, Workload, WorkloadLease

AT_ONCE: Final = 16
"""Commands that run at the same time, of all workloads: what hangs must not fill the host."""
CONNECTIONS_AT_ONCE: Final = 256
"""The same of looks that are a connection. They wait for no command: one that hangs may do so for a day."""
MAX_REASON_CHARS: Final = 200
_NOT_YET: Final = "its probe has not succeeded yet"

log = structlog.get_logger(__name__)


class Name(NamedTuple):
    """A workload's."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a program found; `reason` is empty if it is well."""

    well: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """`against` counts the looks in a row that spoke against it; `reason` is the last failure's."""

    healthy: bool
    against: int = 0
    reason: str = ""


def judge(before: Judgement, look: Look, probe: Probe) -> Judgement:
    """Return what is thought after another look."""
    if look.well == before.healthy:
        return replace(before, against=0, reason=look.reason)
    against = before.against + 1
    reason = look.reason or before.reason
    if against < max(1, probe.success_threshold if look.well else probe.failure_threshold):
        return Judgement(before.healthy, against, reason)
    return Judgement(look.well, 0, look.reason)


class Memory:
    """What was thought of each workload, in a file that does not count after a reboot."""

    def __init__(self, path: Path, boot_id: str, alarms: Alarms | None = None) -> None:
        self._path = path
        self._boot_id = boot_id
        self._alarms = Alarms() if alarms is None else alarms

    def read(self) -> dict[Name, bool]:
        """Return whether each workload was healthy; nothing where nothing is known."""
        try:
            document = json.loads(self._path.read_bytes())
            if document["boot_id"] != self._boot_id:
                return {}
            return {Name(namespace, name): bool(healthy) for namespace, name, healthy in document["workloads"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def write(self, healthy: Mapping[Name, bool]) -> None:
        workloads = [[*name, well] for name, well in sorted(healthy.items())]
        document = {"boot_id": self._boot_id, "workloads": workloads}
        try:
            write_private(self._path, json.dumps(document).encode())
        except OSError as error:
            self._alarms.up("memory.not-written", f"{self._path}: {error}", "health")
        else:
            self._alarms.down("memory.not-written", "health")


class Probes:
    """Looks at the workloads that have probes, until cancelled.

    Args:
        look: looks once, within the probe's time; raises nothing but CancelledError.
        memory: of the last agent, and for the next one.
        changed: is called when a judgement changes.
    """

    def __init__(
        self, look: Callable[[Probe, str], Awaitable[Look]], memory: Memory, changed: Callable[[], None]
    ) -> None:
        self._look = look
        self._memory = memory
        self._changed = changed
        self._remembered = memory.read()
        self._workloads: dict[Name, Workload] = {}
        self._judgements: dict[Name, Judgement] = {}
        self._commands = asyncio.Semaphore(AT_ONCE)
        self._connections = asyncio.Semaphore(CONNECTIONS_AT_ONCE)
        self._wake = asyncio.Event()

    def configure(self, workloads: Iterable[Workload]) -> None:
        """Look at these from now on."""
        self._workloads = {Name(each.namespace, each.name): each for each in workloads}
        for name in self._judgements.keys() - self._workloads.keys():
            del self._judgements[name]
        for name, workload in self._workloads.items():
            if not workload.HasField("probe"):
                self._judgements[name] = Judgement(healthy=True)
            elif name not in self._judgements:
                known = self._remembered.get(name, False)
                self._judgements[name] = Judgement(known, reason="" if known else _NOT_YET)
        self._remember()
        self._wake.set()

    def tell(self, lease: WorkloadLease) -> WorkloadLease:
        """Return the lease with what is thought of its workload."""
        workload = self._workloads.get(Name(lease.namespace, lease.name))
        if workload is not None and workload.HasField("probe"):
            found = self._judgements[Name(lease.namespace, lease.name)]
            lease.health = WorkloadLease.HEALTHY if found.healthy else WorkloadLease.UNHEALTHY
            lease.health_reason = "" if found.healthy else found.reason
        return lease

    async def run(self) -> None:
        running: dict[Name, tuple[Workload, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                wanted = {name: each for name, each in self._workloads.items() if each.HasField("probe")}
                for name, (workload, task) in list(running.items()):
                    if _seen_as(wanted.get(name)) != _seen_as(workload):
                        task.cancel()
                        del running[name]
                for name, workload in wanted.items():
                    if name not in running:
                        task = group.create_task(self._follow(name, workload), name=f"probe {'/'.join(name)}")
                        running[name] = (workload, task)
                await self._wake.wait()

    async def _follow(self, name: Name, workload: Workload) -> None:
        probe, loop = workload.probe, asyncio.get_running_loop()
        turns = self._commands if probe.WhichOneof("way") == "exec" else self._connections
        await asyncio.sleep(probe.initial_delay_s)
        while True:
            async with turns:
                began = loop.time()
                look = await self._look(probe, workload.address)
            self._take(name, judge(self._judgements[name], look, probe))
            await asyncio.sleep(max(0.0, began + max(1, probe.period_s) - loop.time()))

    def _take(self, name: Name, after: Judgement) -> None:
        after = replace(after, reason=after.reason[:MAX_REASON_CHARS])
        before, self._judgements[name] = self._judgements[name], after
        if after.healthy != before.healthy:
            log.info("health changed", workload="/".join(name), healthy=after.healthy, reason=after.reason)
            self._remember()
            self._changed()

    def _remember(self) -> None:
        now = {name: judgement.healthy for name, judgement in self._judgements.items()}
        if now != self._remembered:
            self._remembered = now
            self._memory.write(now)


def _seen_as(workload: Workload | None) -> tuple[Probe, str] | None:
    return None if workload is None else (workload.probe, workload.address)
