"""HTTP routes of VirtualServices under real Envoys: what is matched, what happens, and what the programs see of it."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from golden.live import NEEDS_ROOT, LiveHost, Network, network, vip, wait_until
from golden.objects import mesh_of, obj
from golden.programs import WAIT_S, Programs
from golden.recorder import Recorder, Reply, ask
from hostmesh_api import wire
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject

WEB, CANARY, APP, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.9"
PORTS = {"one": 8001, "two": 8002, "copy": 8003}

pytestmark = NEEDS_ROOT


def to(host: str, **more: Any) -> dict[str, Any]:
    return {"route": [{"destination": {"host": host}}], **more}


def service(name: str, target: int) -> ApiObject:
    ports = [{"name": "http", "port": 80, "targetPort": target}]
    return obj("Service", name, {"selector": {"app": "app"}, "ports": ports})


def workload(name: str, address: str, version: str) -> ApiObject:
    labels = {"app": name, "version": version}
    return obj("WorkloadEntry", f"{name}-{version}", {"address": address, "labels": labels, "serviceAccount": name})


SHOP = {
    "hosts": ["shop", "shop.example.com"],
    "http": [
        to("two", match=[{"headers": {"x-user": {"exact": "jason"}}, "uri": {"prefix": "/match"}}]),
        to("two", match=[{"queryParams": {"v": {"regex": "2|two"}}, "uri": {"prefix": "/match"}}]),
        to("two", match=[{"method": {"exact": "PUT"}, "uri": {"prefix": "/match"}}]),
        to("two", match=[{"uri": {"regex": "/match/[0-9]+"}}]),
        to("two", match=[{"uri": {"exact": "/MATCH/Case"}, "ignoreUriCase": True}]),
        to(
            "two",
            match=[{"uri": {"prefix": "/match"}, "headers": {"x-a": {}}, "withoutHeaders": {"x-b": {"exact": "no"}}}],
        ),
        to("one", match=[{"uri": {"prefix": "/match"}}]),
        to("two", match=[{"uri": {"prefix": "/who"}, "sourceLabels": {"version": "canary"}}]),
        to("one", match=[{"uri": {"prefix": "/who"}, "sourceNamespace": "default"}]),
        to("two", match=[{"uri": {"prefix": "/gateway"}, "gateways": ["edge"]}]),
        to("one", match=[{"uri": {"prefix": "/gateway"}, "gateways": ["mesh"]}]),
        to("one", match=[{"uri": {"prefix": "/mirror"}}], mirror={"host": "copy"}),
        to(
            "one",
            match=[{"uri": {"prefix": "/uncopied"}}],
            mirrors=[{"destination": {"host": "copy"}, "percentage": {"value": 0}}],
        ),
        to(
            "one",
            match=[{"uri": {"prefix": "/cors"}}],
            corsPolicy={
                "allowOrigins": [{"exact": "https://pages.example.com"}, {"regex": "https://.*[.]trusted[.]org"}],
                "allowMethods": ["GET", "PUT"],
                "allowHeaders": ["x-token"],
                "exposeHeaders": ["x-seen"],
                "maxAge": "24h",
                "allowCredentials": True,
                "unmatchedPreflights": "IGNORE",
            },
        ),
        {"match": [{"uri": {"prefix": "/part"}}], "delegate": {"name": "part"}},
        to("one", match=[{"uri": {"prefix": "/twice"}}], retries={"attempts": 2, "retryOn": "503", "backoff": "1ms"}),
        to("one", match=[{"uri": {"prefix": "/once"}}], retries={"attempts": 0}),
        to(
            "one",
            match=[{"uri": {"prefix": "/refused"}}],
            fault={"abort": {"httpStatus": 418, "percentage": {"value": 100}}},
        ),
        to("one", match=[{"uri": {"prefix": "/spared"}}], fault={"abort": {"httpStatus": 418}}),
        to(
            "one",
            match=[{"uri": {"prefix": "/slow"}}],
            fault={"delay": {"fixedDelay": "30s", "percentage": {"value": 100}}},
        ),
        to("one", match=[{"uri": {"prefix": "/old"}}], rewrite={"uri": "/new", "authority": "elsewhere"}),
        to("one", match=[{"uri": {"exact": "/exact"}}], rewrite={"uri": "/all"}),
        {
            "match": [{"uri": {"prefix": "/away"}}],
            "redirect": {"prefixRewrite": "/here", "authority": "a.example.com", "derivePort": "FROM_REQUEST_PORT"},
        },
        {"match": [{"uri": {"exact": "/big"}}], "directResponse": {"status": 203, "body": {"string": "x" * 100_000}}},
        to(
            "one",
            match=[{"uri": {"prefix": "/headers"}}],
            headers={"request": {"set": {"x-set": "1"}, "remove": ["x-gone"]}, "response": {"add": {"x-more": "2"}}},
        ),
        {
            "match": [{"uri": {"prefix": "/weights"}}],
            "route": [
                {"destination": {"host": "one"}, "weight": 100},
                {"destination": {"host": "two"}, "weight": 0},
            ],
        },
        to("socket", match=[{"uri": {"prefix": "/socket"}}], retries={"attempts": 3}, timeout="5s"),
        to("silent", match=[{"uri": {"prefix": "/patient"}}]),
        to("silent", match=[{"uri": {"prefix": "/hasty"}}], timeout="50ms"),
        to("nobody.example.com", match=[{"uri": {"prefix": "/nobody"}}]),
    ],
}
PART = {"http": [to("two", match=[{"uri": {"prefix": "/part/two"}}]), to("one", match=[{"uri": {"prefix": "/other"}}])]}
SOURCE_ONLY = {"hosts": ["one"], "http": [to("two", match=[{"sourceLabels": {"version": "canary"}}])]}

OBJECTS = [
    obj("Host", "web", {"addresses": [WEB]}),
    obj("Host", "canary", {"addresses": [CANARY]}),
    obj("Host", "app", {"addresses": [APP]}),
    workload("web", WEB, "stable"),
    workload("web", CANARY, "canary"),
    workload("app", APP, "v1"),
    service("shop", 8001),
    service("socket", 8009),
    service("silent", 8010),
    *(service(name, port) for name, port in PORTS.items()),
    obj("VirtualService", "shop", SHOP),
    obj("VirtualService", "part", PART),
    obj("VirtualService", "source-only", SOURCE_ONLY),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def recorders() -> dict[str, Recorder]:
    return {name: Recorder(name) for name in PORTS}


@pytest.fixture(scope="module")
def net(mesh: Mesh, recorders: dict[str, Recorder]) -> Iterator[Network]:
    with ExitStack() as stack:
        programs = Programs()
        stack.callback(programs.close)
        running = stack.enter_context(network(mesh, OUTSIDER))
        with running.hosts["app"]():
            programs.upgrades(8009)
            # Connections are made, and nobody ever answers.
            stack.enter_context(socket.create_server(("0.0.0.0", 8010)))
            for name, port in PORTS.items():
                stack.callback(recorders[name].serve(port).close)
        yield running


@pytest.fixture
def web(net: Network, recorders: dict[str, Recorder]) -> Iterator[LiveHost]:
    """The calling host; the test's thread is on it."""
    for each in recorders.values():
        each.taken()
    with net.hosts["web"]():
        yield net.hosts["web"]


