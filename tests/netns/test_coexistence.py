"""Beside other users of the kernel's rules: mesh traffic meets Envoy, theirs is as before, and so are their rules."""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import CaptureRequest, HostFloor, plan
from hostmesh_agent.places import GREEN, PORTS
from netns.backends import each_backend, made_for
from netns.conftest import HOST, PEER, neighbour
from netns.others import (
    CONTAINER,
    DOCKER,
    GUEST,
    LIBVIRT,
    container,
    firewalld,
    guest,
    restore,
    rules_of_others,
    ufw,
)
from netns.space import Servers, Space, ask, run

ENVOY = 900
V4, V6 = 0, 1
SECOND_HOST, SECOND_PEER = ("10.7.0.1", "2001:db8:7::1"), ("10.7.0.2", "2001:db8:7::2")
VIRTUAL = frozenset({"240.240.0.0/16", "fd00:f0f0::/112"})
MESH = CaptureRequest(
    inbound_ports=frozenset({8080}),
    strict_ports=frozenset({8080}),
    mesh_prefixes=VIRTUAL | {*PEER, *SECOND_PEER},
    virtual_prefixes=VIRTUAL,
)
FLOOR = HostFloor(envoy_uid=ENVOY)
SECOND, GATEWAY = PORTS[GREEN], 8443
UPGRADED = replace(
    FLOOR,
    outbound_port=SECOND.outbound,
    inbound_port=SECOND.inbound,
    dns_port=SECOND.dns,
    door_port=SECOND.door,
    doorways=frozenset({("", GATEWAY)}),
)
"""The host after an upgrade of Envoy: the second one serves, and a gateway's port leads to its door."""
GUIDE = Path(__file__).parents[2] / "OPERATING.md"
pytestmark = each_backend
both = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


@pytest.fixture
def mesh(peer: Space, servers: Servers) -> Space:
    """On the host: Envoy's two listeners and a program; the peer, with a service of the mesh, is returned."""
    servers.tcp("outbound", 15001)
    servers.tcp("inbound", 15006)
    servers.tcp("program", 8080)
    with peer():
        servers.tcp("peer", 443)
        servers.tcp("elsewhere", 8443)
    return peer


@contextmanager
def captured(request: CaptureRequest = MESH, floor: HostFloor = FLOOR) -> Iterator[None]:
    """Capture is in force meanwhile; what is not ours in the kernel's rules is the same before, meanwhile and after.

    Others may load theirs anew meanwhile: their chains may stand in another order then, and nothing else.
    """
    before = rules_of_others()
    capture.apply(plan(request, made_for(floor)))
    assert rules_of_others() == before
    yield
    assert capture.verify(plan(request, made_for(floor))) == ""
    meanwhile = rules_of_others()
    capture.clear()
    assert rules_of_others() == meanwhile
    assert sorted(meanwhile.splitlines()) == sorted(before.splitlines())


def assert_mesh_works(peer: Space, families: tuple[int, ...] = (V4, V6)) -> None:
    for family in families:
        assert ask(PEER[family], 443) == f"outbound {PEER[family]} 443"
        assert ask(("240.240.3.4", "fd00:f0f0::34")[family], 80).startswith("outbound")
        with peer():
            assert ask(HOST[family], 8080) == f"inbound {HOST[family]} 8080"


legacy = pytest.mark.parametrize("legacy", [False, True], ids=["iptables-nft", "iptables-legacy"])


@legacy
def test_beside_docker_published_ports_and_containers_calls_are_what_they_were(
    mesh: Space, servers: Servers, legacy: bool
) -> None:
    restore(DOCKER, legacy=legacy)
    with container() as inside:
        with inside():
            servers.tcp("container", 80)

        def assert_docker_works() -> None:
            with mesh():
                assert ask(HOST[V4], 8088) == "container"
            assert ask(HOST[V4], 8088) == "container"
            assert ask(CONTAINER, 80) == "container"
            with inside():
                assert ask(PEER[V4], 443) == "peer"

        assert_docker_works()
        with captured():
            assert_docker_works()
            assert_mesh_works(mesh)
            with inside():  # the host's program, called from a container, is called from outside
                assert ask(HOST[V4], 8080) == f"inbound {HOST[V4]} 8080"
                assert ask("172.17.0.1", 8080) == "inbound 172.17.0.1 8080"
        assert_docker_works()


