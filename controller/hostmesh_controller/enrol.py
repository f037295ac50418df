"""Identity over gRPC: joining with a token, renewing, certificates for workloads, leaving.

Whom a certificate names is decided by the token (Join) or by the caller's own verified certificate and the registry
(everything else), not by what is in the request. One thing is the host's to say: its name, where it joins by the token
of a group. It must be free, or the name of a member at that address: then it is the same machine, installed anew.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv6Address, ip_address
from typing import Final, Protocol, TypeVar
from urllib.parse import unquote

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hostmesh_api.identity import HostIdentity, WorkloadIdentity, parse_identity
from hostmesh_api.proof import REATTEST, csr_digest, statement
from hostmesh_api.v1.hostmesh_pb2 import (
    CertificateResponse,
    ChallengeRequest,
    ChallengeResponse,
    IssueWorkloadRequest,
    JoinRequest,
    JoinResponse,
    LeaveRequest,
    LeaveResponse,
    ReattestRequest,
    RenewHostRequest,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentServicer as EnrolmentBase
from hostmesh_api.v1.hostmesh_pb2_grpc import IdentityServicer as IdentityBase
from hostmesh_controller.attest.challenges import LIFE as NONCE_LIFE
from hostmesh_controller.attest.challenges import Challenges
from hostmesh_controller.attest.returning import Return, why_not
from hostmesh_controller.authority import LEAF_LIFE, Authority, AuthorityError, Issued
from hostmesh_controller.csr import CsrError, public_key_of
from hostmesh_controller.groups import Candidate, NotAdmittedError, candidate, group_key
from hostmesh_controller.peers import CertificateStore, Context, Peers, RefusedError
from hostmesh_controller.reports import HostStates
from hostmesh_controller.store import CertificateRecord, StoreError, TokenRecord
from hostmesh_controller.tokens import Refusal, TokenStore, allows, look, redeem

_log: Final = structlog.get_logger(__name__)
_T = TypeVar("_T")

_JOINS_AT_ONCE: Final = 2
"""Anybody can call Join: strangers must not take the threads that the mesh's own calls need (6 on 2 cores)."""

_NOT_ACCEPTED: Final = (
    "the join token is not accepted: it is wrong, expired, used or revoked; "
    "the operator must make a new one (hostmesh token create)"
)
_NOT_REATTESTED: Final = (
    "this host is not let back in by its old key: its operator must see the controller's log, and make a new join "
    "token (hostmesh token create), or let it join as an attested host again"
)


class Registry(Protocol):
    """What enrolment needs of the registrar."""

    def registered(self, host: str) -> bool: ...
    def membership_problem(self, candidate: Candidate) -> str | None: ...
    def is_member(self, candidate: Candidate) -> bool: ...
    async def admit(self, candidate: Candidate, *, actor: str) -> None: ...
    async def left(self, host: str) -> None: ...


