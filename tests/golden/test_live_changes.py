"""The mesh changes under real Envoys: what appears is found, what goes is gone, and nobody else's traffic notices."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from functools import partial

import grpc
import pytest

from golden.live import NEEDS_ROOT, LiveHost, Network, network, vip, wait_until
from golden.objects import mesh_of, obj, vips_of
from golden.programs import WAIT_S, Programs, get, look_up, talk
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject

WEB, DB, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.9"

pytestmark = NEEDS_ROOT


def service(name: str, port: int, port_name: str, target: int | None = None, **more: str) -> ApiObject:
    spec = {
        "selector": {"app": "db"},
        "ports": [{"name": port_name, "port": port, "targetPort": target or port}],
        **more,
    }
    return obj("Service", name, spec)


OBJECTS = [
    obj("Host", "web", {"addresses": [WEB]}),
    obj("Host", "db", {"addresses": [DB]}),
    obj("WorkloadEntry", "web", {"address": WEB, "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("WorkloadEntry", "db", {"address": DB, "labels": {"app": "db"}, "serviceAccount": "db"}),
    service("db", 80, "http", 8080),
    service("db-tcp", 3306, "tcp"),
    service("db-grpc", 5000, "grpc"),
    service("db-any", 5001, "any", 5000),
    # Undeclared to its callers; the port itself speaks what the first service says.
    service("db-first", 5002, "grpc"),
    service("db-second", 5003, "any", 5002),
    service("db-third", 82, "any", 8080),
    service("db-socket", 81, "http", 8081),
    obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8088}]}),
]


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in its stubs only
    """Answers any call with what it got."""

    def service(self, _details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net(mesh: Mesh) -> Iterator[Network]:
    with ExitStack() as stack:
        programs = Programs()
        stack.callback(programs.close)
        running = stack.enter_context(network(mesh, OUTSIDER))
        calls = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Echo()])
        with running.hosts["db"]():
            programs.http(8080, "db")
            programs.echo(3306)
            programs.upgrades(8081)
            assert calls.add_insecure_port("0.0.0.0:5000")
            assert calls.add_insecure_port("0.0.0.0:5002")
        with running.hosts["web"]():
            programs.http(8088, "web")
        calls.start()
        stack.callback(lambda: calls.stop(None).wait(WAIT_S))
        yield running


@pytest.fixture
def web(net: Network, mesh: Mesh) -> Iterator[LiveHost]:
    with net.hosts["web"]():
        yield net.hosts["web"]
    net.hosts["web"].take(mesh)


def with_objects(mesh: Mesh, *objects: ApiObject) -> Mesh:
    """Return the mesh with more objects; what was there keeps its virtual addresses."""
    more = [item for item in objects if item.key.kind == "Service"]
    names = sorted(vips_of(more).keys() - mesh.vips.keys())
    vips = dict(mesh.vips) | {name: index for index, name in enumerate(names, start=len(mesh.vips) + 1)}
    return update(mesh, {item.key: item for item in objects}, vips, mesh.runtime)[0]


def test_a_service_that_was_not_there_is_found_when_it_comes_and_is_gone_when_it_goes(
    web: LiveHost, mesh: Mesh
) -> None:
    more = with_objects(mesh, service("late", 80, "http", 8080), service("late-tcp", 3306, "tcp"))
    assert get(vip(mesh, "db"), 80, "late").status == 404
    assert talk(vip(more, "late-tcp"), 3306, b"hello") == b""
    web.take(more)
    wait_until("found", lambda: get(vip(more, "late"), 80, "late").status == 200)
    wait_until("found", lambda: talk(vip(more, "late-tcp"), 3306, b"hello") == b"hello")
    web.take(mesh)
    wait_until("gone", lambda: get(vip(mesh, "db"), 80, "late").status == 404)
    wait_until("gone", lambda: talk(vip(more, "late-tcp"), 3306, b"hello") == b"")


def test_a_port_that_speaks_http_from_now_on(web: LiveHost, mesh: Mesh) -> None:
    more = with_objects(mesh, service("other-port", 8000, "http", 8080))
    web.take(more)
    wait_until("found", lambda: "0.0.0.0_8000" in web.listeners())
    assert get(vip(more, "other-port"), 8000, "other-port:8000").status == 200
    web.take(mesh)
    wait_until("gone", lambda: "0.0.0.0_8000" not in web.listeners())


def answers(name: str, address: str) -> bool:
    return look_up(name, 1)[1] == [address]


def test_streams_go_on_while_services_come_and_go(web: LiveHost, net: Network, mesh: Mesh) -> None:
    with socket.create_connection((vip(mesh, "db-tcp"), 3306), WAIT_S) as stream:
        stream.sendall(b"before")
        assert stream.recv(100) == b"before"
        current = mesh
        for index in range(5):
            current = with_objects(
                current,
                service(f"new-{index}", 3306, "tcp", clusterIP=f"10.96.0.{index}"),
                service(f"web-{index}", 80, "http", 8080, clusterIP=f"10.96.1.{index}"),
            )
            web.take(current)
            wait_until("the new table", partial(answers, f"new-{index}", f"10.96.0.{index}"))
        in_place = web.stat("listener_manager.listener_in_place_updated")
        assert in_place >= 10, "each change adds a chain to virtualOutbound and one to 0.0.0.0_80"
        wait_until("drained", lambda: web.stat("listener_manager.total_(filter_chains|listeners)_draining") == 0)
        stream.sendall(b"after")
        assert stream.recv(100) == b"after"


def test_names_are_answered_while_the_table_changes(web: LiveHost, mesh: Mesh) -> None:
    for index in range(10):
        changed = with_objects(mesh, service("named", 80, "http", 8080, clusterIP=f"10.96.2.{index}"))
        web.take(changed)
        for _ in range(20):
            assert look_up("db", 1) == (0, [vip(mesh, "db")])
    wait_until("the last table", lambda: answers("named", "10.96.2.9"))


def test_inbound_streams_go_on_when_the_policy_becomes_strict(web: LiveHost, net: Network, mesh: Mesh) -> None:
    strict = obj("PeerAuthentication", "strict", {"mtls": {"mode": "STRICT"}})
    db = net.hosts["db"]
    with socket.create_connection((vip(mesh, "db-tcp"), 3306), WAIT_S) as stream:
        stream.sendall(b"before")
        assert stream.recv(100) == b"before"
        db.take(with_objects(mesh, strict))
        with net.outsider():
            wait_until("strict", lambda: talk(DB, 3306, b"hello") == b"")
        stream.sendall(b"after")
        assert stream.recv(100) == b"after"
    db.take(mesh)
    with net.outsider():
        wait_until("permissive", lambda: talk(DB, 3306, b"hello") == b"hello")


def test_a_host_calls_itself(web: LiveHost, mesh: Mesh) -> None:
    answer = get(vip(mesh, "web"), 80, "web")
    assert answer.got["program"] == "web"
    assert "By=spiffe://cluster.local/ns/default/sa/web" in answer.got["x-forwarded-client-cert"]


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize(
    ("name", "port"),
    [("db-grpc", 5000), ("db-any", 5001), ("db-second", 5003)],
    ids=["declared", "undeclared", "undeclared by one of two services"],
)
def test_grpc_is_http2_all_the_way(web: LiveHost, mesh: Mesh, name: str, port: int) -> None:
    message = b"\0\0\0\0\5hello"
    done = subprocess.run(
        [
            *("curl", "-s", "-i", "--max-time", str(WAIT_S), "--http2-prior-knowledge", "--data-binary", "@-"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            *("--resolve", f"{name}:{port}:{vip(mesh, name)}", f"http://{name}:{port}/any.Service/Call"),
        ],
        input=message,
        capture_output=True,
        timeout=2 * WAIT_S,
        check=False,
    )
    assert message in done.stdout, (done.stdout, done.stderr)
    assert b"grpc-status: 0" in done.stdout


def test_a_websocket_is_passed_on(web: LiveHost, mesh: Mesh) -> None:
    with socket.create_connection((vip(mesh, "db-socket"), 81), WAIT_S) as client:
        client.sendall(
            b"GET /chat HTTP/1.1\r\nHost: db-socket:81\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 101")
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_a_port_that_another_service_declares_is_found_out_too(web: LiveHost, mesh: Mesh) -> None:
    assert get(vip(mesh, "db-third"), 82, "db-third:82").got["program"] == "db"


def test_http_1_0_is_served(web: LiveHost, mesh: Mesh) -> None:
    with socket.create_connection((vip(mesh, "db"), 80), WAIT_S) as client:
        client.sendall(b"GET / HTTP/1.0\r\nHost: db\r\n\r\n")
        assert b" 200 OK" in client.recv(4096)
