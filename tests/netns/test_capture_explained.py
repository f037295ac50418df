"""What `capture explain` says is what the kernel does: random plans, random connections, both asked."""

import random
from ipaddress import ip_address

from hostmesh_agent import capture, capture_explain
from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, plan
from hostmesh_agent.capture.interpret import Packet, verdict
from netns.conftest import HOST, PEER
from netns.space import Servers, Space, ask, run
from netns.space import nft as load

OUTBOUND, INBOUND, PROGRAM, ANYWHERE = 15001, 15006, 8080, 7777
PLANS, CALLS = 12, 14
PORTS = [22, 80, PROGRAM, 15012, 443, 9000]
TARGETS = ["10.1.2.3", "10.1.2.4", "192.0.2.7", "240.240.0.9", HOST[0], "2001:db8:7::1", "2001:db8:7::2", HOST[1]]
PREFIXES = ["10.1.2.0/24", "10.1.2.3/32", "192.0.2.0/25", "2001:db8:7::/64", "2001:db8:7::1/128", "0.0.0.0/1"]
ANY_ADDRESS = f"""
table inet any {{
    chain in {{ type nat hook prerouting priority dstnat; meta l4proto tcp redirect to :{ANYWHERE}; }}
}}
"""


def random_plan(chance: random.Random) -> CaptureRequest:
    return CaptureRequest(
        chance.choice(list(Scope)),
        frozenset(chance.sample([80, PROGRAM, 443, 9000], chance.randint(0, 3))),
        frozenset(chance.sample(PREFIXES, chance.randint(0, 4))),
        frozenset({"240.240.0.0/16"}),
        dns=chance.random() < 0.5,
    )


def seen(answer: str) -> str:
    """Return who answered: "out" or "in" of Envoy, "program", or "elsewhere"."""
    word = answer.split(" ", maxsplit=1)[0]
    return word if word in {"out", "in", "program"} else "elsewhere" if word == "elsewhere" else "nobody"


def expected(packet: Packet, table: object) -> str:
    assert table is None or hasattr(table, "chains")
    found = verdict(table, packet)  # type: ignore[arg-type]
    assert found.action != "unknown"
    if found.touched:
        return {OUTBOUND: "out", INBOUND: "in"}[found.port or 0]
    if packet.local:
        return "program" if packet.port == PROGRAM else "nobody"
    return "elsewhere"


def test_the_answer_is_what_the_kernel_does(host: Space, peer: Space, servers: Servers) -> None:
    chance = random.Random(20)
    servers.tcp("out", OUTBOUND)
    servers.tcp("in", INBOUND)
    servers.tcp("program", PROGRAM)
    with peer():
        servers.tcp("elsewhere", ANYWHERE)
        load(ANY_ADDRESS)
        for text in TARGETS:
            if text not in HOST:
                family = "-6" if ":" in text else "-4"
                run("ip", family, "route", "add", "local", text, "dev", "lo")
    for number in range(PLANS):
        floor = HostFloor(
            envoy_uid=900,
            ssh_ports=frozenset({22}),
            controller=frozenset({("192.0.2.7", 443)}) if number % 2 else frozenset(),
        )
        table = capture.apply(plan(random_plan(chance), floor)).table
        for _ in range(CALLS):
            target, port, uid = chance.choice(TARGETS), chance.choice(PORTS), chance.choice([0, 900, 1000])
            packet = capture_explain.outgoing(ip_address(target), port, capture_explain.Program(uid))
            assert seen(ask(target, port, uid=uid)) == expected(packet, table), packet
            here = chance.choice(HOST)
            packet = capture_explain.incoming(ip_address(here), port)
            with peer():
                assert seen(ask(here, port)) == expected(packet, table), packet
    assert PEER
