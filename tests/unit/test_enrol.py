"""Joining, renewing, workloads' certificates and leaving, over real gRPC, with honest agents and with thieves."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from structlog.testing import capture_logs

import pki
from hostmesh_agent import enrol
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.keys import Svid, csr_der, new_key
from hostmesh_agent.state import State, StateError
from hostmesh_api.identity import HostIdentity, parse_identity
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import (
    CertificateResponse,
    HostFacts,
    IssueWorkloadRequest,
    JoinRequest,
    JoinResponse,
    RenewHostRequest,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import (
    EnrolmentServicer,
    EnrolmentStub,
    IdentityStub,
    add_EnrolmentServicer_to_server,
)
from hostmesh_controller.authority import Authority
from identity_servers import Controller

BILLING = parse_identity("spiffe://cluster.local/ns/shop/sa/billing")
WEB_2 = HostIdentity(pki.TRUST_DOMAIN, "web-2")
TIMEOUT_S = 10


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    async with Controller(tmp_path / "controller").serving() as serving:
        yield serving


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "agent")


async def join(join_string: JoinString, state: State, *, force: bool = False) -> None:
    await enrol.join(join_string, state, HostFacts(hostname="web-1"), pki.now, force=force, pause_s=0.01)


def own_svid(state: State) -> x509.Certificate:
    return pki.leaf(state.files().chain_pem)


async def call_join(controller: Controller, token: str, csr: bytes) -> JoinResponse:
    credentials = grpc.ssl_channel_credentials(controller.authority.bundle_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{controller.join_port}", credentials) as channel:
        return await EnrolmentStub(channel).Join(JoinRequest(token=token, csr_der=csr), timeout=TIMEOUT_S)


async def issue_as(
    controller: Controller, svid: Svid | None, spiffe_id: str, csr: bytes | None = None
) -> CertificateResponse:
    """Ask for a workload's certificate with any client certificate, or none."""
    own = (None, None) if svid is None else (svid.key_pem, svid.chain_pem)
    credentials = grpc.ssl_channel_credentials(controller.authority.bundle_pem, *own)
    request = IssueWorkloadRequest(spiffe_id=spiffe_id, csr_der=csr or csr_der(new_key()))
    async with grpc.aio.secure_channel(controller.agents_endpoint, credentials) as channel:
        return await IdentityStub(channel).IssueWorkload(request, timeout=TIMEOUT_S)


