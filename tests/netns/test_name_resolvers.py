"""Each way in which a host may find names, with the real resolvers: mesh names are found, and nobody is harmed.

Measured with a real Envoy 1.40 behind the first line of resolv.conf, another resolver behind it (2 cores, 0.2 ms away):

    resolver of the program   mesh names       others             others, Envoy dead
    glibc 2.36, Java 17       found            as before, 0 ms    as before, 0 ms
    Go 1.26 (its own)         found            as before, 0 ms    as before, 0 ms
    c-ares 1.18               found            as before, 0 ms    as before, 0 ms (without the agent, too: 5 s)
    musl 1.2.3                a race, won 197  as before, 0 ms    as before, 0 ms
                              times of 200

musl asks all resolvers at once and believes the first that says "no such name"; c-ares sends two questions from one
socket, and the second one uses up the error of the first, unless each fails by itself (`capture.names`). In mixed case
(`REVIEWS.default`) nobody finds a mesh name over UDP; over TCP everybody does.
"""

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import CaptureRequest, HostFloor, plan
from netns.conftest import PEER
from netns.name_machine import Machine, name_machine, wait_until, why_no_resolved
from netns.space import Servers, Space, ask_udp, new_space
from netns.test_capture_dns import ENVOY, labels, resolver_of

AGENT = str(Path(sys.executable).with_name("hostmesh-agent"))
MESH4 = "240.240.0.9"
SERVICE = "reviews.default.svc.cluster.local"
SHORT = ("reviews.default.svc", "reviews.default", "reviews")
TABLE = dict.fromkeys((SERVICE, *SHORT, "api.example.com"), MESH4)
WORLD = {"www.example.com": "192.0.2.1", "api.example.com": "192.0.2.2", "v2.api.example.com": "192.0.2.3"}
WORLD["db.corp.example"] = "192.0.2.4"
OUTSIDE: dict[str, object] = {name: [address] for name, address in WORLD.items() if name != "api.example.com"}
OUTSIDE["db"] = OUTSIDE["db.corp.example"]
NOBODY = "nobody.example.com"
OUTSIDE[NOBODY] = "no such name"
UNKNOWN = "nobody.default.svc.cluster.local"
"""Below the mesh's domain, and nobody's. Before us systemd-resolved asks nobody about `.local`."""
NOT_IMPLEMENTED = 4


class World:
    """The network's resolver; `asked` has the names that it was asked for."""

    def __init__(self) -> None:
        self._answer = resolver_of(WORLD)
        self._lock = Lock()
        self.asked: list[str] = []

    def __call__(self, query: bytes) -> bytes:
        name, end = labels(query)
        with self._lock:
            self.asked.append(name)
        return only_a(self._answer, query, end)


def only_a(answer: Callable[[bytes], bytes], query: bytes, end: int) -> bytes:
    """No data of other types."""
    kind = int.from_bytes(query[end - 4 : end - 2], "big")
    said = answer(query)
    return said if kind == 1 or said[3] & 15 else said[:6] + bytes(6) + said[12:end]


def envoy(query: bytes) -> bytes:
    """As Envoy's DNS filter: the type counts before the name."""
    _, end = labels(query)
    if int.from_bytes(query[end - 4 : end - 2], "big") not in {1, 28, 33}:
        return query[:2] + (0x8400 | NOT_IMPLEMENTED).to_bytes(2, "big") + b"\0\1" + bytes(6) + query[12:end]
    return only_a(resolver_of(TABLE), query, end)


@pytest.fixture(scope="session")
def unpacked() -> str:
    """Why there is no systemd-resolved, "" where there is; found out before the test is in a network without any."""
    return why_no_resolved()


@pytest.fixture
def world(peer: Space, servers: Servers) -> World:
    world = World()
    with peer():
        servers.udp(PEER[0], 53, world)
    return world


@pytest.fixture
def machine(unpacked: str, request: pytest.FixtureRequest, host: Space, world: World) -> Iterator[Machine]:
    set_up = request.node.callspec.params["set_up"] if hasattr(request.node, "callspec") else stub
    if unpacked and set_up not in {plain, dnsmasq, dnsmasq_everywhere}:
        pytest.skip(unpacked)
    capture.apply(plan(CaptureRequest(), HostFloor(envoy_uid=ENVOY)))
    with name_machine() as machine:
        yield machine


