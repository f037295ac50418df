"""A port that takes mutual TLS alone is reached by way of Envoy or not at all, whatever other programs' chains do.

Real rules of others that come before ours, real connections, and a program that must not be called. The others' rules
are nftables', whichever part of the kernel holds ours.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import Capture, CaptureRequest, HostFloor, Owner, plan
from hostmesh_agent.capture.rules import Backend
from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_agent.guard import close_strict_ports
from netns.backends import each_backend, made_for
from netns.conftest import HOST, PEER
from netns.space import Servers, Space, ask, nft, run
from netns.test_strict import canary, config, remembered
from netns.test_transparent import in_place_of_envoy, tell_who_calls

ENVOY = 900
PROGRAM, OPEN = 8080, 8081
FLOOR = HostFloor(envoy_uid=ENVOY)
STRICT = CaptureRequest(inbound_ports=frozenset({22, PROGRAM, OPEN}), strict_ports=frozenset({22, PROGRAM}), dns=False)
PERMISSIVE = replace(STRICT, strict_ports=frozenset())
V4, V6 = f"dnat ip to {HOST[0]}", f"dnat ip6 to [{HOST[1]}]"
THEIRS = {
    "the same port": f"tcp dport {PROGRAM} redirect to :{PROGRAM}",
    "the same port and address": f"tcp dport {PROGRAM} meta nfproto ipv4 {V4}:{PROGRAM}\n"
    f"tcp dport {PROGRAM} meta nfproto ipv6 {V6}:{PROGRAM}",
    "another port": f"tcp dport {{ {PROGRAM}, 9999 }} redirect to :{PROGRAM}",
    "loopback": f"tcp dport {PROGRAM} meta nfproto ipv4 dnat ip to 127.0.0.1:{PROGRAM}\n"
    f"tcp dport {PROGRAM} redirect to :{PROGRAM}",
}
TABLE = "table inet other {{ chain theirs {{ type {kind} hook prerouting priority {priority};\n{rules}\n}}\n}}\n"


def before_ours(rules: str, kind: str = "nat", priority: int = -150) -> None:
    nft(TABLE.format(kind=kind, priority=priority, rules=rules))


def apply(request: CaptureRequest = STRICT, floor: HostFloor = FLOOR) -> None:
    capture.apply(plan(request, made_for(floor)))


@contextmanager
def answers_after(connection: socket.socket) -> Iterator[None]:
    """Both ways of a connection work before and after what is done meanwhile."""
    for when in ("before", "after"):
        connection.sendall(f"{when}\n".encode())
        assert connection.recv(16).decode() == f"{when}\n"
        if when == "before":
            yield


def echo(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(10)
            try:
                while data := connection.recv(64):
                    connection.sendall(data)
            except OSError:
                continue


@pytest.fixture
def program(peer: Space, servers: Servers) -> Servers:
    """The programs alone, as `Servers`, so that it knows who called them."""
    run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    for port in (22, PROGRAM, OPEN):
        servers.tcp("program", port)
    return servers


@pytest.mark.parametrize("way", THEIRS)
@each_backend
def test_a_chain_before_ours_leads_nobody_to_the_program(
    backend: Backend, program: Servers, peer: Space, way: str
) -> None:
    before_ours(THEIRS[way])
    with peer():
        assert [ask(each, PROGRAM).split(" ")[0] for each in HOST] == ["program", "program"]
    program.arrived.clear()
    apply()
    with peer():
        for address in HOST:
            assert {ask(address, port) for port in (PROGRAM, 9999)} == {"refused"}
    assert program.arrived == []


@each_backend
def test_connections_that_are_not_tracked_do_not_reach_it_either(
    backend: Backend, program: Servers, peer: Space
) -> None:
    before_ours(f"tcp dport {PROGRAM} notrack\n", "filter", -300)
    apply()
    with peer():
        assert [ask(each, PROGRAM) for each in HOST] == ["refused", "refused"]
    assert program.arrived == []


def test_what_changes_ports_as_late_as_ipvs_does_leads_nobody_there_either(program: Servers, peer: Space) -> None:
    """Where the rules are iptables' they come before that: it has no later place for them."""
    nft(
        "table inet other {\nchain calls { type filter hook input priority 99;\ntcp dport 9999 tcp dport set 8080\n}\n"
        "chain answers { type filter hook output priority 99;\ntcp sport 8080 tcp sport set 9999\n}\n"
        "chain raw { type filter hook prerouting priority -300;\ntcp dport 9999 notrack\n}\n"
        "chain rawout { type filter hook output priority -300;\ntcp sport 8080 notrack\n}\n}\n"
    )
    with peer():
        assert ask(HOST[0], 9999).startswith("program")
    program.arrived.clear()
    apply()
    with peer():
        assert [ask(each, 9999) for each in HOST] == ["refused", "refused"]
    assert program.arrived == []


