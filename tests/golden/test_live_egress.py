"""A way out of the mesh: programs call a service outside, their proxies send them to a gateway, which calls it."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from golden.certificates import Authority
from golden.live import NEEDS_ROOT, LiveHost, Network, network, vip, wait_until
from golden.objects import mesh_of, obj
from golden.programs import WAIT_S, Programs, get
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject

WAY_OUT, APP, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.9"
GATEWAY = "out.edge.svc.cluster.local"

pytestmark = NEEDS_ROOT

SITE = Authority("site")
OUTSIDE = SITE.pair("site.example.com")


def server(number: int, protocol: str, **tls: Any) -> dict[str, Any]:
    port = {"number": number, "name": f"{protocol.lower()}-{number}", "protocol": protocol}
    return {"port": port, "hosts": ["site.example.com"]} | ({"tls": tls} if tls else {})


def way_out(destination: dict[str, Any]) -> ApiObject:
    """Return the routes of HTTP: from programs to the gateway, by one subset, and from there to `destination`."""
    to_gateway = {"host": GATEWAY, "subset": "site", "port": {"number": 80}}
    return obj(
        "VirtualService",
        "site",
        {
            "hosts": ["site.example.com"],
            "gateways": ["mesh", "edge/out"],
            "http": [
                {"match": [{"gateways": ["mesh"], "port": 80}], "route": [{"destination": to_gateway}]},
                {"match": [{"gateways": ["edge/out"], "port": 80}], "route": [{"destination": destination}]},
            ],
            "tls": [
                {
                    "match": [{"gateways": ["mesh"], "port": 443, "sniHosts": ["site.example.com"]}],
                    "route": [{"destination": {"host": GATEWAY, "port": {"number": 443}}}],
                },
                {
                    "match": [{"gateways": ["edge/out"], "port": 443, "sniHosts": ["site.example.com"]}],
                    "route": [{"destination": {"host": "site.example.com", "port": {"number": 443}}}],
                },
            ],
        },
    )


def outside(port: int) -> dict[str, Any]:
    return {"host": "site.example.com", "port": {"number": port}}


OBJECTS = [
    obj("Host", "out", {"addresses": [WAY_OUT], "namespace": "edge"}),
    obj("Host", "app", {"addresses": [APP], "capture": {"scope": "all"}}),
    obj("WorkloadEntry", "out", {"address": WAY_OUT, "labels": {"app": "out"}, "serviceAccount": "out"}, "edge"),
    obj("WorkloadEntry", "app", {"address": APP, "labels": {"app": "app"}, "serviceAccount": "app"}),
    obj(
        "Service",
        "out",
        {
            "selector": {"app": "out"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "tls", "port": 443, "targetPort": 8443},
            ],
        },
        "edge",
    ),
    obj(
        "ServiceEntry",
        "site",
        {
            "hosts": ["site.example.com"],
            "ports": [
                {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8000},
                {"number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8001},
                {"number": 8044, "name": "http-too", "protocol": "HTTP", "targetPort": 8000},
                # What the gateway is to speak TLS to, as HTTP comes in.
                {"number": 8043, "name": "https-originated", "protocol": "HTTP", "targetPort": 8001},
            ],
            "resolution": "STATIC",
            "location": "MESH_EXTERNAL",
            "endpoints": [{"address": OUTSIDER}],
        },
    ),
    obj(
        "Gateway",
        "out",
        {"selector": {"app": "out"}, "servers": [server(80, "HTTP"), server(443, "TLS", mode="PASSTHROUGH")]},
        "edge",
    ),
    obj("DestinationRule", "out", {"host": GATEWAY, "subsets": [{"name": "site"}]}),
    way_out(outside(80)),
    obj("Secret", "site-roots", {"stringData": {"ca.crt": SITE.certificate}}, "edge"),
    obj(
        "DestinationRule",
        "site",
        {
            "host": "site.example.com",
            "trafficPolicy": {
                "portLevelSettings": [
                    {
                        "port": {"number": 8043},
                        "tls": {"mode": "SIMPLE", "credentialName": "site-roots", "sni": "site.example.com"},
                    }
                ]
            },
        },
    ),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with ExitStack() as stack:
        programs = Programs()
        stack.callback(programs.close)
        running = stack.enter_context(network(mesh, OUTSIDER))
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(*OUTSIDE.write(tmp_path_factory.mktemp("site"), "site"))
        with running.outsider():
            programs.http(8000, "site")
            programs.http(8044, "beyond")
            programs.http(8001, "site with tls", tls=own)
        yield running


@pytest.fixture
def app(net: Network, mesh: Mesh) -> Iterator[LiveHost]:
    """The calling host; the test's thread is on it."""
    with net.hosts["app"]():
        yield net.hosts["app"]
    for host in net.hosts.values():
        host.take(mesh)


