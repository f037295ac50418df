"""Programs see who calls: real rules, a stand-in for Envoy that uses its callers' addresses, programs of both families.

What is Envoy's own in this (its filter, its right to such addresses) is tested with a real one in `e2e`.
"""

import socket
import threading
from contextlib import suppress
from functools import partial

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import CaptureRequest, HostFloor, marked, nft, plan, routes, transparent
from hostmesh_agent.capture.rules import Ruleset
from hostmesh_api.wire import CLIENT_MARK
from netns.conftest import BEHIND, HOST, PEER
from netns.space import Servers, Space, as_user, ask, original_destination, run, snapshot

V4, V6 = 0, 1
ENVOY = 900
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
REQUEST = CaptureRequest(inbound_ports=frozenset({22, 8080, 8090}), transparent=True)
FLOOR = HostFloor(envoy_uid=ENVOY)

families = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


def ruleset(floor: HostFloor = FLOOR) -> Ruleset:
    return plan(REQUEST, floor)


def tell_who_calls(listener: socket.socket) -> None:
    """A program that says who calls, as it sees it."""
    while True:
        try:
            connection, caller = listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(5)
            with suppress(OSError):
                if connection.recv(16):
                    connection.sendall(caller[0].encode())


def in_place_of_envoy(ports: list[int], listener: socket.socket) -> None:
    """Take connections and go on to where they were meant for, from the address of who calls; `ports`: from which."""
    while True:
        try:
            connection, caller = listener.accept()
        except OSError:
            return
        threading.Thread(target=_pass_on, args=(connection, caller[0], ports), daemon=True).start()


def _pass_on(connection: socket.socket, caller: str, ports: list[int]) -> None:
    wanted = original_destination(connection)
    with connection, as_user(ENVOY), socket.socket(connection.family) as onward:
        onward.settimeout(2)
        level, option = (
            (socket.SOL_IP, IP_TRANSPARENT)
            if connection.family == socket.AF_INET
            else (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
        )
        onward.setsockopt(level, option, 1)
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, CLIENT_MARK)
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        onward.bind((caller, ports.pop() if ports else 0))
        try:
            onward.connect(wanted or ("", 0))
            onward.sendall(b"who calls?")
            connection.sendall(onward.recv(256))
        except OSError as error:
            connection.sendall(f"no answer: {error}".encode())


@pytest.fixture
def ports() -> list[int]:
    return []


@pytest.fixture
def program(peer: Space, servers: Servers, ports: list[int]) -> None:
    servers.listen(15006, partial(in_place_of_envoy, ports))
    servers.listen(8080, tell_who_calls)
    servers.tcp("ssh", 22)


@families
def test_a_program_sees_the_address_of_who_calls(program: None, peer: Space, family: int) -> None:
    capture.apply(ruleset())
    with peer():
        assert ask(HOST[family], 8080) == PEER[family]
        assert ask(HOST[family], 22) == "ssh"
    # With the rules and without what brings the answers back there is none.
    routes.write((), ruleset().loopback_addresses)
    with peer():
        assert ask(HOST[family], 8080) != PEER[family]


@families
def test_the_same_port_by_chance_is_no_clash(program: None, peer: Space, ports: list[int], family: int) -> None:
    """The client's connection and Envoy's for it are the same addresses and ports to whoever does not look closer."""
    capture.apply(ruleset())
    for number in range(20):
        ports.append(41000 + number)
        with peer():
            assert ask(HOST[family], 8080, source_port=41000 + number) == PEER[family]


@families
def test_a_program_of_the_host_itself_is_seen_too(program: None, family: int) -> None:
    capture.apply(ruleset())
    assert ask(HOST[family], 8080, uid=ENVOY) == HOST[family]


@pytest.mark.parametrize(
    "family",
    [
        V4,
        pytest.param(
            # Not strict: once in some dozens of runs it gets through, and why is not known.
            V6,
            marks=pytest.mark.xfail(reason="the answer of a container's program is lost over IPv6", strict=False),
        ),
    ],
    ids=["v4", "v6"],
)
def test_a_program_in_a_container_sees_who_calls(
    program: None, peer: Space, behind: Space, servers: Servers, family: int
) -> None:
    """As Docker publishes a port: the destination is changed to a neighbour that is reached through the host."""
    with behind():
        servers.listen(80, tell_who_calls)
    version, at = (("ip", f"{BEHIND[V4]}:80"), ("ip6", f"[{BEHIND[V6]}]:80"))[family]
    run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=1")
    run(
        "nft",
        f"table {version} docker {{ chain output {{ type nat hook output priority -100; "
        f"\ntcp dport 8090 fib daddr type local dnat to {at}\n }}\n }}",
    )
    capture.apply(ruleset())
    with peer():
        assert ask(HOST[family], 8090) == PEER[family]


def test_everything_is_gone_after_clear_also_by_another_process(program: None) -> None:
    before = snapshot()
    capture.apply(ruleset())
    assert "fwmark 0x5e2 lookup 1506 proto 157" in snapshot()
    assert capture.verify(ruleset()) == ""
    assert marked.in_place([4, 6])
    capture.clear()
    assert snapshot() == before
    assert not marked.in_place([4])


def test_without_the_mode_there_is_none_of_it(program: None) -> None:
    capture.apply(ruleset())
    capture.apply(plan(CaptureRequest(inbound_ports=frozenset({8080})), FLOOR))
    shown = snapshot()
    assert "1506" not in shown
    assert "0x5e2" not in shown


@families
def test_a_rule_that_somebody_removed_is_missed_and_put_back(program: None, peer: Space, family: int) -> None:
    held = capture.Capture()
    assert held.apply(REQUEST, FLOOR).state == "on"
    assert held.state().state == "on"
    run("ip", ("-4", "-6")[family], "rule", "del", "priority", "15")
    assert "another program removed it" in held.state().error
    held.apply(REQUEST, FLOOR)
    assert held.state().state == "on"
    with peer():
        assert ask(HOST[family], 8080) == PEER[family]


def test_a_host_that_cannot_or_will_not_goes_on_with_redirect(program: None, peer: Space) -> None:
    floor = HostFloor(envoy_uid=ENVOY, not_transparent="the owner says no")
    made = ruleset(floor)
    assert [str(each) for each in made.refused] == [
        "inbound port 22 is not captured: SSH listens there, and the way into the host must not depend on the mesh",
        "inbound mode tproxy is not used, but redirect: the owner says no",
    ]
    assert not made.marked_home
    assert {each.name for each in made.table.chains} == {"inbound", "outbound", "answers"}


def test_the_kernel_is_asked_and_nothing_is_left(host: Space) -> None:
    before = snapshot()
    assert nft.knows(*transparent.chains())
    assert routes.knows_marks()
    assert snapshot() == before
