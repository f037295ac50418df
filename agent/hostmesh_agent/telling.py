"""What the host tells of itself: to the controller in reports, and to its owner as the status."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from hostmesh_agent import host, report, sever, status
from hostmesh_agent.admin import Admin, AdminError
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.calls import Calls
from hostmesh_agent.capturing import Capturing
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.discovery import Discovery
from hostmesh_agent.drained import Drained
from hostmesh_agent.envoys import Envoys
from hostmesh_agent.identities import AGENT, Identities
from hostmesh_agent.modules import Modules
from hostmesh_agent.next_envoy import NextEnvoy
from hostmesh_agent.probes import Probes
from hostmesh_agent.recognition import Recognition
from hostmesh_agent.relay import Relay
from hostmesh_agent.returning import Returning
from hostmesh_agent.updates import Updates
from hostmesh_agent.uplink import Uplink
from hostmesh_agent.workload_api.serving import Serving
from hostmesh_api.v1.hostmesh_pb2 import Alarm as AlarmMessage
from hostmesh_api.v1.hostmesh_pb2 import HostConfig, HostReport, TrustState, WorkloadLease
from hostmesh_api.wire import LISTENER_TYPE

_LOOK_AT_ENVOY_S: Final = 1.0
"""How soon it is seen again whether Envoy has let go of an old certificate: it takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Whatever knows something. `agent` is the id of this process; `workload_api` None: it is not served."""

    config: AgentConfig
    uplink: Uplink
    facts: host.FixedFacts
    agent: str
    admin: Admin
    envoys: Envoys
    drained: Drained
    modules: Modules
    next_envoy: NextEnvoy
    relay: Relay
    identities: Identities
    capturing: Capturing
    recognition: Recognition
    severing: sever.Severing
    probes: Probes
    calls: Calls
    discovery: Discovery
    returning: Returning
    workload_api: Serving | None
    reporter: report.Reporter
    updates: Updates
    alarms: Alarms


class Telling:
    """Makes the documents of this moment."""

    def __init__(
        self,
        parts: Parts,
        config: Callable[[], HostConfig | None],
        active: Callable[[Mapping[str, str]], Awaitable[frozenset[str]]],
        now: Callable[[], datetime],
    ) -> None:
        """`config` returns the configuration in force; `active` those of the wanted listeners that Envoy has."""
        self._parts = parts
        self._config = config
        self._active = active
        self._now = now
        self._presented: Mapping[tuple[str, str], report.Presented] = {}

    async def host_report(self) -> HostReport:
        """Return the report for the controller."""
        parts = self._parts
        own = parts.identities.validities().get(AGENT)
        made = HostReport(
            envoy=report.envoy_state(parts.envoys.status(), parts.envoys.document()),
            capture=parts.capturing.state(),
            leases=self._leases(),
            host_certificate_not_after=0 if own is None else int(own.not_after.timestamp()),
            problems=[
                *status.configuration_problems(parts.modules.states(), parts.next_envoy.problem),
                *filter(None, [parts.severing.problem]),
                *parts.capturing.alarms(),
                *parts.relay.state().problems,
                *parts.envoys.problems(),
                *map(str, parts.alarms),
            ],
            alarms=[AlarmMessage(code=each.code, text=each.text) for each in parts.alarms],
            agent=parts.agent,
            machine=parts.facts.machine_id,
            trust=await self._trust(),
            calls=parts.calls.tell(),
            withdrawn=self._withdrawn(),
            updates=await parts.updates.tell(),
        )
        await parts.discovery.fill(made, parts.envoys.status().version)
        return made

    async def host_status(self) -> dict[str, Any]:
        """Return the status for the owner of the host."""
        parts, config = self._parts, self._config()
        wanted: Mapping[str, str] = {} if config is None else config.listeners
        api = parts.workload_api
        # Asked first: an Envoy that hangs takes its time, and all else is to be of one moment.
        listeners = await self._active(wanted)
        return status.document(
            status.Facts(
                record=parts.uplink.record,
                agent_version=parts.facts.agent_version,
                relay=parts.relay.state(),
                report_failing=parts.reporter.failing,
                envoy=parts.envoys.status(),
                enforced=parts.capturing.enforced,
                lacking=parts.capturing.lacking,
                validities=parts.identities.validities(),
                missing=parts.identities.missing(),
                leases=self._leases(),
                listeners_wanted=tuple(wanted),
                listeners=listeners,
                capture_wanted=status.capture_wanted(parts.config),
                capture_alarms=parts.capturing.alarms(),
                capture_drift=parts.capturing.drift,
                capture_foreign=parts.capturing.foreign,
                trial_until=parts.capturing.trial_until(),
                modules=parts.modules.states(),
                bootstrap_problem=parts.next_envoy.problem,
                workload_api=None if api is None else api.status(),
                workload_api_problems=() if api is None else tuple(api.problems()),
                recognition=parts.recognition.status(),
                recognition_problems=tuple(parts.recognition.problems(config)),
                returning_problem=parts.returning.problem,
                envoys=parts.envoys.document(),
                envoy_problems=parts.envoys.problems(),
                withdrawn=self._withdrawn(),
                gaps=parts.capturing.gaps(),
                alarms=tuple(parts.alarms),
            ),
            self._now(),
        )

    def in_a_line(self) -> str:
        """Return how the host does, for the service manager."""
        parts = self._parts
        controller = "connected" if parts.relay.state().connected else "controller away"
        waiting = f", {len(parts.capturing.lacking)} waiting for capture" if parts.capturing.lacking else ""
        codes = ", ".join(dict.fromkeys(each.code for each in parts.alarms))
        envoy = parts.envoys.status().view.phase.value
        name = parts.uplink.record.host
        return f"{name}: {controller}, Envoy {envoy}{waiting}" + (f"; alarms: {codes}" if codes else "")

    async def _trust(self) -> TrustState:
        parts = self._parts
        identities = parts.identities
        if identities.replaced():
            shown = await self._shown()
            if identities.replaced(None if shown is None else lambda serial: int(serial, 16) in shown):
                asyncio.get_running_loop().call_later(_LOOK_AT_ENVOY_S, parts.reporter.changed)
        return report.trust_state(
            parts.uplink.record.identity.uri, identities.roots(), identities.validities(), identities.replaced()
        )

    async def _shown(self) -> frozenset[int] | None:
        """Return the serials of the certificates that Envoy has loaded; None if it does not say."""
        if self._parts.envoys.status().view.pid is None:
            return frozenset()
        if self._parts.envoys.hung:
            return None
        try:
            return await self._parts.admin.serials()
        except AdminError:
            return None

    def _leases(self) -> list[WorkloadLease]:
        config = self._config()
        workloads = () if config is None else config.workloads
        told = [self._parts.probes.tell(each) for each in report.leases(workloads, self._vouched(), self._now())]
        return report.without(told, self._withdrawn())

    def _withdrawn(self) -> str:
        """Return why no caller is to use this host's workloads, though their programs may be well; "" if they may."""
        if self._parts.drained.asked:
            return "the host is drained (hostmesh-agent undrain)"
        return "Envoy hangs" if self._parts.envoys.hung else ""

    def _vouched(self) -> report.Vouched:
        validities = self._parts.identities.validities()
        captured = self._parts.capturing.enforced.in_force.inbound_ports
        certificates = {name: each.not_after for name, each in validities.items()}
        config = self._config()
        if config is not None and self._has_inbound(config):
            self._presented = report.presented(config.workloads, certificates)
        return report.Vouched(certificates, captured, self._presented)

    def _has_inbound(self, config: HostConfig) -> bool:
        """Tell whether Envoy has the listener that shows the certificates of the configuration's workloads."""
        accepted = self._parts.relay.accepted_version
        return all(not wanted or accepted(LISTENER_TYPE, name) == wanted for name, wanted in config.listeners.items())