def plain(machine: Machine) -> None:
    machine.write("/etc/resolv.conf", f"search corp.example\nnameserver {PEER[0]}\noptions timeout:5 edns0\n")


def dnsmasq(machine: Machine) -> None:
    if not shutil.which("dnsmasq"):
        pytest.skip("needs dnsmasq-base")
    machine.write("/etc/resolv.conf", "search corp.example\nnameserver 127.0.0.1\n")
    machine.run(
        *("dnsmasq", "--conf-file=/dev/null", "--pid-file=/run/dnsmasq.pid", "--no-resolv", f"--server={PEER[0]}"),
        *("--user=root", "--listen-address=127.0.0.1", "--bind-interfaces"),
    )


def dnsmasq_everywhere(machine: Machine) -> None:
    """It listens on every address, ours too."""
    if not shutil.which("dnsmasq"):
        pytest.skip("needs dnsmasq-base")
    machine.write("/etc/resolv.conf", "search corp.example\nnameserver 127.0.0.1\n")
    machine.run(
        *("dnsmasq", "--conf-file=/dev/null", "--pid-file=/run/dnsmasq.pid", "--no-resolv", "--user=root"),
        f"--server={PEER[0]}",
    )


def resolved(machine: Machine) -> None:
    machine.start_resolved()
    machine.run("resolvectl", "dns", "eth0", PEER[0])
    machine.run("resolvectl", "domain", "eth0", "corp.example")


def stub(machine: Machine) -> None:
    machine.run("ln", "-s", "../run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf")
    resolved(machine)


def uplink(machine: Machine) -> None:
    machine.run("ln", "-s", "../run/systemd/resolve/resolv.conf", "/etc/resolv.conf")
    resolved(machine)


def foreign(machine: Machine) -> None:
    """resolv.conf is somebody else's, and systemd-resolved takes its servers from it."""
    plain(machine)
    resolved(machine)


SET_UPS = [plain, dnsmasq, dnsmasq_everywhere, stub, foreign]


@pytest.mark.parametrize("set_up", SET_UPS, ids=lambda each: each.__name__)
def test_mesh_names_are_found_all_others_as_before_and_everything_comes_back(
    set_up: Callable[[Machine], None], machine: Machine, world: World, servers: Servers
) -> None:
    set_up(machine)
    before = machine.snapshot()
    assert machine.find(*OUTSIDE) == OUTSIDE
    # Before the first configuration, and wherever Envoy is not there.
    assert machine.agent_puts().startswith("True")
    found = machine.find(*OUTSIDE, SERVICE)
    assert found.pop(SERVICE) in {"no such name", "try again"}
    # With Envoy dead systemd-resolved cannot tell whether the mesh has such a name in its search domains.
    if found[NOBODY] == "try again" and set_up in {stub, foreign}:
        found[NOBODY] = "no such name"
    assert found == OUTSIDE
    # The agent's word that there is no Envoy: questions fail at once, and no resolver takes that for an answer.
    capture.apply(plan(CaptureRequest(), HostFloor(envoy_uid=ENVOY, names_answered=False)))
    assert {name: machine.find(name)[name] for name in OUTSIDE if name != NOBODY} == {
        name: said for name, said in OUTSIDE.items() if name != NOBODY
    }
    capture.apply(plan(CaptureRequest(), HostFloor(envoy_uid=ENVOY)))
    dns = servers.udp("127.0.0.1", 15053, envoy)
    assert machine.find(SERVICE, *SHORT) == {name: [MESH4] for name in (SERVICE, *SHORT)}
    world.asked.clear()
    assert machine.find(*OUTSIDE, UNKNOWN, SERVICE) == OUTSIDE | {UNKNOWN: "no such name", SERVICE: [MESH4]}
    assert SERVICE not in world.asked
    with suppress(OSError):  # a UDP socket says "not connected", and wakes its reader all the same
        dns.shutdown(socket.SHUT_RDWR)
    machine.agent_restores()
    assert machine.snapshot() == before
    assert machine.find(*OUTSIDE) == OUTSIDE


