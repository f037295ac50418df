"""Connections with expelled hosts are closed by the kernel: those of Envoy, and no others."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address

import pytest

from hostmesh_agent.sever import sever, sever_own_calls
from netns.conftest import HOST, PEER
from netns.space import Space, as_user

ENVOY = 900
WAIT_S = 10.0
V4, V6 = 0, 1

families = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


class Pair:
    """A connection from the peer to the host, with the host's end owned by a user."""

    def __init__(self, peer: Space, family: int, uid: int, listener_uid: int = 0) -> None:
        kind = socket.AF_INET6 if family == V6 else socket.AF_INET
        with as_user(listener_uid):
            self.listener = socket.create_server((HOST[family], 0), family=kind)
        with peer():
            self.far = socket.create_connection(self.listener.getsockname()[:2], WAIT_S)
        with as_user(uid):
            self.near, _ = self.listener.accept()
        self.near.settimeout(WAIT_S)

    def close(self) -> None:
        self.listener.close()
        self.near.close()
        self.far.close()

    def lives(self) -> bool:
        try:
            self.far.sendall(b"x")
            self.near.sendall(self.near.recv(1))
            return self.far.recv(1) == b"x"
        except OSError:
            return False


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@families
def test_a_connection_of_envoy_with_an_expelled_host_is_closed_and_any_other_lives_on(
    peer: Space, held: ExitStack, family: int
) -> None:
    envoys, ssh = (held.enter_context(closing(Pair(peer, family, uid))) for uid in (ENVOY, 0))
    assert sever([ip_address("192.0.2.1"), ip_address("2001:db8::99")], ENVOY) == 0
    assert envoys.lives()
    assert sever([ip_address(PEER[family])], ENVOY) == 1
    assert not envoys.lives()
    assert ssh.lives()


@families
def test_a_connection_that_envoy_opened_to_an_expelled_host_is_closed(
    peer: Space, held: ExitStack, family: int
) -> None:
    kind = socket.AF_INET6 if family == V6 else socket.AF_INET
    with peer():
        listener = held.enter_context(socket.create_server((PEER[family], 0), family=kind))
    with as_user(ENVOY):
        client = held.enter_context(socket.create_connection(listener.getsockname()[:2], WAIT_S))
    far, _ = listener.accept()
    with far:
        assert sever([ip_address(PEER[family])], ENVOY) == 1
        with pytest.raises(ConnectionError):
            client.sendall(b"x")
        with pytest.raises(ConnectionError):
            far.recv(1)


def test_ipv4_over_a_socket_of_ipv6_is_closed_too(peer: Space, held: ExitStack) -> None:
    listener = held.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True))
    with peer():
        far = held.enter_context(socket.create_connection((HOST[V4], listener.getsockname()[1]), WAIT_S))
    with as_user(ENVOY):
        near, _ = listener.accept()
    with near:
        assert sever([ip_address(PEER[V4])], ENVOY) == 1
        with pytest.raises(ConnectionError):
            far.recv(1)


def test_a_listener_is_not_closed_and_many_connections_are(peer: Space, held: ExitStack) -> None:
    pairs = [held.enter_context(closing(Pair(peer, V4, ENVOY))) for _ in range(700)]
    assert sever([ip_address(PEER[V4])], ENVOY) == len(pairs)
    assert not any(each.lives() for each in (pairs[0], pairs[-1]))


def test_what_envoy_has_opened_can_be_closed_without_what_others_have_opened_to_it(peer: Space) -> None:
    with ExitStack() as held:
        theirs = held.enter_context(closing(Pair(peer, V4, ENVOY, listener_uid=ENVOY)))
        programs = held.enter_context(closing(Pair(peer, V4, 0)))
        local = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        with peer():
            listener = held.enter_context(socket.create_server((PEER[V4], 0)))
        with as_user(ENVOY):
            opened = held.enter_context(socket.create_connection(listener.getsockname()[:2], WAIT_S))
            inside = held.enter_context(socket.create_connection(local.getsockname()[:2], WAIT_S))
        assert sever_own_calls(ENVOY) == 1
        with pytest.raises(ConnectionError):
            opened.sendall(b"x")
        inside.sendall(b"x")
        assert theirs.lives()
        assert programs.lives()
