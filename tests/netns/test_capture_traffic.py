"""Which connection meets Envoy and which does not: real rules, real sockets, both families."""

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, plan
from netns.backends import each_backend, made_for
from netns.conftest import BEHIND, HOST, PEER
from netns.space import Servers, Space, ask, nft, run

ENVOY = 900
V4, V6 = 0, 1
VIRTUAL = frozenset({"240.240.0.0/16", "fd00:f0f0::/112"})
MESH = CaptureRequest(
    inbound_ports=frozenset({8080}),
    mesh_prefixes=VIRTUAL | {f"{PEER[V4]}/32", f"{PEER[V6]}/128"},
    virtual_prefixes=VIRTUAL,
)
FLOOR = HostFloor(envoy_uid=ENVOY)
pytestmark = each_backend

families = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


@pytest.fixture
def program(peer: Space, servers: Servers) -> None:
    """On the host: Envoy's two listeners and a program on 8080 and 8081; on the peer: servers on many ports."""
    servers.tcp("outbound", 15001)
    servers.tcp("inbound", 15006)
    for port in (22, 2222, 8080, 8081):
        servers.tcp("program", port)
    with peer():
        for port in (22, 2222, 443, 7443, 15012):
            servers.tcp("peer", port)


def apply(request: CaptureRequest = MESH, floor: HostFloor = FLOOR) -> None:
    capture.apply(plan(request, made_for(floor)))


@families
def test_a_call_into_the_mesh_goes_to_envoy_and_any_other_does_not(program: None, family: int) -> None:
    assert ask(PEER[family], 443) == "peer"
    apply()
    assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"
    apply(CaptureRequest(virtual_prefixes=VIRTUAL))
    assert ask(PEER[family], 443) == "peer"


@families
def test_in_scope_all_every_call_to_others_goes_to_envoy(program: None, family: int) -> None:
    apply(CaptureRequest(scope=Scope.ALL))
    assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"


@families
def test_virtual_addresses_go_to_envoy_over_the_default_route(program: None, family: int) -> None:
    apply()
    virtual = ("240.240.3.4", "fd00:f0f0::34")[family]
    assert ask(virtual, 80) == f"outbound {virtual} 80"
    assert capture.Capture().state().state == "on"
    assert "proto 157" not in run("ip", "route") + run("ip", "-6", "route", "show", "table", "all")


@families
def test_a_call_from_outside_to_a_captured_port_goes_to_envoy(program: None, peer: Space, family: int) -> None:
    apply()
    with peer():
        assert ask(HOST[family], 8080) == f"inbound {HOST[family]} 8080"
        assert ask(HOST[family], 8081) == "program"


def test_a_call_from_outside_is_captured_where_the_interface_has_no_address(program: None, peer: Space) -> None:
    run("ip", "address", "add", "10.77.0.1/32", "dev", "lo")
    run("ip", "address", "del", f"{HOST[V4]}/24", "dev", "eth0")
    run("ip", "route", "add", f"{PEER[V4]}/32", "dev", "eth0", "src", "10.77.0.1")
    with peer():
        run("ip", "route", "add", "10.77.0.1/32", "dev", "eth1")
    apply()
    with peer():
        assert ask("10.77.0.1", 8080) == "inbound 10.77.0.1 8080"


@families
def test_traffic_that_the_host_only_routes_is_not_captured(
    program: None, peer: Space, behind: Space, servers: Servers, family: int
) -> None:
    run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    with behind():
        servers.tcp("behind", 8080)
    apply(CaptureRequest(Scope.ALL, frozenset({8080})))
    with peer():
        assert ask(BEHIND[family], 8080) == "behind"


@families
def test_envoys_own_calls_pass(program: None, family: int) -> None:
    apply(CaptureRequest(scope=Scope.ALL, inbound_ports=frozenset({8080})))
    assert ask(PEER[family], 443, uid=ENVOY) == "peer"


@families
def test_envoys_call_to_a_service_of_this_host_enters_by_the_inbound_listener(program: None, family: int) -> None:
    apply()
    assert ask(HOST[family], 8080, uid=ENVOY) == f"inbound {HOST[family]} 8080"
    assert ask(HOST[family], 8081, uid=ENVOY) == "program"


@families
def test_envoys_inbound_call_to_the_program_reaches_the_program(program: None, family: int) -> None:
    apply()
    source = ("127.0.0.6", "::6")[family]
    assert ask(HOST[family], 8080, uid=ENVOY, source=source) == "program"
    assert ask(("127.0.0.1", "::1")[family], 8080, uid=ENVOY) == "program"


