"""What DestinationRules do to real traffic: one host with a real Envoy calls programs on a machine outside the mesh."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from golden.live import NEEDS_ROOT, LiveHost, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Answer, Handler, Programs, Server, get, talk
from hostmesh_api import wire
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject

WEB, OLD, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.9"
HERE, NEAR, FAR = "eu/eu-1/a", "eu/eu-2", "us/us-1"

pytestmark = NEEDS_ROOT


@dataclass
class Moody:
    """A program that answers with a status that can be changed, and holds its answer while it is told to."""

    name: str
    port: int
    status: int = 200
    held: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    free: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.free.set()
        moody = self

        class Held(Handler):
            def do_GET(self) -> None:  # noqa: N802 - the library's name
                moody.held.release()
                moody.free.wait(10)
                self.answer(f"program: {moody.name}\n".encode(), moody.status)

        self._server = Server(self.port, Held)

    def close(self) -> None:
        self.free.set()
        self._server.close()


def service(name: str, protocol: str = "http", number: int = 80) -> ApiObject:
    return obj("Service", name, {"selector": {"app": name}, "ports": [{"name": protocol, "port": number}]})


def endpoint(app: str, port: int, *, locality: str = "", number_name: str = "http", **labels: str) -> ApiObject:
    spec = {"address": OUTSIDER, "ports": {number_name: port}, "labels": {"app": app, **labels}, "locality": locality}
    return obj("WorkloadEntry", f"{app}-{port}", spec)


def rule(name: str, policy: Mapping[str, Any], subsets: list[dict[str, Any]] | None = None) -> ApiObject:
    return obj("DestinationRule", name, {"host": name, "trafficPolicy": policy, "subsets": subsets or []})


def routes(name: str, *destinations: dict[str, Any]) -> ApiObject:
    """Send all to the destinations, without retries that would hide what an endpoint answers."""
    http = [{"route": list(destinations), "retries": {"attempts": 0}}]
    return obj("VirtualService", name, {"hosts": [name], "http": http})


RING = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
COOKIE = {
    "loadBalancer": {"consistentHash": {"httpCookie": {"name": "stick", "ttl": "60s"}, "maglev": {"tableSize": 65537}}}
}
EJECT_ONE = {"consecutive5xxErrors": 1, "interval": "0.1s", "baseEjectionTime": "0.3s"}
EJECT = {**EJECT_ONE, "maxEjectionPercent": 100}
OBJECTS = [
    obj("Host", "web", {"addresses": [WEB], "locality": HERE}),
    obj("WorkloadEntry", "web", {"address": WEB, "labels": {"app": "web"}}),
    obj("Host", "old", {"addresses": [OLD]}),
    obj("WorkloadEntry", "old", {"address": OLD, "labels": {"app": "upgraded"}, "ports": {"http": 8090}}),
    service("upgraded"),
    rule("upgraded", {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}),
    service("ring"),
    *(endpoint("ring", 9000 + index) for index in range(3)),
    rule("ring", RING),
    service("cookie"),
    *(endpoint("cookie", 9000 + index) for index in range(3)),
    rule("cookie", {"outlierDetection": {}}, [{"name": "all", "trafficPolicy": COOKIE}]),
    routes("cookie", {"destination": {"host": "cookie", "subset": "all"}}),
    service("narrow"),
    endpoint("narrow", 9010),
    rule("narrow", {"connectionPool": {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}}),
    routes("narrow", {"destination": {"host": "narrow"}}),
    service("moody"),
    endpoint("moody", 9010),
    endpoint("moody", 9011),
    rule(
        "moody", {"loadBalancer": {"simple": "ROUND_ROBIN"}, "outlierDetection": {**EJECT, "baseEjectionTime": "60s"}}
    ),
    routes("moody", {"destination": {"host": "moody"}}),
    service("placed"),
    endpoint("placed", 9010, locality=NEAR),
    endpoint("placed", 9011, locality=FAR),
    rule("placed", {"outlierDetection": EJECT_ONE}),
    routes("placed", {"destination": {"host": "placed"}}),
    service("shares"),
    endpoint("shares", 9000, locality=NEAR),
    endpoint("shares", 9001, locality=FAR),
    rule("shares", {"loadBalancer": {"localityLbSetting": {"distribute": [{"from": "eu/*", "to": {"us": 100}}]}}}),
    service("versions"),
    endpoint("versions", 9000, version="v1"),
    endpoint("versions", 9001, version="v2"),
    rule("versions", {"loadBalancer": {"simple": "ROUND_ROBIN"}}, [{"name": "v", "labels": {"version": "v1"}}]),
    obj(
        "VirtualService",
        "versions",
        {"hosts": ["versions"], "http": [{"route": [{"destination": {"host": "versions", "subset": "v"}}]}]},
    ),
    service("announced", "tcp", 3306),
    endpoint("announced", 9020, number_name="tcp"),
    rule("announced", {"proxyProtocol": {"version": "V1"}}),
    service("announced-http"),
    endpoint("announced-http", 9021),
    rule("announced-http", {"proxyProtocol": {"version": "V2"}}),
    service("tunnelled", "tcp", 3308),
    endpoint("tunnelled", 9022, number_name="tcp"),
    rule("tunnelled", {"tunnel": {"targetHost": "far.test", "targetPort": 5432}}),
    service("short", "tcp", 3309),
    endpoint("short", 9023, number_name="tcp"),
    rule("short", {"connectionPool": {"tcp": {"maxConnectionDuration": "200ms"}}}),
    service("by-source", "tcp", 3307),
    *(endpoint("by-source", 9000 + index, number_name="tcp") for index in range(3)),
    rule("by-source", {"loadBalancer": {"consistentHash": {"useSourceIp": True}}}),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@dataclass
class World:
    """The calling host, and the programs outside: `steady` ones by their names, and two moody ones."""

    net: Network
    first: Moody
    second: Moody

    @property
    def web(self) -> LiveHost:
        return self.net.hosts["web"]


@pytest.fixture(scope="module")
def world(mesh: Mesh) -> Iterator[World]:
    programs = Programs()
    with network(mesh, OUTSIDER) as running:
        with running.outsider():
            for index in range(3):
                programs.http(9000 + index, f"p{index}")
            programs.echo(9023)
            first, second = Moody("first", 9010), Moody("second", 9011)
        with running.hosts["old"]():
            programs.http(8090, "old")
        yield World(running, first, second)
        first.close()
        second.close()
    programs.close()


@pytest.fixture
def web(world: World) -> Iterator[LiveHost]:
    """The calling host; the test's thread is on it."""
    world.first.status = world.second.status = 200
    with world.web():
        yield world.web


