"""One controller process: its parts, put together, and how they start and stop together.

    store ─▶ registrar ─▶ hub ─▶ agents' port (ADS, identity, reports)      join port      admin port and socket

Nothing answers before everything listens. A part that fails ends the process: a supervisor starts it anew, and the
data plane does not notice.
"""

import asyncio
import gc
import signal
import ssl
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from hostmesh_api.dialling import DialPolicy, parse_blocks
from hostmesh_api.wire import VIP4, VIP6
from hostmesh_controller import authority_files, cold_pace, listen, mesh, notify, rotation
from hostmesh_controller.ancestry import Ancestry
from hostmesh_controller.api.app import create_app
from hostmesh_controller.api.parts import Parts
from hostmesh_controller.api.principals import LocalSocket
from hostmesh_controller.artifacts import Mirror
from hostmesh_controller.attest.evidence import Attestor
from hostmesh_controller.attestors import attestors
from hostmesh_controller.audit import keep_bounded
from hostmesh_controller.authority import Authority
from hostmesh_controller.authority_choice import open_authority, own_addresses
from hostmesh_controller.authority_server import ServerCertificate
from hostmesh_controller.config import Config
from hostmesh_controller.config_reader import ConfigError
from hostmesh_controller.connections import BoundedListener, Places
from hostmesh_controller.expulsion import Expulsion
from hostmesh_controller.grpc_services import GrpcServices
from hostmesh_controller.http_server import GRACE_S, ApiServer
from hostmesh_controller.hub import Hub
from hostmesh_controller.hub_readings import lease_readings, readings
from hostmesh_controller.key_fetcher import KeyFetcher
from hostmesh_controller.mesh_file import load_mesh_file
from hostmesh_controller.metrics import Metrics, build_version
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.observations import Observations
from hostmesh_controller.outbound_http import OutboundHttp
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.rollout_keeper import RolloutKeeper
from hostmesh_controller.rotation import RootRotation, trust_of
from hostmesh_controller.state_dir import STORE, claimed, require_whole
from hostmesh_controller.store import Store
from hostmesh_controller.store.sqlite import open_store

_log = structlog.stdlib.get_logger(__name__)


class PartEndedError(Exception):
    """A part of the controller ended by itself, which none of them does while all is well."""


def utc_now() -> datetime:
    return datetime.now(UTC)


async def serve(config: Config) -> None:
    """Run the controller until SIGTERM or SIGINT.

    Raises:
        StateDirError, StoreError, AuthorityError, UnreadableError, ListenError, ConfigError: it could not start; the
            text is for the operator.
        ExceptionGroup: a part failed while running.
    """
    manager = notify.take()
    with ExitStack() as held:
        held.enter_context(claimed(config.state_dir))
        require_whole(config.state_dir, authority=authority_files.present(config.state_dir / "ca"))
        store = await asyncio.to_thread(open_store, config.state_dir / STORE)
        held.callback(store.close)
        authority = await asyncio.to_thread(open_authority, config, store, utc_now())
        controller = Controller(config, store, authority, manager=manager)
        await controller.registrar.open()
        await controller.ancestry.open()
        await controller.observations.open()
        await controller.rollouts.open()
        _spare_the_collector()
        await controller.run()


