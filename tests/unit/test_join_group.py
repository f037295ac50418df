"""Joining a group over real gRPC: which name and which address a host gets, and how many hosts a token lets in."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

import pki
from hostmesh_agent.keys import csr_der, new_key
from hostmesh_api.v1.hostmesh_pb2 import HostFacts, JoinRequest, JoinResponse
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentStub
from hostmesh_controller.peers import peer_address
from hostmesh_controller.tokens import MAX_GROUP_LIFE, Refusal, allows, look, new_group_token, new_token, redeem
from identity_servers import Controller

GROUP = ("shop", "pool")
TIMEOUT_S = 10


def group_token(controller: Controller, **more: Any) -> str:
    token, record = new_group_token(GROUP, controller.now(), **more)
    controller.store.add_token(record)
    return token


async def join(controller: Controller, token: str, hostname: str = "vm-1", **asked: Any) -> JoinResponse:
    credentials = grpc.ssl_channel_credentials(controller.authority.bundle_pem)
    request = JoinRequest(token=token, csr_der=csr_der(new_key()), facts=HostFacts(hostname=hostname), **asked)
    async with grpc.aio.secure_channel(f"127.0.0.1:{controller.join_port}", credentials) as channel:
        return await EnrolmentStub(channel).Join(request, timeout=TIMEOUT_S)


async def refused(controller: Controller, token: str, hostname: str = "vm-1", **asked: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await join(controller, token, hostname, **asked)
    return f"{raised.value.code().name}: {raised.value.details()}"


async def test_many_hosts_join_with_one_token_under_their_host_names(controller: Controller) -> None:
    token = group_token(controller)
    for hostname in ("VM-1", "vm-2.example.com"):
        answer = await join(controller, token, hostname)
        assert answer.host == hostname.lower()
        assert pki.uris(pki.leaf(answer.chain_pem)) == [f"spiffe://cluster.local/host/{hostname.lower()}"]
    assert {each.address for each in controller.members.values()} == {"127.0.0.1"}
    assert (await join(controller, token, "whatever", name="vm-3")).host == "vm-3"
    assert controller.store.tokens()[0].joins == 3


async def test_as_many_hosts_join_as_the_token_says_under_any_race(controller: Controller) -> None:
    token = group_token(controller, max_joins=3)
    calls = [join(controller, token, f"vm-{number}") for number in range(12)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert len([each for each in outcomes if isinstance(each, JoinResponse)]) == 3
    assert len(controller.members) == 3
    assert "the join token is not accepted" in await refused(controller, token, "vm-99")


async def test_a_member_that_joins_again_uses_nothing_up_and_ends_its_old_identity(controller: Controller) -> None:
    token = group_token(controller, max_joins=1)
    first = await join(controller, token)
    again = await join(controller, token)
    assert first.chain_pem != again.chain_pem
    (known,) = controller.store.certificates("vm-1")
    assert known.serial == f"{pki.leaf(again.chain_pem).serial_number:032x}"
    assert controller.store.tokens()[0].joins == 1


async def test_a_name_that_is_taken_does_not_use_the_token_up(controller: Controller) -> None:
    token = group_token(controller, max_joins=1)
    assert "FAILED_PRECONDITION: host 'web-1' is registered" in await refused(controller, token, "web-1")
    assert "join with --name" in await refused(controller, token, "not_a_name")
    assert (await join(controller, token)).host == "vm-1"


async def test_what_the_registry_refuses_is_told(controller: Controller) -> None:
    controller.full = True
    assert "FAILED_PRECONDITION: the group takes nobody" in await refused(controller, group_token(controller))


async def test_nobody_takes_an_address_by_saying_so(controller: Controller) -> None:
    said = await refused(controller, group_token(controller), address="10.1.0.7")
    assert said.startswith("PERMISSION_DENIED: the token does not allow the address 10.1.0.7, only the one that this")
    assert "--allow-address 10.1.0.7" in said
    assert (await join(controller, group_token(controller), address="127.0.0.1")).host == "vm-1"


async def test_a_token_with_blocks_bounds_the_address_that_is_asked_for_and_the_one_that_is_seen(
    controller: Controller,
) -> None:
    token = group_token(controller, allowed=["10.1.0.0/16", "fd00::/64"])
    assert (await join(controller, token, address="10.1.0.7")).host == "vm-1"
    assert (await join(controller, token, "vm-2", address="FD00::0:7")).host == "vm-2"
    assert controller.members["vm-2"].address == "fd00::7"
    assert "allows addresses in 10.1.0.0/16, fd00::/64, not 10.2.0.7" in await refused(
        controller, token, address="10.2.0.7"
    )
    said = await refused(controller, token)
    assert "not 127.0.0.1, from which this host calls: name another of its own with --address" in said


async def test_the_token_of_a_host_knows_its_name_and_takes_no_other(controller: Controller) -> None:
    answer = await join(controller, controller.join_string().token, "vm-1", name="vm-1", address="10.0.0.9")
    assert answer.host == "web-1"


async def test_a_revoked_or_expired_token_lets_no_member_back_in(controller: Controller) -> None:
    token = group_token(controller, life=timedelta(minutes=1))
    other = group_token(controller)
    await join(controller, token)
    await join(controller, other, "vm-2")
    (record,) = [each for each in controller.store.tokens() if each.joins and each.redeemed_by and each.pool][-1:]
    assert controller.store.revoke_token(controller.store.tokens()[1].id, controller.now()), record
    assert "not accepted" in await refused(controller, other, "vm-2")
    controller.ahead = timedelta(minutes=2)
    assert "not accepted" in await refused(controller, token)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:52000", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:52000", "2001:db8::1"),
        ("ipv6:[::ffff:10.0.0.1]:52000", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:52000", "fe80::1"),
        ("unix:/run/x.sock", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_peer_is_read_from_grpcs_name_of_it(peer: str, address: str) -> None:
    assert peer_address(peer) == address


def test_a_group_token_has_bounds() -> None:
    now = pki.now()
    for wrong, said in (
        ({"life": MAX_GROUP_LIFE + timedelta(seconds=1)}, "at most 366 days"),
        ({"life": timedelta()}, "at most 366 days"),
        ({"max_joins": 0}, "at least one host"),
        ({"allowed": ["10.0.0.1/8"]}, "has host bits set"),
        ({"allowed": ["10.0.0.0/8"] * 65}, "at most 64 blocks"),
    ):
        with pytest.raises(ValueError, match=said):
            new_group_token(GROUP, now, **wrong)
    _, record = new_group_token(GROUP, now, timedelta(days=30), "ann", allowed=["10.0.0.0/8", "192.0.2.1"])
    assert (record.host, record.pool, record.max_joins) == ("", "shop/pool", None)
    assert record.expires_at == now + timedelta(days=30)
    assert [allows(record, each) for each in ("10.9.9.9", "192.0.2.1", "192.0.2.2", "::1")] == [
        True,
        True,
        False,
        False,
    ]


def test_looking_at_a_token_changes_nothing(tmp_path: Path) -> None:
    store, now = Controller(tmp_path).store, pki.now()
    one, record = new_token("web-1", now)
    many, of_group = new_group_token(GROUP, now, max_joins=1)
    store.add_token(record)
    store.add_token(of_group)
    assert [look(store, each, now) for each in (one, many)] == [record, of_group]
    redeem(store, one, now, "peer")
    redeem(store, many, now, "peer")
    assert look(store, one, now) is Refusal.USED
    # Who has joined by it may do so again.
    assert not isinstance(look(store, many, now), Refusal)
    assert redeem(store, many, now, "peer") is Refusal.USED
    assert look(store, many, now + timedelta(days=1)) is Refusal.USED
    store.close()
