"""Capture narrowed down, in the real kernel: by user, unit, address, port, interface; not the neighbour's."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, nft, plan
from hostmesh_agent.capture.who import NOBODY, Cgroup, Match, Narrowing, Present
from hostmesh_agent.units import Units
from netns.conftest import BEHIND, HOST, PEER
from netns.groups import Unit, slice_of_the_test
from netns.space import Servers, Space, ask, run

V4, V6 = 0, 1
ENVOY, INSIDER, OUTSIDER = 900, 1001, 1002
VIRTUAL = frozenset({"240.240.0.0/16", "fd00:f0f0::/112"})
VIRTUALS = ("240.240.3.4", "fd00:f0f0::34")
MESH = VIRTUAL | {f"{PEER[V4]}/32", f"{PEER[V6]}/128"}

families = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


@pytest.fixture
def program(peer: Space, servers: Servers) -> None:
    servers.tcp("outbound", 15001)
    servers.tcp("inbound", 15006)
    for port in (22, 8080, 8081):
        servers.tcp("program", port)
    with peer():
        for port in (22, 443, 444):
            servers.tcp("peer", port)


def match(**fields: list[str] | list[int]) -> Match:
    return Match(**{name: frozenset(values) for name, values in fields.items()})  # type: ignore[arg-type]


def outbound(
    include: tuple[Match, ...] = (), exclude: tuple[Match, ...] = (), present: Present = NOBODY, **floor: object
) -> None:
    request = CaptureRequest(
        Scope.ALL, mesh_prefixes=MESH, virtual_prefixes=VIRTUAL, outbound=Narrowing(include, exclude)
    )
    capture.apply(plan(request, HostFloor(envoy_uid=ENVOY, present=present, **floor)))  # type: ignore[arg-type]


def inbound(include: tuple[Match, ...] = (), exclude: tuple[Match, ...] = (), strict: int = 0, **floor: object) -> None:
    request = CaptureRequest(
        inbound_ports=frozenset({8080, 8081}),
        inbound=Narrowing(include, exclude),
        strict_ports=frozenset({strict} - {0}),
    )
    capture.apply(plan(request, HostFloor(envoy_uid=ENVOY, **floor)))  # type: ignore[arg-type]


@families
def test_a_user_who_is_excluded_calls_directly_and_is_refused_by_virtual_addresses_at_once(
    program: None, family: int
) -> None:
    outbound(exclude=(match(users=[str(OUTSIDER)]),))
    assert ask(PEER[family], 443, uid=OUTSIDER) == "peer"
    assert ask(VIRTUALS[family], 80, uid=OUTSIDER) == "refused"
    assert ask(PEER[family], 443, uid=INSIDER) == f"outbound {PEER[family]} 443"
    assert ask(VIRTUALS[family], 80, uid=INSIDER) == f"outbound {VIRTUALS[family]} 80"


@families
def test_where_a_user_is_included_no_other_is_captured(program: None, family: int) -> None:
    outbound(include=(match(users=["insider"]),), present=Present(users=frozenset({("insider", INSIDER)})))
    assert ask(PEER[family], 443, uid=INSIDER) == f"outbound {PEER[family]} 443"
    assert ask(VIRTUALS[family], 80, uid=INSIDER) == f"outbound {VIRTUALS[family]} 80"
    assert ask(PEER[family], 443, uid=OUTSIDER) == "peer"
    assert ask(VIRTUALS[family], 80, uid=OUTSIDER) == "refused"


@families
def test_ports_and_addresses_that_are_excluded_are_called_directly_but_not_at_virtual_addresses(
    program: None, family: int
) -> None:
    outbound(exclude=(match(ports=[443]), match(cidrs=[*VIRTUAL])))
    assert ask(PEER[family], 443) == "peer"
    assert ask(PEER[family], 444) == f"outbound {PEER[family]} 444"
    assert ask(VIRTUALS[family], 443) == f"outbound {VIRTUALS[family]} 443"
    outbound(exclude=(match(cidrs=[f"{PEER[family]}/{(32, 128)[family]}"], ports=[444]),))
    assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"
    assert ask(PEER[family], 444) == "peer"
    assert ask(PEER[1 - family], 444) == f"outbound {PEER[1 - family]} 444"


@families
def test_what_is_included_is_captured_and_nothing_beside_it(program: None, family: int) -> None:
    outbound(include=(match(cidrs=[PEER[family]], ports=[443]), match(ports=[445])))
    assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"
    assert ask(PEER[family], 444) == "peer"
    assert ask(PEER[1 - family], 443) == "peer"
    assert ask(VIRTUALS[family], 80) == f"outbound {VIRTUALS[family]} 80"


@families
def test_by_the_interface_where_connections_leave(
    program: None, peer: Space, behind: Space, servers: Servers, family: int
) -> None:
    with behind():
        servers.tcp("behind", 443)
    outbound(exclude=(match(interfaces=["eth9"]),))
    assert ask(BEHIND[family], 443) == "behind"
    assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"
    outbound(include=(match(interfaces=["eth9"]),))
    assert ask(BEHIND[family], 443) == f"outbound {BEHIND[family]} 443"
    assert ask(PEER[family], 443) == "peer"


@families
def test_inbound_by_interface_and_by_the_callers_address(
    program: None, peer: Space, behind: Space, family: int
) -> None:
    inside = ("10.8.0.1", "2001:db8:8::1")[family]
    inbound(exclude=(match(interfaces=["eth9"]),))
    with behind():
        assert ask(inside, 8080) == "program"
    with peer():
        assert ask(HOST[family], 8080) == f"inbound {HOST[family]} 8080"
    inbound(include=(match(cidrs=[BEHIND[family]]), match(ports=[8081])))
    with behind():
        assert ask(inside, 8080) == f"inbound {inside} 8080"
    with peer():
        assert ask(HOST[family], 8080) == "program"
        assert ask(HOST[family], 8081) == f"inbound {HOST[family]} 8081"


@families
def test_a_port_that_takes_mutual_tls_alone_is_captured_whatever_is_excluded(
    program: None, peer: Space, family: int
) -> None:
    everything = match(cidrs=["0.0.0.0/0", "::/0"])
    for narrow in ({"exclude": (everything,)}, {"include": (match(interfaces=["eth9"]),)}):
        inbound(strict=8080, **narrow)  # type: ignore[arg-type]
        with peer():
            assert ask(HOST[family], 8080) == f"inbound {HOST[family]} 8080"
            assert ask(HOST[family], 8081) == "program"


@families
def test_what_the_hosts_owner_excludes_no_policy_captures(program: None, peer: Space, family: int) -> None:
    outbound(include=(match(ports=[443, 444]),), never_outbound=(match(ports=[443]), match(users=[str(OUTSIDER)])))
    assert ask(PEER[family], 443) == "peer"
    assert ask(PEER[family], 444) == f"outbound {PEER[family]} 444"
    assert ask(PEER[family], 444, uid=OUTSIDER) == "peer"
    assert ask(VIRTUALS[family], 80, uid=OUTSIDER) == "refused"
    outbound(include=(match(ports=[443, 444]),), never_interfaces=frozenset({"eth0"}))
    assert ask(PEER[family], 444) == "peer"
    inbound(strict=8080, never_interfaces=frozenset({"eth0"}))
    with peer():
        assert ask(HOST[family], 8080) == "program"


@families
def test_ssh_is_called_directly_whatever_is_included(program: None, family: int) -> None:
    outbound(include=(match(ports=[22, 443]), match(users=["0"])))
    assert ask(PEER[family], 22) == "peer"
    assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"


# Units


@pytest.fixture
def own_slice() -> Iterator[Path]:
    with slice_of_the_test() as directory:
        yield directory


@pytest.fixture
def start(own_slice: Path, program: None) -> Iterator[Callable[[str], Unit]]:
    running: list[Unit] = []

    def begin(name: str) -> Unit:
        running.append(Unit(own_slice / name))
        return running[-1]

    yield begin
    for each in running:
        each.stop()


def cgroup(unit: Unit) -> Cgroup:
    return Cgroup(unit.directory.name, 2, unit.directory.stat().st_ino)


@families
def test_a_unit_that_is_included_is_captured_and_its_neighbour_is_not(
    start: Callable[[str], Unit], family: int
) -> None:
    shop, other = start("shop.service"), start("other.service")
    outbound(include=(match(units=["shop.service"]),), present=Present(cgroups=frozenset({cgroup(shop)})))
    assert shop.ask(PEER[family], 443) == f"outbound {PEER[family]} 443"
    assert shop.ask(VIRTUALS[family], 80) == f"outbound {VIRTUALS[family]} 80"
    assert other.ask(PEER[family], 443) == "peer"
    assert other.ask(VIRTUALS[family], 80) == "refused"
    assert ask(PEER[family], 443) == "peer"


def test_a_unit_that_restarts_has_another_cgroup_and_one_number_of_a_set_changes(
    start: Callable[[str], Unit],
) -> None:
    shop = start("shop.service")
    excluded = (match(units=["shop.service"]),)
    outbound(exclude=excluded, present=Present(cgroups=frozenset({cgroup(shop)})))
    before, first = nft.read(), cgroup(shop)
    assert shop.ask(PEER[V4], 443) == "peer"
    shop.stop()
    shop = start("shop.service")
    assert cgroup(shop) != first
    # Until the rules follow, the program counts as any other: what is excluded is captured.
    assert shop.ask(PEER[V4], 443) == f"outbound {PEER[V4]} 443"
    outbound(exclude=excluded, present=Present(cgroups=frozenset({cgroup(shop)})))
    assert shop.ask(PEER[V4], 443) == "peer"
    after = nft.read()
    assert before is not None
    assert after is not None
    assert after.chains == before.chains
    assert [each.name for each, was in zip(after.sets, before.sets, strict=True) if each != was] == [
        "outbound_exclude0_units2"
    ]


async def test_units_are_heard_of_when_they_come_and_go(own_slice: Path) -> None:
    heard = asyncio.Event()
    found = Units(heard.set)
    wanted = frozenset({"shop.service"})
    try:
        assert found.look(wanted) == frozenset()
        for nested in ("", "system-shop.slice"):
            parent = own_slice / nested
            parent.mkdir(exist_ok=True)
            begun = time.monotonic()
            directory = parent / "shop.service"
            (parent / "other.service").mkdir()
            directory.mkdir()
            expected = Cgroup("shop.service", 3 if nested else 2, directory.stat().st_ino)
            async with asyncio.timeout(5):
                while found.look(wanted) != {expected}:
                    await heard.wait()
                    heard.clear()
            assert time.monotonic() - begun < 1
            directory.rmdir()
            async with asyncio.timeout(5):
                while found.look(wanted):
                    await heard.wait()
                    heard.clear()
    finally:
        found.close()


async def test_what_somebody_made_below_a_unit_that_was_handed_to_him_is_no_unit(own_slice: Path) -> None:
    found = Units(lambda: None)
    handed = own_slice / "handed.slice"
    (handed / "shop.service").mkdir(parents=True)
    os.chown(handed, INSIDER, INSIDER)
    (own_slice / "user@1001.service").mkdir()
    (own_slice / "user@1001.service" / "shop.service").mkdir()
    try:
        assert found.look(frozenset({"shop.service"})) == frozenset()
    finally:
        found.close()


def test_listing_the_rules_with_nft_shows_users_interfaces_and_units_by_their_numbers(
    start: Callable[[str], Unit],
) -> None:
    shop = start("shop.service")
    excluded = (match(units=["shop.service"], users=["1001"], interfaces=["eth0"]),)
    outbound(exclude=excluded, present=Present(cgroups=frozenset({cgroup(shop)})))
    listed = run("nft", "list", "table", "inet", "hostmesh")
    assert "oifname @outbound_exclude0_interfaces meta skuid @outbound_exclude0_uids socket cgroupv2 level 2" in listed
    assert "elements = { 1001 }" in listed
    assert 'elements = { "eth0" }' in listed
