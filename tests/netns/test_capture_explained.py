"""What `capture explain` says is what the kernel does: random plans, random connections, both asked."""

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from hostmesh_agent import capture, capture_explain, cgroup
from hostmesh_agent.capture import Caller, CaptureError, CaptureRequest, HostFloor, Scope, plan
from hostmesh_agent.capture.interpret import Packet, verdict
from hostmesh_agent.capture.rules import Table
from hostmesh_agent.capture.who import Cgroup, Match, Narrowing, Present
from hostmesh_agent.places import BLUE, GREEN, PORTS
from hostmesh_api import wire
from hostmesh_api.callers import caller_addresses
from netns.backends import each_backend, made_for
from netns.conftest import HOST, PEER
from netns.groups import Unit, slice_of_the_test
from netns.space import Servers, Space, ask, run
from netns.space import nft as load

OUTBOUND, INBOUND, PROGRAM, ANYWHERE = 15001, 15006, 8080, 7777
DOOR, GATEWAY = PORTS[GREEN].door or 0, 8443
PLANS, CALLS = 16, 14
PORTS_CALLED = [22, 80, PROGRAM, 15012, 443, 9000, GATEWAY]
TARGETS = ["10.1.2.3", "10.1.2.4", "192.0.2.7", "240.240.0.9", HOST[0], "2001:db8:7::1", "2001:db8:7::2", HOST[1]]
PREFIXES = ["10.1.2.0/24", "10.1.2.3/32", "192.0.2.0/25", "2001:db8:7::/64", "2001:db8:7::1/128", "0.0.0.0/1"]
UIDS = [0, 900, 1000, 1001]
A, B = "spiffe://td/ns/shop/sa/a", "spiffe://td/ns/shop/sa/b"
ANY_ADDRESS = f"""
table inet any {{
    chain in {{ type nat hook prerouting priority dstnat; meta l4proto tcp redirect to :{ANYWHERE}; }}
}}
"""


@pytest.fixture
def units() -> Iterator[dict[str, Unit]]:
    with slice_of_the_test() as directory:
        running = {name: Unit(directory / name) for name in ("a.service", "b.service")}
        yield running
        for each in running.values():
            each.stop()


def random_match(chance: random.Random, *, outbound: bool) -> Match:
    fields = {
        "ports": frozenset(chance.sample(PORTS_CALLED, 3)),
        "cidrs": frozenset(chance.sample([*PREFIXES, f"{PEER[0]}/32", f"{PEER[1]}/128"], 3)),
        "interfaces": frozenset(chance.sample(["eth0", "eth7", "lo"], 1)),
    }
    if outbound:
        fields["users"] = frozenset(chance.sample(["0", "1000", "1001"], 1))
        fields["units"] = frozenset(chance.sample(["a.service", "b.service", "away.service"], 1))
    given = chance.sample(sorted(fields), chance.choice((1, 1, 2)))
    return Match(**{name: fields[name] for name in given})  # type: ignore[arg-type]


def random_narrowing(chance: random.Random, *, outbound: bool) -> Narrowing:
    include, exclude = (
        tuple(random_match(chance, outbound=outbound) for _ in range(chance.choice((0, 0, 1, 2)))) for _ in range(2)
    )
    return Narrowing(include, exclude)


def random_plan(chance: random.Random) -> CaptureRequest:
    return CaptureRequest(
        chance.choice(list(Scope)),
        frozenset(chance.sample([80, PROGRAM, 443, 9000], chance.randint(0, 3))),
        frozenset(chance.sample(PREFIXES, chance.randint(0, 4))),
        frozenset({"240.240.0.0/16"}),
        dns=chance.random() < 0.5,
        inbound=random_narrowing(chance, outbound=False),
        outbound=random_narrowing(chance, outbound=True),
        strict_ports=frozenset(chance.sample([80, PROGRAM], chance.randint(0, 1))),
    )


def seen(answer: str) -> str:
    """Return who answered: "out ADDRESS" (where it came) or "in" of Envoy, "door", "program", "elsewhere"."""
    words = answer.split(" ")
    if words[0] == "out":
        return f"out {words[-1]}"
    return words[0] if words[0] in {"in", "door", "program", "elsewhere"} else "nobody"


def expected(packet: Packet, table: Table | None) -> str:
    found = verdict(table, packet)
    assert found.action != "unknown"
    if found.action == "refuse":
        return "nobody"
    if found.touched:
        six = packet.destination.version == 6
        told = capture_explain.document(table, packet)
        if found.port in {each.outbound for each in PORTS.values()}:
            at = caller_addresses(told["identity"])[six] if told["identity"] else ("127.0.0.1", wire.OUTBOUND_V6)[six]
            return f"out {at}"
        return "door" if found.port == DOOR else "in"
    if packet.local:
        return "program" if packet.port == PROGRAM else "nobody"
    return "elsewhere"


