"""HealthCheck with real Envoys: an endpoint that is not well is not called, and is called again when it is."""

import http.server
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from golden.live import NEEDS_ROOT, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import get
from hostmesh_controller.mesh import update
from hostmesh_controller.model.objects import ApiObject, ObjectKey

CALLER, SERVER, OUTSIDER = "10.9.2.1", "10.9.2.2", "10.9.2.9"
VIP = "240.240.0.1"

pytestmark = NEEDS_ROOT

CHECK = obj(
    "HealthCheck",
    "shop",
    {"host": "shop", "http": {"path": "/health"}, "interval": "50ms", "timeout": "1s", "unhealthyThreshold": 1},
)
OBJECTS = [
    obj("Host", "caller", {"addresses": [CALLER]}),
    obj("Host", "server", {"addresses": [SERVER]}),
    obj("WorkloadEntry", "caller", {"address": CALLER, "labels": {"app": "caller"}}),
    obj("WorkloadEntry", "inside", {"address": SERVER, "labels": {"app": "shop"}}),
    obj("WorkloadEntry", "outside", {"address": OUTSIDER, "labels": {"app": "shop"}}),
    obj(
        "Service",
        "shop",
        {"selector": {"app": "shop"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    ),
    CHECK,
]


class Moody:
    """A program that says how it is, and who it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.well = True
        self.asked = 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        program = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                check = self.path == "/health"
                program.asked += check
                body = program.name.encode()
                self.send_response(500 if check and not program.well else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        with Server(("0.0.0.0", 8080), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield
            server.shutdown()
            thread.join(10)


@pytest.fixture
def net() -> Iterator[tuple[Network, Moody, Moody]]:
    inside, outside = Moody("inside"), Moody("outside")
    with ExitStack() as stack:
        found = stack.enter_context(network(mesh_of(OBJECTS), OUTSIDER))
        with found.hosts["server"]():
            stack.enter_context(inside.serving())
        with found.outsider():
            stack.enter_context(outside.serving())
        yield found, inside, outside


def callees(net: Network, count: int = 20) -> set[str]:
    with net.hosts["caller"]():
        answers = [get(VIP, 80, "shop") for _ in range(count)]
    assert {each.status for each in answers} == {200}
    return {each.body for each in answers}


def test_an_endpoint_that_says_it_is_not_well_is_left_out_until_it_is(net: tuple[Network, Moody, Moody]) -> None:
    found, inside, outside = net
    assert callees(found) == {"inside", "outside"}
    outside.well = False
    wait_until("the one that is not well is left out", lambda: callees(found) == {"inside"})
    assert inside.asked
    outside.well = True
    wait_until("it is called again", lambda: callees(found) == {"inside", "outside"})
    inside.well = False
    wait_until("the other one is left out", lambda: callees(found) == {"outside"})


def test_a_check_that_is_taken_away_asks_no_more_and_leaves_nobody_out(net: tuple[Network, Moody, Moody]) -> None:
    found, _, outside = net
    outside.well = False
    wait_until("the one that is not well is left out", lambda: callees(found) == {"inside"})
    changed: dict[ObjectKey, ApiObject | None] = {CHECK.key: None}
    mesh = found.hosts["caller"].ads.source.mesh
    found.hosts["caller"].take(update(mesh, changed, mesh.vips, mesh.runtime)[0])
    wait_until("both are called", lambda: callees(found) == {"inside", "outside"})
