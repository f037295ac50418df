"""Capture narrowed down, in the real kernel: by user, unit, address, port, interface; not the neighbour's."""

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, nft, plan
from hostmesh_agent.capture.rules import Ruleset
from hostmesh_agent.capture.who import NOBODY, Cgroup, Match, Narrowing, Present
from hostmesh_agent.cgroup import root
from hostmesh_agent.enforce import Enforcement
from hostmesh_agent.programs import Programs
from hostmesh_agent.units import Units
from netns.backends import each_backend, made_for
from netns.conftest import BEHIND, HOST, PEER
from netns.groups import Unit, slice_of_the_test
from netns.space import Servers, Space, ask, run, snapshot

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
    capture.apply(plan(request, made_for(HostFloor(envoy_uid=ENVOY, present=present, **floor))))  # type: ignore[arg-type]


def inbound(include: tuple[Match, ...] = (), exclude: tuple[Match, ...] = (), strict: int = 0, **floor: object) -> None:
    request = CaptureRequest(
        inbound_ports=frozenset({8080, 8081}),
        inbound=Narrowing(include, exclude),
        strict_ports=frozenset({strict} - {0}),
    )
    capture.apply(plan(request, made_for(HostFloor(envoy_uid=ENVOY, **floor))))  # type: ignore[arg-type]


@each_backend
@families
def test_a_user_who_is_excluded_calls_directly_and_is_refused_by_virtual_addresses_at_once(
    program: None, family: int
) -> None:
    outbound(exclude=(match(users=[str(OUTSIDER)]),))
    assert ask(PEER[family], 443, uid=OUTSIDER) == "peer"
    assert ask(VIRTUALS[family], 80, uid=OUTSIDER) == "refused"
    assert ask(PEER[family], 443, uid=INSIDER) == f"outbound {PEER[family]} 443"
    assert ask(VIRTUALS[family], 80, uid=INSIDER) == f"outbound {VIRTUALS[family]} 80"


@each_backend
@families
def test_where_a_user_is_included_no_other_is_captured(program: None, family: int) -> None:
    outbound(include=(match(users=["insider"]),), present=Present(users=frozenset({("insider", INSIDER)})))
    assert ask(PEER[family], 443, uid=INSIDER) == f"outbound {PEER[family]} 443"
    assert ask(VIRTUALS[family], 80, uid=INSIDER) == f"outbound {VIRTUALS[family]} 80"
    assert ask(PEER[family], 443, uid=OUTSIDER) == "peer"
    assert ask(VIRTUALS[family], 80, uid=OUTSIDER) == "refused"


@each_backend
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


@each_backend
@families
def test_what_is_included_is_captured_and_nothing_beside_it(program: None, family: int) -> None:
    outbound(include=(match(cidrs=[PEER[family]], ports=[443]), match(ports=[445])))
    assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"
    assert ask(PEER[family], 444) == "peer"
    assert ask(PEER[1 - family], 443) == "peer"
    assert ask(VIRTUALS[family], 80) == f"outbound {VIRTUALS[family]} 80"


@each_backend
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


@each_backend
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


@each_backend
@families
def test_a_port_that_takes_mutual_tls_alone_is_captured_whatever_is_excluded(
    program: None, peer: Space, family: int
) -> None:
    everything = match(cidrs=["0.0.0.0/0", "::/0"])
    for narrow in ({"exclude": (everything,)}, {"include": (match(interfaces=["eth9"]),)}):
        inbound(strict=8080, **narrow)
        with peer():
            assert ask(HOST[family], 8080) == f"inbound {HOST[family]} 8080"
            assert ask(HOST[family], 8081) == "program"


@each_backend
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


@each_backend
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


@each_backend
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
    found = Units(heard.set, root())
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


