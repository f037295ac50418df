"""Name resolution on a captured host, down to glibc: mesh names are Envoy's, and no other name depends on us."""

import asyncio
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from hostmesh_agent import capture, dns_front, dns_message, udp_flows
from hostmesh_agent.capture import CaptureRequest, HostFloor, plan
from hostmesh_agent.dns import Resolver
from hostmesh_agent.places import BLUE, GREEN, PORTS, Instance
from hostmesh_api.wire import DNS_ADDRESS
from netns.conftest import PEER
from netns.name_machine import wait_until
from netns.space import WAIT_S, Servers, Space, ask_udp, run

ENVOY = 900
NXDOMAIN, REFUSED = 3, 5
ASK = """
import socket, sys, time
for name in sys.argv[1:]:
    began = time.monotonic()
    try:
        print(name, socket.gethostbyname(name), end=" ")
    except socket.gaierror as error:
        print(name, {socket.EAI_NONAME: "no such name"}.get(error.errno, error), end=" ")
    print("quickly" if time.monotonic() - began < 2 else "slowly")
"""


def labels(query: bytes) -> tuple[str, int]:
    """Return the name that is asked for and where its question ends."""
    found, offset = [], 12
    while query[offset]:
        found.append(query[offset + 1 : offset + 1 + query[offset]].decode())
        offset += 1 + query[offset]
    return ".".join(found), offset + 5


def resolver_of(names: dict[str, str]) -> Callable[[bytes], bytes]:
    """A DNS server that knows addresses of a few names; all others do not exist."""

    def answer(query: bytes) -> bytes:
        name, end = labels(query)
        address = names.get(name)  # in the case as written, like Envoy
        code = 0 if address else NXDOMAIN
        header = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, int(bool(address)), 0, 0)
        if not address:
            return header + query[12:end]
        record = struct.pack(">HHHIH", 0xC00C, 1, 1, 5, 4) + bytes(map(int, address.split(".")))
        return header + query[12:end] + record

    return answer


@pytest.fixture
def captured(host: Space) -> None:
    capture.apply(plan(CaptureRequest(), HostFloor(envoy_uid=ENVOY)))


@pytest.mark.parametrize(
    ("envoy_says", "caller_hears"),
    [
        (0x8183, 0x8180 | REFUSED),
        (0x85B3, 0x85B0 | REFUSED),
        (0x8503, 0x8500 | REFUSED),
        (0x8180, 0x8180),
        (0x8182, 0x8182),
        (0x818B, 0x818B),
        (0x8187, 0x8187),
    ],
)
def test_only_no_such_name_becomes_refused_and_every_other_flag_is_kept(
    captured: None, servers: Servers, envoy_says: int, caller_hears: int
) -> None:
    servers.udp("127.0.0.1", 15053, lambda query: query[:2] + envoy_says.to_bytes(2, "big") + query[4:])
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04mesh\x00\x00\x01\x00\x01"
    assert ask_udp("127.240.240.53", 53, query) == query[:2] + caller_hears.to_bytes(2, "big") + query[4:]


@pytest.mark.parametrize(
    ("envoy_says", "caller_hears"), [(0x8183, 0x8183), (0x8504, 0x8500), (0x8180, 0x8180), (0x8185, 0x8185)]
)
def test_who_asks_nobody_else_hears_that_a_name_is_none_and_that_there_is_nothing_of_a_type(
    captured: None, servers: Servers, envoy_says: int, caller_hears: int
) -> None:
    servers.udp("127.0.0.1", 15053, lambda query: query[:2] + envoy_says.to_bytes(2, "big") + query[4:])
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04mesh\x00\x00\x41\x00\x01"
    assert ask_udp("127.240.240.54", 53, query) == query[:2] + caller_hears.to_bytes(2, "big") + query[4:]


def test_an_answer_in_fragments_keeps_a_true_checksum(captured: None, servers: Servers) -> None:
    """Its checksum is made by the sender, and there is one to keep true."""
    run("ip", "link", "set", "lo", "mtu", "1280")
    servers.udp("127.0.0.1", 15053, lambda query: query[:2] + b"\x81\x83" + bytes(4001))
    assert ask_udp("127.240.240.53", 53, b"\x12\x34" + bytes(20)) == b"\x12\x34\x81\x85" + bytes(4001)


def test_the_answers_of_other_servers_stay_as_they_are(captured: None, servers: Servers) -> None:
    for port in (53, 15054):
        servers.udp("127.0.0.1", port, lambda query: query[:2] + b"\x81\x83" + query[4:])
        assert ask_udp("127.0.0.1", port, bytes(12)) == b"\x00\x00\x81\x83" + bytes(8)


def test_with_envoy_dead_the_caller_hears_it_at_once(captured: None) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask_udp("127.240.240.53", 53, bytes(12))