@each_backend
def test_the_answer_is_what_the_kernel_does(host: Space, peer: Space, servers: Servers, units: dict[str, Unit]) -> None:
    chance = random.Random(20)
    for each in PORTS.values():
        servers.tcp("out", each.outbound, tells_where=True)
        servers.tcp("in", each.inbound)
    servers.tcp("door", DOOR)
    servers.tcp("program", PROGRAM)
    with peer():
        servers.tcp("elsewhere", ANYWHERE)
        load(ANY_ADDRESS)
        for text in TARGETS:
            if text not in HOST:
                family = "-6" if ":" in text else "-4"
                run("ip", family, "route", "add", "local", text, "dev", "lo")
    places = {name: Cgroup(name, 2, each.directory.stat().st_ino) for name, each in units.items()}
    present = Present(cgroups=frozenset(places.values()))
    floor = made_for(HostFloor(envoy_uid=900, ssh_ports=frozenset({22}), present=present))
    answers: set[str] = set()
    for number in range(PLANS):
        request = random_plan(chance)
        if chance.random() < 0.5:
            callers = (
                Caller(A, cgroups=frozenset({places["a.service"].place})),
                Caller(B, uids=frozenset({1001, 1000 + number})),
            )
            request = replace(request, callers=callers)
        now = replace(floor, controller=frozenset({("192.0.2.7", 443)}) if number % 2 else frozenset())
        if chance.random() < 0.5:
            second = PORTS[GREEN]
            ports = {"outbound_port": second.outbound, "inbound_port": second.inbound, "dns_port": second.dns}
            doors = frozenset({("", GATEWAY), (HOST[0], 9000)})
            now = replace(now, door_port=second.door, doorways=doors, **ports)  # type: ignore[arg-type]
        ruleset = plan(request, now)
        table = capture.apply(ruleset).table
        for _ in range(CALLS):
            target, port = chance.choice(TARGETS), chance.choice(PORTS_CALLED)
            unit = chance.choice([None, *units])
            if unit is None:
                uid = chance.choice(UIDS)
                packet = capture_explain.outgoing(ip_address(target), port, capture_explain.Program(uid))
                answer = seen(ask(target, port, uid=uid))
            else:
                who = capture_explain.program(units[unit].pid)
                packet = capture_explain.outgoing(ip_address(target), port, who)
                answer = seen(units[unit].ask(target, port))
            assert answer == expected(packet, table), (packet, capture_explain.document(table, packet))
            answers.add(answer)
            here = chance.choice(HOST)
            packet = capture_explain.incoming(ip_address(here), port, caller=ip_address(PEER[":" in here]))
            with peer():
                answer = seen(ask(here, port))
            assert answer == expected(packet, table), packet
            answers.add(answer)
    assert {"in", "door", "program", "elsewhere", "nobody", "out 127.0.0.1", f"out {caller_addresses(A)[0]}"} <= answers


def test_a_slice_is_asked_about_by_a_process_of_it(units: dict[str, Unit], tmp_path: Path) -> None:
    root = cgroup.root()
    assert root is not None
    found = units["a.service"]
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho ControlGroup=/{found.directory.relative_to(root)}\n")
    systemctl.chmod(0o755)
    assert capture_explain.unit("a.slice", str(systemctl)) == capture_explain.program(found.pid)
    systemctl.write_text("#!/bin/sh\necho ControlGroup=\n")
    with pytest.raises(CaptureError, match="does not run"):
        capture_explain.unit("b.slice", str(systemctl))


def test_a_program_is_asked_about_by_its_cgroups(peer: Space, units: dict[str, Unit]) -> None:
    place = Cgroup("a.service", 2, units["a.service"].directory.stat().st_ino)
    narrow = Narrowing(include=(Match(units=frozenset({"a.service"})),))
    request = CaptureRequest(
        virtual_prefixes=frozenset({"240.240.0.0/16"}),
        outbound=narrow,
        dns=False,
        callers=(Caller(A, cgroups=frozenset({place.place})),),
    )
    for each in (PORTS[BLUE], PORTS[GREEN]):
        floor = HostFloor(envoy_uid=900, outbound_port=each.outbound, present=Present(cgroups=frozenset({place})))
        table = plan(request, floor).table
        told = [
            capture_explain.document(
                table,
                capture_explain.outgoing(ip_address("240.240.0.9"), 80, capture_explain.program(units[name].pid)),
            )
            for name in ("a.service", "b.service")
        ]
        whose = "Envoy's" if each is PORTS[BLUE] else "the second Envoy's"
        assert told[0]["goes_to"].startswith(f"{whose} listener (outbound) at this host port {each.outbound}, as {A}")
        assert told[0]["identity"] == A
        assert (told[1]["goes_to"], told[1]["identity"]) == ("nowhere: it is refused at once", "")
        assert told[1]["chain"] == "nowhere"
