"""Are the host's programs well? Each workload that has probes is looked at, and judged by Kubernetes' rules.

A workload is well while all of its probes think so.

What counts is the judgement, not the last look: so many successes in a row make a workload healthy, so many failures
unhealthy. A new workload is not healthy before its first success. One that was healthy stays so until its probe says
otherwise: through a change of the probe, when it gets its first one, and through a restart of the agent, which finds
what it knew on the run directory. A reboot ends that: the programs have ended too.

A workload that fails is unhealthy at once, always. One that is well again is healthy at once, too, unless it keeps
coming and going: then it counts as unhealthy for longer each time, or each flip would be told to all of its callers.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from hostmesh_agent.alarms import Alarms
from hostmesh_agent.repairs import Repairs
from hostmesh_agent.state import write_private
from hostmesh_api.v1.hostmesh_pb2 import Probe, ProbeState, Workload, WorkloadLease

AT_ONCE: Final = 16
"""Commands that run at the same time, of all workloads: what hangs must not fill the host."""
CONNECTIONS_AT_ONCE: Final = 256
"""The same of looks that are a connection. They wait for no command: one that hangs may do so for a day."""
MAX_REASON_CHARS: Final = 200
FIRST_HOLD_S: Final = 2.0
LAST_HOLD_S: Final = 60.0
"""How long a workload that keeps coming back must wait until it counts as healthy: twice as long each time."""
READINESS: Final = "readiness"
"""The probe that its WorkloadGroup says it has."""
_NOT_YET: Final = "its probe has not succeeded yet"
_FLAPS: Final = "it is well, but comes and goes: it counts once it has been well for longer"

log = structlog.get_logger(__name__)


class Name(NamedTuple):
    """A workload's."""

    namespace: str
    name: str