def call(mesh: Mesh, name: str, headers: Mapping[str, str] | None = None) -> Answer:
    address = str(wire.VIP4[mesh.vips[f"{name}.default.svc.cluster.local"]])
    return get(address, 80, name, headers=headers)


def program(answer: Answer) -> str:
    return answer.body.rpartition("program: ")[2].strip()


def cluster_stat(web: LiveHost, name: str, stat: str, subset: str = "") -> int:
    return web.stat(rf"cluster\.outbound\|80\|{subset}\|{name}\.default\.svc\.cluster\.local;?\.{stat}")


def test_requests_with_one_header_go_to_one_endpoint(web: LiveHost, mesh: Mesh) -> None:
    by_user = {user: {program(call(mesh, "ring", {"x-user": user})) for _ in range(5)} for user in map(str, range(12))}
    assert all(len(found) == 1 for found in by_user.values()), by_user
    assert len({next(iter(found)) for found in by_user.values()}) > 1, "all users are on one endpoint"


def test_a_cookie_is_made_where_it_is_missing_and_sticks(web: LiveHost, mesh: Mesh) -> None:
    seen: Counter[str] = Counter()
    for _ in range(24):
        first = call(mesh, "cookie")
        cookie = first.headers["set-cookie"].partition(";")[0]
        assert cookie.startswith("stick=")
        again = {program(call(mesh, "cookie", {"Cookie": cookie})) for _ in range(4)}
        assert again == {program(first)}
        seen[program(first)] += 1
    assert len(seen) > 1, "every new caller is on one endpoint"


def test_what_is_over_the_limits_is_answered_503_at_once(world: World, web: LiveHost, mesh: Mesh) -> None:
    world.first.free.clear()

    def request() -> int:
        with world.web():
            return call(mesh, "narrow").status

    with ThreadPoolExecutor(3) as pool:
        try:
            active = pool.submit(request)
            assert world.first.held.acquire(timeout=10)
            waiting = pool.submit(request)
            wait_until("one request waits", lambda: cluster_stat(web, "narrow", "upstream_rq_pending_active") == 1)
            refused = call(mesh, "narrow")
            assert refused.status == 503
            assert "overflow" in refused.body
        finally:
            world.first.free.set()
        assert (active.result(10), waiting.result(10)) == (200, 200)
    assert cluster_stat(web, "narrow", "upstream_rq_pending_overflow") == 1


def test_an_endpoint_that_fails_is_left_out(world: World, web: LiveHost, mesh: Mesh) -> None:
    assert {program(call(mesh, "moody")) for _ in range(4)} == {"first", "second"}
    world.first.status = 500
    while call(mesh, "moody").status != 500:
        pass
    wait_until("it is ejected", lambda: cluster_stat(web, "moody", r"outlier_detection\.ejections_active") == 1)
    assert {(program(found), found.status) for found in (call(mesh, "moody") for _ in range(6))} == {("second", 200)}


