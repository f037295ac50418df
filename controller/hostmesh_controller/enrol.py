"""Identity over gRPC: joining with a token, renewing, certificates for workloads, leaving.

Whom a certificate names is decided by the token (Join) or by the caller's own verified certificate and the registry
(everything else), never by what is in the request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol, TypeVar

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from hostmesh_api.identity import HostIdentity, WorkloadIdentity, parse_identity
from hostmesh_api.v1.hostmesh_pb2 import (
    CertificateResponse,
    IssueWorkloadRequest,
    JoinRequest,
    JoinResponse,
    LeaveRequest,
    LeaveResponse,
    RenewHostRequest,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentServicer as EnrolmentBase
from hostmesh_api.v1.hostmesh_pb2_grpc import IdentityServicer as IdentityBase
from hostmesh_controller.authority import LEAF_LIFE, Authority, AuthorityError, Issued
from hostmesh_controller.csr import CsrError, public_key_of
from hostmesh_controller.peers import CertificateStore, Context, Peers, RefusedError
from hostmesh_controller.reports import HostStates
from hostmesh_controller.store import CertificateRecord, StoreError, TokenRecord
from hostmesh_controller.tokens import Refusal, TokenStore, redeem

_log: Final = structlog.get_logger(__name__)
_T = TypeVar("_T")

_JOINS_AT_ONCE: Final = 2
"""Anybody can call Join: strangers must not take the threads that the mesh's own calls need (6 on 2 cores)."""

_NOT_ACCEPTED: Final = (
    "the join token is not accepted: it is wrong, expired, used or revoked; "
    "the operator must make a new one (hostmesh token create)"
)


class EnrolStore(TokenStore, CertificateStore, Protocol):
    """What enrolment needs of the store."""

    def add_certificate(self, certificate: CertificateRecord) -> None: ...
    def forget_host(self, host: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Issuing:
    """What both servicers sign with.

    `life` is that of a leaf. `registered` tells whether the registry has a host.
    """

    authority: Authority
    store: EnrolStore
    states: HostStates
    registered: Callable[[str], bool]
    now: Callable[[], datetime]
    life: timedelta = field(default=LEAF_LIFE)

    def issue(self, host: str, csr_der: bytes, identity: HostIdentity | WorkloadIdentity, *, record: bool) -> Issued:
        """Sign for the key of a request; blocking.

        A host's own certificate is recorded before it leaves: only a recorded one can call the controller.
        """
        now = self.now()
        issued = self.authority.issue(_public_key(csr_der), identity, now, self.life)
        if record:
            self.store.add_certificate(
                CertificateRecord(
                    serial=issued.serial,
                    spiffe_id=identity.uri,
                    host=host,
                    not_after=issued.not_after,
                    issued_at=now,
                )
            )
        _log.info(
            "certificate_issued",
            host=host,
            spiffe_id=identity.uri,
            serial=issued.serial,
            not_after=issued.not_after.isoformat(),
        )
        return issued


class EnrolmentServicer(EnrolmentBase):
    """Join, on the port without client certificates."""

    def __init__(self, issuing: Issuing, agents_endpoints: Sequence[str]) -> None:
        """`agents_endpoints` is where joined agents call, `host:port`, best first."""
        self._issuing = issuing
        self._agents_endpoints = tuple(agents_endpoints)
        self._turns = asyncio.Semaphore(_JOINS_AT_ONCE)

    async def Join(self, request: JoinRequest, context: Context) -> JoinResponse:  # noqa: N802 - gRPC's name
        async with self._turns:
            return await _answer(context, self._join(request, context.peer()))

    async def _join(self, request: JoinRequest, peer: str) -> JoinResponse:
        # The request is checked first, so that a bad one does not use the token up.
        await asyncio.to_thread(_public_key, request.csr_der)
        token = await asyncio.to_thread(self._redeem, request.token, peer)
        host = token.host
        if not self._issuing.registered(host):
            msg = f"host {host!r} is not registered: the operator must register it and make a new token"
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, msg)
        issued = await asyncio.to_thread(self._issue_first, host, request.csr_der)
        await self._issuing.states.joined(host)
        _log.info("host_joined", host=host, peer=peer, token_id=token.id, hostname=request.facts.hostname[:255])
        return JoinResponse(
            host=host,
            trust_domain=self._issuing.authority.trust_domain,
            chain_pem=issued.chain_pem,
            bundle_pem=self._issuing.authority.bundle_pem,
            agents_endpoints=self._agents_endpoints,
        )

    def _redeem(self, token: str, peer: str) -> TokenRecord:
        outcome = redeem(self._issuing.store, token, self._issuing.now(), peer)
        if isinstance(outcome, Refusal):
            _log.warning("join_refused", peer=peer, reason=outcome.value)
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, _NOT_ACCEPTED)
        return outcome

    def _issue_first(self, host: str, csr_der: bytes) -> Issued:
        """Issue to a host that joins. Whoever was this host before is so no longer."""
        identity = HostIdentity(self._issuing.authority.trust_domain, host)
        self._issuing.store.forget_host(host)
        return self._issuing.issue(host, csr_der, identity, record=True)


