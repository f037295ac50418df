"""Enrolment over gRPC: joining with a token or evidence, and coming back by a key.

Whom a certificate names is decided by the token or the evidence (Join) and by the certificates on record (Reattest),
not by what is in the request. One thing is the host's to say: its name, where it joins by the token
of a group. It must be free, or the name of a member at that address: then it is the same machine, installed anew.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import grpc
import structlog

from hostmesh_api.identity import HostIdentity
from hostmesh_api.proof import REATTEST, csr_digest, statement
from hostmesh_api.v1.hostmesh_pb2 import (
    ChallengeRequest,
    ChallengeResponse,
    JoinPending,
    JoinRequest,
    JoinResponse,
    ReattestRequest,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentServicer as EnrolmentBase
from hostmesh_controller.admission import Admission, token_candidate
from hostmesh_controller.attest.challenges import LIFE as NONCE_LIFE
from hostmesh_controller.attest.challenges import Challenges
from hostmesh_controller.attest.returning import Return, why_not
from hostmesh_controller.authority import Issued
from hostmesh_controller.csr import fingerprint, key_digest
from hostmesh_controller.enrolments import DeniedError
from hostmesh_controller.groups import NotAdmittedError
from hostmesh_controller.issuing import Issuing, answered, requested_key
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.peers import Context, RefusedError, peer_address
from hostmesh_controller.store import EnrolmentRecord, PendingRecord, TokenRecord
from hostmesh_controller.tokens import Refusal, allows, look, redeem

_log: Final = structlog.get_logger(__name__)
_T = TypeVar("_T")

_JOINS_AT_ONCE: Final = 2
"""Anybody can call Join: strangers must not take the threads that the mesh's own calls need (6 on 2 cores)."""

_RETRY_S: Final = 10
"""How often a host that waits for approval asks."""
_MAX_WAITING: Final = 512
"""Calls that wait for their turn: each holds a request in memory."""

_NOT_ACCEPTED: Final = (
    "the join token is not accepted: it is wrong, expired, used or revoked; "
    "the operator must make a new one (hostmesh token create)"
)
_NOT_REATTESTED: Final = (
    "this host is not let back in by its old key: its operator must see the controller's log, and make a new join "
    "token (hostmesh token create), or let it join as an attested host again"
)


