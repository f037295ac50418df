"""The agent's calls to the controller that give it identities: join, come back, renew, issue, leave.

Keys are made here and never sent. What comes back is checked before anything is written.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
import structlog

from hostmesh_agent import keyroom
from hostmesh_agent.state import HostFiles, HostRecord, State, StateError
from hostmesh_agent.svid import Svid, SvidError
from hostmesh_api.identity import HostIdentity, WorkloadIdentity, parse_identity
from hostmesh_api.joinstring import JoinString
from hostmesh_api.proof import REATTEST, csr_digest, statement
from hostmesh_api.v1.hostmesh_pb2 import (
    ChallengeRequest,
    HostFacts,
    IssueWorkloadRequest,
    JoinRequest,
    JoinResponse,
    LeaveRequest,
    ReattestRequest,
    RenewHostRequest,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentStub, IdentityStub
from hostmesh_api.wire import JOIN_PORT

if TYPE_CHECKING:
    from hostmesh_agent.evidence import Evidence  # joining only: a running agent does not load it
    from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentAsyncStub, IdentityAsyncStub  # exist in the stubs only

CALL_TIMEOUT_S: Final = 15.0
JOIN_ROUNDS: Final = 3
"""How often all endpoints of a join string are tried. A person waits for the answer."""
BUSY_ROUNDS: Final = 12
"""The same where a controller said that too many call it: hosts behind one address translator look like one caller."""
ROUND_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 8.0

CHANNEL_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    # The environment's web proxy is for other traffic.
    ("grpc.enable_http_proxy", 0),
    # Without it a new channel inherits the old one's connection back-off, and its certificate.
    ("grpc.use_local_subchannel_pool", 1),
)

MAX_RETRY_S: Final = 300.0
"""How seldom a host that waits for approval asks, whatever the controller says."""

_RETRIED: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)
_log: Final = structlog.get_logger(__name__)
_T = TypeVar("_T")


class EnrolError(Exception):
    """The controller did not give what was asked for; the message says why and who must act."""


class PendingError(EnrolError):
    """An operator must approve this host first."""


class RefusedError(EnrolError):
    """The controller answered, and said no."""


async def join(
    join_string: JoinString,
    state: State,
    facts: HostFacts,
    now: Callable[[], datetime],
    *,
    name: str = "",
    address: str = "",
    force: bool = False,
    evidence: "Evidence | None" = None,
    waiting: Callable[[str], None] | None = None,
    doubt: Callable[[str], None] = lambda _: None,
    pause_s: float = ROUND_PAUSE_S,
) -> HostRecord:
    """Join the mesh: afterwards the state directory holds the host's identity. If it fails, it is as it was.

    Args:
        join_string: where, whom to trust, and the token.
        state: of this host.
        facts: told to the controller; a member of a group is named by its host name unless `name` says otherwise.
        now: aware time.
        name: under which the host wants to be a member of a group; the token of a host names that host.
        address: of the host, where the controller sees it call from another one; the token must allow it.
        force: replace an identity that this host already has.
        evidence: what proves who this host is; None: the token.
        waiting: told what an operator must approve, while this waits for it; None: not to wait.
        doubt: told why this may be another host than the one for which the join string was made.
        pause_s: between rounds through the endpoints; doubled each time.

    Raises:
        PendingError: an operator must approve, and nobody waits.
        EnrolError: refused, nobody reached, or the answer is not to be trusted.
        StateError: the host has joined already, or the disk refuses.
    """
    if state.joined and not force:
        msg = f"{state.directory}: this host has joined already: leave first, or replace its identity with --force"
        raise StateError(msg)
    try:
        pinned_pem = await asyncio.to_thread(keyroom.root_pem, join_string.root_der)
    except SvidError as error:
        raise EnrolError(str(error)) from error
    key = await asyncio.to_thread(_own_key, state, evidence)
    asked = JoinRequest(facts=facts, name=name, address=address)
    credentials = grpc.ssl_channel_credentials(root_certificates=pinned_pem)

    async def ask(channel: grpc.aio.Channel) -> JoinResponse:
        return await _ask_to_join(EnrolmentStub(channel), asked, key, join_string.token, evidence)

    while True:
        answer = await _first(join_string.endpoints, credentials, ask, JOIN_ROUNDS, pause_s)
        if not answer.HasField("pending"):
            break
        await asyncio.to_thread(state.save_waiting_key, key)
        shown = await asyncio.to_thread(keyroom.fingerprint, key)
        said = f"key {shown} waits for an operator: hostmesh host approve {answer.pending.id}"
        if waiting is None:
            msg = f"this host's {said}; then join again (or join with --wait)"
            raise PendingError(msg)
        waiting(said)
        await asyncio.sleep(min(max(answer.pending.retry_s * pause_s, 0), MAX_RETRY_S))
    record, files, _ = await asyncio.to_thread(_accept, answer, key, pinned_pem, now())
    await asyncio.to_thread(state.save_joined, record, files)
    await asyncio.to_thread(state.drop_waiting_key)
    _log.info("joined", host=record.host, trust_domain=record.trust_domain)
    if why := _elsewhere(answer, facts):
        doubt(why)
    return record


def _elsewhere(answer: JoinResponse, facts: HostFacts) -> str:
    """Say that none of the addresses at which the mesh calls a host is this one's; "" if one is."""
    named = {ip_address(each) for each in answer.addresses}
    if not named or not facts.addresses or named.intersection(map(ip_address, facts.addresses)):
        return ""
    return (
        f"the mesh calls {answer.host} at {', '.join(answer.addresses)}, and this host has "
        f"{', '.join(facts.addresses)}: unless the one leads to the other, the join string was made for another host: "
        "hostmesh-agent leave"
    )


