"""Sidecars and mesh-wide settings under real Envoys: what may be called, where calls go, what is written of them."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import pki
from golden.live import NEEDS_ROOT, LiveHost, Network, network, vip, wait_until
from golden.objects import mesh_of, obj
from golden.programs import WAIT_S, Programs, get, hello_tls, server_tls, talk
from hostmesh_api.identity import WorkloadIdentity
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.model.objects import ApiObject

WEB, DB, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.9"

pytestmark = NEEDS_ROOT


def service(name: str, port: int, port_name: str, app: str = "db") -> ApiObject:
    return obj("Service", name, {"selector": {"app": app}, "ports": [{"name": port_name, "port": port}]})


OBJECTS = [
    obj("Host", "web", {"addresses": [WEB]}),
    obj("Host", "db", {"addresses": [DB]}),
    obj("WorkloadEntry", "web", {"address": WEB, "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("WorkloadEntry", "db", {"address": DB, "labels": {"app": "db"}, "serviceAccount": "db"}),
    service("db", 8080, "http"),
    service("db-tcp", 3306, "tcp"),
]
CLOSED = obj(
    "Sidecar",
    "web",
    {"workloadSelector": {"labels": {"app": "web"}}, "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}},
)


def running(mesh: Mesh, stack: ExitStack) -> Network:
    programs = Programs()
    stack.callback(programs.close)
    net = stack.enter_context(network(mesh, OUTSIDER))
    with net.hosts["db"]():
        programs.http(8080, "db")
        programs.echo(3306)
    with net.outsider():
        for port in (80, 8080):
            programs.http(port, "outsider")
        for port in (22, 53, 3306, 9999, 15012):
            programs.echo(port)
    return net


@pytest.fixture(scope="module")
def closed() -> Iterator[tuple[Mesh, LiveHost]]:
    mesh = mesh_of([*OBJECTS, CLOSED])
    with ExitStack() as stack:
        yield mesh, running(mesh, stack).hosts["web"]


def test_registry_only_answers_502_to_requests_for_what_is_not_in_the_mesh(closed: tuple[Mesh, LiveHost]) -> None:
    mesh, web = closed
    with web():
        # On a port on which HTTP is spoken in the mesh, whatever address is called.
        assert get(OUTSIDER, 8080, "outsider.example.com").status == 502
        assert get(OUTSIDER, 8080, OUTSIDER).status == 502
        assert get(vip(mesh, "db"), 8080, "nobody").status == 502
        # Who is meant is told by the name, as in Istio.
        assert "program: db" in get(OUTSIDER, 8080, "db").body


def test_registry_only_closes_connections_to_what_is_not_in_the_mesh(closed: tuple[Mesh, LiveHost]) -> None:
    _, web = closed
    with web():
        for port in (9999, 3306):
            assert talk(OUTSIDER, port, b"hello") == b""
        with pytest.raises((ConnectionError, OSError)):
            get(OUTSIDER, 80, "outsider")


def test_registry_only_knows_tls_by_its_server_name_whatever_address_is_dialled(tmp_path: Path) -> None:
    entry = obj(
        "ServiceEntry",
        "db",
        {
            "hosts": ["db"],
            "location": "MESH_EXTERNAL",
            "resolution": "STATIC",
            "ports": [{"number": 8443, "name": "tls", "protocol": "TLS"}],
            "endpoints": [{"address": OUTSIDER}],
        },
    )
    mesh = mesh_of([*OBJECTS, entry, CLOSED])
    with ExitStack() as stack:
        net = stack.enter_context(network(mesh, OUTSIDER))
        programs = Programs()
        stack.callback(programs.close)
        certificate = tmp_path / "own.pem"
        own = pki.svid(net.authority, WorkloadIdentity("cluster.local", "default", "own"))
        certificate.write_bytes(own.one_file)
        with net.outsider():
            programs.http(8443, "outsider", tls=server_tls(certificate))
        with net.hosts["web"]():
            # Nobody has that address.
            assert hello_tls("10.9.0.99", 8443, []).startswith("HTTP/1.1 200")
            assert talk(OUTSIDER, 8443, b"hello") == b""


def test_registry_only_leaves_the_mesh_ssh_resolvers_the_controller_and_the_host_itself_alone(
    closed: tuple[Mesh, LiveHost],
) -> None:
    mesh, web = closed
    with web(), ExitStack() as stack:
        own = Programs()
        stack.callback(own.close)
        own.echo(7777)
        assert "program: db" in get(vip(mesh, "db"), 8080, "db").body
        assert talk(vip(mesh, "db-tcp"), 3306, b"hello") == b"hello"
        for port in (22, 53, 15012):
            assert talk(OUTSIDER, port, b"hello") == b"hello"
        for address in ("127.0.0.1", WEB):
            assert talk(address, 7777, b"hello") == b"hello"


def test_a_sidecar_that_closes_what_is_not_seen_comes_and_goes(closed: tuple[Mesh, LiveHost]) -> None:
    mesh, web = closed
    opened = mesh_of(OBJECTS)
    with web():
        web.take(opened)
        # Captured still, but passed on.
        wait_until("open", lambda: talk(OUTSIDER, 9999, b"hello") == b"hello")
        wait_until("open", lambda: get(OUTSIDER, 8080, "outsider").status == 200)
        wait_until("open", lambda: get(vip(mesh, "db"), 8080, "nobody").status == 404)
        web.take(mesh)
        wait_until("closed", lambda: talk(OUTSIDER, 9999, b"hello") == b"")
        wait_until("closed", lambda: get(vip(mesh, "db"), 8080, "nobody").status == 502)


def test_allow_any_passes_on_what_is_not_in_the_mesh() -> None:
    with ExitStack() as stack:
        web = running(mesh_of(OBJECTS), stack).hosts["web"]
        with web():
            assert "program: outsider" in get(OUTSIDER, 8080, "outsider.example.com").body
            assert talk(OUTSIDER, 9999, b"hello") == b"hello"


def with_config(**config: Any) -> Mesh:
    return mesh_of([*OBJECTS, obj("MeshConfig", "default", config)])


def written(host: LiveHost) -> str:
    return (host.directory / "envoy.log").read_text()


def test_the_access_log_is_written_in_istios_format_and_follows_what_the_mesh_says() -> None:
    mesh = with_config(accessLogFile="/dev/stdout")
    with ExitStack() as stack:
        net = running(mesh, stack)
        web, db = net.hosts["web"], net.hosts["db"]
        with web():
            get(vip(mesh, "db"), 8080, "db", "/a?b=c", {"User-Agent": "a test"})
            outbound = re.compile(
                r'^\[\S+\] "GET /a\?b=c HTTP/1\.1" 200 - via_upstream - "-" 0 \d+ \d+ \d+ "-" "a test" "\S+" "db" '
                r'"10\.9\.0\.2:8080" outbound\|8080\|\|db\.default\.svc\.cluster\.local \S+ \S+ \S+ - default$',
                re.MULTILINE,
            )
            inbound = re.compile(r'^\[\S+\] "GET /a\?b=c HTTP/1.1" 200 .* inbound\|8080\|\| .* default$', re.MULTILINE)
            # Envoy writes its logs every ten seconds.
            wait_until("the line of the caller", lambda: outbound.search(written(web)) is not None, 20)
            wait_until("the line of the program's side", lambda: inbound.search(written(db)) is not None, 20)
            assert talk(vip(mesh, "db-tcp"), 3306, b"hello") == b"hello"
            tcp = re.compile(r'^\[\S+\] "- - -" 0 - - - "-" 5 5 .* outbound\|3306\|\|db-tcp', re.MULTILINE)
            wait_until("the line of the connection", lambda: tcp.search(written(web)) is not None, 20)


@pytest.mark.parametrize("timeout", ["0s", "1s"])
def test_a_server_that_speaks_first_is_heard_whatever_the_detection_timeout(timeout: str) -> None:
    mesh = mesh_of(
        [*OBJECTS, service("first", 4000, "any"), obj("MeshConfig", "default", {"protocolDetectionTimeout": timeout})]
    )
    with ExitStack() as stack:
        net = running(mesh, stack)
        programs = Programs()
        stack.callback(programs.close)
        with net.hosts["db"]():
            programs.echo(4000, b"welcome")
        with net.hosts["web"]():
            assert talk(vip(mesh, "first"), 4000, b"hello", greeting=b"welcome") == b"hello"


def ingress(number: int, protocol: str, endpoint: str, mode: str = "DEFAULT") -> dict[str, Any]:
    port = {"number": number, "protocol": protocol, "name": "own"}
    return {"port": port, "defaultEndpoint": endpoint, "captureMode": mode}


def test_an_ingress_listener_leads_to_its_default_endpoint(shared: Path) -> None:
    """By loopback and by a Unix socket, where nobody else can call the programs; captured, and on a port of Envoy's."""
    path = shared / "program.sock"
    own = obj(
        "Sidecar",
        "db",
        {
            "workloadSelector": {"labels": {"app": "db"}},
            "ingress": [
                ingress(8080, "HTTP", "127.0.0.1:7001"),
                ingress(3306, "TCP", f"unix://{path}"),
                ingress(8082, "HTTP", "127.0.0.1:7001", "NONE"),
            ],
        },
    )
    mesh = mesh_of([*OBJECTS, service("db-bound", 8082, "http"), service("db-left", 9999, "tcp"), own])
    with ExitStack() as stack:
        programs = Programs()
        stack.callback(programs.close)
        net = stack.enter_context(network(mesh, OUTSIDER))
        with net.hosts["db"]():
            programs.http(7001, "inside", address="127.0.0.1")
            programs.echo(9999)
            listener = socket.create_server(str(path), family=socket.AF_UNIX)
            path.chmod(0o777)
            programs.echo_on(listener)
        with net.hosts["web"]():
            answer = get(vip(mesh, "db"), 8080, "db")
            assert "program: inside" in answer.body
            assert "URI=spiffe://cluster.local/ns/default/sa/web" in answer.got["x-forwarded-client-cert"]
            assert talk(vip(mesh, "db-tcp"), 3306, b"hello") == b"hello"
            assert "program: inside" in get(vip(mesh, "db-bound"), 8082, "db-bound").body
            # It is not listed: not captured, and called as any other port.
            assert talk(DB, 9999, b"hello") == b"hello"


