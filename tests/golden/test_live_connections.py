"""Routes of connections under real Envoys: by weight, caller, destination and the server name of a TLS handshake."""

import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import pki
from golden.live import NEEDS_ROOT, LiveHost, Network, network, vip, wait_until
from golden.objects import mesh_of, obj
from golden.programs import WAIT_S, Programs, server_tls, talk
from hostmesh_api import wire
from hostmesh_api.identity import WorkloadIdentity
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject

WEB, CANARY, APP, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.9"
FRONT = "front.example.com"

pytestmark = NEEDS_ROOT


def service(name: str, *ports: dict[str, Any]) -> ApiObject:
    return obj("Service", name, {"selector": {"app": "app"}, "ports": list(ports)})


def tcp(port: int, target: int) -> dict[str, Any]:
    return {"name": f"tcp-{port}", "port": port, "targetPort": target}


def workload(name: str, address: str, version: str) -> ApiObject:
    return obj("WorkloadEntry", f"{name}-{version}", {"address": address, "labels": {"app": name, "version": version}})


def route(*destinations: tuple[str, int], **match: Any) -> dict[str, Any]:
    where = [{"destination": {"host": host}, "weight": weight} for host, weight in destinations]
    return {"route": where, **({"match": [match]} if match else {})}


def weighted(one: int, two: int) -> ApiObject:
    routes = [route(("two", 1), sourceLabels={"version": "canary"}), route(("one", one), ("two", two))]
    return obj("VirtualService", "db", {"hosts": ["db"], "tcp": routes})


OBJECTS = [
    obj("Host", "web", {"addresses": [WEB]}),
    obj("Host", "canary", {"addresses": [CANARY]}),
    obj("Host", "app", {"addresses": [APP]}),
    workload("web", WEB, "stable"),
    workload("web", CANARY, "canary"),
    workload("app", APP, "v1"),
    service("one", tcp(3306, 4001)),
    service("two", tcp(3306, 4002)),
    service("db", tcp(3306, 4001)),
    # On the port numbers that have routes, and not concerned by them.
    service("first", tcp(3306, 4003), tcp(443, 4003)),
    service("secure-one", {"name": "tls", "port": 443, "targetPort": 8441}),
    service("secure-two", {"name": "tls", "port": 443, "targetPort": 8442}),
    obj(
        "ServiceEntry",
        "front",
        {"hosts": [FRONT], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "STATIC"},
    ),
    obj(
        "ServiceEntry",
        "network",
        {
            "hosts": ["network.example.com"],
            "addresses": ["10.9.0.128/25"],
            "ports": [{"number": 9000, "name": "tcp", "protocol": "TCP"}],
            "resolution": "NONE",
        },
    ),
    weighted(50, 50),
    obj(
        "VirtualService",
        "front",
        {
            "hosts": [FRONT, f"*.{FRONT}"],
            "tls": [
                route(("secure-one", 1), port=443, sniHosts=[FRONT]),
                route(("secure-two", 1), port=443, sniHosts=[f"*.{FRONT}"]),
            ],
        },
    ),
    obj(
        "VirtualService",
        "network",
        {
            "hosts": ["network.example.com"],
            "tcp": [route(("one", 1), destinationSubnets=["10.9.0.128/26"]), route(("two", 1))],
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
        certificate = tmp_path_factory.mktemp("own") / "own.pem"
        own = pki.svid(running.authority, WorkloadIdentity("cluster.local", "default", "own"))
        certificate.write_bytes(own.one_file)
        with running.hosts["app"]():
            programs.echo(4001, b"one--\n")
            programs.echo(4002, b"two--\n")
            programs.echo(4003, b"first\n")
            programs.http(8441, "secure-one", tls=server_tls(certificate))
            programs.http(8442, "secure-two", tls=server_tls(certificate))
        yield running


def greeted(address: str, port: int) -> str:
    """Return what a server says first; "" if the connection ends without a word."""
    with socket.create_connection((address, port), WAIT_S) as client, suppress(ConnectionResetError):
        return client.recv(6).decode().strip()
    return ""


def program_behind(address: str, server_name: str) -> str:
    """Speak TLS for a server name; return which program answers, "" if the connection ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, 443), WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname=server_name) as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(4096), b"")).decode()
            return answer.rpartition("program: ")[2].strip()
    except (ssl.SSLError, ConnectionResetError):
        return ""


def test_connections_are_spread_and_servers_that_speak_first_are_heard(web: LiveHost, mesh: Mesh) -> None:
    found = Counter(greeted(vip(mesh, "db"), 3306) for _ in range(40))
    assert found.keys() == {"one--", "two--"}


def test_a_route_of_connections_can_be_for_callers_with_certain_labels(canary: LiveHost, mesh: Mesh) -> None:
    assert {greeted(vip(mesh, "db"), 3306) for _ in range(10)} == {"two--"}


def test_other_services_on_the_port_number_are_what_they_were(web: LiveHost, mesh: Mesh) -> None:
    assert talk(vip(mesh, "first"), 3306, b"hello", greeting=b"first\n") == b"hello"
    # Here server names are looked for: who speaks first is waited for, but not for long.
    assert talk(vip(mesh, "first"), 443, b"hello", greeting=b"first\n") == b"hello"


def test_a_tls_connection_goes_by_its_server_name(web: LiveHost, mesh: Mesh) -> None:
    assert program_behind(vip(mesh, FRONT), FRONT) == "secure-one"
    assert program_behind(vip(mesh, FRONT), f"a.{FRONT}") == "secure-two"
    assert program_behind(vip(mesh, FRONT), f"a.b.{FRONT}") == "secure-two"


def test_a_server_name_without_a_route_is_closed(web: LiveHost, mesh: Mesh) -> None:
    assert program_behind(vip(mesh, FRONT), "other.example.org") == ""


def test_tls_to_a_service_without_routes_asks_for_no_server_name(web: LiveHost, mesh: Mesh) -> None:
    assert program_behind(vip(mesh, "secure-two"), "anything.example.org") == "secure-two"


def test_connections_go_by_their_destination_inside_a_block(web: LiveHost) -> None:
    assert greeted("10.9.0.130", 9000) == "one--"
    assert greeted("10.9.0.200", 9000) == "two--"


def test_a_weight_changes_without_a_word_to_connections_of_others(web: LiveHost, mesh: Mesh) -> None:
    assert greeted(vip(mesh, "db"), 3306)
    with socket.create_connection((vip(mesh, "first"), 3306), WAIT_S) as client:
        assert client.recv(6) == b"first\n"
        web.ads.pushed.clear()
        edited = weighted(0, 100)
        web.take(update(mesh, {edited.key: edited}, mesh.vips, mesh.runtime)[0])
        wait_until("all at two", lambda: {greeted(vip(mesh, "db"), 3306) for _ in range(20)} == {"two--"})
        pushed = [(type_url, names) for type_url, names, _ in web.ads.pushed]
        assert pushed == [(wire.LISTENER_TYPE, ("0.0.0.0_3306",))]
        # Envoy has cut what it drained: the old chain of the edited service, and nobody else's connections.
        wait_until("drained", lambda: web.stat(r"listener_manager.total_filter_chains_draining") == 0)
        client.sendall(b"still")
        assert client.recv(5) == b"still"
    web.take(mesh)
    wait_until("as before", lambda: "one--" in {greeted(vip(mesh, "db"), 3306) for _ in range(20)})
