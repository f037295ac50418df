"""Connections of a real kernel are seen, long ones and those that came and went between two looks."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hostmesh_agent import sock_diag
from hostmesh_agent.observing import Observing
from hostmesh_api.v1.hostmesh_pb2 import Flow, ReportResponse
from netns.conftest import HOST, PEER
from netns.space import WAIT_S, Space

ENVOY = 65_000
OTHER = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); print(flush=True); input()"


@pytest.fixture
def observer(host: Space) -> Iterator[Observing]:
    made = Observing(ENVOY, tuple, True, 20.0, lambda: datetime.now(UTC), own_pid=1)
    try:
        with host():
            made.look()
        yield made
    finally:
        made.close()


def told(observer: Observing) -> dict[tuple[str, bool, str, int], Flow]:
    observer.look()
    flows = observer.tell().flows
    observer.taken(ReportResponse(flows_memory="m"))
    return {(each.program, each.inbound, each.peer, each.port): each for each in flows}


def told_soon(observer: Observing, key: tuple[str, bool, str, int], count: int) -> bool:
    """Look until so many connections were told: the kernel tells of their end from a queue."""
    deadline_s = time.monotonic() + WAIT_S
    while _seen(observer).get(key) != count:
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{key} is not {count}: {_seen(observer)}")
        time.sleep(0.01)
        observer.look()
    return True


def _seen(observer: Observing) -> dict[tuple[str, bool, str, int], int]:
    seen = observer.flows.seen
    return {(flow.program.name, flow.inbound, flow.peer, flow.port): each.count for flow, each in seen.items()}


@contextmanager
def server(space: Space, address: str) -> Iterator[tuple[socket.socket, int]]:
    with space():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.create_server((address, 0), family=family)
    with made:
        yield made, made.getsockname()[1]


@pytest.mark.parametrize("family", [0, 1])
def test_a_programs_connection_is_told_by_its_name_until_and_after_it_ends(
    host: Space, peer: Space, observer: Observing, family: int
) -> None:
    with server(peer, PEER[family]) as (listening, port):
        command = [sys.executable, "-c", OTHER, PEER[family], str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            accepted, _ = listening.accept()
            assert program.stdout is not None
            program.stdout.readline()
            first = told(observer)
            (name,) = {key[0] for key in first}
            assert name.startswith("python")
            assert first[name, False, PEER[family], port].count == 1
            assert told(observer) == {}
            accepted.close()
            program.communicate(b"\n", timeout=10)
        # A second one, gone before anybody looks: by the same program as far as anybody knows.
        with host(), socket.create_connection((PEER[family], port)) as brief:
            listening.accept()[0].close()
            brief.recv(1)
        assert told_soon(observer, (name, False, PEER[family], port), 2)


@pytest.mark.parametrize("family", [0, 1])
@pytest.mark.parametrize("closes_first", ["caller", "server"])
def test_a_caller_that_came_and_went_is_counted_whoever_closed_first(
    host: Space, peer: Space, observer: Observing, family: int, closes_first: str
) -> None:
    with server(host, HOST[family]) as (listening, port):
        for _ in range(3):
            with peer():
                caller = socket.create_connection((HOST[family], port))
            accepted, _ = listening.accept()
            one, other = (caller, accepted) if closes_first == "caller" else (accepted, caller)
            one.close()
            other.recv(1)
            other.close()
        name = Path("/proc/self/comm").read_text().strip()
        assert told_soon(observer, (name, True, PEER[family], port), 3)
    assert {key[1:] for key in _seen(observer)} == {(True, PEER[family], port)}


def test_ipv4_through_a_socket_of_both_is_ipv4(host: Space, peer: Space) -> None:
    with ExitStack() as held:
        with host():
            listening = held.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True))
        port = listening.getsockname()[1]
        with peer():
            held.enter_context(socket.create_connection((HOST[0], port)))
        held.enter_context(listening.accept()[0])
        seen = sock_diag.look({}, 100)
        assert [(each.peer, each.port) for each in seen.new.values()] == [(PEER[0], port)]


def test_who_never_got_an_answer_has_no_connection(host: Space, peer: Space) -> None:
    closings = sock_diag.Closings()
    try:
        with host():
            for target in ((PEER[0], 1), ("10.9.0.77", 80)):
                with socket.socket() as caller:
                    caller.settimeout(0.2)
                    with pytest.raises(OSError):  # noqa: PT011 - refused, or nobody there
                        caller.connect(target)
        assert closings.take() == {}
    finally:
        closings.close()


def test_more_closings_than_there_is_room_for_are_dropped_and_nothing_fails(host: Space) -> None:
    closings = sock_diag.Closings()
    try:
        with host(), socket.create_server(("127.0.0.1", 0)) as listening:
            for _ in range(2500):
                with socket.create_connection(listening.getsockname()):
                    listening.accept()[0].close()
        first = len(closings.take())
        assert 0 < first < 5000
        with host(), socket.create_server(("127.0.0.1", 0)) as listening:
            socket.create_connection(listening.getsockname()).close()
            listening.accept()[0].close()
        deadline_s = time.monotonic() + WAIT_S
        while not closings.take():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    finally:
        closings.close()


def test_the_number_of_connections_that_are_read_is_bounded(host: Space) -> None:
    with host(), ExitStack() as held:
        listening = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        for _ in range(20):
            held.enter_context(socket.create_connection(listening.getsockname()))
            held.enter_context(listening.accept()[0])
        assert len(sock_diag.look({}, 10).new) == 10
