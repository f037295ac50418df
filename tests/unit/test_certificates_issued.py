"""Renewing, workloads' certificates and leaving, over real gRPC, with honest agents and with thieves."""

import asyncio
import ssl
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
from hostmesh_agent.keys import Svid, csr_der, new_key
from hostmesh_agent.state import State
from hostmesh_api.identity import HostIdentity, parse_identity
from hostmesh_api.v1.hostmesh_pb2 import (
    CertificateResponse,
    IssueWorkloadRequest,
    RenewHostRequest,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import (
    IdentityStub,
)
from identity_servers import Controller

BILLING = parse_identity("spiffe://cluster.local/ns/shop/sa/billing")
WEB_2 = HostIdentity(pki.TRUST_DOMAIN, "web-2")


async def issue_as(
    controller: Controller, svid: Svid | None, spiffe_id: str, csr: bytes | None = None
) -> CertificateResponse:
    """Ask for a workload's certificate with any client certificate, or none."""
    own = (None, None) if svid is None else (svid.key_pem, svid.chain_pem)
    credentials = grpc.ssl_channel_credentials(controller.authority.bundle_pem, *own)
    request = IssueWorkloadRequest(spiffe_id=spiffe_id, csr_der=csr or csr_der(new_key()))
    async with grpc.aio.secure_channel(controller.agents_endpoint, credentials) as channel:
        return await IdentityStub(channel).IssueWorkload(request, timeout=TIMEOUT_S)


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
    # Somebody has a copy of what the host had: which of both is the host, nobody can tell.
    state.save_renewed(new)
    with pytest.raises(EnrolError, match=r"it was quarantined .* a copy of its state.*host readmit"):
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
    await controller.know(pki.HOST, old.serial)
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
    await controller.know(pki.HOST, svid.serial)
    code, _ = await status_of(issue_as(controller, svid, asked))
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_greedy_request_for_a_workload_gets_that_workload_alone(controller: Controller) -> None:
    svid = pki.svid(controller.authority, pki.HOST)
    await controller.know(pki.HOST, svid.serial)
    answer = await issue_as(controller, svid, pki.CART.uri, pki.greedy_csr(new_key()))
    assert pki.uris(pki.leaf(answer.chain_pem)) == [pki.CART.uri]


async def test_a_bad_request_for_a_workload_is_the_agents_to_mend(controller: Controller) -> None:
    svid = pki.svid(controller.authority, pki.HOST)
    await controller.know(pki.HOST, svid.serial)
    code, message = await status_of(issue_as(controller, svid, pki.CART.uri, b"junk"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "the agent must send" in message


# Who may call


async def test_a_workloads_certificate_is_not_a_hosts(controller: Controller) -> None:
    svid = pki.svid(controller.authority, pki.CART)
    await controller.know(HostIdentity(pki.TRUST_DOMAIN, "web-1"), svid.serial)
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
    await controller.know(WEB_2, svid.serial)
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
    early = pki.svid(controller.authority, pki.HOST, pki.now() + timedelta(hours=1))
    for client in (None, impostor, expired, early):
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