@pytest.fixture
def site(mesh: Mesh) -> str:
    return vip(mesh, "site.example.com")


def took(net: Network, changed: Mesh) -> None:
    for host in net.hosts.values():
        host.take(changed)


def test_http_goes_out_by_the_gateway(net: Network, app: LiveHost, site: str) -> None:
    answer = get(site, 80, "site.example.com")
    assert answer.got["program"] == "site"
    assert net.hosts["out"].stat(r"cluster.outbound.80..site.example.com.upstream_rq_completed") > 0
    assert app.stat(r"cluster.outbound.80..site.example.com.upstream_rq_completed") == 0


def test_the_gateway_speaks_tls_for_programs_that_do_not_and_to_nobody_whom_its_roots_do_not_know(
    net: Network, app: LiveHost, mesh: Mesh, site: str
) -> None:
    changed = way_out(outside(8043))
    other = obj("Secret", "site-roots", {"stringData": {"ca.crt": Authority("other").certificate}}, "edge")
    took(net, update(mesh, {changed.key: changed, other.key: other}, mesh.vips, mesh.runtime)[0])
    wait_until("refused", lambda: get(site, 80, "site.example.com").status == 503)
    took(net, update(mesh, {changed.key: changed}, mesh.vips, mesh.runtime)[0])
    wait_until("tls", lambda: get(site, 80, "site.example.com").body.endswith("program: site with tls\n"))


def test_tls_of_programs_goes_out_by_the_gateway_as_it_is(net: Network, app: LiveHost, site: str) -> None:
    context = ssl.create_default_context(cadata=SITE.certificate)
    plain = socket.create_connection((site, 443), WAIT_S)
    with context.wrap_socket(plain, server_hostname="site.example.com") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: site.example.com\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"program: site with tls" in answer
    assert net.hosts["out"].stat(r"cluster.outbound.443..site.example.com.upstream_cx_total") > 0


def test_the_way_to_the_gateway_can_be_mutual_tls(net: Network, app: LiveHost, mesh: Mesh, site: str) -> None:
    mutual = obj(
        "Gateway",
        "out",
        {"selector": {"app": "out"}, "servers": [server(80, "HTTPS", mode="ISTIO_MUTUAL")]},
        "edge",
    )
    tls = {"mode": "ISTIO_MUTUAL", "sni": "site.example.com"}
    rule = obj(
        "DestinationRule",
        "out",
        {"host": GATEWAY, "subsets": [{"name": "site", "trafficPolicy": {"tls": tls}}]},
    )
    took(net, update(mesh, {mutual.key: mutual, rule.key: rule}, mesh.vips, mesh.runtime)[0])
    out = net.hosts["out"]

    def arrives() -> bool:
        answer = get(site, 80, "site.example.com")
        return answer.status == 200 and out.stat(r"listener.0.0.0.0_8080.ssl.handshake") > 0

    wait_until("by mutual TLS", arrives)


def test_a_gateway_comes_and_goes_on_a_port_that_programs_of_its_host_call(
    net: Network, app: LiveHost, mesh: Mesh
) -> None:
    here = obj(
        "Gateway",
        "here",
        {
            "selector": {"app": "app"},
            "servers": [{"port": {"number": 8044, "name": "http", "protocol": "HTTP"}, "hosts": ["here.example.com"]}],
        },
    )
    routes = obj(
        "VirtualService",
        "here",
        {
            "hosts": ["here.example.com"],
            "gateways": ["here"],
            "http": [{"directResponse": {"status": 418}}],
        },
    )
    site = vip(mesh, "site.example.com")
    assert get(site, 8044, "site.example.com").got["program"] == "site"
    with_it = update(mesh, {here.key: here, routes.key: routes}, mesh.vips, mesh.runtime)[0]
    app.take(with_it)
    wait_until("it serves", lambda: answers(APP, 8044, "here.example.com") == 418)
    assert answers("127.0.0.1", 8044, "here.example.com") == 418
    # The host captures everything: what is outside the mesh is not the gateway's.
    assert get(OUTSIDER, 8044, "here.example.com").got["program"] == "beyond"
    assert get(site, 8044, "site.example.com").got["program"] == "site"
    app.take(mesh)
    wait_until("it is gone", lambda: answers(APP, 8044, "here.example.com") is None)
    assert get(site, 8044, "site.example.com").got["program"] == "site"


def answers(address: str, port: int, host: str) -> int | None:
    try:
        return get(address, port, host).status
    except OSError:
        return None