@each_backend
def test_a_program_at_one_address_of_several_is_kept_too(backend: Backend, peer: Space, servers: Servers) -> None:
    """Bound to the very address that is called, beside a listener of somebody else for all addresses."""
    listeners = [socket.socket() for _ in HOST]
    for listener, address in zip(listeners, (HOST[0], "127.0.0.1"), strict=True):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PROGRAM))
        listener.listen()
        listener.setblocking(False)
    before_ours(THEIRS["the same port and address"])
    apply()
    with peer():
        assert ask(HOST[0], PROGRAM) == "refused"
    for listener in listeners:
        with listener, pytest.raises(BlockingIOError):
            listener.accept()


@each_backend
def test_who_may_call_the_program_does(backend: Backend, program: Servers, peer: Space, servers: Servers) -> None:
    """Envoy's leg, the host's own programs, SSH, and ports that take plaintext as well: with a chain before ours."""
    servers.tcp("inbound", 15006)
    apply()
    with peer():
        assert [ask(each, PROGRAM).split(" ")[0] for each in HOST] == ["inbound", "inbound"]
    before_ours("tcp dport { 22, 8081 } redirect")
    for address in (*HOST, "127.0.0.1", "::1"):
        assert [ask(address, PROGRAM, uid=uid).split(" ")[0] for uid in (1000, 0)] == ["program", "program"]
    assert ask(HOST[0], PROGRAM, uid=ENVOY, source="127.0.0.6") == "program"
    with peer():
        for address in HOST:
            assert [ask(address, port).split(" ")[0] for port in (22, OPEN)] == ["program", "program"]


@each_backend
def test_what_the_owner_excludes_is_left_alone(backend: Backend, program: Servers, peer: Space) -> None:
    before_ours(THEIRS["the same port"])
    for floor in (
        replace(FLOOR, never_interfaces=frozenset({"eth0"})),
        replace(FLOOR, never_inbound_ports=frozenset({PROGRAM})),
    ):
        apply(STRICT, floor)
        with peer():
            assert [ask(each, PROGRAM).split(" ")[0] for each in HOST] == ["program", "program"]


@each_backend
def test_connections_that_stand_are_never_cut(backend: Backend, peer: Space, servers: Servers) -> None:
    """Neither by the rule's coming, nor by its going, nor where nothing is tracked."""
    before_ours(f"tcp dport {PROGRAM} notrack", "filter", -300)
    servers.listen(PROGRAM, echo)
    for address in HOST:
        with peer():
            connection = socket.create_connection((address, PROGRAM), 5)
        with connection:
            connection.settimeout(5)
            with answers_after(connection):
                apply()
            with answers_after(connection):
                apply(PERMISSIVE)
        capture.clear()


@each_backend
def test_changes_let_nobody_through_while_the_port_is_strict(backend: Backend, program: Servers, peer: Space) -> None:
    apply()
    before_ours(THEIRS["the same port"])
    with canary(peer) as found:
        for number in range(5):
            more = frozenset({PROGRAM, 9000 + number})
            apply(replace(STRICT, inbound_ports=more | {OPEN}, strict_ports=more))
            apply()
    assert set(found) == {"refused"}, found
    assert program.arrived == []