async def status_of(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details() or ""


# Joining


async def test_a_host_joins_and_is_who_the_token_says(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    record = state.host()
    assert (record.host, record.trust_domain) == ("web-1", "cluster.local")
    assert record.agents_endpoints == (controller.agents_endpoint,)
    assert pki.uris(own_svid(state)) == [pki.HOST.uri]
    assert state.files().bundle_pem == controller.authority.bundle_pem
    known = controller.store.certificates("web-1")
    assert [each.serial for each in known] == [f"{own_svid(state).serial_number:032x}"]
    assert controller.store.host_states()["web-1"].joined_at is not None
    assert controller.changes == ["web-1"]


async def test_a_request_that_asks_for_everything_gets_the_hosts_own_identity_alone(controller: Controller) -> None:
    key = new_key()
    answer = await call_join(controller, controller.join_string().token, pki.greedy_csr(key))
    leaf = pki.leaf(answer.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(pki.HOST.uri)]
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert len(leaf.subject) == 0
    assert "1.3.6.1.4.1.99999.1" not in {each.oid.dotted_string for each in leaf.extensions}
    assert leaf.public_key() == key.public_key()


async def test_of_64_joins_with_one_token_exactly_one_wins(controller: Controller) -> None:
    token = controller.join_string().token
    requests = [csr_der(new_key()) for _ in range(64)]
    outcomes = await asyncio.gather(*(call_join(controller, token, each) for each in requests), return_exceptions=True)
    winners = [each for each in outcomes if isinstance(each, JoinResponse)]
    losers = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert (len(winners), len(losers)) == (1, 63)
    assert {each.code() for each in losers} == {grpc.StatusCode.PERMISSION_DENIED}
    assert len(controller.store.certificates("web-1")) == 1


async def test_wrong_expired_used_and_revoked_tokens_differ_in_the_log_and_not_for_the_peer(
    controller: Controller,
) -> None:
    csr = csr_der(new_key())
    used = controller.join_string().token
    await call_join(controller, used, csr)
    revoked = controller.join_string().token
    assert controller.store.revoke_token(controller.store.tokens()[-1].id, controller.now())
    expired = controller.join_string(life=timedelta(minutes=1)).token
    controller.ahead = timedelta(minutes=2)
    seen = {}
    with capture_logs() as logs:
        for token in (used, revoked, expired, "A" * 43, "nonsense"):
            seen[token] = await status_of(call_join(controller, token, csr))
    assert len(set(seen.values())) == 1
    code, message = seen[used]
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "the operator must make a new one" in message
    reasons = [each["reason"] for each in logs if each["event"] == "join_refused"]
    assert reasons == ["used", "revoked", "expired", "unknown", "malformed"]
    assert not any(token in str(logs) for token in (used, revoked, expired))


async def test_a_bad_request_does_not_use_the_token_up(controller: Controller) -> None:
    token = controller.join_string().token
    for bad in (b"", b"junk", csr_der(new_key())[:-1]):
        code, message = await status_of(call_join(controller, token, bad))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "the agent must send" in message
    assert (await call_join(controller, token, csr_der(new_key()))).host == "web-1"


async def test_a_host_that_is_registered_no_more_cannot_join(controller: Controller) -> None:
    token = controller.join_string("web-2").token
    del controller.registry["web-2"]
    code, message = await status_of(call_join(controller, token, csr_der(new_key())))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "'web-2' is not registered: the operator must" in message
    assert controller.store.certificates("web-2") == []


async def test_a_host_that_has_joined_is_not_joined_over_unless_told(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    before, token = state.files(), controller.join_string()
    with pytest.raises(StateError, match=r"joined already: leave first, or .* --force"):
        await join(token, state)
    assert state.files() == before
    await join(token, state, force=True)
    assert state.files() != before


async def test_joining_again_ends_the_identity_from_before(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    await join(controller.join_string(), state)
    await join(controller.join_string(), State(tmp_path / "reinstalled"))
    with pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*no longer, known to the controller.*join again"):
        await enrol.renew_host(state, pki.now)


async def test_the_next_endpoint_is_tried_and_the_last_error_names_them_all(
    controller: Controller, state: State
) -> None:
    good = f"localhost:{controller.join_port}"
    await join(controller.join_string(endpoints=("127.0.0.1:1", good)), state)
    assert state.joined
    with pytest.raises(
        EnrolError, match=r"no controller answered \(127\.0\.0\.1:1: .*; 127\.0\.0\.1:2: .*check the network"
    ):
        await join(controller.join_string(endpoints=("127.0.0.1:1", "127.0.0.1:2")), state, force=True)


async def test_a_controller_of_another_root_is_not_talked_to(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    real = controller.join_string()
    foreign = JoinString(real.endpoints, pki.new_authority(tmp_path / "other").root_der, real.token)
    with pytest.raises(EnrolError, match="no controller answered"):
        await join(foreign, state)
    assert not state.directory.exists()
    await join(real, state)  # the token was not even sent


async def test_an_endpoint_whose_address_is_not_in_the_certificate_is_not_talked_to(
    controller: Controller, state: State
) -> None:
    with pytest.raises(EnrolError, match="no controller answered"):
        await join(controller.join_string(endpoints=(f"127.0.0.2:{controller.join_port}",)), state)


Answer = Callable[[Authority, JoinRequest], JoinResponse]


def honest(authority: Authority, request: JoinRequest) -> JoinResponse:
    key = x509.load_der_x509_csr(request.csr_der).public_key()
    issued = authority.issue(key, pki.HOST, pki.now())  # type: ignore[arg-type]  # the agent's is an EC key
    return JoinResponse(
        host="web-1",
        trust_domain=pki.TRUST_DOMAIN,
        chain_pem=issued.chain_pem,
        bundle_pem=authority.bundle_pem,
        agents_endpoints=["a:1"],
    )


def changed(**fields: object) -> Answer:
    def answer(authority: Authority, request: JoinRequest) -> JoinResponse:
        response = honest(authority, request)
        response.MergeFrom(JoinResponse(**fields))  # type: ignore[arg-type]  # fields of the message
        return response

    return answer


def without_endpoints(authority: Authority, request: JoinRequest) -> JoinResponse:
    response = honest(authority, request)
    response.ClearField("agents_endpoints")
    return response


def for_another_key(authority: Authority, request: JoinRequest) -> JoinResponse:
    response = honest(authority, request)
    response.chain_pem = pki.svid(authority, pki.HOST).chain_pem
    return response


def leaf_alone(authority: Authority, request: JoinRequest) -> JoinResponse:
    response = honest(authority, request)
    end = b"-----END CERTIFICATE-----\n"
    response.chain_pem = response.chain_pem.partition(end)[0] + end
    return response


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (changed(host="web-2"), "names .*web-1.*, not spiffe://cluster.local/host/web-2"),
        (changed(host="../etc"), "impossible name"),
        (changed(chain_pem=b"junk"), "cannot be read"),
        (changed(bundle_pem=b"junk"), "cannot be read"),
        (without_endpoints, "did not say where agents call"),
        (for_another_key, "for another key"),
        (leaf_alone, "does not lead to a root"),
    ],
)
async def test_an_answer_that_is_not_right_in_every_part_leaves_nothing_on_disk(
    controller: Controller, state: State, answer: Answer, message: str
) -> None:
    class Strange(EnrolmentServicer):
        async def Join(  # noqa: N802 - gRPC's name
            self, request: JoinRequest, context: grpc.aio.ServicerContext[JoinRequest, JoinResponse]
        ) -> JoinResponse:
            return answer(controller.authority, request)

    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", controller.certificate.credentials(client_certificates=False))
    add_EnrolmentServicer_to_server(Strange(), server)
    await server.start()
    try:
        with pytest.raises(EnrolError, match=message):
            await join(controller.join_string(endpoints=(f"127.0.0.1:{port}",)), state)
    finally:
        await server.stop(None)
    assert not state.directory.exists()


async def test_a_host_whose_clock_is_behind_is_told_so(controller: Controller, state: State) -> None:
    with pytest.raises(EnrolError, match=r"begins only in .* set this host's clock"):
        await enrol.join(
            controller.join_string(), state, HostFacts(), lambda: pki.now() - timedelta(hours=1), pause_s=0.01
        )
    assert not state.joined


# Renewing


async def test_a_renewal_is_a_new_key_and_a_new_certificate_of_the_same_host(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    before = state.files()
    svid = await enrol.renew_host(state, pki.now)
    after = state.files()
    assert (after.key_pem, after.chain_pem) == (svid.key_pem, svid.chain_pem)
    assert after.key_pem != before.key_pem
    assert svid.identity == pki.HOST
    await enrol.renew_host(state, pki.now)


async def test_a_renewal_whose_answer_was_lost_locks_nobody_out(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    files = state.files()
    for _ in range(3):
        await enrol.renew_host(state, controller.now)
        state.save_renewed(files)
        controller.ahead += timedelta(minutes=1)
    # The old one goes on renewing, though newer ones are out: the newest was used by nobody.
    assert await enrol.renew_host(state, controller.now)


async def test_the_old_certificate_ends_soon_after_the_new_one_was_used(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    old = state.files()
    await enrol.renew_host(state, controller.now)
    new = state.files()
    await enrol.issue_workload(state, pki.CART.uri, controller.now)
    state.save_renewed(old)
    await enrol.issue_workload(state, pki.CART.uri, controller.now)  # an open channel may still move over
    controller.ahead = timedelta(minutes=6)
    with pytest.raises(EnrolError, match="replaced by a newer one that is in use"):
        await enrol.issue_workload(state, pki.CART.uri, controller.now)
    state.save_renewed(new)
    await enrol.issue_workload(state, pki.CART.uri, controller.now)


async def test_a_renewal_ignores_what_the_request_asks_for(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    async with enrol.channel(state) as channel:
        request = RenewHostRequest(csr_der=pki.greedy_csr(new_key()))
        answer = await IdentityStub(channel).RenewHost(request, timeout=TIMEOUT_S)
    leaf = pki.leaf(answer.chain_pem)
    assert pki.uris(leaf) == [pki.HOST.uri]
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


async def test_an_expired_host_is_told_to_join_again(controller: Controller, tmp_path: Path) -> None:
    state = pki.joined(tmp_path / "agent", controller.authority, endpoint=controller.agents_endpoint)
    old = pki.svid(controller.authority, pki.HOST, pki.now() - timedelta(hours=80))
    controller.know(pki.HOST, old.serial)
    files = state.files()
    state.save_renewed(type(files)(old.key_pem, old.chain_pem, files.bundle_pem))
    with pytest.raises(EnrolError, match=r"certificate ended at .* join again with --force"):
        await enrol.renew_host(state, pki.now)


# Workloads


async def test_a_workload_of_this_host_gets_its_certificate(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    svid = await enrol.issue_workload(state, pki.CART.uri, pki.now)
    assert svid.identity == pki.CART
    assert pki.uris(pki.leaf(svid.chain_pem)) == [pki.CART.uri]
    assert svid.serial in {each.serial for each in controller.store.certificates("web-1")}


async def test_another_hosts_workload_is_refused_and_the_allowed_ones_are_named_in_the_log_alone(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    with capture_logs() as logs, pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*places no workload") as raised:
        await enrol.issue_workload(state, BILLING.uri, pki.now)
    assert pki.CART.uri not in str(raised.value)
    refusal = next(each for each in logs if each["event"] == "issue_refused")
    assert refusal["allowed"] == [pki.HOST.uri, pki.CART.uri]


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "spiffe://cluster.local/host/web-2",
        "spiffe://cluster.local/hostmesh/controller",
        "spiffe://other.example/ns/shop/sa/cart",
        "spiffe://cluster.local/ns/shop/sa/cart/",
        "spiffe://cluster.local/ns/shop/sa/CART",
        "x" * 100_000,
    ],
)
async def test_what_the_registry_does_not_place_here_is_refused(controller: Controller, asked: str) -> None:
    svid = pki.svid(controller.authority, pki.HOST)
    controller.know(pki.HOST, svid.serial)
    code, _ = await status_of(issue_as(controller, svid, asked))
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_greedy_request_for_a_workload_gets_that_workload_alone(controller: Controller) -> None:
    svid = pki.svid(controller.authority, pki.HOST)
    controller.know(pki.HOST, svid.serial)
    answer = await issue_as(controller, svid, pki.CART.uri, pki.greedy_csr(new_key()))
    assert pki.uris(pki.leaf(answer.chain_pem)) == [pki.CART.uri]


async def test_a_bad_request_for_a_workload_is_the_agents_to_mend(controller: Controller) -> None:
    svid = pki.svid(controller.authority, pki.HOST)
    controller.know(pki.HOST, svid.serial)
    code, message = await status_of(issue_as(controller, svid, pki.CART.uri, b"junk"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "the agent must send" in message


# Who may call


async def test_a_workloads_certificate_is_not_a_hosts(controller: Controller) -> None:
    svid = pki.svid(controller.authority, pki.CART)
    controller.know(HostIdentity(pki.TRUST_DOMAIN, "web-1"), svid.serial)
    code, message = await status_of(issue_as(controller, svid, pki.CART.uri))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "not a host's" in message


async def test_envoys_copy_of_the_hosts_identity_cannot_call_the_controller(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    envoys = await enrol.issue_workload(state, pki.HOST.uri, pki.now)
    assert envoys.identity == pki.HOST
    code, message = await status_of(issue_as(controller, envoys, pki.CART.uri))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "known to the controller" in message


async def test_a_certificate_that_the_store_does_not_know_is_refused(controller: Controller) -> None:
    svid = pki.svid(controller.authority, pki.HOST)
    code, _ = await status_of(issue_as(controller, svid, pki.CART.uri))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    # Neither does it help that another host has that serial.
    controller.know(WEB_2, svid.serial)
    code, _ = await status_of(issue_as(controller, svid, pki.CART.uri))
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_host_that_was_removed_is_refused(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    kept = controller.registry.pop("web-1")
    with pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*'web-1' is not registered: the operator must"):
        await enrol.renew_host(state, pki.now)
    controller.registry["web-1"] = kept
    await enrol.renew_host(state, pki.now)
    controller.store.forget_host("web-1")
    with pytest.raises(EnrolError, match="the host must join again with a new token"):
        await enrol.renew_host(state, pki.now)


async def test_a_host_that_left_is_out_at_once(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    await enrol.leave(state, pki.now)
    assert controller.store.host_states()["web-1"].left_at is not None
    assert controller.changes == ["web-1", "web-1"]
    with pytest.raises(EnrolError, match="PERMISSION_DENIED"):
        await enrol.renew_host(state, pki.now)


async def test_strangers_do_not_get_past_the_handshake(controller: Controller, tmp_path: Path) -> None:
    impostor = pki.svid(pki.new_authority(tmp_path / "other"), pki.HOST)
    expired = pki.svid(controller.authority, pki.HOST, pki.now() - timedelta(hours=80))
    for client in (None, impostor, expired):
        code, _ = await status_of(issue_as(controller, client, pki.CART.uri))
        assert code is grpc.StatusCode.UNAVAILABLE


async def test_the_controllers_own_certificate_is_not_a_hosts(controller: Controller) -> None:
    own = controller.certificate.current()
    credentials = grpc.ssl_channel_credentials(own.bundle_pem, own.key_pem, own.chain_pem)
    async with grpc.aio.secure_channel(controller.agents_endpoint, credentials) as channel:
        call = IdentityStub(channel).RenewHost(RenewHostRequest(csr_der=csr_der(new_key())), timeout=TIMEOUT_S)
        code, _ = await status_of(call)
    assert code is grpc.StatusCode.UNAUTHENTICATED


# The server's certificate


def presented(port: int) -> int:
    """Return the serial of the certificate that the server shows now."""
    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def test_a_renewed_server_certificate_is_presented_without_a_restart(tmp_path: Path, state: State) -> None:
    yesterday = timedelta(hours=-40)
    async with Controller(tmp_path / "controller", yesterday).serving() as controller:
        first = await asyncio.to_thread(presented, controller.join_port)
        assert await asyncio.to_thread(presented, controller.join_port) == first
        await join(controller.join_string(), state)
        controller.ahead = timedelta()
        second = await asyncio.to_thread(presented, controller.join_port)
        assert second != first
        assert second == pki.leaf(controller.certificate.current().chain_pem).serial_number
        await enrol.renew_host(state, pki.now)
