"""The agent's life, in order.

    config ▶ state ▶ certificates ▶ relay ▶ Envoy ready ▶ capture ▶ names ▶ report

Everything comes from disk where the controller is away. After the start the same order holds for each change: a new
configuration gets its certificates before it counts, capture follows Envoy's listeners, the report follows capture.
The end of the agent, however it comes, leaves Envoy, the rules and the files as they are.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog

from hostmesh_agent import (
    as_root,
    capture_verbs,
    chosen_binary,
    client_addresses,
    control,
    converge,
    dns_front,
    enrol,
    envoy_unit,
    generation,
    guard,
    host,
    lock,
    modules,
    notify,
    report,
    rights,
    sever,
    slim,
    workdir,
)
from hostmesh_agent.admin import Admin, AdminError
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.binary_watch import BinaryWatch
from hostmesh_agent.cache import Cache
from hostmesh_agent.calls import CallMemory, Calls
from hostmesh_agent.capture import HostFloor, Owner
from hostmesh_agent.capture import floor as kernel_floor
from hostmesh_agent.capturing import Capturing
from hostmesh_agent.certs import Certificates, Wanted
from hostmesh_agent.cold import Cold
from hostmesh_agent.cold_copy import ColdCopy
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.discovery import Discovery
from hostmesh_agent.drained import Drained
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.envoy_verbs import EnvoyVerbs
from hostmesh_agent.envoys import Envoys
from hostmesh_agent.host_floor import HostFloors
from hostmesh_agent.identities import AGENT, Identities
from hostmesh_agent.lifecycle import Phase
from hostmesh_agent.looking import OWN_LISTENERS
from hostmesh_agent.mesh_names import DNS_LISTENER, AcceptedNames
from hostmesh_agent.modules import Modules
from hostmesh_agent.next_envoy import NextEnvoy, first_command
from hostmesh_agent.notify import NOBODY, Manager
from hostmesh_agent.own_addresses import OwnAddresses
from hostmesh_agent.places import PORTS
from hostmesh_agent.policy_floor import table
from hostmesh_agent.policy_floor.floor import Floor
from hostmesh_agent.probe_ways import Ways
from hostmesh_agent.probes import Memory, Probes
from hostmesh_agent.recognition import Recognition
from hostmesh_agent.relay import Relay
from hostmesh_agent.returning import Returning
from hostmesh_agent.state import State, StateError, keep_closed
from hostmesh_agent.svid import Svid
from hostmesh_agent.telling import Parts as TellingParts
from hostmesh_agent.telling import Telling
from hostmesh_agent.updates import Updates
from hostmesh_agent.uplink import Uplink
from hostmesh_agent.vital_signs import Vigil
from hostmesh_agent.vitals import Shift
from hostmesh_agent.workload_api import svids as workload_certificates
from hostmesh_agent.workload_api.serving import Serving
from hostmesh_api.call_stats import NAMES
from hostmesh_api.dialling import DialPolicy, parse_blocks
from hostmesh_api.identity import parse_identity
from hostmesh_api.v1.hostmesh_pb2 import HostConfig, HostReport, ReportResponse
from hostmesh_api.wire import AGENT_METADATA, LISTENER_TYPE

PULSE_S: Final = 10.0
"""How often what is in force is compared with what should be, when nothing happens."""
_FIRST_PAUSE_S: Final = 0.05
_LAST_PAUSE_S: Final = 2.0
_HOLDS_AFTER: Final = timedelta(seconds=2)
_SWEEP_AFTER_S: Final = 60.0
"""Envoy drains listeners that went away; their certificates stay until then."""
_CERTIFICATES_WITHIN_S: Final = 3.0
"""How long the first report waits for certificates that were missing; callers wait 15 s for a lease."""

log = structlog.get_logger(__name__)


def now() -> datetime:
    return datetime.now(UTC)


async def run(config: AgentConfig) -> None:
    """Live until SIGTERM, SIGINT or a `leave`.

    Raises:
        StateError, WorkdirError, ArtifactError, LockedError: the owner of the host must act.
    """
    with lock.held(config.state_dir):
        # Before Envoy, or whatever else is started here, could speak in our name.
        manager = notify.take(os.environ)
        owner, alarms = Owner(), Alarms()
        await asyncio.to_thread(guard.close_strict_ports, config, owner, alarms)
        agent = await prepare(config, owner, alarms, manager)
        await agent.run()


async def prepare(
    config: AgentConfig, owner_of_rules: Owner, alarms: Alarms | None = None, manager: Manager = NOBODY
) -> "Agent":
    """Make the directories and find the binary: everything that a person must put right fails here."""
    if rights.here().helped and (why_root := await asyncio.to_thread(as_root.why, config)):
        raise workdir.WorkdirError(f"{why_root}: the agent has to be root for that (hostmesh-agent as-root on)")
    _close_directories(config)
    alarms = Alarms() if alarms is None else alarms
    state = State(config.state_dir, alarms)
    await asyncio.to_thread(state.begin)
    record = state.host()
    owner = workdir.account(config.envoy.user)
    config.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    workdir.prepare(config.envoy_dir, owner)
    workdir.check_reachable(config.xds_socket, owner)
    installed = await asyncio.to_thread(chosen_binary.install, config)
    why_no_unit = await asyncio.to_thread(envoy_unit.why_not, config)
    if why_no_unit and rights.here().helped:
        raise workdir.WorkdirError(f"the agent is not root, so that Envoy must be a unit of systemd's: {why_no_unit}")
    if config.envoy.supervisor == "systemd" and why_no_unit:
        raise workdir.WorkdirError(f'envoy.supervisor = "systemd" in agent.toml: {why_no_unit}')
    recognition = await asyncio.to_thread(Recognition, config, switches_user=owner.switch)
    command = first_command(config, record.host, owner, installed, as_unit=not why_no_unit)
    agent = Agent(config, state, command, owner_of_rules, recognition, why_no_unit, alarms, manager)
    await asyncio.to_thread(agent.recover)
    return agent


def _close_directories(config: AgentConfig) -> None:
    """Who may write where the agent's files and sockets are could put others in their place."""
    for each in (config.state_dir, config.run_dir):
        keep_closed(each, forbidden=0o022)
    for name in ("identity", "cache", workload_certificates.DIRECTORY):
        keep_closed(config.state_dir / name)