@legacy
def test_a_port_that_somebody_translates_already_is_the_meshs_and_later_his_again(
    mesh: Space, servers: Servers, legacy: bool
) -> None:
    """What the mesh does not capture of the same rules is still translated: another port, another destination."""
    restore(
        "*nat\n-A PREROUTING -p tcp -m multiport --dports 8080,8081 -j REDIRECT --to-ports 9090\n"
        f"-A OUTPUT -d {PEER[V4]}/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination {PEER[V4]}:8443\n"
        "-A OUTPUT -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.9.0.2:8443\nCOMMIT\n",
        legacy=legacy,
    )
    servers.tcp("translated", 9090)

    def assert_others() -> None:
        assert ask("10.96.0.1", 443) == "elsewhere"  # as kube-proxy does for a service's address
        with mesh():
            assert ask(HOST[V4], 8081).startswith("translated")

    def assert_all_his() -> None:
        assert_others()
        assert ask(PEER[V4], 443) == "elsewhere"
        with mesh():
            assert ask(HOST[V4], 8080).startswith("translated")

    assert_all_his()
    with captured():
        assert_others()
        assert_mesh_works(mesh)
    assert_all_his()


def test_beside_libvirt_a_virtual_machine_is_what_it_was(mesh: Space, servers: Servers) -> None:
    restore(LIBVIRT)
    with guest() as machine:
        with machine():
            servers.tcp("machine", 80)

        def assert_machine_works() -> None:
            assert ask(GUEST, 80) == "machine"
            with machine():
                assert ask(PEER[V4], 443) == "peer"
            with mesh():
                assert ask(GUEST, 80) == "refused"  # libvirt's own word: from outside nobody calls in

        assert_machine_works()
        with captured():
            assert_machine_works()
            assert_mesh_works(mesh)
        assert_machine_works()


def test_firewalld_starts_and_reloads_beside_the_mesh(mesh: Space, tmp_path: Path, servers: Servers) -> None:
    servers.tcp("closed", 8081)
    with firewalld(tmp_path), captured():
        assert_mesh_works(mesh)
        run("firewall-cmd", "--reload")
        assert_mesh_works(mesh)
        with mesh():  # what it keeps closed and is not the mesh's stays closed
            assert ask(HOST[V4], 8081).startswith("unreachable")


def test_ufw_is_enabled_and_reloads_beside_the_mesh(mesh: Space, tmp_path: Path, servers: Servers) -> None:
    """Its rules see the port to which a call was redirected: Envoy's must be allowed, as a program's would be."""
    servers.tcp("closed", 8081)
    ufw(tmp_path, "--force", "enable")
    with captured(), mesh():
        assert ask(HOST[V4], 8080, within_s=0.5) == "silent"
    ufw(tmp_path, "allow", "15006/tcp")
    with captured():
        assert_mesh_works(mesh)
    ufw(tmp_path, "reload")  # after which it says the same in another way
    with captured():
        ufw(tmp_path, "reload")
        assert_mesh_works(mesh)
        with mesh():
            assert ask(HOST[V4], 8081, within_s=0.5) == "silent"


def test_what_the_guide_opens_in_ufw_lets_callers_reach_either_envoy_and_its_door(
    mesh: Space, tmp_path: Path, servers: Servers
) -> None:
    """An upgrade of Envoy moves calls to ports of the second one, which a firewall sees."""
    servers.tcp("second", SECOND.inbound)
    servers.tcp("door", SECOND.door or 0)
    ufw(tmp_path, "--force", "enable")
    found = re.search(r"ufw allow ([0-9,]+/tcp)", GUIDE.read_text())
    assert found is not None, "the guide says what to open in ufw"
    ufw(tmp_path, "allow", found[1])
    with captured():
        assert_mesh_works(mesh)
    with captured(floor=UPGRADED), mesh():
        for address in HOST:
            assert ask(address, 8080, within_s=0.5) == f"second {address} 8080"
            assert ask(address, GATEWAY, within_s=0.5) == f"door {address} {GATEWAY}"


