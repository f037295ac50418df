"""Capture at work: looks at the evidence, lets `converge` decide, and puts that into force."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import structlog

from hostmesh_agent import converge, guard, status
from hostmesh_agent.capture import CaptureError, CaptureRequest, HostFloor, Owner
from hostmesh_agent.capture import CaptureState as CaptureResult
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.enforce import Enforced, Enforcement
from hostmesh_agent.identities import AGENT, Identities
from hostmesh_agent.recognition import Recognition
from hostmesh_api.v1.hostmesh_pb2 import CaptureState, HostConfig

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
        recognition: Recognition,
    ) -> None:
        """Begin with nothing known.

        Args:
            config: of the host.
            owner: of the rules.
            identities: whose certificates are in place.
            active: returns which of the wanted listeners, by version, Envoy has.
            changed: is called when something else is in force, or lacking.
            recognition: tells who is who on this host.
        """
        self._config = config
        self._identities = identities
        self._active = active
        self._changed = changed
        self._recognition = recognition
        self._guard = guard.Guard(config.state_dir)
        self._enforcement = Enforcement(
            dns=config.dns.enabled, resolv_conf=config.dns.resolv_conf, state_dir=config.state_dir, owner=owner
        )
        self._enforced = Enforced()
        self._lacking: tuple[str, ...] = ()

    @property
    def enforced(self) -> Enforced:
        """What is in force."""
        return self._enforced

    @property
    def lacking(self) -> tuple[str, ...]:
        """What is wanted and has to wait, and why."""
        return self._lacking

    def state(self) -> CaptureState:
        """Return what the controller is told."""
        capture = self._enforced.capture
        return CaptureState(
            state=capture.state,
            backend=capture.backend,
            rules_hash=capture.rules_hash,
            error="; ".join(filter(None, [capture.error, self._enforced.dns_detail, *self._lacking])),
        )

    async def step(self, config: HostConfig, floor: HostFloor) -> None:
        """Put into force what may be, now."""
        try:
            decision = await self._decide(config)
        except CaptureError as error:
            # What is in force is not known: it stays as it is, or STRICT ports would be open for a moment.
            decision, enforced = converge.Decision(None, (str(error),)), self._enforced
        else:
            enforced = await asyncio.to_thread(self._put, decision.request, config, floor)
        if enforced.capture.state == "on":
            strict = frozenset(config.strict_ports) & enforced.in_force.inbound_ports
            await asyncio.to_thread(self._guard.note, strict)
        if (enforced, decision.lacking) != (self._enforced, self._lacking):
            self._enforced, self._lacking = enforced, decision.lacking
            self._log()
            self._changed()

    def _put(self, request: CaptureRequest | None, config: HostConfig, floor: HostFloor) -> Enforced:
        """Have the rules name those who are there now."""
        recognition = self._recognition
        try:
            floor = recognition.floor(floor)
        except CaptureError as error:
            return replace(self._enforced, capture=CaptureResult("error", error=str(error)))
        if request is not None and request.outbound:
            callers = recognition.callers(config, self._identities.validities())
            request = replace(request, callers=callers)
        enforced = self._enforcement.put(request, floor)
        if enforced.capture.state != "error":
            recognition.group.in_force = floor.envoy_cgroup if enforced.capture.state == "on" else None
        return enforced

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
        )
        decision = converge.decide(config, evidence)
        if not decision.lacking:
            return decision
        listeners = await self._active(config.listeners)
        return converge.decide(config, replace(evidence, listeners=listeners))

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