class Agent:
    """All parts together; what they decide is in their own modules."""

    def __init__(
        self,
        config: AgentConfig,
        state: State,
        command: EnvoyCommand,
        owner_of_rules: Owner,
        recognition: Recognition,
        why_no_unit: str,
        alarms: Alarms,
        manager: Manager,
    ) -> None:
        self._config = config
        self._manager = manager
        self._state = state
        self._facts = host.fixed_facts()
        # In memory alone: whoever copies the disk has another.
        self._id = os.urandom(16).hex()
        self._wake = asyncio.Event()
        self._stepping = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._configured = asyncio.Event()
        self._online = False
        self._settled = asyncio.Event()
        self._uplink = Uplink(state)
        name = self._uplink.record.host
        # Known before Envoy has its first listener: at boot it may be faster than the SSH server.
        self._ssh_servers = kernel_floor.ssh_servers()
        self._policy_floor = Floor(config.floor, table.load(), lambda: self._ssh_servers)
        refuses = self._policy_floor.bootstrap_problem
        self._next_envoy = NextEnvoy(config, name, command, refuses, as_unit=not why_no_unit)
        self._recognition = recognition
        self._envoy_uid = command.owner.uid
        policy = DialPolicy(parse_blocks(config.wasm.allow_cidrs))
        self._modules = Modules(config.envoy_dir / modules.DIRECTORY, command.owner.gid, self._module_decided, policy)
        copy_in, room = config.state_dir / "cache", config.cold.max_mb * 1_000_000
        self._cold = Cold(ColdCopy(copy_in, room, alarms), self._caller) if config.cold.enabled else None
        self._relay = Relay(
            cache=Cache(config.state_dir / "cache", alarms),
            socket=config.xds_socket,
            envoy_uid=command.owner.uid,
            host=name,
            node_metadata={
                "agent_version": self._facts.agent_version,
                "ipv6": kernel_floor.ipv6_enabled(),
                **dict(zip(AGENT_METADATA, (self._id, self._facts.boot_id, self._facts.machine_id), strict=True)),
            },
            connect=self._uplink.connect,
            on_host_config=self._take,
            extensions=self._modules,
            cold=self._cold,
            accept_after_s=config.shrink.accept_after_s,
            changed=self._something_changed,
            reached=self._controller_reached,
            host_refuses=self._policy_floor.problem,
            uses_clients=lambda instance: client_addresses.may_use(config.directory_of(instance)),
        )
        self._envoys = Envoys(
            config, self._next_envoy, self._relay, self._something_changed, self._lead, recognition.group, why_no_unit
        )
        self._admin = Admin(self._envoys.admin_socket)
        self._severing = sever.Severing(command.owner.uid)
        self._identities = Identities(
            state,
            Certificates(
                state,
                config.envoy_dir,
                (command.owner.uid, command.owner.gid),
                self._issue,
                now,
                self._renew_own,
            ),
            now,
            changed=self._certificate_came,
            host_renewed=self._relay.reconnect,
            refused_replaced=self._severing.renew_own,
        )
        self._workload_api = (
            Serving(config, state, self._uplink.record, self._issue, now) if config.workload_api.enabled else None
        )
        self._returning = Returning(state, self._holds_connection, now, self._identities.returned)
        self._reporter = report.Reporter(self._report, self._uplink.report, taken=self._taken)
        memory = Memory(config.run_dir / "health.json", self._facts.boot_id, alarms)
        self._probes = Probes(Ways(config.probes.exec_user).look, memory, self._reporter.changed)
        remembered = CallMemory(config.run_dir / "calls.json", self._facts.boot_id, alarms)
        self._calls = Calls(partial(self._admin.stats, NAMES), remembered, self._reporter.changed, now)
        self._discovery = Discovery(
            config,
            self._facts,
            self._envoy_uid,
            lambda: (*self._uplink.record.agents_endpoints, *self._uplink.record.join_endpoints),
            self._reporter.changed,
            now,
        )
        self._host_config: HostConfig | None = None
        self._floors = HostFloors(
            config, self._envoy_uid, self._uplink, lambda: self._relay.state().connected, self._something_changed
        )
        self._sweep: Wanted | None = None
        self._drained = Drained(config.state_dir, config.run_dir)
        self._envoy_verbs = EnvoyVerbs(config, self._envoys, self._drained, self._reporter)
        self._updates = Updates(
            config, os.uname().machine, self._envoys, self._admin, self._uplink.fetch, self._reporter.changed
        )
        names = AcceptedNames(partial(self._relay.accepted_resource, LISTENER_TYPE, DNS_LISTENER)).now
        self._capturing = Capturing(
            config,
            owner_of_rules,
            self._identities,
            self._active,
            self._reporter.changed,
            self._recognition,
            names=names,
            gone=self._without_proxy,
            wake=self._wake.set,
            alarms=alarms,
        )
        self._vigil = Vigil(
            (config.state_dir, config.run_dir),
            alarms,
            self._own_certificate,
            self._own_addresses,
            host.addresses,
            self._time_went,
            self._reporter.changed,
        )
        self._addresses = OwnAddresses(
            alarms,
            host.addresses,
            lambda: self._relay.state().connected,
            self._relay.reconnect,
            self._reporter.changed,
        )
        self._telling = Telling(
            TellingParts(
                config=config,
                uplink=self._uplink,
                facts=self._facts,
                agent=self._id,
                admin=self._admin,
                envoys=self._envoys,
                drained=self._drained,
                modules=self._modules,
                next_envoy=self._next_envoy,
                relay=self._relay,
                identities=self._identities,
                capturing=self._capturing,
                recognition=self._recognition,
                severing=self._severing,
                probes=self._probes,
                calls=self._calls,
                discovery=self._discovery,
                returning=self._returning,
                workload_api=self._workload_api,
                reporter=self._reporter,
                updates=self._updates,
                alarms=alarms,
            ),
            lambda: self._host_config,
            self._active,
            now,
        )

    def recover(self) -> None:
        """Find what an agent before this one left without a word. Blocks."""
        self._envoys.recover()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._wake.set)
        verbs = {
            control.STATUS: self._telling.host_status,
            control.RELEASE: self._release,
            control.REFRESH: self._refresh,
            control.ACCEPT: self._accept,
            **self._envoy_verbs.verbs(),
        }
        asked = capture_verbs.verbs(self._capturing, lambda: (self._host_config, self._floor()), self._stepping)
        await self._restore()
        self._online = True
        slim.settle()
        log.info("agent started", host=self._uplink.record.host, version=self._facts.agent_version)
        more = {} if self._workload_api is None else {"workload api": self._workload_api.run()}
        async with asyncio.TaskGroup() as group:
            parts = [
                group.create_task(each, name=name)
                for name, each in {
                    **more,
                    "control": control.Control(self._config.control_socket, verbs, asked).run(),
                    "relay": self._relay.run(),
                    "envoy's package": BinaryWatch(self._config, self._envoys.take_binary).run(),
                    "certificates": self._identities.run(),
                    "returning": self._returning.run(),
                    "envoy": self._supervise(),
                    "converge": self._converge(),
                    "probes": self._probes.run(),
                    "severing": self._severing.run(),
                    "calls": self._calls.run(),
                    "discovery": self._discovery.run(),
                    "names over tcp": dns_front.Front().run(),
                    "rules": generation.watch(self._wake.set, self._capturing.changed_by),
                    "vigil": self._vigil.run(),
                    "addresses": self._addresses.run(),
                    "controllers": self._floors.run(),
                    "updates": self._updates.run(),
                    "manager": notify.run(self._manager, self._settled, self._telling.in_a_line),
                    "report": self._report_when_settled(),
                }.items()
            ]
            await self._stopping.wait()
            await asyncio.to_thread(self._updates.told_to_end)
            for each in parts:
                each.cancel()
        self._modules.close()
        if self._cold is not None:
            self._cold.close()
        log.info("agent ended; Envoy and capture stay as they are")

    def _holds_connection(self) -> bool:
        """Tell whether the controller takes our certificate: it refuses one a moment after the connection stands."""
        state = self._relay.state()
        return state.since is not None and now() - state.since >= _HOLDS_AFTER

    def _controller_reached(self) -> None:
        self._addresses.reached()
        self._uplink.reached()
        self._wake.set()

    # What the vigil asks and tells

    def _own_certificate(self) -> tuple[datetime, datetime] | None:
        own = self._identities.validities().get(AGENT)
        return None if own is None else (own.not_before, own.not_after)

    def _own_addresses(self) -> list[tuple[str, str]]:
        config = self._host_config
        if config is None:
            return []
        return [(f"{each.namespace}/{each.name}", each.address) for each in config.workloads]

    def _time_went(self, went: Shift) -> None:
        """What is due by the time of day was planned by another clock; who was connected has given up a sleeper."""
        if went.slept:
            self._relay.reconnect()
        self._identities.look_again()
        if self._workload_api is not None:
            self._workload_api.look_again()
        self._something_changed()

    # Configuration

    async def _restore(self) -> None:
        """Start from the last-known-good configuration on disk, if there is one."""
        cached = self._relay.host_config()
        if cached is None:
            log.info("no configuration yet: waiting for the controller")
            return
        try:
            await self._take(cached)
        except converge.RefusedError as error:
            log.error("the configuration on disk cannot be used", reason=str(error))

    async def _issue(self, spiffe_id: str) -> Svid:
        # The start does not wait for the network: what is missing then is fetched in the background.
        if not self._online:
            raise enrol.EnrolError("it is not on disk, and is asked for once the agent runs")
        return await enrol.issue_workload(self._state, spiffe_id, now)

    async def _renew_own(self) -> None:
        if not self._online:
            raise enrol.EnrolError("it is asked for once the agent runs")
        await enrol.renew_host(self._state, now)
        self._relay.reconnect()

    async def _take(self, config: HostConfig) -> None:
        """Put a HostConfig's certificates in place; only then it counts. Raises to refuse it."""
        floor = await self._floors.look(config)
        want = converge.check(config, self._uplink.record, floor)
        await self._identities.apply(want)
        if self._workload_api is not None:
            await self._workload_api.apply([each.spiffe_id for each in config.workloads])
        self._floors.take(floor)
        self._ssh_servers = floor.ssh_servers
        self._host_config = config
        self._severing.take(config.expelled_addresses)
        self._probes.configure(config.workloads)
        transparent = config.capture.transparent and not floor.not_transparent
        if self._next_envoy.take_rights((client_addresses.right(),) if transparent else ()):
            self._envoys.command_changed()
        self._discovery.configure(config.workloads)
        if config.HasField("envoy") and self._next_envoy.take_settings(config.envoy):
            self._envoys.command_changed()
        if await self._next_envoy.take_patch(config.bootstrap_patch):
            self._envoys.command_changed()
        self._updates.take(config.updates)
        self._configured.set()
        # Capture narrows before Envoy is given listeners that no longer serve what was captured.
        await self._step()
        self._something_changed()
        self._sweep_later(want)

    def _caller(self) -> str:
        """Return the directory of the certificate under which the host's programs call others."""
        config = self._host_config
        if config is None:
            raise ValueError("there is no configuration yet")
        return parse_identity(config.outbound_spiffe_id).slug

    def _sweep_later(self, want: Wanted) -> None:
        config = self._host_config

        def due() -> None:
            if self._host_config is config:
                self._sweep = want
                self._wake.set()

        asyncio.get_running_loop().call_later(_SWEEP_AFTER_S, due)

    def _certificate_came(self) -> None:
        self._relay.try_again()
        self._something_changed()

    def _module_decided(self, name: str) -> None:
        self._relay.extension_decided(name)
        self._reporter.changed()

    def _something_changed(self) -> None:
        self._wake.set()
        self._reporter.changed()

    # Envoy and capture

    async def _supervise(self) -> None:
        # A first Envoy waits for its certificates: without them it would refuse its first listeners.
        if self._envoys.any_runs():
            self._configured.set()
        await self._configured.wait()
        await self._envoys.run()

    async def _lead(self) -> bool:
        """Make the rules lead to the Envoy that is to serve; return whether they do."""
        await self._step()
        return self._capturing.leads_to == PORTS[self._envoys.active].outbound

    def _without_proxy(self) -> bool:
        """Tell whether there is no Envoy that serves; one of an earlier agent may, before it is adopted."""
        view = self._envoys.status().view
        if view.pid is not None:
            return view.phase is not Phase.LIVE and not view.adopted
        return view.phase is not Phase.DOWN or not self._envoys.any_runs()

    async def _converge(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._wake.clear()
            if self._host_config is not None and self._relay.state().connected:
                await self._uplink.follow(self._host_config)
            await self._step()
            self._settled.set()
            try:
                async with asyncio.timeout(pause_s if self._capturing.lacking else PULSE_S):
                    await self._wake.wait()
                pause_s = _FIRST_PAUSE_S
            except TimeoutError:
                pause_s = min(pause_s * 2, _LAST_PAUSE_S)

    async def _step(self) -> None:
        async with self._stepping:
            config, floor = self._host_config, self._floor()
            if config is not None and floor is not None:
                await self._capturing.step(config, floor)
                ports = self._capturing.enforced.in_force.inbound_ports
                self._discovery.through_envoy(ports if floor.uses_clients else frozenset())
                await self._sweep_if_settled()

    def _floor(self) -> HostFloor | None:
        """Return the floor as it is now, with the Envoy that is to serve; None before it is known."""
        floor = self._floors.now
        if floor is None:
            return None
        answered = not (self._without_proxy() or self._envoys.hung)
        return replace(self._envoys.floor(floor), names_answered=answered)

    async def _sweep_if_settled(self) -> None:
        if self._sweep is not None and not self._capturing.lacking:
            want, self._sweep = self._sweep, None
            with suppress(StateError):
                await self._identities.sweep(want)

    async def _active(self, wanted: Mapping[str, str]) -> frozenset[str]:
        """Return the names of Envoy's active listeners, without those that are not at the version wanted."""
        if self._envoys.hung:
            return frozenset()  # it does not answer, and whoever asks would wait for that
        try:
            active = await self._admin.listeners()
        except AdminError:
            return frozenset()
        return frozenset(
            name
            for name in active
            if not name.startswith(OWN_LISTENERS)
            if not wanted.get(name) or self._relay.accepted_version(LISTENER_TYPE, name) == wanted[name]
        )

    # What is told

    async def _report_when_settled(self) -> None:
        # A report before the first look at the kernel would take leases away that hold.
        await self._settled.wait()
        # One whose file was damaged comes at once: a lease without it would withdraw a workload that is well.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CERTIFICATES_WITHIN_S):
                await self._identities.tried()
        await self._reporter.run()

    async def _report(self) -> HostReport:
        return await self._telling.host_report()

    def _taken(self, response: ReportResponse) -> None:
        self._calls.taken(response)
        self._discovery.taken(response)
        self._addresses.taken(response)

    # The control socket

    async def _release(self) -> dict[str, Any]:
        asyncio.get_running_loop().call_soon(self._stopping.set)
        return {"stopping": True}

    async def _accept(self) -> dict[str, Any]:
        return {"accepted": self._relay.accept()}

    async def _refresh(self) -> dict[str, Any]:
        self._something_changed()
        return {"refreshing": True}