def _own_key(state: State, evidence: "Evidence | None") -> bytes:
    """Return the key to join with: one that waits for approval, or a new one."""
    kept = None if evidence is None else state.waiting_key()
    return keyroom.request()[0] if kept is None else kept


async def _ask_to_join(
    stub: "EnrolmentAsyncStub", asked: JoinRequest, key: bytes, token: str, evidence: "Evidence | None"
) -> JoinResponse:
    request = JoinRequest()
    request.CopyFrom(asked)
    request.csr_der = await asyncio.to_thread(keyroom.request_for, key)
    if evidence is None:
        request.token = token
    else:
        digest = csr_digest(request.csr_der)
        request.nonce = (await stub.Challenge(ChallengeRequest(csr_sha256=digest), timeout=CALL_TIMEOUT_S)).nonce
        request.MergeFrom(await asyncio.to_thread(evidence.make, request.nonce, request.csr_der))
    return await stub.Join(request, timeout=CALL_TIMEOUT_S)


async def reattest(state: State, now: Callable[[], datetime]) -> Svid:
    """Come back by the key of the last certificate, which nobody takes any more: it has ended, or its root is gone.

    Raises:
        RefusedError: the controller does not let this host back in.
        EnrolError: nobody reached, or the answer is not to be trusted.
        StateError: the state cannot be read or written.
    """
    record, files = state.host(), state.files()
    key, csr_der = await asyncio.to_thread(keyroom.request)
    credentials = grpc.ssl_channel_credentials(root_certificates=files.bundle_pem)

    async def ask(opened: grpc.aio.Channel) -> JoinResponse:
        stub = EnrolmentStub(opened)
        asked = ChallengeRequest(csr_sha256=csr_digest(csr_der))
        nonce = (await stub.Challenge(asked, timeout=CALL_TIMEOUT_S)).nonce
        said = statement(REATTEST, nonce, csr_der)
        serial, public, signature = await asyncio.to_thread(keyroom.proof, files.key_pem, files.chain_pem, said)
        request = ReattestRequest(
            host=record.host,
            serial=serial,
            public_key_der=public,
            nonce=nonce,
            signature=signature,
            csr_der=csr_der,
        )
        return await stub.Reattest(request, timeout=CALL_TIMEOUT_S)

    answer = await _first(join_endpoints(record), credentials, ask, 1, 0.0)
    # The old roots need not vouch for the new chain, but they did for the connection that brought the new ones.
    renewed, files, svid = await asyncio.to_thread(_accept, answer, key, answer.bundle_pem, now())
    if renewed.identity != record.identity:
        msg = f"the controller gave this host another name, {renewed.identity.uri}: its operator must act"
        raise EnrolError(msg)
    await asyncio.to_thread(state.save_renewed, files)
    if renewed != record:
        await asyncio.to_thread(state.save_host, renewed)
    _log.info("host_reattested", serial=svid.serial, not_after=svid.not_after.isoformat())
    return svid


def join_endpoints(record: HostRecord) -> tuple[str, ...]:
    """Return where this host comes back; hosts that joined an older controller were not told."""
    guessed = (f"{each.rpartition(':')[0]}:{JOIN_PORT}" for each in record.agents_endpoints)
    return record.join_endpoints or tuple(guessed)


async def renew_host(state: State, now: Callable[[], datetime]) -> Svid:
    """Get a new certificate for a new key of the host's own, and put both in the old ones' place.

    Raises:
        EnrolError: refused, or nobody reached.
        StateError: the state cannot be read or written.
    """
    identity = state.host().identity
    key, csr_der = await asyncio.to_thread(keyroom.request)
    request = RenewHostRequest(csr_der=csr_der)
    answer = await _call(state, lambda stub: stub.RenewHost(request, timeout=CALL_TIMEOUT_S), now())
    svid = await asyncio.to_thread(_checked, key, answer.chain_pem, answer.bundle_pem, identity, now())
    await asyncio.to_thread(state.save_renewed, HostFiles(svid.key_pem, svid.chain_pem, answer.bundle_pem))
    _log.info("host_certificate_renewed", serial=svid.serial, not_after=svid.not_after.isoformat())
    return svid


