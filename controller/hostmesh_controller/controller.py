"""One controller process: its parts, put together, and how they start and stop together.

    store ─▶ registrar ─▶ hub ─▶ agents' port (ADS, identity, reports)      join port      admin port and socket

Nothing answers before everything listens. A part that fails ends the process: a supervisor starts it anew, and the
data plane does not notice.
"""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import structlog

from hostmesh_api.v1.hostmesh_pb2_grpc import (
    add_EnrolmentServicer_to_server,
    add_IdentityServicer_to_server,
    add_ReportingServicer_to_server,
)
from hostmesh_api.wire import VIP4, VIP6
from hostmesh_controller import listen, mesh
from hostmesh_controller.admission import Admission
from hostmesh_controller.api.app import create_app
from hostmesh_controller.api.parts import Parts
from hostmesh_controller.api.principals import LocalSocket
from hostmesh_controller.attest.evidence import Attestor
from hostmesh_controller.authority import Authority, AuthorityError
from hostmesh_controller.authority_server import ServerCertificate
from hostmesh_controller.calls import CountCalls
from hostmesh_controller.config import Config, ConfigError, called_at
from hostmesh_controller.enrol import EnrolmentServicer, IdentityServicer, Issuing
from hostmesh_controller.hub import Hub
from hostmesh_controller.mesh.selection import identity_of
from hostmesh_controller.mesh_file import load_mesh_file
from hostmesh_controller.metrics import Metrics, Reading, build_version
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.peers import Peers
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.reports import ReportingServicer
from hostmesh_controller.server import AdsServer
from hostmesh_controller.state_dir import claimed
from hostmesh_controller.store import Store
from hostmesh_controller.store.sqlite import open_store
from hostmesh_controller.trusted import attestors

_log = structlog.stdlib.get_logger(__name__)

_KNOWN_TYPES: Final = frozenset(
    {"HostConfig", "Listener", "Cluster", "ClusterLoadAssignment", "RouteConfiguration", "VirtualHost", "Secret"}
)


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
    with ExitStack() as held:
        held.enter_context(claimed(config.state_dir))
        store = await asyncio.to_thread(open_store, config.state_dir / "store.sqlite")
        held.callback(store.close)
        await asyncio.to_thread(_refuse_a_second_root, store, config.state_dir)
        authority = await asyncio.to_thread(Authority.load_or_create, config.state_dir, config.trust_domain, utc_now())
        controller = Controller(config, store, authority)
        await controller.registrar.open()
        _spare_the_collector()
        await controller.run()


def _refuse_a_second_root(store: Store, state_dir: Path) -> None:
    """Refuse to make a new root while hosts trust another: each of them would be locked out.

    Raises:
        AuthorityError: says what to restore.
    """
    directory = state_dir / "ca"
    joined = sum(state.joined_at is not None for state in store.host_states().values())
    if joined and not (directory / "root.pem").exists():
        raise AuthorityError(
            f"{directory} has no root.pem, but {joined} host(s) have joined and trust the one that was there: "
            "restore the directory from a backup. "
            "(Or start with an empty state directory; then every host must join again.)"
        )