@families
def test_programs_reach_the_host_itself_without_envoy(program: None, family: int) -> None:
    everything = VIRTUAL | {"0.0.0.0/0", "::/0"}
    apply(CaptureRequest(Scope.ALL, inbound_ports=frozenset({8080}), mesh_prefixes=everything))
    assert ask(("127.0.0.1", "::1")[family], 8080) == "program"
    assert ask(HOST[family], 8080) == "program"
    assert family == V6 or ask("127.9.9.9", 8080) == "program"


@families
def test_ssh_is_never_captured_in_either_direction(program: None, peer: Space, family: int) -> None:
    everything = VIRTUAL | {"0.0.0.0/0", "::/0"}
    floor = HostFloor(envoy_uid=ENVOY, ssh_ports=frozenset({2222}))
    ruleset = plan(CaptureRequest(Scope.ALL, frozenset({22, 2222, 8080}), everything, VIRTUAL), made_for(floor))
    capture.apply(ruleset)
    assert [refusal.what for refusal in ruleset.refused] == ["inbound port 22", "inbound port 2222"]
    for port in (22, 2222):
        assert ask(PEER[family], port) == "peer"
        with peer():
            assert ask(HOST[family], port) == "program"


@families
def test_the_controller_is_never_captured(program: None, family: int) -> None:
    floor = HostFloor(envoy_uid=ENVOY, controller=frozenset({(PEER[family], 7443)}))
    apply(CaptureRequest(Scope.ALL), floor)
    assert ask(PEER[family], 7443) == "peer"
    assert ask(PEER[family], 15012) == "peer"
    assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"


def test_capture_comes_before_dockers_published_ports(program: None, peer: Space) -> None:
    nft(
        "table ip nat { chain PREROUTING { type nat hook prerouting priority dstnat; "
        "fib daddr type local tcp dport 8080 redirect to :8081; }; }"
    )
    apply()
    with peer():
        assert ask(HOST[V4], 8080) == f"inbound {HOST[V4]} 8080"


def test_with_ipv6_off_there_is_none_of_it_and_ipv4_is_captured(program: None) -> None:
    run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1")
    apply(MESH, HostFloor(envoy_uid=ENVOY, ipv6=False))
    assert ask(PEER[V4], 443) == f"outbound {PEER[V4]} 443"
    assert "ip6" not in capture.show()


@pytest.fixture
def lonely(peer: Space, servers: Servers) -> None:
    """A host with a network but no default route: nothing leads to virtual addresses."""
    run("ip", "route", "del", "default")
    run("ip", "-6", "route", "del", "default")
    servers.tcp("outbound", 15001)


virtuals = pytest.mark.parametrize("virtual", ["240.240.3.4", "fd00:f0f0::34"], ids=["v4", "v6"])


@virtuals
def test_virtual_addresses_go_to_envoy_where_there_is_no_default_route(lonely: None, virtual: str) -> None:
    assert ask(virtual, 80).startswith("unreachable")
    apply()
    assert ask(virtual, 80) == f"outbound {virtual} 80"
    capture.clear()
    assert ask(virtual, 80).startswith("unreachable")


@virtuals
def test_virtual_addresses_go_to_envoy_on_a_host_with_no_network_at_all(
    host: Space, servers: Servers, virtual: str
) -> None:
    servers.tcp("outbound", 15001)
    apply()
    assert ask(virtual, 80) == f"outbound {virtual} 80"


@virtuals
def test_virtual_addresses_go_to_envoy_where_a_firewall_rejects_their_range(lonely: None, virtual: str) -> None:
    run("ip", "route", "add", "blackhole", "240.0.0.0/4")
    run("ip", "-6", "route", "add", "unreachable", "fc00::/7")
    apply()
    assert ask(virtual, 80) == f"outbound {virtual} 80"


@virtuals
def test_a_default_route_that_goes_away_is_noticed_and_replaced(program: None, virtual: str) -> None:
    everything = capture.Capture()
    assert everything.apply(MESH, made_for(FLOOR)).state == "on"
    run("ip", "route", "del", "default")
    run("ip", "-6", "route", "del", "default")
    state = everything.state()
    assert (state.state, "there is no route to 240.240.0.0/16" in state.error) == ("error", True)
    assert everything.apply(MESH, made_for(FLOOR)).state == "on"
    assert ask(virtual, 80) == f"outbound {virtual} 80"


def test_envoys_source_is_never_chosen_for_a_programs_call(lonely: None) -> None:
    apply()
    for destination in ("2001:db8:9::2", "fd00:f0f0::34", "::1"):
        assert " src ::6 " not in run("ip", "-6", "route", "get", destination)