async def issue_workload(state: State, spiffe_id: str, now: Callable[[], datetime]) -> Svid:
    """Get a certificate for a new key of an identity that the registry places on this host; writes nothing.

    Raises:
        EnrolError: refused, or nobody reached.
        StateError: the state cannot be read.
    """
    identity = parse_identity(spiffe_id)
    key, csr_der = await asyncio.to_thread(keyroom.request)
    request = IssueWorkloadRequest(csr_der=csr_der, spiffe_id=spiffe_id)
    answer = await _call(state, lambda stub: stub.IssueWorkload(request, timeout=CALL_TIMEOUT_S), now())
    return await asyncio.to_thread(_checked, key, answer.chain_pem, answer.bundle_pem, identity, now())


async def leave(state: State, now: Callable[[], datetime]) -> None:
    """Tell the controller that the host leaves. The files stay: the caller removes them (State.forget).

    Raises:
        EnrolError: refused, or nobody reached.
        StateError: the state cannot be read.
    """
    await _call(state, lambda stub: stub.Leave(LeaveRequest(), timeout=CALL_TIMEOUT_S), now())


def channel(state: State, endpoint: str = "", options: Sequence[tuple[str, int]] = ()) -> grpc.aio.Channel:
    """Return a channel to the agents' port, with the identity that is on disk now.

    The server is verified by its address: it must be in its certificate, and only the controller's has any.

    Args:
        state: of this host.
        endpoint: `host:port`; "" for the best that the host knows.
        options: for gRPC, beside ours.

    Raises:
        StateError: the host has not joined, or its files cannot be used.
    """
    at = endpoint or state.host().agents_endpoints[0]
    return grpc.aio.secure_channel(at, _credentials(state), options=[*CHANNEL_OPTIONS, *options])


def _credentials(state: State) -> grpc.ChannelCredentials:
    files = state.files()
    return grpc.ssl_channel_credentials(files.bundle_pem, files.key_pem, files.chain_pem)


async def _call(state: State, ask: "Callable[[IdentityAsyncStub], Awaitable[_T]]", now: datetime) -> _T:
    try:
        return await _first(
            state.host().agents_endpoints, _credentials(state), lambda at: ask(IdentityStub(at)), 1, 0.0
        )
    except EnrolError as error:
        _, _, not_after = keyroom.validity(state.files().chain_pem)
        if not_after > now:
            raise
        msg = (
            f"this host's certificate ended at {not_after:%Y-%m-%d %H:%M} UTC: a running agent comes back by itself; "
            f"if that is refused, join again with --force ({error})"
        )
        raise EnrolError(msg) from error


async def _first(
    endpoints: Sequence[str],
    credentials: grpc.ChannelCredentials,
    ask: Callable[[grpc.aio.Channel], Awaitable[_T]],
    rounds: int,
    pause_s: float,
) -> _T:
    """Return the first answer of the endpoints, tried in order. A refusal is an answer too: it ends the search.

    Who tries in several rounds tries longer where a controller is there and has too much to do.
    """
    failures: dict[str, str] = {}
    round_, busy = 0, False
    while round_ < rounds or (busy and rounds > 1 and round_ < BUSY_ROUNDS):
        if round_:
            # Those that were refused together must not come back together.
            pause = min(pause_s * 2 ** (round_ - 1), _LONGEST_PAUSE_S)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        round_, busy = round_ + 1, False
        for endpoint in endpoints:
            try:
                async with grpc.aio.secure_channel(endpoint, credentials, options=CHANNEL_OPTIONS) as opened:
                    return await ask(opened)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRIED:
                    msg = f"{endpoint} refused ({error.code().name}): {error.details()}"
                    raise RefusedError(msg) from error
                busy = busy or error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                failures[endpoint] = error.details() or error.code().name
    tried = "; ".join(f"{endpoint}: {reason}" for endpoint, reason in failures.items())
    msg = f"no controller answered ({tried}): check the network, the addresses and that the controller runs"
    raise EnrolError(msg)


def _accept(answer: JoinResponse, key: bytes, pinned_pem: bytes, now: datetime) -> tuple[HostRecord, HostFiles, Svid]:
    """Check the answer to a join against what was pinned."""
    joining = tuple(answer.join_endpoints)
    record = HostRecord(answer.host, answer.trust_domain, tuple(answer.agents_endpoints), joining)
    try:
        identity = record.identity
    except ValueError as error:
        msg = f"the controller gave this host an impossible name ({error}): its operator must act"
        raise EnrolError(msg) from error
    if not record.agents_endpoints:
        msg = "the controller did not say where agents call: its operator must set `addresses`"
        raise EnrolError(msg)
    svid = _checked(key, answer.chain_pem, pinned_pem, identity, now)
    # What the pinned root does not vouch for today may still be a root of tomorrow: the bundle came over a connection
    # that the pinned root has authenticated.
    _checked(key, answer.chain_pem, answer.bundle_pem, identity, now)
    return record, HostFiles(svid.key_pem, svid.chain_pem, answer.bundle_pem), svid


def _checked(key: bytes, chain: bytes, bundle: bytes, identity: WorkloadIdentity | HostIdentity, now: datetime) -> Svid:
    try:
        return keyroom.checked(key, chain, bundle, identity, now)
    except SvidError as error:
        raise EnrolError(str(error)) from error
