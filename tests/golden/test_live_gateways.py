"""Gateways with real Envoys: callers from outside the mesh, who know nothing of it, and ways out of it."""

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from golden.certificates import Authority, Pair
from golden.live import LiveHost, Network, network, wait_until
from golden.objects import SETTINGS, mesh_of, obj
from golden.programs import WAIT_S, Programs, get, talk
from hostmesh_api import wire
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject

EDGE, WEB, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.9"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("nft", "ip", "curl"))), reason="needs root, nft, ip and curl"
)

SITE = Authority("site")
CLIENTS = Authority("clients")
SHOP, BLOG, OWN = SITE.pair("shop.example.com"), SITE.pair("blog.example.com"), SITE.pair("own.example.com")
FILES = Path("/tmp/hostmesh-live-gateway-files")  # of the gateway's host: its Envoy must be able to enter


def secret(name: str, pair: Pair | None = None, roots: str = "") -> ApiObject:
    data = {"tls.crt": pair.certificate, "tls.key": pair.key} if pair else {}
    return obj("Secret", name, {"stringData": data | ({"ca.crt": roots} if roots else {})}, "edge")


def gateway(name: str, *servers: dict[str, Any]) -> ApiObject:
    return obj("Gateway", name, {"selector": {"app": "edge"}, "servers": list(servers)}, "edge")


def server(number: int, protocol: str, *hosts: str, **tls: Any) -> dict[str, Any]:
    name = f"{protocol.lower()}-{number}-{hosts[0].partition('.')[0].replace('*', 'any')}"
    result: dict[str, Any] = {"port": {"number": number, "name": name, "protocol": protocol}, "hosts": list(hosts)}
    return result | ({"tls": tls} if tls else {})


def routed(name: str, hosts: list[str], to: str, port: int, *, gateways: tuple[str, ...] = ("edge/edge",)) -> ApiObject:
    route = [{"route": [{"destination": {"host": to, "port": {"number": port}}}]}]
    return obj("VirtualService", name, {"hosts": hosts, "gateways": list(gateways), "http": route})


