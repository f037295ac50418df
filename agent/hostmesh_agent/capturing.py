"""Capture at work: looks at the evidence, lets `converge` decide, and puts that into force."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from hostmesh_agent import converge, gaps, guard, status, terms
from hostmesh_agent.capture import CaptureError, CaptureRequest, HostFloor, Owner
from hostmesh_agent.capture.who import Direction
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.enforce import Enforced, Enforcement
from hostmesh_agent.gaps import Gap, Gaps, Seen
from hostmesh_agent.identities import AGENT, Identities
from hostmesh_agent.mesh_names import MeshNames
from hostmesh_agent.programs import Programs
from hostmesh_api.v1.hostmesh_pb2 import CaptureGap, CaptureState, HostConfig

_DOORS_ALONE: Final = CaptureRequest(dns=False)
"""Nothing is captured, but Envoy's own ports lead to the one of two that serves."""

log = structlog.get_logger(__name__)


class Capturing:
    """What is in force on this host, and what is still lacking. For one event loop; steps take turns."""

    def __init__(
        self,
        config: AgentConfig,
        owner: Owner,
        identities: Identities,
        active: Callable[[Mapping[str, str]], Awaitable[frozenset[str]]],
        changed: Callable[[], None],
        names: Callable[[], MeshNames] = MeshNames,
        gone: Callable[[], bool] = lambda: False,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with nothing known.

        Args:
            config: of the host.
            owner: of the rules.
            identities: whose certificates are in place.
            active: returns which of the wanted listeners, by version, Envoy has.
            changed: is called when something else is in force, or lacking.
            names: returns what the mesh's names have in common; called in a thread.
            gone: returns whether there is no Envoy that serves.
            wake: is called when another step is due: a unit came or went.
        """
        self._config = config
        self._identities = identities
        self._active = active
        self._changed = changed
        self._names = names
        self._guard = guard.Guard(config.state_dir)
        self._enforcement = Enforcement(
            dns=config.dns.enabled,
            resolv_conf=config.dns.resolv_conf,
            domains=config.dns.domains,
            state_dir=config.state_dir,
            owner=owner,
        )
        self._enforced = Enforced()
        self._lacking: tuple[str, ...] = ()
        self.leads_to: int | None = None
        """Envoy's port for outbound TCP that the rules use now, if there are any; None: not known."""
        self._gone = gone
        self._programs = Programs(wake)
        self._passing: frozenset[Direction] = frozenset()
        self._gaps: Gaps = {}

    @property
    def enforced(self) -> Enforced:
        """What is in force."""
        return self._enforced

    @property
    def lacking(self) -> tuple[str, ...]:
        """What is wanted and has to wait, and why."""
        return self._lacking

    def gaps(self) -> list[CaptureGap]:
        """Return the last time of each direction without a proxy, if it had one."""
        now = time.monotonic()
        return [_told(each, now) for _, each in sorted(self._gaps.items())]

    def state(self) -> CaptureState:
        """Return what the controller is told."""
        capture = self._enforced.capture
        dns_problem = "" if self._enforced.dns_in_place else self._enforced.dns_detail
        return CaptureState(
            gaps=self.gaps(),
            missing=capture.missing,
            refused=[str(each) for each in capture.refused],
            state=capture.state,
            backend=capture.backend,
            rules_hash=capture.rules_hash,
            error="; ".join(filter(None, [capture.error, dns_problem, *self._lacking])),
        )

    async def step(self, config: HostConfig, floor: HostFloor) -> None:
        """Put into force what may be, now."""
        floor = replace(floor, present=await self._programs.look((*terms.named(config.capture), *floor.never_outbound)))
        gone, before = self._gone(), self._enforced.in_force
        try:
            decision = await self._decide(config)
        except CaptureError as error:
            # What is in force is not known: it stays as it is, or STRICT ports would be open for a moment.
            decision, enforced = converge.Decision(None, (str(error),)), self._enforced
        else:
            request = decision.request or (_DOORS_ALONE if floor.doorways else None)
            enforced = await asyncio.to_thread(self._enforcement.put, request, floor, self._names)
            self._note_gaps(config, before, decision.passing, gone=gone)
        self.leads_to = None if enforced.capture.state == "error" else floor.outbound_port
        if enforced.capture.state == "on":
            strict = frozenset(config.strict_ports) & enforced.in_force.inbound_ports
            await asyncio.to_thread(self._guard.note, strict)
        if (enforced, decision.lacking) != (self._enforced, self._lacking):
            self._enforced, self._lacking = enforced, decision.lacking
            self._log()
            self._changed()

    async def _decide(self, config: HostConfig) -> converge.Decision:
        if status.capture_wanted(self._config):
            return converge.Decision(None, ())
        in_force = await asyncio.to_thread(self._enforcement.look)
        evidence = converge.Evidence(
            certificates=frozenset(self._identities.validities()) - {AGENT},
            listeners=frozenset(),
            in_force=in_force,
            guarded=self._guard.ports & frozenset(config.strict_ports),
            always=frozenset(self._config.floor.mtls_ports),
            gone=self._gone(),
            passing=self._passing,
        )
        decision = converge.decide(config, evidence)
        if not decision.lacking:
            return decision
        listeners = await self._active(config.listeners)
        return converge.decide(config, replace(evidence, listeners=listeners))

    def _note_gaps(
        self, config: HostConfig, before: converge.InForce, passing: frozenset[Direction], *, gone: bool
    ) -> None:
        capture = config.capture
        captured = {Direction.INBOUND: bool(before.inbound_ports), Direction.OUTBOUND: before.outbound}
        may = {Direction.INBOUND: capture.inbound.open, Direction.OUTBOUND: capture.outbound.open}
        seen = {each: Seen(captured[each], may[each], each in passing) for each in Direction}
        self._passing = passing
        found = gaps.after(self._gaps, seen, gone=gone, now=time.monotonic())
        for direction, gap in found.items():
            if gap != self._gaps.get(direction):
                told = _told(gap, time.monotonic())
                log.info(
                    "capture gap",
                    direction=direction.value,
                    mode="open" if gap.open else "closed",
                    lasts=told.lasts,
                    refused_ms=told.refused_ms,
                    passed_ms=told.passed_ms,
                )
        self._gaps = found

    def _log(self) -> None:
        enforced = self._enforced
        log.info(
            "capture",
            state=enforced.capture.state,
            error=enforced.capture.error,
            inbound_ports=sorted(enforced.in_force.inbound_ports),
            outbound=enforced.in_force.outbound,
            dns=enforced.dns_in_place,
            dns_detail=enforced.dns_detail,
            lacking=self._lacking,
        )


def _told(gap: Gap, now: float) -> CaptureGap:
    return CaptureGap(
        direction=gap.direction.value,
        open=gap.open,
        lasts=gap.ended is None,
        refused_ms=round(gap.refused_s(now) * 1000),
        passed_ms=round(gap.passed_s(now) * 1000),
        count=gap.count,
        total_ms=round(gap.total_s(now) * 1000),
    )
