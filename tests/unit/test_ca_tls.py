"""Roots that change, over real gRPC: agents that know the old one alone, and those that slept for longer."""

from datetime import timedelta
from pathlib import Path

import grpc
import pytest

import pki
from enrolling import join, status_of
from hostmesh_agent import enrol
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.keys import csr_der, new_key, roots, standing
from hostmesh_agent.state import State
from hostmesh_api.v1.hostmesh_pb2 import RenewHostRequest
from hostmesh_api.v1.hostmesh_pb2_grpc import IdentityStub
from identity_servers import Controller

SOON = timedelta(seconds=5)


def prepare_and_activate(controller: Controller) -> str:
    controller.authority.prepare(pki.now())
    return controller.authority.activate(pki.now()).fingerprint


def rotate(controller: Controller, *, compromised: bool = False) -> str:
    """Do all the steps; return the new root."""
    new = prepare_and_activate(controller)
    controller.authority.taint(None, pki.now(), SOON)
    controller.authority.revoke(None, pki.now(), compromised=compromised)
    return new


def root_of(state: State) -> str:
    files = state.files()
    return standing(files.chain_pem, files.bundle_pem).root


async def test_a_host_takes_the_new_root_with_its_next_certificate_and_no_restart(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    old = root_of(state)
    new = prepare_and_activate(controller)
    await enrol.renew_host(state, pki.now)
    assert set(roots(state.files().bundle_pem)) == {old, new}
    assert root_of(state) == new
    # With what it has now it calls, too: the clients' roots were followed live.
    await enrol.issue_workload(state, pki.CART.uri, pki.now)


@pytest.mark.parametrize("rounds", [1, 2, 3])
async def test_a_host_that_slept_through_all_of_it_comes_back_by_itself(
    controller: Controller, state: State, rounds: int
) -> None:
    await join(controller.join_string(), state)
    for _ in range(rounds):
        new = rotate(controller)
    svid = await enrol.renew_host(state, pki.now)
    assert svid.root == new == root_of(state)
    assert roots(state.files().bundle_pem) == (new,)
    await enrol.issue_workload(state, pki.CART.uri, pki.now)


async def test_with_a_root_that_is_compromised_nobody_comes_back(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    rotate(controller, compromised=True)
    with pytest.raises(EnrolError, match="no controller answered"):
        await enrol.renew_host(state, pki.now)
    await join(controller.join_string(), state, force=True)
    await enrol.renew_host(state, pki.now)


async def test_a_join_string_of_before_lets_a_host_in_after(controller: Controller, state: State) -> None:
    text = controller.join_string()
    new = rotate(controller)
    await join(text, state)
    assert roots(state.files().bundle_pem) == (new,)
    await enrol.renew_host(state, pki.now)


async def test_a_join_string_that_pins_a_compromised_root_is_of_no_use(controller: Controller, state: State) -> None:
    text = controller.join_string()
    rotate(controller, compromised=True)
    with pytest.raises(EnrolError, match="no controller answered"):
        await join(text, state)


async def call_with(controller: Controller, key: bytes, chain: bytes) -> tuple[grpc.StatusCode, str]:
    """Ask for a host's certificate with any client certificate."""
    credentials = grpc.ssl_channel_credentials(controller.authority.bundle_pem, key, chain)
    async with grpc.aio.secure_channel(controller.agents_endpoint, credentials) as channel:
        return await status_of(IdentityStub(channel).RenewHost(RenewHostRequest(csr_der=csr_der(new_key())), timeout=5))


async def test_a_retired_root_lets_in_nobody_whose_certificate_is_not_on_record(controller: Controller) -> None:
    unknown = pki.svid(controller.authority, pki.HOST)
    rotate(controller)
    code, message = await call_with(controller, unknown.key_pem, unknown.chain_pem)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "known to the controller" in message


async def test_a_certificate_of_a_compromised_root_is_refused_in_the_handshake(controller: Controller) -> None:
    stolen = pki.svid(controller.authority, pki.HOST)
    await controller.know(pki.HOST, stolen.serial)
    rotate(controller, compromised=True)
    code, _ = await call_with(controller, stolen.key_pem, stolen.chain_pem)
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_a_root_that_is_prepared_changes_nothing_about_who_signs(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    old = root_of(state)
    controller.authority.prepare(pki.now())
    await enrol.renew_host(state, pki.now)
    assert root_of(state) == old
    assert len(roots(state.files().bundle_pem)) == 2


async def test_a_controller_that_starts_again_lets_latecomers_in(tmp_path: Path, state: State) -> None:
    async with Controller(tmp_path / "controller").serving() as first:
        await join(first.join_string(), state)
        rotate(first)
    async with Controller(tmp_path / "controller").serving() as second:
        host = state.host()
        state.save_joined(type(host)(host.host, host.trust_domain, (second.agents_endpoint,)), state.files())
        await enrol.renew_host(state, pki.now)