class EnrolStore(TokenStore, CertificateStore, Protocol):
    """What enrolment needs of the store."""

    def add_certificate(self, certificate: CertificateRecord) -> None: ...
    def forget_host(self, host: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Issuing:
    """What both servicers sign with.

    `life` is that of a leaf. `registry` knows the hosts, and takes members into groups.
    """

    authority: Authority
    store: EnrolStore
    states: HostStates
    registry: Registry
    now: Callable[[], datetime]
    life: timedelta = field(default=LEAF_LIFE)

    def issue(self, host: str, csr_der: bytes, identity: HostIdentity | WorkloadIdentity, *, record: bool) -> Issued:
        """Sign for the key of a request; blocking.

        A host's own certificate is recorded before it leaves: only a recorded one can call the controller.
        """
        now = self.now()
        key = _public_key(csr_der)
        issued = self.authority.issue(key, identity, now, self.life)
        if record:
            self.store.add_certificate(
                CertificateRecord(
                    serial=issued.serial,
                    spiffe_id=identity.uri,
                    host=host,
                    not_after=issued.not_after,
                    issued_at=now,
                    key_sha256=key_digest(key),
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

    def __init__(
        self,
        issuing: Issuing,
        agents_endpoints: Sequence[str],
        join_endpoints: Sequence[str] = (),
        within: timedelta = timedelta(),
    ) -> None:
        """Serve joins.

        Args:
            issuing: what to sign with.
            agents_endpoints: where joined agents call, `host:port`, best first.
            join_endpoints: the same of this port.
            within: how long after its certificate's end a host may come back by its key; zero: never.
        """
        self._issuing = issuing
        self._agents_endpoints = tuple(agents_endpoints)
        self._join_endpoints = tuple(join_endpoints)
        self._within = within
        self._challenges = Challenges(secrets.token_bytes)
        self._turns = asyncio.Semaphore(_JOINS_AT_ONCE)

    async def Join(self, request: JoinRequest, context: Context) -> JoinResponse:  # noqa: N802 - gRPC's name
        async with self._turns:
            return await _answer(context, self._join(request, context.peer()))

    async def Challenge(self, request: ChallengeRequest, context: Context) -> ChallengeResponse:  # noqa: ARG002, N802 - gRPC's name and arguments
        nonce = self._challenges.make(request.csr_sha256, self._issuing.now())
        return ChallengeResponse(nonce=nonce, valid_s=int(NONCE_LIFE.total_seconds()))

    async def Reattest(self, request: ReattestRequest, context: Context) -> JoinResponse:  # noqa: N802 - gRPC's name
        async with self._turns:
            return await _answer(context, self._reattest(request, context.peer()))

    async def _reattest(self, request: ReattestRequest, peer: str) -> JoinResponse:
        await asyncio.to_thread(_public_key, request.csr_der)
        identity = self._named(request.host)
        problem = self._challenges.spend(request.nonce, csr_digest(request.csr_der), self._issuing.now())
        problem = problem or await self._why_not(identity, request)
        if problem is not None:
            _log.warning("reattestation_refused", host=request.host[:256], peer=peer, reason=problem)
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, _NOT_REATTESTED)
        # What the host has been issued before stays known until the new one is in use: this answer may be lost.
        issued = await asyncio.to_thread(self._issuing.issue, identity.host, request.csr_der, identity, record=True)
        _log.info("host_reattested", host=identity.host, peer=peer, replaces=request.serial[:64])
        return self._joined(identity.host, issued)

    async def _why_not(self, identity: HostIdentity, request: ReattestRequest) -> str | None:
        """Return why the host may not come back: it is out of the mesh, or does not prove who it is."""
        if not self._issuing.registry.registered(identity.host):
            return "the host is not registered"
        state = await self._issuing.states.state(identity.host)
        if state.joined_at is None or (state.left_at is not None and state.left_at >= state.joined_at):
            return "the host has not joined, or has left"
        known = await asyncio.to_thread(self._issuing.store.certificates, identity.host)
        own = [each for each in known if each.spiffe_id == identity.uri]
        said = statement(REATTEST, request.nonce, request.csr_der)
        back = Return(request.serial, request.public_key_der, request.signature, said)
        return await asyncio.to_thread(why_not, back, own, self._within, self._issuing.now())

    def _named(self, host: str) -> HostIdentity:
        try:
            return HostIdentity(self._issuing.authority.trust_domain, host)
        except ValueError as error:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:512]) from error

    def _joined(self, host: str, issued: Issued) -> JoinResponse:
        return JoinResponse(
            host=host,
            trust_domain=self._issuing.authority.trust_domain,
            chain_pem=issued.chain_pem,
            bundle_pem=self._issuing.authority.bundle_pem,
            agents_endpoints=self._agents_endpoints,
            join_endpoints=self._join_endpoints,
        )

    async def _join(self, request: JoinRequest, peer: str) -> JoinResponse:
        # The request is checked first, so that a bad one does not use the token up.
        await asyncio.to_thread(_public_key, request.csr_der)
        token = await asyncio.to_thread(self._look, request.token, peer)
        if token.pool:
            host = await self._join_group(token, request, peer)
        else:
            host = await self._join_as_named(request, peer)
        issued = await asyncio.to_thread(self._issue_first, host, request.csr_der)
        await self._issuing.states.joined(host)
        _log.info("host_joined", host=host, peer=peer, token_id=token.id, hostname=request.facts.hostname[:255])
        return self._joined(host, issued)

    async def _join_as_named(self, request: JoinRequest, peer: str) -> str:
        token = await asyncio.to_thread(self._redeem, request.token, peer)
        if not self._issuing.registry.registered(token.host):
            msg = f"host {token.host!r} is not registered: the operator must register it and make a new token"
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, msg)
        return token.host

    async def _join_group(self, token: TokenRecord, request: JoinRequest, peer: str) -> str:
        """Make the host a member of the token's group. What is refused does not use the token."""
        registry = self._issuing.registry
        wanted = _candidate(token, request, peer)
        problem = registry.membership_problem(wanted)
        if problem is not None:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, problem)
        if not registry.is_member(wanted):
            await asyncio.to_thread(self._redeem, request.token, peer)
        try:
            await registry.admit(wanted, actor=f"token:{token.id}")
        except NotAdmittedError as error:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error
        return wanted.name

    def _look(self, token: str, peer: str) -> TokenRecord:
        return self._accepted(look(self._issuing.store, token, self._issuing.now()), peer)

    def _redeem(self, token: str, peer: str) -> TokenRecord:
        return self._accepted(redeem(self._issuing.store, token, self._issuing.now(), peer), peer)

    def _accepted(self, outcome: TokenRecord | Refusal, peer: str) -> TokenRecord:
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
        await self._issuing.registry.left(host)
        _log.info("host_left", host=host)
        return LeaveResponse()


def _candidate(token: TokenRecord, request: JoinRequest, peer: str) -> Candidate:
    """Return whom a request with the token of a group is from.

    The address is the one that the controller sees. Another one, that the agent names, must be in the token's blocks:
    nobody takes an address by saying so.
    """
    group = group_key(token.pool)
    if group is None:
        raise RefusedError(grpc.StatusCode.INTERNAL, f"the token is for {token.pool!r}, which is no group")
    seen = peer_address(peer)
    try:
        found = candidate(group, request.name, request.facts.hostname, request.address, seen)
    except NotAdmittedError as error:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
    if not token.allowed and found.address != seen:
        msg = (
            f"the token does not allow the address {found.address}, only the one that this host calls from ({seen}): "
            f"join without --address, or with a token that allows it (hostmesh token create --group {token.pool} "
            f"--allow-address {found.address})"
        )
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
    if not allows(token, found.address):
        how = "" if request.address else ", from which this host calls: name another of its own with --address"
        msg = f"the token allows addresses in {token.allowed.replace(',', ', ')}, not {found.address}{how}"
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
    return found


def peer_address(peer: str) -> str:
    """Return the address in gRPC's name of a peer (`ipv4:10.0.0.1:52000`, `ipv6:%5B::1%5D:52000`), canonical.

    "" if there is none. An IPv4 address that came in through an IPv6 socket is an IPv4 address.
    """
    family, _, rest = unquote(peer).partition(":")
    text = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        parsed = ip_address(text)
    except ValueError:
        return ""
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed) if family in {"ipv4", "ipv6"} else ""


def key_digest(key: EllipticCurvePublicKey) -> str:
    """Return what a record keeps of a public key."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


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