@dataclass(slots=True)
class Controller:
    """The parts of one controller."""

    config: Config
    store: Store
    authority: Authority
    metrics: Metrics = field(default_factory=Metrics)
    manager: notify.Manager = field(default_factory=notify.Manager)
    hub: Hub = field(init=False)
    registrar: Registrar = field(init=False)
    ancestry: Ancestry = field(init=False)
    expulsion: Expulsion = field(init=False)
    keys: KeyFetcher = field(init=False)
    certificate: ServerCertificate = field(init=False)
    rotation: RootRotation = field(init=False)
    roots_changed: asyncio.Event = field(default_factory=asyncio.Event)
    observations: Observations = field(init=False)
    mirror: Mirror = field(init=False)
    rollouts: RolloutKeeper = field(init=False)
    ready: bool = False
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _attestors: Mapping[str, Attestor] = field(init=False)

    def __post_init__(self) -> None:
        settings = mesh.Settings(
            trust_domain=self.config.trust_domain,
            domain=self.config.domain,
            vip4=VIP4,
            vip6=VIP6,
            trust=trust_of(self.authority),
            root_namespace=self.config.root_namespace,
            mesh_config=load_mesh_file(self.config),
            reported_locality=self.config.locality == "reported",
            agents_endpoints=self.config.agents_endpoints,
            join_endpoints=self.config.join_endpoints,
        )
        self.hub = Hub(mesh.build(settings, (), {}, {}), 0, now_s=time.monotonic)
        self.keys = key_fetcher(self.config, self.store)
        self.registrar = Registrar(self.store, self.hub, settings, utc_now, self.keys, self.config.leases)
        registrar = self.registrar
        self.ancestry = Ancestry(self.store, lambda: self.registrar.revision, self.hub.tell_origin, utc_now)
        self.expulsion = Expulsion(self.store, self.hub, registrar.enrolments, registrar.registered, utc_now)
        self.observations = Observations(self.store, utc_now, timedelta(days=self.config.calls.keep_days))
        self.mirror = Mirror(self.config.artifacts.dir)
        self.rollouts = RolloutKeeper(self.store, registrar, self.hub, self.mirror, utc_now)
        self.certificate = ServerCertificate(self.authority, own_addresses(self.config), utc_now)
        self.metrics.read_from(partial(readings, self.hub, lambda: self.registrar.revision, self.keys))
        self.metrics.read_from(partial(rotation.readings, self.authority))
        self.metrics.read_from(partial(lease_readings, self.registrar.leases.leases))
        self.rotation = RootRotation(
            self.authority,
            self.registrar,
            self.store,
            lambda: [each.host for each in self.hub.proxies()],
            self.roots_changed.set,
            utc_now,
        )
        self._attestors = attestors(self.config.attest.trust, self._ssh_keys_of)

    async def run(self) -> None:
        """Listen and serve until told to stop."""
        stopping = self._stopping
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._read_again)
        with ExitStack() as held:
            app = create_app(self.parts())
            limits = self.config.limits
            places = Places(limits.admin_connections, limits.admin_connections_per_address)
            admin = listen.open_tcp(self.config.listen.admin, "listen.admin")
            sockets = [
                held.enter_context(BoundedListener(admin, places, self.metrics.connections_refused.inc)),
                held.enter_context(listen.open_unix(self.config.listen.admin_socket)),
            ]
            held.callback(self.config.listen.admin_socket.unlink, missing_ok=True)
            tls = listen.server_tls(self.certificate.current(), self.config.admin.client_ca)
            apis = [ApiServer(app, limits, tls), ApiServer(LocalSocket(app), limits)]
            grpcs = self._services().open()
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(_endless("registrar", self.registrar.run(), stopping)),
                    group.create_task(_endless("leases", self.registrar.leases.run(), stopping)),
                    group.create_task(_endless("cold copies", cold_pace.run(self.hub.cold), stopping)),
                    group.create_task(_endless("keys", self.keys.run(), stopping)),
                    group.create_task(_endless("observed calls", self.observations.run(), stopping)),
                    group.create_task(_endless("server certificate", self._follow_certificate(tls), stopping)),
                    group.create_task(_endless("rollouts", self.rollouts.run(), stopping)),
                    group.create_task(_endless("rotation", self.rotation.run(), stopping)),
                    group.create_task(_endless("watchdog", self.manager.feed(), stopping)),
                    group.create_task(
                        _endless("audit", keep_bounded(self.store, self.config.audit, utc_now), stopping)
                    ),
                ]
                for api, opened in zip(apis, sockets, strict=True):
                    group.create_task(_endless("admin API", api.serve(sockets=[opened]), stopping))
                for server in grpcs:
                    await server.start()
                    group.create_task(_endless("gRPC", server.wait_for_termination(), stopping))
                self._say_ready()
                await stopping.wait()
                self.ready = False
                self.manager.tell("STOPPING=1")
                _log.info("stopping")
                for api in apis:
                    api.stop()
                await asyncio.gather(*(server.stop(GRACE_S) for server in grpcs))
                for part in parts:
                    part.cancel()
        _log.info("stopped")

    def stop(self) -> None:
        """Let `run` end."""
        self._stopping.set()

    def _say_ready(self) -> None:
        self.ready = True
        self.manager.tell("READY=1", f"STATUS=serves revision {self.registrar.revision} at its start")
        listening = self.config.listen
        _log.info(
            "ready",
            version=build_version(),
            agents=str(listening.agents),
            join=str(listening.join),
            admin=str(listening.admin),
            admin_socket=str(listening.admin_socket),
            revision=self.registrar.revision,
        )

    async def _follow_certificate(self, tls: ssl.SSLContext) -> None:
        await listen.follow(tls, self.certificate, self.roots_changed)

    def _read_again(self) -> None:
        self.rotation.look_again()
        self._read_mesh_file()

    def _read_mesh_file(self) -> None:
        """Take the mesh file as it is now; one with mistakes changes nothing."""
        try:
            spec = load_mesh_file(self.config)
        except ConfigError as error:
            _log.error("the mesh file was not taken", problems=error.problems)
            return
        self.registrar.take_mesh_file(spec)
        _log.info("the mesh file was taken", mesh_config=str(self.config.mesh_config or ""))

    def parts(self) -> Parts:
        """Return what the API works with."""
        return Parts(
            config=self.config,
            store=self.store,
            registrar=self.registrar,
            expulsion=self.expulsion,
            hub=self.hub,
            observations=self.observations,
            metrics=self.metrics,
            rotation=self.rotation,
            rollouts=self.rollouts,
            ready=lambda: self.ready,
            now=utc_now,
        )

    def _services(self) -> GrpcServices:
        return GrpcServices(
            config=self.config,
            store=self.store,
            authority=self.authority,
            certificate=self.certificate,
            registrar=self.registrar,
            ancestry=self.ancestry,
            expulsion=self.expulsion,
            hub=self.hub,
            observations=self.observations,
            rollouts=self.rollouts,
            mirror=self.mirror,
            attestors=self._attestors,
            metrics=self.metrics,
            now=utc_now,
        )

    def _ssh_keys_of(self, host: str) -> Sequence[str]:
        found = self.registrar.get(ObjectKey("Host", "", host))
        return found.spec.ssh_host_keys if found is not None and isinstance(found.spec, HostSpec) else ()


def key_fetcher(config: Config, store: Store) -> KeyFetcher:
    """Return what fetches keys, as the configuration has it."""
    listening = config.listen
    own = frozenset({listening.agents.port, listening.join.port, listening.admin.port})
    http = OutboundHttp(DialPolicy(parse_blocks(config.jwks.allow_cidrs)), own, config.jwks.ca_file)
    return KeyFetcher(http, store, utc_now, timedelta(seconds=config.jwks.refresh_s))


def _spare_the_collector() -> None:
    """Keep the garbage collector from what lives as long as the process, and from running at every push.

    It took a quarter of the time of a change to 1,000 proxies: all of the mesh was looked through again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _endless(name: str, work: Awaitable[object], stopping: asyncio.Event) -> None:
    await work
    if not stopping.is_set():
        raise PartEndedError(f"{name} ended by itself")
