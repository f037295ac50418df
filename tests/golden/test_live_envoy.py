"""The on-demand path with real Envoys: two hosts, the kernel's rules, mutual TLS, programs that know nothing."""

import http.client
import http.server
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from golden.live import WAIT_S, LiveHost, hosts
from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.model.objects import ApiObject

WEB, DB = "10.9.0.1", "10.9.0.2"
WEB6, DB6 = "2001:db8:9::1", "2001:db8:9::2"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("nft", "ip"))), reason="needs root, nft and ip"
)


def objects() -> list[ApiObject]:
    ports = [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "tcp-echo", "port": 3306},
        {"name": "any", "port": 7000},
        {"name": "any-first", "port": 7001},
        {"name": "grpc", "port": 5000},
    ]
    return [
        obj("Host", "web", {"addresses": [WEB, WEB6]}),
        obj("Host", "db", {"addresses": [DB, DB6]}),
        obj("WorkloadEntry", "web-1", {"address": WEB, "labels": {"app": "web"}, "serviceAccount": "web"}),
        obj("WorkloadEntry", "db-1", {"address": DB, "labels": {"app": "db"}, "serviceAccount": "db"}),
        obj("Service", "db", {"selector": {"app": "db"}, "ports": ports}),
    ]


class Program(http.server.BaseHTTPRequestHandler):
    """Answers with the headers it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = "".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Path", self.path)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class HttpServer(http.server.ThreadingHTTPServer):
    daemon_threads = True


def echo(listener: socket.socket, greeting: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        with connection:
            connection.sendall(greeting)
            while data := connection.recv(65536):
                connection.sendall(data)

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(objects())


@pytest.fixture(scope="module")
def live(mesh: Mesh) -> Iterator[dict[str, LiveHost]]:
    with ExitStack() as stack:
        # Not pytest's own directory: Envoy runs as another user, who must be able to enter.
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="hostmesh-live-")))
        directory.chmod(0o755)
        running = stack.enter_context(hosts(mesh, directory))
        programs: list[HttpServer] = []
        listeners: list[socket.socket] = []
        with running["db"]():
            programs += [HttpServer(("0.0.0.0", port), Program) for port in (8080, 7000)]
            for port, greeting in ((3306, b""), (7001, b"welcome\n")):
                listeners.append(socket.create_server(("0.0.0.0", port)))
                threading.Thread(target=echo, args=(listeners[-1], greeting), daemon=True).start()
        for program in programs:
            threading.Thread(target=program.serve_forever, daemon=True).start()
        yield running
        for program in programs:
            program.shutdown()
            program.server_close()
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def vip(mesh: Mesh, name: str = "db") -> str:
    return str(wire.VIP4[mesh.vips[f"{name}.default.svc.cluster.local"]])


def get(
    host: LiveHost, address: str, port: int, authority: str, path: str = "/", headers: dict[str, str] | None = None
):
    with host():
        client = http.client.HTTPConnection(address, port, timeout=WAIT_S)
        client.connect()
    try:
        client.request("GET", path, headers={"Host": authority, **(headers or {})})
        answer = client.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        client.close()


def talk(host: LiveHost, address: str, port: int, data: bytes, *, greeting: bytes = b"") -> bytes:
    with host():
        client = socket.create_connection((address, port), WAIT_S)
    with client:
        found = b""
        while len(found) < len(greeting):
            found += client.recv(100)
        assert found == greeting
        client.sendall(data)
        answer = b""
        while len(answer) < len(data):
            chunk = client.recv(65536)
            if not chunk:
                break
            answer += chunk
        return answer


def test_a_request_reaches_a_service_on_demand_with_mutual_tls(live: dict[str, LiveHost], mesh: Mesh) -> None:
    status, body, headers = get(live["web"], vip(mesh), 80, "db")
    assert status == 200
    assert "spiffe://cluster.local/ns/default/sa/web" in body
    assert "By=spiffe://cluster.local/ns/default/sa/db" in body
    assert "x-envoy" not in body
    print(body, headers)


def test_a_tcp_stream_reaches_a_service_on_demand(live: dict[str, LiveHost], mesh: Mesh) -> None:
    data = b"x" * 3_000_000
    assert talk(live["web"], vip(mesh), 3306, data) == data
