"""Joining over real gRPC, with honest agents and with thieves."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from structlog.testing import capture_logs

import pki
from enrolling import TIMEOUT_S, join, status_of
from hostmesh_agent import enrol
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.keys import csr_der, new_key
from hostmesh_agent.state import State, StateError
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import (
    HostFacts,
    JoinRequest,
    JoinResponse,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import (
    EnrolmentServicer,
    EnrolmentStub,
    add_EnrolmentServicer_to_server,
)
from hostmesh_controller.authority import Authority
from identity_servers import Controller


def own_svid(state: State) -> x509.Certificate:
    return pki.leaf(state.files().chain_pem)


async def call_join(controller: Controller, token: str, csr: bytes) -> JoinResponse:
    credentials = grpc.ssl_channel_credentials(controller.authority.bundle_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{controller.join_port}", credentials) as channel:
        return await EnrolmentStub(channel).Join(JoinRequest(token=token, csr_der=csr), timeout=TIMEOUT_S)


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


async def test_a_host_that_has_none_of_the_addresses_of_the_one_in_its_join_string_is_told(
    controller: Controller, state: State
) -> None:
    facts, doubts = HostFacts(hostname="web-2", addresses=["10.0.0.8", "2001:db8::8"]), list[str]()
    for named, expected in (((), 0), (("2001:DB8:0::8",), 0), (("10.0.0.7",), 1)):
        controller.named_at = named
        await enrol.join(controller.join_string(), state, facts, pki.now, force=True, doubt=doubts.append)
        assert len(doubts) == expected
    assert doubts[0].startswith("the mesh calls web-1 at 10.0.0.7, and this host has 10.0.0.8, 2001:db8::8")


async def test_a_request_that_asks_for_everything_gets_the_hosts_own_identity_alone(controller: Controller) -> None:
    key = new_key()
    answer = await call_join(controller, controller.join_string().token, pki.greedy_csr(key))
    leaf = pki.leaf(answer.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(pki.HOST.uri)]
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    enrolment = controller.enrolments.current("web-1")
    assert enrolment is not None
    assert leaf.subject == x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, enrolment.id)])
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
    with pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*of an earlier joining.*join again"):
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
    add_EnrolmentServicer_to_server(Strange(), server)  # type: ignore[abstract]  # nothing else is called
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