def test_an_ingress_listener_ends_tls_with_files_of_the_host_and_programs_on_loopback_are_reached(shared: Path) -> None:
    path = shared / "own.pem"
    tls = {"mode": "SIMPLE", "serverCertificate": str(path), "privateKey": str(path)}
    port = {"number": 9443, "protocol": "HTTPS", "name": "https"}
    mesh = mesh_of(
        [
            *OBJECTS,
            obj(
                "Sidecar",
                "db",
                {
                    "workloadSelector": {"labels": {"app": "db"}},
                    "ingress": [
                        {"port": port, "tls": tls, "defaultEndpoint": "127.0.0.1:8080"},
                        {"port": {"number": 8080, "protocol": "HTTP", "name": "http"}},
                    ],
                },
            ),
            obj(
                "PeerAuthentication",
                "db",
                {"selector": {"matchLabels": {"app": "db"}}, "portLevelMtls": {9443: {"mode": "DISABLE"}}},
            ),
            obj("MeshConfig", "default", {"inboundTrafficPolicy": {"mode": "LOCALHOST"}}),
        ]
    )
    with ExitStack() as stack:
        programs = Programs()
        stack.callback(programs.close)
        authority = pki.new_authority(shared / "authority", "cluster.local")
        path.write_bytes(pki.svid(authority, WorkloadIdentity("cluster.local", "default", "own")).one_file)
        net = stack.enter_context(network(mesh, OUTSIDER))
        with net.hosts["db"]():
            programs.http(8080, "loopback", address="127.0.0.1")
        with net.outsider():
            assert hello_tls(DB, 9443, []).startswith("HTTP/1.1 200")
        with net.hosts["web"]():
            assert "program: loopback" in get(vip(mesh, "db"), 8080, "db").body


