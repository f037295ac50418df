"""An expulsion in real Envoys: who was expelled is refused on open connections and new ones, and nobody else is."""

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from golden.live import NEEDS_ROOT, Network, network, wait_until
from golden.objects import all_ready, mesh_of, obj
from golden.programs import WAIT_S, Programs, get, talk
from hostmesh_controller.mesh import Mesh, update

A, B, DB, EDGE, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.9"
VIP = "240.240.0.1"
IDS = {"a": "a" * 32, "b": "b" * 32, "db": "d" * 32, "edge": "e" * 32}
GREETING = b"hello\n"

pytestmark = NEEDS_ROOT

OBJECTS = [
    *(obj("Host", name, {"addresses": [at]}) for name, at in (("a", A), ("b", B), ("db", DB), ("edge", EDGE))),
    # Both callers are one service account: only the enrolment tells them apart.
    *(
        obj("WorkloadEntry", name, {"address": at, "labels": {"app": name}, "serviceAccount": "caller"})
        for name, at in (("a", A), ("b", B))
    ),
    obj("WorkloadEntry", "db", {"address": DB, "labels": {"app": "db"}, "serviceAccount": "db"}),
    obj("WorkloadEntry", "edge", {"address": EDGE, "labels": {"app": "edge"}, "serviceAccount": "edge"}),
    obj("PeerAuthentication", "strict", {"mtls": {"mode": "STRICT"}}),
    obj(
        "Service",
        "db",
        {
            "selector": {"app": "db"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "tcp", "port": 3306},
                {"name": "tcp-speaks-first", "port": 3307},
            ],
        },
    ),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net(mesh: Mesh) -> Iterator[Network]:
    programs = Programs()
    with network(mesh, OUTSIDER, enrolment=IDS.__getitem__) as running:
        with running.hosts["db"]():
            programs.http(8080, "db")
            programs.echo(3306)
            programs.echo(3307, GREETING)
        try:
            yield running
        finally:
            programs.close()


def expelled(mesh: Mesh, *hosts: str) -> Mesh:
    """Return the mesh after hosts were expelled; what they call stays as it is, to see it refused."""
    runtime = all_ready(OBJECTS)
    runtime |= {host: replace(runtime[host], expelled=True, denied=frozenset({IDS[host]})) for host in hosts}
    after, touched = update(mesh, {}, mesh.vips, runtime)
    assert not touched.everything
    return after


def status(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/", headers={"Host": "db"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def says(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return client.recv(100)


def test_an_expelled_host_is_refused_on_open_connections_and_new_ones_and_others_are_not(
    mesh: Mesh, net: Network
) -> None:
    a, b, db = (net.hosts[name] for name in ("a", "b", "db"))
    with a():
        open_a = http.client.HTTPConnection(VIP, 80, timeout=WAIT_S)
        assert status(open_a) == 200
    with b():
        open_b = http.client.HTTPConnection(VIP, 80, timeout=WAIT_S)
        assert status(open_b) == 200
        tcp_b = socket.create_connection((VIP, 3306), WAIT_S)
    with closing(open_a), closing(open_b), closing(tcp_b):
        assert says(tcp_b, b"one") == b"one"
        opened = db.stat(r"listener\..*_15006\.downstream_cx_total")
        added = db.stat(r"listener_manager\.listener_(added|modified|in_place_updated)")
        db.take(expelled(mesh, "a"))
        try:
            wait_until("a is refused", lambda: status(open_a) == 403)
            # Envoy keeps one connection with the other, on which this was said.
            assert db.stat(r"listener\..*_15006\.downstream_cx_total") == opened
            with a():
                assert get(VIP, 80, "db").status == 403
                assert refused(lambda: talk(VIP, 3306, b"new"))
                # A server that speaks first is heard until the caller says something: Envoy looks no earlier. On a
                # host, the agent closes the connection.
                assert refused(lambda: talk(VIP, 3307, b"x", greeting=GREETING))
            assert status(open_b) == 200
            assert says(tcp_b, b"two") == b"two"
            with b():
                assert get(VIP, 80, "db").status == 200
                assert talk(VIP, 3306, b"new") == b"new"
            # Nothing was drained for it.
            assert db.stat(r"listener_manager\.listener_(added|modified|in_place_updated)") == added
        finally:
            db.take(mesh)
        wait_until("a is let in", lambda: status(open_a) == 200)


def refused(call: Callable[[], bytes]) -> bool:
    try:
        return call() == b""
    except ConnectionError:
        return True