def test_the_nearest_locality_is_used_until_it_fails_and_again_once_it_is_back(
    world: World, web: LiveHost, mesh: Mesh
) -> None:
    assert {program(call(mesh, "placed")) for _ in range(6)} == {"first"}
    world.first.status = 503
    wait_until("the far one steps in", lambda: program(call(mesh, "placed")) == "second")
    world.first.status = 200
    wait_until("the near one is back", lambda: {program(call(mesh, "placed")) for _ in range(3)} == {"first"})


def test_traffic_is_shared_out_over_localities(web: LiveHost, mesh: Mesh) -> None:
    assert {program(call(mesh, "shares")) for _ in range(6)} == {"p1"}


def test_a_subset_changes_under_load_and_no_request_fails(world: World, web: LiveHost, mesh: Mesh) -> None:
    stop = threading.Event()
    answers: Counter[tuple[str, int]] = Counter()

    def load() -> None:
        with world.web():
            while not stop.is_set():
                found = call(mesh, "versions")
                answers[program(found), found.status] += 1

    thread = threading.Thread(target=load)
    thread.start()
    current = mesh
    try:
        for version in ("v2", "v1", "v2"):
            subsets = [{"name": "v", "labels": {"version": version}}]
            balancer = {"simple": "RANDOM" if version == "v2" else "ROUND_ROBIN"}
            changed = rule(
                "versions", {"loadBalancer": balancer, "connectionPool": {"http": {"maxRetries": 9}}}, subsets
            )
            current, _ = update(current, {changed.key: changed}, current.vips, current.runtime)
            before = answers["p1" if version == "v2" else "p0", 200]
            web.take(current)
            name = "p1" if version == "v2" else "p0"
            wait_until(f"{version} answers", lambda name=name, before=before: answers[name, 200] > before + 5)  # type: ignore[misc] # bound early
    finally:
        stop.set()
        thread.join(10)
        web.take(mesh)
    assert {status for _, status in answers} == {200}, answers


def accept_line(listener: socket.socket) -> bytes:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(10)
        return connection.recv(1000)


def test_the_callers_address_is_told_ahead_of_a_connection(world: World, web: LiveHost, mesh: Mesh) -> None:
    with world.net.outsider():
        listener = socket.create_server(("0.0.0.0", 9020))
    with listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)
        line = pool.submit(accept_line, listener)
        address = str(wire.VIP4[mesh.vips["announced.default.svc.cluster.local"]])
        with socket.create_connection((address, 3306), 10) as client:
            client.sendall(b"hello")
            own = client.getsockname()
            protocol, family, source, target, _, port = line.result(10).decode().split()[:6]
            # Where the kernel redirects two connections of one port to one place, it gives one of them another port.
            assert (protocol, family, source, target, port) == ("PROXY", "TCP4", own[0], address, "3306")


def test_the_callers_address_is_told_ahead_of_requests(world: World, web: LiveHost, mesh: Mesh) -> None:
    with world.net.outsider():
        listener = socket.create_server(("0.0.0.0", 9021))
    with listener, ThreadPoolExecutor(2) as pool:
        listener.settimeout(10)
        line = pool.submit(accept_line, listener)

        def request() -> None:
            with world.web():
                call(mesh, "announced-http")

        pool.submit(request)
        assert line.result(10).startswith(b"\r\n\r\n\0\r\nQUIT\n\x21\x11")


def tunnel(listener: socket.socket) -> bytes:
    """Take one CONNECT, agree, and say again what is said through it; return the request."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(10)
        request = connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        connection.sendall(connection.recv(4096))
        return request


def test_connections_go_through_a_tunnel_that_a_rule_asks_for(world: World, web: LiveHost, mesh: Mesh) -> None:
    with world.net.outsider():
        listener = socket.create_server(("0.0.0.0", 9022))
    with listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)
        asked = pool.submit(tunnel, listener)
        address = str(wire.VIP4[mesh.vips["tunnelled.default.svc.cluster.local"]])
        assert talk(address, 3308, b"hello") == b"hello"
        assert asked.result(10).startswith(b"CONNECT far.test:5432 HTTP/1.1\r\n")


def test_a_connection_ends_when_a_rule_says_so(web: LiveHost, mesh: Mesh) -> None:
    address = str(wire.VIP4[mesh.vips["short.default.svc.cluster.local"]])
    with socket.create_connection((address, 3309), 10) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        assert client.recv(1) == b""


def test_connections_of_one_address_go_to_one_endpoint(web: LiveHost, mesh: Mesh) -> None:
    address = str(wire.VIP4[mesh.vips["by-source.default.svc.cluster.local"]])
    assert len({program(get(address, 3307, "x")) for _ in range(8)}) == 1


def test_proxies_speak_http2_where_a_rule_says_so_and_the_program_what_its_port_says(
    world: World, web: LiveHost, mesh: Mesh
) -> None:
    assert program(call(mesh, "upgraded")) == "old"
    assert cluster_stat(web, "upgraded", "upstream_cx_http2_total") == 1
    assert world.net.hosts["old"].stat(r"cluster\.inbound\|8090\|\|;?\.upstream_cx_http1_total") == 1