@dataclass(slots=True)
class Controller:
    """The parts of one controller."""

    config: Config
    store: Store
    authority: Authority
    metrics: Metrics = field(default_factory=Metrics)
    hub: Hub = field(init=False)
    registrar: Registrar = field(init=False)
    certificate: ServerCertificate = field(init=False)
    ready: bool = False
    _attestors: Mapping[str, Attestor] = field(init=False)

    def __post_init__(self) -> None:
        settings = mesh.Settings(
            trust_domain=self.config.trust_domain,
            domain=self.config.domain,
            vip4=VIP4,
            vip6=VIP6,
            bundle_pem=self.authority.bundle_pem,
            root_namespace=self.config.root_namespace,
            mesh_config=load_mesh_file(self.config),
        )
        self.hub = Hub(mesh.build(settings, (), {}, {}), 0)
        self.registrar = Registrar(self.store, self.hub, settings, utc_now)
        # Whoever is on this machine calls by loopback; it is always this controller's.
        addresses = (*self.config.addresses, "localhost", "127.0.0.1", "::1")
        self.certificate = ServerCertificate(self.authority, addresses, utc_now)
        self._attestors = attestors(self.config.attest.trust, self._ssh_keys_of)
        self.metrics.read_from(partial(readings, self.hub, lambda: self.registrar.revision))

    async def run(self) -> None:
        """Listen and serve until told to stop."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._read_mesh_file)
        with ExitStack() as held:
            app = create_app(self.parts())
            sockets = [
                held.enter_context(listen.open_tcp(self.config.listen.admin, "listen.admin")),
                held.enter_context(listen.open_unix(self.config.listen.admin_socket)),
            ]
            held.callback(self.config.listen.admin_socket.unlink, missing_ok=True)
            tls = listen.server_tls(self.certificate.current())
            apis = [listen.ApiServer(app, tls), listen.ApiServer(LocalSocket(app))]
            grpcs = self._grpc_servers()
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(_endless("registrar", self.registrar.run(), stopping)),
                    group.create_task(_endless("server certificate", listen.follow(tls, self.certificate), stopping)),
                ]
                for api, opened in zip(apis, sockets, strict=True):
                    group.create_task(_endless("admin API", api.serve(sockets=[opened]), stopping))
                for server in grpcs:
                    await server.start()
                    group.create_task(_endless("gRPC", server.wait_for_termination(), stopping))
                self._say_ready()
                await stopping.wait()
                self.ready = False
                _log.info("stopping")
                for api in apis:
                    api.stop()
                await asyncio.gather(*(server.stop(listen.GRACE_S) for server in grpcs))
                for part in parts:
                    part.cancel()
        _log.info("stopped")

    def _say_ready(self) -> None:
        self.ready = True
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
            hub=self.hub,
            metrics=self.metrics,
            root_der=self.authority.root_der,
            ready=lambda: self.ready,
            now=utc_now,
        )

    def _grpc_servers(self) -> tuple[grpc.aio.Server, grpc.aio.Server]:
        registered = self.registrar.registered
        life = timedelta(hours=self.config.certificates.leaf_hours)
        issuing = Issuing(self.authority, self.store, self.registrar.states, self.registrar, utc_now, life)
        peers = Peers(self.store, self.config.trust_domain, registered, utc_now)
        calls = [CountCalls(self.metrics)]

        agents = listen.grpc_server(listen.AGENTS_RECEIVE_BYTES, calls)
        agents.add_generic_rpc_handlers((AdsServer(self.hub, peers.name_of).handler(),))
        add_IdentityServicer_to_server(IdentityServicer(issuing, peers, self._identities_on), agents)
        reporting = ReportingServicer(self.registrar.states, peers, self._workloads_on, utc_now)
        add_ReportingServicer_to_server(reporting, agents)
        agents_credentials = self.certificate.credentials(client_certificates=True)
        listen.open_grpc(agents, self.config.listen.agents, "listen.agents", agents_credentials)

        join = listen.grpc_server(listen.JOIN_RECEIVE_BYTES, calls)
        add_EnrolmentServicer_to_server(self._enrolment(issuing), join)
        join_credentials = self.certificate.credentials(client_certificates=False)
        listen.open_grpc(join, self.config.listen.join, "listen.join", join_credentials)
        return agents, join

    def _enrolment(self, issuing: Issuing) -> EnrolmentServicer:
        attest, addresses = self.config.attest, self.config.addresses
        admission = Admission(self.store, self.registrar, self._attestors, attest.trust, utc_now)
        return EnrolmentServicer(
            issuing,
            admission,
            called_at(self.config.listen.agents, addresses),
            called_at(self.config.listen.join, addresses),
            attest.reattest_within,
        )

    def _ssh_keys_of(self, host: str) -> Sequence[str]:
        found = self.registrar.get(ObjectKey("Host", "", host))
        return found.spec.ssh_host_keys if found is not None and isinstance(found.spec, HostSpec) else ()

    def _identities_on(self, host: str) -> frozenset[str]:
        found = self.hub.mesh.workloads_of(host)
        return frozenset(identity_of(each, self.config.trust_domain).uri for each in found)

    def _workloads_on(self, host: str) -> frozenset[tuple[str, str]]:
        return frozenset((each.key.namespace, each.key.name) for each in self.hub.mesh.workloads_of(host))


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


def readings(hub: Hub, revision: Callable[[], int]) -> Iterable[Reading]:
    """What the hub tells at a scrape, and the store's newest revision."""
    prefix = "hostmesh_controller"
    counts = hub.counts
    by_type = {
        "pushes": ("Responses sent to proxies.", counts.pushes),
        "push_bytes": ("Bytes of responses sent to proxies.", counts.push_bytes),
        "acks": ("Responses that proxies acknowledged.", counts.acks),
        "nacks": ("Responses that proxies refused.", counts.nacks),
        "faults": ("Resources that could not be made: a mistake of the controller.", counts.faults),
    }
    yield Reading(f"{prefix}_connected_proxies", "Hosts with an open stream.", (), {(): hub.connected()})
    yield Reading(f"{prefix}_store_revision", "Newest revision of the store.", (), {(): revision()})
    yield Reading(f"{prefix}_published_revision", "Revision that proxies are shown.", (), {(): hub.revision})
    for name, (text, values) in by_type.items():
        yield Reading(f"{prefix}_{name}", text, ("type",), _short(values), total=True)


def _short(values: Mapping[str, int]) -> Mapping[tuple[str, ...], float]:
    """Sum by the message's name; types that peers made up are one, so that they cannot make up series."""
    summed: dict[tuple[str, ...], float] = {}
    for type_url, value in values.items():
        name = type_url.rpartition(".")[2]
        label = (name if name in _KNOWN_TYPES else "other",)
        summed[label] = summed.get(label, 0) + value
    return summed