class EnrolmentServicer(EnrolmentBase):
    """Join, on the port without client certificates."""

    def __init__(
        self,
        issuing: Issuing,
        admission: Admission,
        agents_endpoints: Sequence[str],
        join_endpoints: Sequence[str] = (),
        within: timedelta = timedelta(),
    ) -> None:
        """Serve joins.

        Args:
            issuing: what to sign with.
            admission: of hosts that show evidence.
            agents_endpoints: where joined agents call, `host:port`, best first.
            join_endpoints: the same of this port.
            within: how long after its certificate's end a host may come back by its key; zero: never.
        """
        self._issuing = issuing
        self._admission = admission
        self._agents_endpoints = tuple(agents_endpoints)
        self._join_endpoints = tuple(join_endpoints)
        self._within = within
        self._challenges = Challenges(secrets.token_bytes)
        self._turns = asyncio.Semaphore(_JOINS_AT_ONCE)
        self._waiting = 0

    async def Join(self, request: JoinRequest, context: Context) -> JoinResponse:  # noqa: N802 - gRPC's name
        return await self._in_turn(context, lambda: self._join(request, context.peer()))

    async def Challenge(self, request: ChallengeRequest, context: Context) -> ChallengeResponse:  # noqa: ARG002, N802 - gRPC's name and arguments
        nonce = self._challenges.make(request.csr_sha256, self._issuing.now())
        return ChallengeResponse(nonce=nonce, valid_s=int(NONCE_LIFE.total_seconds()))

    async def Reattest(self, request: ReattestRequest, context: Context) -> JoinResponse:  # noqa: N802 - gRPC's name
        return await self._in_turn(context, lambda: self._reattest(request, context.peer()))

    async def _in_turn(self, context: Context, work: Callable[[], Awaitable[JoinResponse]]) -> JoinResponse:
        if self._waiting >= _MAX_WAITING:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many hosts join at this moment: try again")
        self._waiting += 1
        try:
            async with self._turns:
                return await answered(context, work())
        finally:
            self._waiting -= 1

    async def _reattest(self, request: ReattestRequest, peer: str) -> JoinResponse:
        await asyncio.to_thread(requested_key, request.csr_der)
        identity = self._named(request.host)
        enrolment = self._issuing.enrolments.current(identity.host)
        problem = self._challenges.spend(request.nonce, csr_digest(request.csr_der), self._issuing.now())
        problem = problem or await self._why_not(identity, enrolment, request)
        if enrolment is None or problem is not None:
            _log.warning("reattestation_refused", host=request.host[:256], peer=peer, reason=problem)
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, _NOT_REATTESTED)
        # What the host has been issued before stays known until the new one is in use: this answer may be lost.
        issued = await asyncio.to_thread(
            self._issuing.issue, enrolment, request.csr_der, identity, record=True, for_latecomers=True
        )
        key, actor = ObjectKey("Host", "", identity.host), f"host:{identity.host}"
        add_event = self._issuing.store.add_event
        await asyncio.to_thread(add_event, "host.reattest", key, actor=actor, now=self._issuing.now())
        _log.info("host_reattested", host=identity.host, peer=peer, replaces=request.serial[:64])
        return self._joined(identity.host, issued)

    async def _why_not(
        self, identity: HostIdentity, enrolment: EnrolmentRecord | None, request: ReattestRequest
    ) -> str | None:
        """Return why the host may not come back: it is out of the mesh, or does not prove who it is."""
        if not self._issuing.registry.registered(identity.host):
            return "the host is not registered"
        if enrolment is None or enrolment.ended_at is not None:
            return "the host has not joined, or has left"
        refusal = self._issuing.enrolments.standing(identity.host).refusal
        if refusal is not None:
            return refusal
        if self._issuing.enrolments.is_out(identity.host):
            return "it was expelled, and has not joined since it was readmitted"
        known = await asyncio.to_thread(self._issuing.store.certificates, identity.host)
        own = [each for each in known if each.spiffe_id == identity.uri]
        said = statement(REATTEST, request.nonce, request.csr_der)
        back = Return(request.serial, request.public_key_der, request.signature, said)
        return await asyncio.to_thread(why_not, back, own, enrolment.used_serial, self._within, self._issuing.now())

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
        key = await asyncio.to_thread(requested_key, request.csr_der)
        if request.WhichOneof("evidence") is not None:
            return await self._join_attested(request, key_digest(key), peer)
        token = await asyncio.to_thread(self._look, request.token, peer)
        if token.host:
            self._issuing.refuse_denied(token.host)
        if token.pool:
            host = await self._join_group(token, request, peer)
        else:
            host = await self._join_as_named(token, request, peer)
        answer = await self._let_in(host, request, peer, token_id=token.id)
        if not token.pool:
            answer.addresses.extend(self._issuing.registry.addresses(host))
        return answer

    async def _join_attested(self, request: JoinRequest, key_sha256: str, peer: str) -> JoinResponse:
        attestor = str(request.WhichOneof("evidence"))
        problem = self._challenges.spend(request.nonce, csr_digest(request.csr_der), self._issuing.now())
        if problem is not None:
            _log.warning("join_refused", peer=peer, attestor=attestor, reason=problem)
            msg = "the nonce is not good, or not any more: ask for another one"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
        outcome = await self._admission.admit(request, key_sha256, peer)
        if isinstance(outcome, PendingRecord):
            waits = JoinPending(id=outcome.id, key_fingerprint=fingerprint(key_sha256), retry_s=_RETRY_S)
            return JoinResponse(pending=waits)
        await asyncio.to_thread(
            self._issuing.store.add_event,
            "host.attest",
            ObjectKey("Host", "", outcome),
            actor=f"attest:{attestor}",
            now=self._issuing.now(),
        )
        return await self._let_in(outcome, request, peer, attestor=attestor)

    async def _let_in(self, host: str, request: JoinRequest, peer: str, **how: str) -> JoinResponse:
        self._issuing.refuse_denied(host)
        try:
            enrolment = await self._issuing.enrolments.begin(host)
        except DeniedError as error:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, f"host {host!r}: {error}") from error
        issued = await asyncio.to_thread(self._issue_first, enrolment, request.csr_der)
        await self._issuing.states.joined(host)
        _log.info("host_joined", host=host, peer=peer, hostname=request.facts.hostname[:255], **how)
        return self._joined(host, issued)

    async def _join_as_named(self, token: TokenRecord, request: JoinRequest, peer: str) -> str:
        if not allows(token, peer_address(peer)):
            _log.warning("join_refused", peer=peer, reason="address", token_id=token.id)
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, _NOT_ACCEPTED)
        token = await asyncio.to_thread(self._redeem, request.token, peer)
        if not self._issuing.registry.registered(token.host):
            msg = f"host {token.host!r} is not registered: the operator must register it and make a new token"
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, msg)
        return token.host

    async def _join_group(self, token: TokenRecord, request: JoinRequest, peer: str) -> str:
        """Make the host a member of the token's group. What is refused does not use the token."""
        registry = self._issuing.registry
        wanted = token_candidate(token, request, peer)
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

    def _issue_first(self, enrolment: EnrolmentRecord, csr_der: bytes) -> Issued:
        """Issue to a host that joins. Whoever was this host before is so no longer."""
        identity = HostIdentity(self._issuing.authority.trust_domain, enrolment.host)
        self._issuing.store.forget_host(enrolment.host)
        # A join string that was made a while ago pins a root that may be retired by now.
        return self._issuing.issue(enrolment, csr_der, identity, record=True, for_latecomers=True)