def test_systemd_resolved_keeps_what_it_was_told_over_a_restart_and_is_told_again_what_was_reverted(
    machine: Machine, servers: Servers
) -> None:
    stub(machine)
    before = machine.snapshot()
    servers.udp("127.0.0.1", 15053, envoy)
    machine.agent_puts()
    machine.stop_resolved()
    machine.start_resolved()
    assert machine.find(SERVICE, *OUTSIDE) == {SERVICE: [MESH4]} | OUTSIDE
    machine.run("resolvectl", "revert", "hostmesh0")
    assert machine.find(SERVICE)[SERVICE] != [MESH4]
    machine.agent_puts()
    assert machine.find(SERVICE, *OUTSIDE) == {SERVICE: [MESH4]} | OUTSIDE
    machine.agent_restores()
    assert machine.snapshot() == before


def test_with_systemd_resolved_dead_everything_is_taken_back(machine: Machine) -> None:
    stub(machine)
    before = machine.snapshot()
    machine.agent_puts()
    machine.stop_resolved()
    machine.agent_restores()
    machine.start_resolved()
    wait_until(lambda: machine.snapshot() == before)
    assert machine.find(*OUTSIDE) == OUTSIDE


def test_a_host_below_which_others_have_names_is_left_to_them_and_named(machine: Machine, servers: Servers) -> None:
    stub(machine)
    servers.udp("127.0.0.1", 15053, envoy)
    assert "api.example.com" in machine.agent_puts()
    names = ("api.example.com", "v2.api.example.com")
    assert machine.find(*names) == {name: [WORLD[name]] for name in names}


def test_a_question_for_another_type_of_a_mesh_name_is_answered_with_nothing(
    machine: Machine, servers: Servers
) -> None:
    stub(machine)
    servers.udp("127.0.0.1", 15053, envoy)
    machine.agent_puts()
    name = b"".join(bytes([len(label)]) + label.encode() for label in SERVICE.split("."))
    question = b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0" + name + b"\0\0\x41\0\1"  # HTTPS, which browsers ask for
    answer = ask_udp("127.0.0.53", 53, question)
    assert (answer[3] & 15, answer[6:8]) == (0, b"\0\0")


def test_systemd_resolved_of_another_network_is_left_alone(machine: Machine, servers: Servers) -> None:
    """A lab's host shares the machine's /run, not its network; its link has a number that means another one there."""
    stub(machine)
    machine.run("sh", "-c", "rm /etc/resolv.conf; echo nameserver 10.0.0.2 > /etc/resolv.conf")
    before = machine.snapshot()
    with new_space() as elsewhere, elsewhere():
        machine.agent_puts()
        assert "hostmesh0" not in machine.run("ip", "link")
        machine.agent_restores()
    assert machine.snapshot() == before


def test_where_programs_go_past_systemd_resolved_nothing_is_changed_and_the_owner_hears_it(
    machine: Machine, servers: Servers
) -> None:
    uplink(machine)
    before = machine.snapshot()
    servers.udp("127.0.0.1", 15053, envoy)
    said = machine.agent_puts()
    assert said.startswith("False")
    assert "stub-resolv.conf" in said
    assert machine.find(*OUTSIDE) == OUTSIDE
    assert MESH4 in machine.run("resolvectl", "query", SERVICE)
    machine.agent_restores()
    assert machine.snapshot() == before


CONFIG = 'state_dir = "/run/hostmesh"\nrun_dir = "/run/hostmesh-run"\n'


@pytest.mark.parametrize("set_up", [plain, dnsmasq, stub, foreign], ids=lambda each: each.__name__)
def test_clear_and_leave_bring_everything_back_with_the_agent_dead(
    set_up: Callable[[Machine], None], machine: Machine
) -> None:
    set_up(machine)
    before = machine.snapshot()
    machine.write("/run/agent.toml", CONFIG)
    for verb in (("capture", "clear"), ("leave",), ("leave", "--purge"), ("leave", "--purge")):
        capture.apply(plan(CaptureRequest(), HostFloor(envoy_uid=ENVOY)))
        assert machine.agent_puts().startswith("True")
        assert machine.snapshot() != before
        machine.run(AGENT, "--config", "/run/agent.toml", *verb)
        assert machine.snapshot() == before
        assert capture.Capture().state().state == "off"
    assert machine.find(*OUTSIDE) == OUTSIDE