@each_backend
def test_a_rule_that_somebody_took_is_missed_named_and_put_back(
    backend: Backend, program: Servers, peer: Space
) -> None:
    held = Capture()
    floor = made_for(FLOOR)
    assert held.apply(STRICT, floor).state == "on"
    before_ours(THEIRS["the same port"])
    if backend is Backend.NFTABLES:
        run("nft", "flush", "chain", "inet", "hostmesh", "bypassed")
    else:
        run("iptables-legacy", "-F", "INPUT")
    assert "another program changed it" in held.state().error
    with peer():
        assert ask(HOST[0], PROGRAM).startswith("program")
    assert held.apply(STRICT, floor).state == "on"
    with peer():
        assert ask(HOST[0], PROGRAM) == "refused"


@each_backend
def test_where_no_port_is_strict_nothing_is_in_the_way_of_what_arrives(backend: Backend, host: Space) -> None:
    apply(PERMISSIVE)
    assert "hook input" not in run("nft", "list", "ruleset")
    assert "HOSTMESH" not in run("iptables-legacy-save", "-t", "filter")
    capture.clear()


def test_after_a_boot_it_is_kept_before_anything_of_the_mesh_runs(
    program: Servers, peer: Space, tmp_path: Path
) -> None:
    before_ours(THEIRS["another port"])
    remembered(tmp_path, PROGRAM)
    owner = Owner()
    assert close_strict_ports(config(tmp_path), owner) == {PROGRAM}
    with peer():
        assert {ask(each, port) for each in HOST for port in (PROGRAM, 9999)} == {"refused"}
    assert program.arrived == []
    owner.close()


ELSEWHERE = ("203.0.113.9", "2001:db8:99::9")


@pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])
def test_a_transparent_proxy_takes_what_is_for_others_at_the_same_port(
    program: Servers, peer: Space, servers: Servers, family: int
) -> None:
    """And nobody else takes it: a program that waits at all addresses is not called past Envoy by it."""
    inet, version = (socket.AF_INET, "-4") if family == 0 else (socket.AF_INET6, "-6")
    run("ip", version, "rule", "add", "fwmark", "1", "lookup", "100")
    run("ip", version, "route", "add", "local", "default", "dev", "lo", "table", "100")
    to_it = f"{'ip' if family == 0 else 'ip6'} daddr {ELSEWHERE[family]} tcp dport {PROGRAM}"
    before_ours(f"{to_it} meta mark set 1", "filter")
    apply(STRICT, replace(FLOOR, envoy_cgroup=ByCgroup(1, 1)))
    with peer():
        assert ask(ELSEWHERE[family], PROGRAM) == "refused"
    run("nft", "delete", "table", "inet", "other")
    before_ours(f"{to_it} tproxy {'ip' if family == 0 else 'ip6'} to :3129 meta mark set 1", "filter")
    with socket.socket(inet) as proxy:
        proxy.setsockopt(*((socket.SOL_IP, 19) if family == 0 else (socket.IPPROTO_IPV6, 75)), 1)
        proxy.bind(("", 3129))
        proxy.listen()
        proxy.settimeout(5)
        with peer():
            caller = socket.create_connection((ELSEWHERE[family], PROGRAM), 5)
        with caller, proxy.accept()[0] as taken:
            assert taken.getsockname()[:2] == (ELSEWHERE[family], PROGRAM)
    assert program.arrived == []


def test_programs_that_see_who_calls_are_kept_and_called(peer: Space, servers: Servers) -> None:
    """Mode tproxy: Envoy's leg has the address of a caller from outside, and comes over loopback all the same."""
    servers.listen(15006, partial(in_place_of_envoy, []))
    servers.listen(PROGRAM, tell_who_calls)
    apply(replace(STRICT, transparent=True))
    with peer():
        assert [ask(each, PROGRAM) for each in HOST] == list(PEER)
    before_ours(THEIRS["the same port"])
    with peer():
        assert [ask(each, PROGRAM) for each in HOST] == ["refused", "refused"]