def two_questions(address: str) -> list[type[Exception] | None]:
    """Put two questions from one socket, as c-ares does, and return how each fails; None: nothing is heard of it."""
    found: list[type[Exception] | None] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((address, 53))
        for _ in range(2):
            try:
                asking.send(bytes(12))
            except OSError as error:
                found.append(type(error))
            else:
                found.append(None)
    return found


def test_where_no_envoy_answers_each_of_two_questions_from_one_socket_fails_by_itself(
    captured: None, servers: Servers
) -> None:
    # The closed port tells of the first question when the second is put: one of the two is waited for.
    assert two_questions("127.240.240.53") == [None, ConnectionRefusedError]
    servers.udp("127.0.0.1", 15053, lambda query: query)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(WAIT_S)
        asking.connect(("127.240.240.53", 53))
        asking.send(bytes(12))
        assert asking.recv(100) == bytes(12)
        dead = HostFloor(envoy_uid=ENVOY, names_answered=False)
        capture.apply(plan(CaptureRequest(), dead))
        assert two_questions("127.240.240.53") == [PermissionError, PermissionError]
        # A socket that had an answer from Envoy is no exception: its connection has been led there already.
        with pytest.raises(PermissionError):
            asking.send(bytes(12))
        capture.apply(plan(CaptureRequest(), HostFloor(envoy_uid=ENVOY)))
        asking.send(bytes(12))
        assert asking.recv(100) == bytes(12)


def test_a_program_that_keeps_its_socket_asks_the_envoy_that_serves_now(host: Space, servers: Servers) -> None:
    """So does one that gets a port number which another one had: the kernel remembers where it led each."""
    for name in Instance:
        servers.udp("127.0.0.1", PORTS[name].dns, partial(_signed, name))

    def lead_to(name: Instance) -> None:
        capture.apply(plan(CaptureRequest(), HostFloor(envoy_uid=ENVOY, dns_port=PORTS[name].dns)))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kept:
        kept.settimeout(WAIT_S)

        def answer() -> bytes:
            kept.send(bytes(12))
            return kept.recv(100)[12:]

        lead_to(BLUE)
        kept.connect((DNS_ADDRESS, 53))
        assert answer() == b"blue"
        lead_to(GREEN)
        assert answer() == b"blue"
        assert udp_flows.forget(PORTS[BLUE].dns) == 1
        assert answer() == b"green"
        assert udp_flows.forget(PORTS[BLUE].dns) == 0
        assert answer() == b"green"


def _signed(name: Instance, query: bytes) -> bytes:
    return query[:12] + name.encode()


@pytest.fixture
def resolv_conf(tmp_path: Path, peer: Space, servers: Servers) -> Path:
    """A resolv.conf that names the peer, where a resolver knows the world and nothing of the mesh."""
    with peer():
        servers.udp(PEER[0], 53, resolver_of({"outside.example": "192.0.2.7"}))
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {PEER[0]}\noptions rotate timeout:1\n")
    return path


def resolve(path: Path, *names: str) -> list[str]:
    """Let glibc resolve names with the file at `path` as /etc/resolv.conf, in a mount namespace of its own."""
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, str(path), sys.executable, "-c", ASK, *names]
    return run(*command).splitlines()


NAMES = ("shop.mesh.example", "outside.example", "nobody.example")


def test_mesh_names_are_answered_by_envoy_and_all_others_by_those_behind_it(
    captured: None, resolv_conf: Path, servers: Servers, tmp_path: Path
) -> None:
    servers.udp("127.0.0.1", 15053, resolver_of({"shop.mesh.example": "240.240.0.9"}))
    resolver = Resolver(resolv_conf, tmp_path / "state")
    assert resolve(resolv_conf, *NAMES)[0] == "shop.mesh.example no such name quickly"
    assert resolver.apply().in_place
    # Each name three times: with `rotate` in force one of them would ask another resolver first.
    assert (
        resolve(resolv_conf, *NAMES * 3)
        == [
            "shop.mesh.example 240.240.0.9 quickly",
            "outside.example 192.0.2.7 quickly",
            "nobody.example no such name quickly",
        ]
        * 3
    )
    resolver.restore()
    assert resolve(resolv_conf, *NAMES)[0] == "shop.mesh.example no such name quickly"


@pytest.mark.parametrize("rules", [True, False], ids=["rules", "no rules"])
def test_names_outside_the_mesh_need_neither_envoy_nor_the_rules(
    resolv_conf: Path, tmp_path: Path, rules: bool
) -> None:
    if rules:
        capture.apply(plan(CaptureRequest(), HostFloor(envoy_uid=ENVOY)))
    Resolver(resolv_conf, tmp_path / "state").apply()
    assert resolve(resolv_conf, *NAMES[1:]) == [
        "outside.example 192.0.2.7 quickly",
        "nobody.example no such name quickly",
    ]