@pytest.fixture
def shop(mesh: Mesh) -> "Shop":
    return Shop(vip(mesh, "shop"))


class Shop:
    """The service that has routes."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, path: str, method: str = "GET", host: str = "shop", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.address, 80, host, path, method, named)


@pytest.mark.parametrize(
    ("path", "method", "headers", "program"),
    [
        ("/match", "GET", {"x_user": "jason"}, "two"),
        ("/match", "GET", {"x_user": "jane"}, "one"),
        ("/match?v=two", "GET", {}, "two"),
        ("/match?v=3", "GET", {}, "one"),
        ("/match", "PUT", {}, "two"),
        ("/match/12", "GET", {}, "two"),
        ("/match/12a", "GET", {}, "one"),
        ("/match/case", "GET", {}, "two"),
        ("/match", "GET", {"x_a": "1"}, "two"),
        ("/match", "GET", {"x_a": "1", "x_b": "no"}, "one"),
        ("/match", "GET", {"x_a": "1", "x_b": "yes"}, "two"),
    ],
)
def test_the_first_match_that_holds_decides(
    web: LiveHost, shop: Shop, path: str, method: str, headers: dict[str, str], program: str
) -> None:
    answer = shop(path, method, **headers)
    assert (answer.status, answer.body) == (200, program)


def test_what_no_match_takes_is_404(web: LiveHost, shop: Shop) -> None:
    assert shop("/unknown").status == 404


def test_a_route_can_be_for_callers_with_certain_labels(web: LiveHost, shop: Shop) -> None:
    assert shop("/who").body == "one"


def test_and_others_have_theirs(canary: LiveHost, shop: Shop) -> None:
    assert shop("/who").body == "two"


def test_routes_that_are_for_other_callers_alone_leave_a_service_as_it_is(web: LiveHost, mesh: Mesh) -> None:
    assert ask(vip(mesh, "one"), 80, "one").body == "one"


def test_and_change_it_for_those_callers(canary: LiveHost, mesh: Mesh) -> None:
    assert ask(vip(mesh, "one"), 80, "one").body == "two"


def test_a_match_for_another_gateway_is_not_for_the_mesh(web: LiveHost, shop: Shop) -> None:
    assert shop("/gateway").body == "one"


def test_a_host_that_no_service_has_is_served_where_its_services_are(web: LiveHost, shop: Shop) -> None:
    assert shop("/match/12", host="shop.example.com").body == "two"


def test_a_copy_arrives_and_its_answer_is_thrown_away(
    web: LiveHost, shop: Shop, recorders: dict[str, Recorder]
) -> None:
    answer = shop("/mirror/1", x_answer="500", x_at="copy")
    assert (answer.status, answer.body) == (200, "one")
    copy = recorders["copy"].next()
    assert (copy.path, copy.headers["host"]) == ("/mirror/1", "shop")
    # Envoy learned of the mirror's cluster before any request asked for it.
    assert web.stat(r"cluster.outbound.80..copy.default.svc.cluster.local.upstream_rq_total") == 1


def test_no_copy_is_made_of_zero_percent(web: LiveHost, shop: Shop, recorders: dict[str, Recorder]) -> None:
    assert shop("/uncopied").body == "one"
    # A copy that was made would have come before this one.
    assert shop("/mirror/last").body == "one"
    assert recorders["copy"].next().path == "/mirror/last"


def test_a_preflight_is_answered_for_those_who_may_call(
    web: LiveHost, shop: Shop, recorders: dict[str, Recorder]
) -> None:
    wanted = {"access_control_request_method": "PUT"}
    answer = shop("/cors", "OPTIONS", origin="https://pages.example.com", **wanted)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://pages.example.com"
    assert answer.headers["access-control-allow-methods"] == "GET,PUT"
    assert answer.headers["access-control-allow-headers"] == "x-token"
    assert answer.headers["access-control-max-age"] == "86400"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert not recorders["one"].taken()
    other = shop("/cors", "OPTIONS", origin="https://evil.example.com", **wanted)
    assert "access-control-allow-origin" not in other.headers
    asked = shop("/cors", origin="https://a.trusted.org")
    assert asked.headers["access-control-allow-origin"] == "https://a.trusted.org"
    assert asked.headers["access-control-expose-headers"] == "x-seen"


def test_a_delegate_has_the_routes_of_its_part(web: LiveHost, shop: Shop) -> None:
    assert shop("/part/two").body == "two"
    assert shop("/part/one").status == 404
    assert shop("/other").status == 404


@pytest.mark.parametrize(("path", "tries"), [("/twice", 3), ("/once", 1), ("/match", 1)])
def test_a_request_is_tried_as_often_as_is_said(
    web: LiveHost, shop: Shop, recorders: dict[str, Recorder], path: str, tries: int
) -> None:
    assert shop(path, x_answer="503").status == 503
    assert [each.path for each in recorders["one"].taken()] == [path] * tries


def test_a_fault_aborts_what_it_is_for(web: LiveHost, shop: Shop, recorders: dict[str, Recorder]) -> None:
    assert shop("/refused").status == 418
    assert not recorders["one"].taken()
    assert shop("/spared").status == 200


def test_a_fault_holds_a_request(web: LiveHost, shop: Shop) -> None:
    client = socket.create_connection((shop.address, 80), WAIT_S)
    with client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: shop\r\n\r\n")
        wait_until("held", lambda: web.stat(r"http.outbound_0.0.0.0_80.fault.delays_injected") > 0)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_a_grpc_callers_own_timeout_holds(web: LiveHost, shop: Shop) -> None:
    answer = shop("/patient", content_type="application/grpc", grpc_timeout="50m")
    # Envoy's word for an answer that did not come in time.
    assert answer.headers["grpc-status"] == "14"


def test_a_routes_timeout_holds(web: LiveHost, shop: Shop) -> None:
    assert shop("/hasty").status == 504


def test_a_path_and_an_authority_are_rewritten(web: LiveHost, shop: Shop, recorders: dict[str, Recorder]) -> None:
    shop("/old/1?q=1")
    seen = recorders["one"].next()
    assert (seen.path, seen.headers["host"]) == ("/new/1?q=1", "elsewhere")
    shop("/exact")
    assert recorders["one"].next().path == "/all"


def test_a_redirect_tells_where_to_go(web: LiveHost, shop: Shop) -> None:
    answer = shop("/away/1")
    assert (answer.status, answer.headers["location"]) == (301, "http://a.example.com/here/1")


def test_an_answer_of_the_proxy_can_be_long(web: LiveHost, shop: Shop) -> None:
    answer = shop("/big")
    assert (answer.status, len(answer.body)) == (203, 100_000)


def test_headers_are_changed_on_both_ways(web: LiveHost, shop: Shop, recorders: dict[str, Recorder]) -> None:
    answer = shop("/headers", x_gone="1")
    assert answer.headers["x-more"] == "2"
    seen = recorders["one"].next().headers
    assert seen["x-set"] == "1"
    assert "x-gone" not in seen


def test_a_weight_of_zero_gets_nothing(web: LiveHost, shop: Shop) -> None:
    assert {shop("/weights").body for _ in range(20)} == {"one"}


def test_a_destination_that_does_not_exist_is_503(web: LiveHost, shop: Shop) -> None:
    assert shop("/nobody").status == 503


def test_a_websocket_goes_through_a_route_with_retries_and_a_timeout(web: LiveHost, shop: Shop) -> None:
    with socket.create_connection((shop.address, 80), WAIT_S) as client:
        client.settimeout(WAIT_S)
        client.sendall(
            b"GET /socket HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = client.recv(4096)
            assert chunk, head
            head += chunk
        assert head.startswith(b"HTTP/1.1 101 ")
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"


def test_an_edited_delegate_is_one_virtual_host_to_its_users(web: LiveHost, shop: Shop, mesh: Mesh) -> None:
    assert shop("/part/two").body == "two"
    # Names are asked for one by one: wait until all that this test needs is there.
    web.ads.pushed.clear()
    edited = obj("VirtualService", "part", {"http": [to("one", match=[{"uri": {"prefix": "/part/two"}}])]})
    web.take(update(mesh, {edited.key: edited}, mesh.vips, mesh.runtime)[0])
    wait_until("edited", lambda: shop("/part/two").body == "one")
    assert {type_url for type_url, _, _ in web.ads.pushed} == {wire.VIRTUAL_HOST_TYPE}
    web.take(mesh)
    wait_until("as before", lambda: shop("/part/two").body == "two")