OBJECTS = [
    obj("Host", "edge", {"addresses": [EDGE], "namespace": "edge"}),
    obj("Host", "web", {"addresses": [WEB]}),
    obj("WorkloadEntry", "edge", {"address": EDGE, "labels": {"app": "edge"}, "serviceAccount": "edge"}, "edge"),
    obj("WorkloadEntry", "web", {"address": WEB, "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("PeerAuthentication", "default", {"mtls": {"mode": "STRICT"}}, SETTINGS.root_namespace),
    obj(
        "Service",
        "web",
        {
            "selector": {"app": "web"},
            "ports": [
                {"name": "http", "port": 8080},
                {"name": "tcp", "port": 9000},
                {"name": "tls", "port": 8443},
                {"name": "http-socket", "port": 8081},
            ],
        },
    ),
    obj(
        "Service",
        "edge",
        {"selector": {"app": "edge"}, "ports": [{"name": "http", "port": 80, "targetPort": 8000}]},
        "edge",
    ),
    secret("shop", SHOP, CLIENTS.certificate),
    secret("blog", BLOG),
    gateway(
        "edge",
        server(80, "HTTP", "shop.example.com", "*.wild.example.com"),
        server(80, "HTTP", "moved.example.com", httpsRedirect=True),
        server(8443, "HTTPS", "shop.example.com", mode="SIMPLE", credentialName="shop"),
        server(8443, "HTTPS", "blog.example.com", mode="SIMPLE", credentialName="blog"),
        server(8443, "HTTPS", "mutual.example.com", mode="MUTUAL", credentialName="shop"),
        server(8443, "HTTPS", "maybe.example.com", mode="OPTIONAL_MUTUAL", credentialName="shop"),
        server(8443, "HTTPS", "missing.example.com", mode="SIMPLE", credentialName="nobody"),
        server(8443, "TLS", "own.example.com", mode="PASSTHROUGH"),
        server(9000, "TCP", "*"),
        server(9443, "TLS", "*", mode="SIMPLE", credentialName="shop"),
        server(15443, "TLS", "*.local", mode="AUTO_PASSTHROUGH"),
        server(
            7443,
            "HTTPS",
            "files.example.com",
            mode="SIMPLE",
            serverCertificate=str(FILES / "own.pem"),
            privateKey=str(FILES / "own.key"),
        ),
    ),
    # The host's own programs call this port number in the mesh too.
    gateway("shared", server(8080, "HTTP", "*")),
    routed("shop", ["shop.example.com", "blog.example.com", "mutual.example.com"], "web", 8080),
    routed("more", ["maybe.example.com", "files.example.com", "*.wild.example.com"], "web", 8080),
    routed("socket", ["moved.example.com", "missing.example.com"], "web", 8081),
    routed("shared", ["shared.example.com"], "web", 8080, gateways=("edge/shared",)),
    obj(
        "VirtualService",
        "connections",
        {
            "hosts": ["own.example.com", "tcp.example.com"],
            "gateways": ["edge/edge"],
            "tls": [
                {
                    "match": [{"port": 8443, "sniHosts": ["own.example.com"]}],
                    "route": [{"destination": {"host": "web", "port": {"number": 8443}}}],
                }
            ],
            "tcp": [
                {
                    "match": [{"port": 9000}, {"port": 9443}],
                    "route": [{"destination": {"host": "web", "port": {"number": 9000}}}],
                }
            ],
        },
    ),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with ExitStack() as stack:
        FILES.mkdir(mode=0o755, exist_ok=True)
        stack.callback(shutil.rmtree, FILES)
        SITE.pair("files.example.com", "first.example.com").write(FILES, "own")
        programs = Programs()
        stack.callback(programs.close)
        running = stack.enter_context(network(mesh, OUTSIDER))
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(*OWN.write(tmp_path_factory.mktemp("own"), "own"))
        with running.hosts["web"]():
            programs.http(8080, "web")
            programs.echo(9000)
            programs.http(8443, "own tls", tls=own)
            programs.upgrades(8081)
        yield running


@pytest.fixture
def edge(net: Network, mesh: Mesh) -> Iterator[LiveHost]:
    """The gateway's host; the test's thread is outside the mesh."""
    with net.outsider():
        yield net.hosts["edge"]
    net.hosts["edge"].take(mesh)


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    path = tmp_path / "site.pem"
    path.write_text(SITE.certificate)
    return path


def curl(host: str, port: int, *options: str | Path, path: str = "/") -> "subprocess.CompletedProcess[str]":
    scheme = "http" if port in {8000, 8080} else "https"
    command = ["curl", "-sS", "--max-time", "10", "--resolve", f"{host}:{port}:{EDGE}", *map(str, options)]
    return subprocess.run([*command, f"{scheme}://{host}:{port}{path}"], capture_output=True, text=True, timeout=20)


def handshake(host: str, port: int, trust: Path, **more: Any) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(trust))
    plain = socket.create_connection((EDGE, port), WAIT_S)
    return context.wrap_socket(plain, server_hostname=host, **more)


def names(connection: ssl.SSLSocket) -> set[str]:
    found = connection.getpeercert()
    assert found is not None
    return {str(each[1]) for each in found["subjectAltName"]}


def test_a_stranger_reaches_a_service_by_its_host_and_the_gateway_speaks_mutual_tls_for_it(edge: LiveHost) -> None:
    liar = {"x-forwarded-client-cert": "URI=spiffe://liar", "x-forwarded-for": "1.2.3.4"}
    answer = get(EDGE, 8000, "shop.example.com", headers=liar)
    assert (answer.status, answer.got["program"]) == (200, "web")
    caller = answer.got["x-forwarded-client-cert"]
    assert "URI=spiffe://cluster.local/ns/edge/sa/edge" in caller
    assert "liar" not in caller
    assert answer.got["x-forwarded-for"] == f"1.2.3.4,{OUTSIDER}"
    assert answer.got["x-forwarded-proto"] == "http"
    assert answer.headers["server"] == "istio-envoy"


@pytest.mark.parametrize("host", ["shop.example.com:8000", "SHOP.example.com", "any.wild.example.com"])
def test_a_host_is_found_with_its_port_in_any_case_and_by_its_pattern(edge: LiveHost, host: str) -> None:
    assert get(EDGE, 8000, host).got["program"] == "web"


def test_an_unknown_host_is_404_and_nobody_is_asked_for_it(edge: LiveHost) -> None:
    asked = len(edge.ads.log)
    assert get(EDGE, 8000, "nobody.example.com").status == 404
    assert edge.ads.log[asked:] == []


def test_a_server_that_redirects_sends_to_https(edge: LiveHost) -> None:
    answer = get(EDGE, 8000, "moved.example.com", path="/there?x=1")
    assert answer.status == 301
    assert answer.headers["location"] == "https://moved.example.com/there?x=1"


def test_a_program_upgrades_the_connection_through_the_gateway(edge: LiveHost) -> None:
    update_ = obj(
        "VirtualService",
        "upgrade",
        {
            "hosts": ["ws.wild.example.com"],
            "gateways": ["edge/edge"],
            "http": [{"route": [{"destination": {"host": "web", "port": {"number": 8081}}}]}],
        },
    )
    mesh = edge.ads.source.mesh
    edge.take(update(mesh, {update_.key: update_}, mesh.vips, mesh.runtime)[0])
    request = (
        b"GET / HTTP/1.1\r\nHost: ws.wild.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )

    def upgraded() -> bool:
        with socket.create_connection((EDGE, 8000), WAIT_S) as client:
            client.sendall(request)
            head = client.recv(65536)
            if not head.startswith(b"HTTP/1.1 101"):
                return False
            client.sendall(b"hello")
            return client.recv(65536) == b"hello"

    wait_until("the connection is upgraded", upgraded)


@pytest.mark.parametrize(("option", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_https_shows_a_certificate_that_verifies(edge: LiveHost, trust: Path, option: str, version: str) -> None:
    done = curl("shop.example.com", 8443, "--cacert", trust, option, "-w", "%{http_version}")
    assert done.returncode == 0, done.stderr
    assert "program: web" in done.stdout
    assert "x-forwarded-proto: https" in done.stdout
    assert done.stdout.endswith(version)


def test_http2_is_spoken_in_plaintext_too(edge: LiveHost) -> None:
    done = curl("shop.example.com", 8000, "--http2-prior-knowledge", "-w", "%{http_version}")
    assert "program: web" in done.stdout
    assert done.stdout.endswith("2")


def test_the_server_name_chooses_the_certificate(edge: LiveHost, trust: Path) -> None:
    for host in ("shop.example.com", "blog.example.com"):
        with handshake(host, 8443, trust) as connection:
            assert names(connection) == {host}


def test_a_client_without_a_certificate_is_refused_where_one_is_demanded(
    edge: LiveHost, trust: Path, tmp_path: Path
) -> None:
    refused = curl("mutual.example.com", 8443, "--insecure")
    assert refused.returncode != 0
    stranger = SITE.pair("client.example.com").write(tmp_path, "stranger")
    assert curl("mutual.example.com", 8443, "--insecure", "--cert", stranger[0], "--key", stranger[1]).returncode != 0
    known = CLIENTS.pair("client.example.com").write(tmp_path, "known")
    done = curl("mutual.example.com", 8443, "--insecure", "--cert", known[0], "--key", known[1])
    assert "program: web" in done.stdout, done.stderr


def test_a_client_may_but_need_not_show_a_certificate_where_that_is_said(edge: LiveHost, tmp_path: Path) -> None:
    assert "program: web" in curl("maybe.example.com", 8443, "--insecure").stdout
    known = CLIENTS.pair("client.example.com").write(tmp_path, "known")
    assert "program: web" in curl("maybe.example.com", 8443, "--insecure", "--cert", known[0], "--key", known[1]).stdout
    stranger = SITE.pair("client.example.com").write(tmp_path, "stranger")
    assert curl("maybe.example.com", 8443, "--insecure", "--cert", stranger[0], "--key", stranger[1]).returncode != 0


def test_a_credential_that_does_not_exist_fails_its_own_hosts_alone(edge: LiveHost, trust: Path) -> None:
    assert curl("missing.example.com", 8443, "--insecure").returncode != 0
    assert "program: web" in curl("shop.example.com", 8443, "--cacert", trust).stdout


def test_tls_is_passed_through_to_the_program_that_ends_it(edge: LiveHost, trust: Path) -> None:
    done = curl("own.example.com", 8443, "--cacert", trust)
    assert "program: own tls" in done.stdout, done.stderr


def test_connections_go_where_tcp_routes_say_with_and_without_tls(edge: LiveHost, trust: Path) -> None:
    data = os.urandom(1_000_000)
    assert talk(EDGE, 9000, data) == data
    with handshake("shop.example.com", 9443, trust) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"


def test_a_port_that_the_hosts_programs_call_too_serves_both(net: Network, edge: LiveHost, mesh: Mesh) -> None:
    assert get(EDGE, 8080, "shared.example.com").got["program"] == "web"
    assert get(EDGE, 8080, "web.default.svc.cluster.local").status == 404
    vip = str(wire.VIP4[mesh.vips["web.default.svc.cluster.local"]])
    with edge():
        assert get(vip, 8080, "web.default.svc.cluster.local").got["program"] == "web"
        assert get(vip, 8080, "shared.example.com").status == 404
        assert get("127.0.0.1", 8080, "shared.example.com").got["program"] == "web"
        # No gateway's chain takes what is dialled in the mesh, where bytes are passed on.
        assert talk(vip, 9000, b"hello") == b"hello"


def test_a_gateway_is_called_by_its_service_in_plaintext_even_where_the_mesh_is_strict(
    net: Network, mesh: Mesh
) -> None:
    vip = str(wire.VIP4[mesh.vips["edge.edge.svc.cluster.local"]])
    web = net.hosts["web"]
    with web():
        wait_until("the way is there", lambda: get(vip, 80, "edge.edge").status != 503)
        assert get(vip, 80, "edge.edge").status == 404  # the gateway's own answer: it has no such host
    assert web.stat(r"cluster.outbound.80..edge.edge.svc.cluster.local.upstream_rq_completed") > 0


def test_a_new_certificate_cuts_no_connection_and_needs_no_listener(edge: LiveHost, mesh: Mesh, trust: Path) -> None:
    with handshake("shop.example.com", 8443, trust) as connection:
        assert _ask(connection) == b"HTTP/1.1 200"
        before = edge.stat(r"listener_manager.listener_(added|modified|removed|in_place_updated)")
        new = secret("shop", SITE.pair("shop.example.com", "new.example.com"), CLIENTS.certificate)
        edge.take(update(mesh, {new.key: new}, mesh.vips, mesh.runtime)[0])

        def is_new() -> bool:
            with handshake("shop.example.com", 8443, trust) as other:
                return "new.example.com" in names(other)

        wait_until("new connections are shown the new certificate", is_new)
        assert _ask(connection) == b"HTTP/1.1 200"
        assert names(connection) == {"shop.example.com"}
        assert edge.stat(r"listener_manager.listener_(added|modified|removed|in_place_updated)") == before


def test_files_that_are_replaced_are_followed(edge: LiveHost, trust: Path) -> None:
    with handshake("files.example.com", 7443, trust) as connection:
        assert "first.example.com" in names(connection)
    SITE.pair("files.example.com", "second.example.com").write(FILES, "own")

    def is_new() -> bool:
        with handshake("files.example.com", 7443, trust) as other:
            return "second.example.com" in names(other)

    wait_until("new connections are shown the new certificate", is_new)


def test_a_secret_is_sent_to_the_gateways_host_alone(net: Network) -> None:
    asked = {
        name: {each for kind, each in host.ads.log if kind == wire.SECRET_TYPE} for name, host in net.hosts.items()
    }
    assert asked["web"] == set()
    assert "kubernetes://shop" in asked["edge"]


def _ask(connection: ssl.SSLSocket) -> bytes:
    connection.sendall(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
    head = b""
    while b"\r\n\r\n" not in head or b"program: web" not in head:
        chunk = connection.recv(65536)
        assert chunk
        head += chunk
    return head[:12]


def test_mutual_tls_of_the_mesh_is_passed_on_by_its_server_name(net: Network, edge: LiveHost) -> None:
    def peer(port: int, protocols: list[str]) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=net.authority.bundle_pem.decode())
        own = net.hosts["web"].directory / "certs" / "ns.default.sa.web" / "svid.pem"
        context.load_cert_chain(own)
        context.set_alpn_protocols(protocols)
        plain = socket.create_connection((EDGE, 15443), WAIT_S)
        name = f"outbound_.{port}_._.web.default.svc.cluster.local"
        with context.wrap_socket(plain, server_hostname=name) as connection:
            found = connection.getpeercert()
            assert found is not None
            return str(found["subjectAltName"][0][1])

    assert peer(9000, ["istio-peer-exchange", "istio"]) == "spiffe://cluster.local/ns/default/sa/web"
    # Somebody else's TLS is not let in, neither is a name that is none's.
    with pytest.raises((ssl.SSLError, OSError)):
        peer(9000, ["http/1.1"])
    with pytest.raises((ssl.SSLError, OSError)):
        peer(9999, ["istio"])