@pytest.fixture
def second(mesh: Space, servers: Servers) -> Iterator[Space]:
    with neighbour("eth2", SECOND_HOST, SECOND_PEER) as space:
        with space():
            run("ip", "route", "add", "default", "via", SECOND_HOST[V4])
            run("ip", "-6", "route", "add", "default", "via", SECOND_HOST[V6])
            servers.tcp("second", 443)
        yield space


@both
def test_each_of_several_network_cards_is_captured(mesh: Space, second: Space, family: int) -> None:
    with captured():
        assert_mesh_works(mesh)
        assert ask(SECOND_PEER[family], 443) == f"outbound {SECOND_PEER[family]} 443"
        with second():
            assert ask(SECOND_HOST[family], 8080) == f"inbound {SECOND_HOST[family]} 8080"
            # The address of the other card: the host is one host.
            assert ask(HOST[family], 8080) == f"inbound {HOST[family]} 8080"


@both
def test_policy_routing_and_strict_reverse_paths_are_no_obstacle(mesh: Space, second: Space, family: int) -> None:
    """Each card's address has a routing table of its own, and packets must come in where answers go out."""
    version = ("-4", "-6")[family]
    for table, here, there in (("101", HOST, PEER), ("102", SECOND_HOST, SECOND_PEER)):
        run("ip", version, "route", "add", "default", "via", there[family], "table", table)
        run("ip", version, "rule", "add", "from", here[family], "lookup", table)
    run("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
    rules, routes = run("ip", version, "rule"), run("ip", version, "route", "show", "table", "102")
    with captured():
        assert_mesh_works(mesh)
        for source in (HOST, SECOND_HOST):
            assert ask(SECOND_PEER[family], 443, source=source[family]) == f"outbound {SECOND_PEER[family]} 443"
        with second():
            assert ask(SECOND_HOST[family], 8080) == f"inbound {SECOND_HOST[family]} 8080"
        assert ask(SECOND_PEER[family], 443, uid=ENVOY, source=SECOND_HOST[family]) == "second"
        assert (run("ip", version, "rule"), run("ip", version, "route", "show", "table", "102")) == (rules, routes)


def test_a_host_with_ipv6_alone_is_captured(mesh: Space) -> None:
    for space in (None, mesh):
        if space is None:
            run("ip", "-4", "address", "flush", "dev", "eth0")
        else:
            with space():
                run("ip", "-4", "address", "flush", "dev", "eth1")
    with captured():
        assert_mesh_works(mesh, (V6,))


def on_vlan(device: str, name: str) -> tuple[str, ...]:
    return "ip", "link", "add", "link", device, "name", name, "type", "vlan", "id", "5"


def on_macvlan(device: str, name: str) -> tuple[str, ...]:
    return "ip", "link", "add", "link", device, "name", name, "type", "macvlan", "mode", "bridge"


@pytest.mark.parametrize("layer", [on_vlan, on_macvlan], ids=["VLAN", "macvlan"])
def test_an_interface_on_top_of_another_is_captured(
    mesh: Space, servers: Servers, layer: Callable[[str, str], tuple[str, ...]]
) -> None:
    tried = subprocess.run(layer("eth0", "eth0.5"), capture_output=True, text=True, check=False)
    if "Unknown device type" in tried.stderr or "not supported" in tried.stderr:
        pytest.skip(f"this kernel has no such interfaces: {tried.stderr.strip()}")
    assert tried.returncode == 0, tried.stderr
    run("ip", "address", "add", f"{SECOND_HOST[V4]}/24", "dev", "eth0.5")
    run("ip", "link", "set", "eth0.5", "up")
    with mesh():
        run(*layer("eth1", "eth1.5"))
        run("ip", "address", "add", f"{SECOND_PEER[V4]}/24", "dev", "eth1.5")
        run("ip", "link", "set", "eth1.5", "up")
    assert ask(SECOND_PEER[V4], 443) == "peer"
    with captured():
        assert_mesh_works(mesh)
        assert ask(SECOND_PEER[V4], 443) == f"outbound {SECOND_PEER[V4]} 443"
        with mesh():
            assert ask(SECOND_HOST[V4], 8080) == f"inbound {SECOND_HOST[V4]} 8080"