class IdentityServicer(IdentityBase):
    """RenewHost, IssueWorkload and Leave, on the port with mutual TLS."""

    def __init__(self, issuing: Issuing, peers: Peers, allowed_identities: Callable[[str], frozenset[str]]) -> None:
        """`allowed_identities` returns the SPIFFE IDs of the workloads that the registry places on a host."""
        self._issuing = issuing
        self._peers = peers
        self._allowed_identities = allowed_identities

    async def RenewHost(self, request: RenewHostRequest, context: Context) -> CertificateResponse:  # noqa: N802 - gRPC's name
        caller = await self._peers.host_of(context)
        return await _answer(context, self._issue(caller.host, request.csr_der, caller, record=True))

    async def IssueWorkload(self, request: IssueWorkloadRequest, context: Context) -> CertificateResponse:  # noqa: N802 - gRPC's name
        caller = await self._peers.host_of(context)
        return await _answer(context, self._issue_workload(caller, request))

    async def Leave(self, request: LeaveRequest, context: Context) -> LeaveResponse:  # noqa: ARG002, N802 - gRPC's name and arguments
        caller = await self._peers.host_of(context)
        return await _answer(context, self._leave(caller.host))

    async def _issue_workload(self, caller: HostIdentity, request: IssueWorkloadRequest) -> CertificateResponse:
        identity = self._asked(caller, request.spiffe_id)
        # Envoy's copy of the host's identity is not recorded, hence no use against the controller: a program that
        # gets hold of Envoy's files does not become the agent.
        return await self._issue(caller.host, request.csr_der, identity, record=isinstance(identity, WorkloadIdentity))

    def _asked(self, caller: HostIdentity, spiffe_id: str) -> HostIdentity | WorkloadIdentity:
        allowed = self._allowed_identities(caller.host) | {caller.uri}
        if spiffe_id in allowed:
            try:
                return parse_identity(spiffe_id)
            except ValueError as error:
                raise RefusedError(
                    grpc.StatusCode.INTERNAL, f"the controller's registry is at fault: {error}"
                ) from error
        _log.warning("issue_refused", host=caller.host, asked=spiffe_id[:256], allowed=sorted(allowed))
        msg = (
            "the registry places no workload of the asked identity on this host: "
            "the operator must register it, or the agent must take its new configuration"
        )
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)

    async def _issue(
        self, host: str, csr_der: bytes, identity: HostIdentity | WorkloadIdentity, *, record: bool
    ) -> CertificateResponse:
        issued = await asyncio.to_thread(self._issuing.issue, host, csr_der, identity, record=record)
        return CertificateResponse(chain_pem=issued.chain_pem, bundle_pem=self._issuing.authority.bundle_pem)

    async def _leave(self, host: str) -> LeaveResponse:
        await asyncio.to_thread(self._issuing.store.forget_host, host)
        await self._issuing.states.left(host)
        _log.info("host_left", host=host)
        return LeaveResponse()


def _public_key(csr_der: bytes) -> EllipticCurvePublicKey:
    try:
        return public_key_of(csr_der)
    except CsrError as error:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error


async def _answer(context: Context, work: Awaitable[_T]) -> _T:
    """Return the answer, or end the call with what the peer must be told."""
    try:
        return await work
    except RefusedError as refused:
        _log.warning("call_refused", peer=context.peer(), code=refused.code.name, reason=refused.message)
        code, message = refused.code, refused.message
    except (AuthorityError, StoreError) as error:
        # The details are for the operator: they name files of the controller.
        _log.error("call_failed", peer=context.peer(), error=str(error))
        code, message = grpc.StatusCode.UNAVAILABLE, "the controller cannot issue now: its operator must see its log"
    await context.abort(code, message)
    raise AssertionError  # abort never returns