def test_a_file_that_is_mounted_is_written_in_place_and_comes_back(resolv_conf: Path, tmp_path: Path) -> None:
    before = resolv_conf.read_bytes()
    code = (
        "import sys; from pathlib import Path; from hostmesh_agent.dns import Resolver;"
        "r = Resolver(Path('/etc/resolv.conf'), Path(sys.argv[1])); r.apply(); assert r.check().in_place;"
        "print(Path('/etc/resolv.conf').read_text()); r.restore()"
    )
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    shown = run(
        *("unshare", "--mount", "sh", "-c", script, str(resolv_conf), sys.executable, "-c", code, str(tmp_path / "s")),
        environment={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "nameserver 127.240.240.53" in shown
    assert resolv_conf.read_bytes() == before


def ask_tcp(address: str, query: bytes) -> bytes:
    """Put a question over TCP; return the answer, "" if the connection ends without one."""
    with socket.create_connection((address, 53), timeout=WAIT_S) as client, client.makefile("rb") as stream:
        try:
            client.sendall(dns_message.framed(query))
            return stream.read(int.from_bytes(stream.read(2), "big"))
        except (ConnectionResetError, BrokenPipeError):  # it had not read all of the question
            return b""


@pytest.fixture
def front(captured: None) -> Iterator[dns_front.Front]:
    """The agent's front, in a thread of its own."""
    front = dns_front.Front()
    loop = asyncio.new_event_loop()
    with new_loop_thread(loop, front):
        yield front


@contextmanager
def new_loop_thread(loop: asyncio.AbstractEventLoop, front: dns_front.Front) -> Iterator[None]:
    task = loop.create_task(front.run())

    def live() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        wait_until(lambda: "127.0.0.1:15055" in run("ss", "-ltn"))
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(WAIT_S)


SHOP = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04ShOp\x04mesh\x07example\x00\x00\x01\x00\x01"


@pytest.mark.parametrize(("address", "unknown"), [("127.240.240.53", REFUSED), ("127.240.240.54", NXDOMAIN)])
def test_a_question_over_tcp_gets_the_answer_that_it_gets_over_udp_in_any_case(
    front: dns_front.Front, servers: Servers, address: str, unknown: int
) -> None:
    servers.udp("127.0.0.1", 15053, resolver_of({"shop.mesh.example": "240.240.0.9"}))
    answer = ask_tcp(address, SHOP)
    assert answer.startswith(SHOP[:2] + b"\x81\x80" + b"\0\1\0\1\0\0\0\0" + SHOP[12:])
    assert answer.endswith(bytes([240, 240, 0, 9]))
    assert ask_tcp(address, SHOP.replace(b"ShOp", b"none"))[3] & 15 == unknown


def test_over_tcp_a_dead_envoy_and_what_is_no_question_end_the_connection_at_once(front: dns_front.Front) -> None:
    assert ask_tcp("127.240.240.53", SHOP) == b""
    assert ask_tcp("127.240.240.53", b"\xff" * 40) == b""
    assert ask_tcp("127.240.240.53", b"") == b""


def test_over_tcp_a_dead_agent_is_a_closed_port(captured: None) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask_tcp("127.240.240.53", SHOP)


def test_connections_beyond_the_bound_are_ended_and_others_are_answered_again(
    front: dns_front.Front, servers: Servers
) -> None:
    servers.udp("127.0.0.1", 15053, resolver_of({"shop.mesh.example": "240.240.0.9"}))
    with ExitStack() as held:
        for _ in range(dns_front.CONNECTIONS):
            held.enter_context(socket.create_connection(("127.240.240.53", 53), timeout=WAIT_S))
        wait_until(lambda: front.connections == dns_front.CONNECTIONS)
        assert ask_tcp("127.240.240.53", SHOP) == b""
    wait_until(lambda: front.connections == 0)
    assert ask_tcp("127.240.240.53", SHOP).endswith(bytes([240, 240, 0, 9]))


def test_glibc_finds_names_over_tcp_and_all_others_where_it_found_them(
    front: dns_front.Front, resolv_conf: Path, servers: Servers, tmp_path: Path, peer: Space
) -> None:
    servers.udp("127.0.0.1", 15053, resolver_of({"shop.mesh.example": "240.240.0.9"}))
    resolv_conf.write_text(f"nameserver {PEER[0]}\noptions use-vc timeout:1 attempts:1\n")
    Resolver(resolv_conf, tmp_path / "state").apply()
    assert resolve(resolv_conf, "shop.mesh.example") == ["shop.mesh.example 240.240.0.9 quickly"]