def test_an_egress_listener_of_envoys_own_is_called_by_its_address_or_its_socket(shared: Path) -> None:
    path = shared / "out.sock"
    everything = {"hosts": ["*/*"]}

    def port(number: int, protocol: str) -> dict[str, Any]:
        return {"number": number, "protocol": protocol, "name": "own"}

    own = obj(
        "Sidecar",
        "web",
        {
            "workloadSelector": {"labels": {"app": "web"}},
            "egress": [
                {"port": port(8080, "HTTP"), "captureMode": "NONE", **everything},
                {"port": port(9306, "TCP"), "captureMode": "NONE", "hosts": ["*/db-tcp.default.svc.cluster.local"]},
                {"port": port(9307, "TCP"), "bind": "10.9.0.77", "hosts": ["*/db-tcp.default.svc.cluster.local"]},
                {"port": port(0, "HTTP"), "bind": f"unix://{path}", "hosts": ["*/db.default.svc.cluster.local"]},
                everything,
            ],
        },
    )
    mesh = mesh_of([*OBJECTS, own])
    with ExitStack() as stack:
        web = running(mesh, stack).hosts["web"]
        with web():
            assert "program: db" in get("127.0.0.1", 8080, "db").body
            assert get("127.0.0.1", 8080, "nobody").status == 404
            for address, number in (("127.0.0.1", 9306), ("10.9.0.77", 9307)):
                assert talk(address, number, b"hello") == b"hello"
            assert "program: db" in get(vip(mesh, "db"), 8080, "db").body
            for header, expected in (("db", 200), ("db:8080", 200), ("db-tcp", 404)):
                assert by_socket(path, header).startswith(f"HTTP/1.1 {expected} ".encode())


def by_socket(path: Path, host: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_S)
        client.connect(str(path))
        client.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory in which Envoy's user may make sockets."""
    with TemporaryDirectory(prefix="hostmesh-sockets-") as found:
        Path(found).chmod(0o777)
        yield Path(found)
