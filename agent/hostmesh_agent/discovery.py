"""What the host tells of itself unasked: facts, load, what listens, with whom its programs have connections."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final

from hostmesh_agent import host, machine
from hostmesh_agent.cloud import Whereabouts
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.observing import Observing
from hostmesh_agent.services import Listening
from hostmesh_agent.weighing import Weighing
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ReportResponse, Workload

EVERY_S: Final = 60.0
"""How often disks and interfaces are looked at."""


class Discovery:
    """Everything of a report that needs no mesh. `changed` is called when there is something to tell soon."""

    def __init__(
        self,
        config: AgentConfig,
        fixed: host.FixedFacts,
        envoy_uid: int,
        controllers: Callable[[], Iterable[str]],
        changed: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        """`controllers` tells host:port of the controllers that the agent calls."""
        observe = config.observe
        self._fixed = fixed
        self._labels: Mapping[str, str] = config.labels
        self._listening = Listening()
        self._load = host.Load()
        self._weighing = Weighing(changed)
        self._where = Whereabouts(fixed.cloud if observe.cloud else "", changed)
        self._changing = host.Changing()
        self._next_look_s = 0.0
        self.observing = (
            Observing(
                envoy_uid,
                lambda: _literal(controllers()),
                observe.public_addresses,
                float(observe.interval_s),
                now,
            )
            if observe.enabled
            else None
        )

    def through_envoy(self, ports: frozenset[int]) -> None:
        """Note at which ports Envoy's connections to programs look like those of the callers."""
        if self.observing is not None:
            self.observing.through_envoy = ports

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._where.run())
            group.create_task(self._weighing.run())
            if self.observing is not None:
                group.create_task(self.observing.run())

    def configure(self, workloads: Iterable[Workload]) -> None:
        """Measure what these want to be called by."""
        self._weighing.ask(wanted=any(each.weighed_by_load for each in workloads))

    async def fill(self, report: HostReport, envoy_version: str) -> None:
        """Put into a report what was discovered."""
        await self._look()
        changing = replace(self._changing, cloud=self._where.cloud)
        report.facts.CopyFrom(host.facts(self._fixed, envoy_version, changing, self._labels))
        report.load.CopyFrom(self._load.sample(self._changing.disks))
        report.load.free_eighths = self._weighing.level
        report.listening.extend(await self._listening.sockets())
        if self.observing is not None:
            report.flows.CopyFrom(self.observing.tell())

    def taken(self, response: ReportResponse) -> None:
        """Note that the controller took what was last told."""
        if self.observing is not None:
            self.observing.taken(response)

    async def _look(self) -> None:
        at_s = asyncio.get_running_loop().time()
        if at_s < self._next_look_s:
            return
        self._next_look_s = at_s + EVERY_S
        disks, interfaces = self._changing.disks, self._changing.interfaces
        with suppress(OSError):
            disks, interfaces = await asyncio.to_thread(lambda: (tuple(machine.disks()), tuple(machine.interfaces())))
        self._changing = host.Changing(disks, interfaces)


def _literal(endpoints: Iterable[str]) -> frozenset[tuple[str, int]]:
    """Return address and port of those that are named by address: what a name leads to is not asked here."""
    pairs = (each.rpartition(":") for each in endpoints)
    return frozenset((host_.strip("[]"), int(port)) for host_, _, port in pairs if port.isdigit())
