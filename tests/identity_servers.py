"""The controller's identity services on real ports, with a real store: what tests of enrolment talk to."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import grpc

import pki
from hostmesh_api.identity import HostIdentity
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import HostReport
from hostmesh_api.v1.hostmesh_pb2_grpc import (
    add_EnrolmentServicer_to_server,
    add_IdentityServicer_to_server,
    add_ReportingServicer_to_server,
)
from hostmesh_controller import call_limits
from hostmesh_controller.admission import Admission
from hostmesh_controller.attest.evidence import Attestor
from hostmesh_controller.authority_server import ServerCertificate
from hostmesh_controller.config import CloneAction
from hostmesh_controller.config_attest import Trust
from hostmesh_controller.enrol import EnrolmentServicer
from hostmesh_controller.enrolments import Enrolments
from hostmesh_controller.groups import Candidate, NotAdmittedError
from hostmesh_controller.identity import IdentityServicer
from hostmesh_controller.issuing import Issuing
from hostmesh_controller.limits import Limits
from hostmesh_controller.peers import Peers
from hostmesh_controller.quarantine import Quarantine
from hostmesh_controller.reports import HostStates, ReportingServicer
from hostmesh_controller.store import CertificateRecord, Denial, EnrolmentRecord
from hostmesh_controller.store.sqlite import open_store
from hostmesh_controller.tokens import DEFAULT_LIFE, new_token

Listens = Callable[[str, HostReport], Awaitable[None]]


async def _nobody_asks(_host: str, _report: HostReport) -> None:
    """Take a report for nothing."""


class Controller:
    """The parts, wired as the controller wires them; `registry` says which workloads are on which host."""

    def __init__(self, directory: Path, ahead: timedelta = timedelta(), *, clones: CloneAction = "quarantine") -> None:
        """`ahead` is how far the controller's clock is ahead of the machine's; it can be changed."""
        self.ahead = ahead
        directory.mkdir(parents=True, exist_ok=True)
        self.store = open_store(directory / "store.sqlite")
        # Old enough that certificates of the past can be issued.
        self.authority = pki.new_authority(directory, at=pki.now() - timedelta(days=100))
        self.registry: dict[str, dict[tuple[str, str], str]] = {
            "web-1": {("shop", "cart-1"): pki.CART.uri},
            "web-2": {("shop", "billing-1"): "spiffe://cluster.local/ns/shop/sa/billing"},
        }
        self.changes: list[str] = []
        self.heard: list[tuple[str, str]] = []
        """Of each report the host, and the state of its Envoy."""
        self.members: dict[str, Candidate] = {}
        self.full = False
        self.limits = Limits()
        self.within = timedelta(days=30)
        self.attestors: dict[str, Attestor] = {}
        self.trust: dict[str, Trust] = {}
        self.admission = Admission(self.store, self, self.attestors, self.trust, self.now)
        self.states = HostStates(self.store, self.changes.append, self.now)
        self.enrolments = Enrolments(self.store, self.changes.append, self.now)
        self.quarantine = Quarantine(self.enrolments, self.deny, clones, self.now)
        self.certificate = ServerCertificate(self.authority, ["127.0.0.1", "::1", "localhost"], self.now)
        self.named_at: tuple[str, ...] = ()
        """What every Host names as its addresses."""
        self.join_port = 0
        self.agents_port = 0

    def now(self) -> datetime:
        return pki.now() + self.ahead

    @property
    def agents_endpoint(self) -> str:
        return f"127.0.0.1:{self.agents_port}"

    def join_string(
        self, host: str = "web-1", life: timedelta = DEFAULT_LIFE, **endpoints: Collection[str]
    ) -> JoinString:
        """Return a new join string; `endpoints=(…)` in place of the real one."""
        token, record = new_token(host, self.now(), life)
        self.store.add_token(record)
        where = tuple(endpoints.get("endpoints", (f"127.0.0.1:{self.join_port}",)))
        return JoinString(where, self.authority.root_der, token)

    def registered(self, host: str) -> bool:
        return host in self.registry

    def addresses(self, _: str) -> tuple[str, ...]:
        return self.named_at

    def membership_problem(self, candidate: Candidate) -> str | None:
        taken = candidate.name in self.registry and not self.is_member(candidate)
        return f"host {candidate.name!r} is registered" if taken else None

    def is_member(self, candidate: Candidate) -> bool:
        return self.members.get(candidate.name) == candidate

    async def admit(self, candidate: Candidate, *, actor: str) -> None:
        if self.full:
            raise NotAdmittedError("the group takes nobody")
        self.registry.setdefault(candidate.name, {})
        self.members[candidate.name] = candidate

    async def deny(self, host: str, denial: Denial, reason: str, *, actor: str) -> EnrolmentRecord:
        return await self.enrolments.deny(host, denial, reason, actor)

    async def left(self, host: str) -> None:
        self.store.forget_host(host)
        await self.enrolments.end(host)
        await self.states.left(host)

    async def know(self, identity: HostIdentity, serial: str) -> None:
        """Make a certificate known, as if it had been issued by a call."""
        now = self.now()
        if self.enrolments.current(identity.host) is None:
            await self.enrolments.begin(identity.host)
        self.store.add_certificate(
            CertificateRecord(serial, identity.uri, identity.host, now + timedelta(hours=72), now)
        )

    @asynccontextmanager
    async def serving(self, listens: Listens = _nobody_asks) -> AsyncIterator["Controller"]:
        registered = self.registry.__contains__
        issuing = Issuing(self.authority, self.store, self.states, self, self.enrolments, self.now)
        peers = Peers(self.store, pki.TRUST_DOMAIN, registered, self.now, self.enrolments, self.quarantine)
        agents = grpc.aio.server()
        join = grpc.aio.server(interceptors=[call_limits.for_join(self.limits)])
        self.agents_port = agents.add_secure_port("127.0.0.1:0", self.certificate.credentials(client_certificates=True))
        add_IdentityServicer_to_server(
            IdentityServicer(issuing, peers, lambda host: frozenset(self.registry[host].values())), agents
        )
        add_ReportingServicer_to_server(
            ReportingServicer(
                self.states,
                peers,
                lambda host: frozenset(self.registry[host]),
                self.now,
                self.quarantine,
                listens=listens,
                heard=lambda host, envoy: self.heard.append((host, envoy)),
            ),
            agents,
        )
        self.join_port = join.add_secure_port("127.0.0.1:0", self.certificate.credentials(client_certificates=False))
        enrolment = EnrolmentServicer(
            issuing, self.admission, [self.agents_endpoint], [f"127.0.0.1:{self.join_port}"], self.within
        )
        add_EnrolmentServicer_to_server(enrolment, join)
        try:
            await agents.start()
            await join.start()
            yield self
        finally:
            await agents.stop(None)
            await join.stop(None)
            self.store.close()