class ProbeName(NamedTuple):
    """Of one of a workload's probes; "" stands for the workload as a whole."""

    workload: Name
    probe: str


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
    """What was thought of each probe, and of each workload, in a file that does not count after a reboot."""

    def __init__(self, path: Path, boot_id: str, alarms: Alarms | None = None) -> None:
        self._path = path
        self._boot_id = boot_id
        self._alarms = Alarms() if alarms is None else alarms

    def read(self) -> dict[ProbeName, bool]:
        """Return what was healthy and what was not; nothing where nothing is known."""
        try:
            document = json.loads(self._path.read_bytes())
            if document["boot_id"] != self._boot_id:
                return {}
            # Earlier agents wrote workloads alone.
            return {
                ProbeName(Name(namespace, name), probe[0] if probe else ""): bool(healthy)
                for namespace, name, *probe, healthy in document["workloads"]
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def write(self, healthy: Mapping[ProbeName, bool]) -> None:
        workloads = [[*each.workload, each.probe, well] for each, well in sorted(healthy.items())]
        document = {"boot_id": self._boot_id, "workloads": workloads}
        try:
            write_private(self._path, json.dumps(document).encode())
        except OSError as error:
            self._alarms.up("memory.not-written", f"{self._path}: {error}", "health")
        else:
            self._alarms.down("memory.not-written", "health")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A probe, and where it looks unless it says where."""

    probe: Probe
    address: str


class Probes:
    """Looks at the workloads that have probes, until cancelled.

    Args:
        look: looks once, within the probe's time; raises nothing but CancelledError.
        memory: of the last agent, and for the next one.
        changed: is called when a judgement of a workload changes.
    """

    def __init__(
        self, look: Callable[[Probe, str], Awaitable[Look]], memory: Memory, changed: Callable[[], None]
    ) -> None:
        self._look = look
        self._memory = memory
        self._changed = changed
        self._remembered = memory.read()
        self._workloads: dict[Name, tuple[ProbeName, ...]] = {}
        self._asked: dict[ProbeName, _Asked] = {}
        self._judgements: dict[ProbeName, Judgement] = {}
        self._healthy: dict[Name, bool] = {}
        self._returns: dict[Name, Repairs] = {}
        self._held: dict[Name, asyncio.TimerHandle] = {}
        """Workloads that are well, and do not count as healthy yet."""
        self._commands = asyncio.Semaphore(AT_ONCE)
        self._connections = asyncio.Semaphore(CONNECTIONS_AT_ONCE)
        self._wake = asyncio.Event()

    def configure(self, workloads: Iterable[Workload]) -> None:
        """Look at these from now on."""
        before = self._healthy
        asked = {Name(each.namespace, each.name): _asked(each) for each in workloads}
        self._workloads = {name: tuple(found) for name, found in asked.items()}
        self._asked = {each: how for found in asked.values() for each, how in found.items()}
        for gone in self._judgements.keys() - self._asked.keys():
            del self._judgements[gone]
        for each in self._asked.keys() - self._judgements.keys():
            # A further probe of a workload that is well leaves it so until it says otherwise.
            whole = self._remembered.get(ProbeName(each.workload, ""), False)
            known = before.get(each.workload, self._remembered.get(each, whole))
            self._judgements[each] = Judgement(known, reason="" if known else _NOT_YET)
        for name in self._held.keys() - {each for each in self._workloads if self._is_well(each)}:
            self._held.pop(name).cancel()
        self._healthy = {name: self._is_well(name) and name not in self._held for name in self._workloads}
        self._returns = {name: self._returns.get(name) or Repairs(FIRST_HOLD_S, LAST_HOLD_S) for name in asked}
        self._remember()
        self._wake.set()

    def _is_well(self, name: Name) -> bool:
        """Tell whether all of a workload's probes think so."""
        return all(self._judgements[each].healthy for each in self._workloads[name])

    def tell(self, lease: WorkloadLease) -> WorkloadLease:
        """Return the lease with what is thought of its workload."""
        name = Name(lease.namespace, lease.name)
        probes = self._workloads.get(name, ())
        if probes:
            found = {each.probe: self._judgements[each] for each in probes}
            lease.health = WorkloadLease.HEALTHY if self._healthy[name] else WorkloadLease.UNHEALTHY
            lease.health_reason = _FLAPS if name in self._held else _reason(found)
            lease.probes.extend(
                ProbeState(name=each, healthy=judged.healthy, reason=judged.reason) for each, judged in found.items()
            )
        return lease

    async def run(self) -> None:
        running: dict[ProbeName, tuple[_Asked, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                for each, (asked, task) in list(running.items()):
                    if self._asked.get(each) != asked:
                        task.cancel()
                        del running[each]
                for each, asked in self._asked.items():
                    if each not in running:
                        name = f"probe {'/'.join(each.workload)} {each.probe}"
                        running[each] = (asked, group.create_task(self._follow(each, asked), name=name))
                await self._wake.wait()

    async def _follow(self, name: ProbeName, asked: _Asked) -> None:
        probe, loop = asked.probe, asyncio.get_running_loop()
        turns = self._commands if probe.WhichOneof("way") in {"exec", "systemd"} else self._connections
        await asyncio.sleep(probe.initial_delay_s)
        while True:
            async with turns:
                began = loop.time()
                look = await self._look(probe, asked.address)
            if self._asked.get(name) != asked:
                return  # it was taken out, or is another one, and its look had only just ended
            self._take(name, judge(self._judgements[name], look, probe))
            await asyncio.sleep(max(0.0, began + max(1, probe.period_s) - loop.time()))

    def _take(self, name: ProbeName, after: Judgement) -> None:
        after = replace(after, reason=after.reason[:MAX_REASON_CHARS])
        flipped = after.healthy != self._judgements[name].healthy
        self._judgements[name] = after
        if flipped:
            workload = "/".join(name.workload)
            log.info("health changed", workload=workload, probe=name.probe, healthy=after.healthy, reason=after.reason)
            if self._settle(name.workload):
                self._changed()
            self._remember()

    def _settle(self, name: Name) -> bool:
        """Let what the probes think of a workload count, or wait; return whether it counts otherwise now."""
        if name in self._held:
            self._held.pop(name).cancel()
        well = self._is_well(name)
        if well == self._healthy[name]:
            return False
        if well:
            loop, returns = asyncio.get_running_loop(), self._returns[name]
            wait_s = returns.wait_s(loop.time())
            if wait_s > 0:
                self._held[name] = loop.call_later(wait_s, self._hold_ended, name)
                return False
            returns.made(loop.time())
        self._healthy[name] = well
        return True

    def _hold_ended(self, name: Name) -> None:
        if self._settle(name):
            self._changed()
            self._remember()

    def _remember(self) -> None:
        now = {name: judgement.healthy for name, judgement in self._judgements.items()}
        now |= {ProbeName(name, ""): self._healthy[name] for name in self._workloads}
        if now != self._remembered:
            self._remembered = now
            self._memory.write(now)


def _asked(workload: Workload) -> dict[ProbeName, _Asked]:
    name = Name(workload.namespace, workload.name)
    found = {ProbeName(name, READINESS): _Asked(workload.probe, workload.address)} if workload.HasField("probe") else {}
    return found | {ProbeName(name, each.name): _Asked(each.probe, workload.address) for each in workload.more_probes}


def _reason(found: Mapping[str, Judgement]) -> str:
    """Return why a workload is not healthy, by the names of its probes where it has several."""
    failing = {name: judged.reason for name, judged in found.items() if not judged.healthy}
    if len(found) == 1:
        return "".join(failing.values())
    return "; ".join(f"{name}: {reason}" for name, reason in failing.items())