UNWATCHED = """
import asyncio, pathlib, sys
from hostmesh_agent.cgroup import root
from hostmesh_agent.units import Units

async def main(shop):
    found, wanted = Units(lambda: None, root()), frozenset({shop.name})
    before = found.look(wanted)
    shop.mkdir()
    print(len(before), *(each.unit for each in found.look(wanted)))
    shop.rmdir()

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


def test_units_that_cannot_be_watched_are_looked_for_each_time(own_slice: Path) -> None:
    # A limit of this machine's is everybody's; in a user namespace of one's own it is one's own.
    few = "echo 1 > /proc/sys/user/max_inotify_watches"
    command = f'{few} && exec "$0" -c "$1" "$2"'
    own = ("unshare", "--user", "--map-root-user", "sh", "-c", command)
    assert run(*own, sys.executable, UNWATCHED, str(own_slice / "shop.service")).split("\n")[-2] == "0 shop.service"


async def test_what_somebody_made_below_a_unit_that_was_handed_to_him_is_no_unit(own_slice: Path) -> None:
    found = Units(lambda: None, root())
    handed = own_slice / "handed.slice"
    (handed / "shop.service").mkdir(parents=True)
    os.chown(handed, INSIDER, INSIDER)
    (own_slice / "user@1001.service").mkdir()
    (own_slice / "user@1001.service" / "shop.service").mkdir()
    try:
        assert found.look(frozenset({"shop.service"})) == frozenset()
    finally:
        found.close()


async def test_the_rules_follow_a_unit_that_restarts_by_themselves(
    start: Callable[[str], Unit], tmp_path: Path
) -> None:
    """What the agent does at each step: look who is there, put that in force; it is woken by the kernel."""
    woken = asyncio.Event()
    programs, excluded = Programs(woken.set, root()), match(units=["shop.service"])
    included = match(units=["pay.service"])
    enforcement = Enforcement(dns=False, resolv_conf=tmp_path / "resolv.conf", state_dir=tmp_path)
    request = CaptureRequest(
        Scope.ALL, mesh_prefixes=MESH, virtual_prefixes=VIRTUAL, dns=False, outbound=Narrowing((included,), (excluded,))
    )

    async def follow(until: frozenset[str]) -> None:
        async with asyncio.timeout(10):
            while True:
                present = await programs.look((excluded, included))
                floor = HostFloor(envoy_uid=ENVOY, present=present)
                assert (await asyncio.to_thread(enforcement.put, request, floor)).capture.state == "on"
                if {each.unit for each in present.cgroups} == until:
                    return
                await woken.wait()
                woken.clear()

    await follow(frozenset())
    try:
        for _ in range(5):
            shop, pay = start("shop.service"), start("pay.service")
            await follow(frozenset({"shop.service", "pay.service"}))
            assert shop.ask(PEER[V4], 443) == "peer"
            assert pay.ask(PEER[V4], 443) == f"outbound {PEER[V4]} 443"
            shop.stop()
            pay.stop()
            await follow(frozenset())
    finally:
        programs.close()


def some_match(draw: random.Random, direction: str) -> Match:
    """Some of what a rule may give; never nothing."""
    choices: dict[str, list[str] | list[int]] = {
        "ports": draw.sample([1, 80, 443, 8080, 65535], 2),
        "cidrs": draw.sample(["10.0.0.0/8", "10.0.0.0/9", "192.0.2.1/32", "::/0", "2001:db8::/32", "0.0.0.0/0"], 3),
        "interfaces": draw.sample(["eth0", "eth1", "a-name-of-15-by"], 2),
    }
    if direction == "outbound":
        choices["users"] = draw.sample(["0", "1001", "4294967294", "insider", "nobody-here"], 3)
        choices["units"] = draw.sample(["a.service", "b.service", "c.slice", "away.service"], 2)
    given = draw.sample(sorted(choices), draw.randint(1, len(choices)))
    return match(**{name: choices[name] for name in given})


def some_plan(draw: random.Random) -> Ruleset:
    def narrowing(direction: str) -> Narrowing:
        include, exclude = ([some_match(draw, direction) for _ in range(draw.randint(0, 2))] for _ in range(2))
        return Narrowing(tuple(include), tuple(exclude))

    cgroups = [Cgroup(f"{name}.service", draw.choice((1, 2, 3, 255)), draw.getrandbits(63) + 1) for name in "ab"]
    request = CaptureRequest(
        draw.choice([*Scope]),
        frozenset(draw.sample([80, 443, 8080], 2)),
        mesh_prefixes=MESH if draw.random() < 0.8 else frozenset(),
        virtual_prefixes=VIRTUAL if draw.random() < 0.8 else frozenset(),
        inbound=narrowing("inbound"),
        outbound=narrowing("outbound"),
        strict_ports=frozenset(draw.sample([80, 443], 1)),
    )
    floor = HostFloor(
        envoy_uid=ENVOY,
        never_outbound=tuple(some_match(draw, "outbound") for _ in range(draw.randint(0, 1))),
        never_interfaces=frozenset(draw.sample(["eth2", "eth3"], draw.randint(0, 1))),
        present=Present(frozenset({("insider", INSIDER)}), frozenset(draw.sample(cgroups, draw.randint(0, 2)))),
    )
    return plan(request, floor)


def test_from_any_policy_to_any_other_in_one_step_and_what_is_read_back_is_what_was_written(host: Space) -> None:
    draw = random.Random(5)
    before = snapshot()
    for _ in range(60):
        made = some_plan(draw)
        assert capture.apply(made).table == made.table
    capture.clear()
    assert snapshot() == before


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
