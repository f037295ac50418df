"""The two gRPC servers, and what answers at them.

agents (mutual TLS): ADS, identity, reports      join (no client certificate): enrolment
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import grpc

from hostmesh_api.v1.hostmesh_pb2_grpc import (
    add_ArtifactsServicer_to_server,
    add_EnrolmentServicer_to_server,
    add_IdentityServicer_to_server,
    add_ReportingServicer_to_server,
)
from hostmesh_controller import call_limits, listen, tcp_keepalive
from hostmesh_controller.address_keeper import AddressKeeper
from hostmesh_controller.admission import Admission
from hostmesh_controller.ancestry import Ancestry
from hostmesh_controller.artifacts import ArtifactsServicer, Mirror
from hostmesh_controller.attest.evidence import Attestor
from hostmesh_controller.authority import Authority
from hostmesh_controller.authority_server import ServerCertificate
from hostmesh_controller.calls import CountCalls
from hostmesh_controller.config import Config
from hostmesh_controller.enrol import EnrolmentServicer
from hostmesh_controller.expulsion import Expulsion
from hostmesh_controller.hub import Hub
from hostmesh_controller.identity import IdentityServicer
from hostmesh_controller.issuing import Issuing
from hostmesh_controller.mesh.selection import identity_of
from hostmesh_controller.metrics import Metrics
from hostmesh_controller.observations import Observations
from hostmesh_controller.peers import Peers
from hostmesh_controller.quarantine import Quarantine
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.reports import ReportingServicer
from hostmesh_controller.rollout_keeper import RolloutKeeper
from hostmesh_controller.server import AdsServer
from hostmesh_controller.store import Store


@dataclass(frozen=True, slots=True)
class GrpcServices:
    """What the servicers are made of."""

    config: Config
    store: Store
    authority: Authority
    certificate: ServerCertificate
    registrar: Registrar
    ancestry: Ancestry
    expulsion: Expulsion
    hub: Hub
    observations: Observations
    rollouts: RolloutKeeper
    mirror: Mirror
    attestors: Mapping[str, Attestor]
    metrics: Metrics
    now: Callable[[], datetime]

    def open(self) -> tuple[grpc.aio.Server, grpc.aio.Server]:
        """Return the servers for agents and for joining, bound to their ports; they are not started.

        Raises:
            ListenError: a port cannot be had.
        """
        registrar, calls = self.registrar, CountCalls(self.metrics)
        life = timedelta(hours=self.config.certificates.leaf_hours)
        issuing = Issuing(self.authority, self.store, registrar.states, registrar, registrar.enrolments, self.now, life)
        return self._agents(issuing, calls), self._join(issuing, calls)

    def _agents(self, issuing: Issuing, calls: CountCalls) -> grpc.aio.Server:
        limits, enrolments, listening = self.config.limits, self.registrar.enrolments, self.config.listen
        quarantine = Quarantine(enrolments, self.expulsion.deny, self.config.clones.action, self.now)
        leases = self.registrar.leases
        registered, trust_domain = self.registrar.registered, self.config.trust_domain
        peers = Peers(self.store, trust_domain, registered, self.now, enrolments, quarantine)
        server = listen.grpc_server(listen.agents_options(limits), [call_limits.for_agents(limits), calls])
        bounded, told = call_limits.StreamBytes(limits).take, self.ancestry.told
        ads = AdsServer(self.hub, peers.name_of, quarantine.seen, bounded, presence=leases, told=told)
        server.add_generic_rpc_handlers((ads.handler(),))
        add_IdentityServicer_to_server(IdentityServicer(issuing, peers, self._identities_on), server)
        reporting = ReportingServicer(
            self.registrar.states,
            peers,
            self._workloads_on,
            self.now,
            quarantine,
            self.observations,
            lambda: self.registrar.mesh,
            self.registrar.listens,
            leases.reported,
            AddressKeeper(self.registrar, self.hub.is_connected, self.now).heard,
            self.rollouts.report_s,
        )
        add_ReportingServicer_to_server(reporting, server)
        add_ArtifactsServicer_to_server(ArtifactsServicer(self.mirror, peers), server)
        credentials = self.certificate.credentials(client_certificates=True)
        listen.open_grpc(server, listening.agents, "listen.agents", credentials)
        if not tcp_keepalive.keep_alive(listening.agents.port):
            raise listen.ListenError(f"listen.agents: the socket on {listening.agents} was not found in this process")
        return server

    def _join(self, issuing: Issuing, calls: CountCalls) -> grpc.aio.Server:
        limits, listening = self.config.limits, self.config.listen
        server = listen.grpc_server(listen.join_options(limits), [call_limits.for_join(limits), calls])
        add_EnrolmentServicer_to_server(self._enrolment(issuing), server)
        credentials = self.certificate.credentials(client_certificates=False)
        listen.open_grpc(server, listening.join, "listen.join", credentials)
        return server

    def _enrolment(self, issuing: Issuing) -> EnrolmentServicer:
        attest = self.config.attest
        admission = Admission(self.store, self.registrar, self.attestors, attest.trust, self.now)
        return EnrolmentServicer(
            issuing,
            admission,
            self.config.agents_endpoints,
            self.config.join_endpoints,
            attest.reattest_within,
        )

    def _identities_on(self, host: str) -> frozenset[str]:
        found = self.hub.mesh.workloads_of(host)
        return frozenset(identity_of(each, self.config.trust_domain).uri for each in found)

    def _workloads_on(self, host: str) -> frozenset[tuple[str, str]]:
        return frozenset((each.key.namespace, each.key.name) for each in self.hub.mesh.workloads_of(host))
