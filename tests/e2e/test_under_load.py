"""Changes and kills while programs call each other all the time: no request may fail."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hostmesh_controller.lab.demo
from e2e.driver import HOSTMESH, PROGRAMS, Lab, eventually

LOAD = Path(hostmesh_controller.lab.demo.__file__).parent / "programs" / "load.py"
PORT = "8095"
WORKERS = 4

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: stock}}
spec:
  selector: {{app: stock}}
  ports: [{{name: http, port: 8095}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock}}
spec: {{address: {server}, serviceAccount: stock, labels: {{app: stock, version: v1}}}}
"""

RULES = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: stock}}
spec:
  host: stock
  trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {limit}}}}}}}
  subsets: [{{name: v1, labels: {{version: v1}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: stock}}
spec:
  hosts: [stock]
  http:
    - route:
        - {{destination: {{host: stock, subset: v1}}, weight: {weight}}}
        - {{destination: {{host: stock}}, weight: {rest}}}
"""


@contextmanager
def load(lab: Lab, host: str, url: str) -> Iterator[dict[str, Any]]:
    """Call the URL from the host, on kept and on new connections; the tally is there when the context is left."""
    command = [HOSTMESH, "lab", "exec", host, "--dir", str(lab.root), "--", "python3", str(LOAD), url]
    calls = subprocess.Popen(
        [*command, "--workers", str(WORKERS), "--pause", "0.01"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    tally: dict[str, Any] = {}
    try:
        yield tally
        output, _ = calls.communicate("", timeout=30)
        tally.update(json.loads(output))
    finally:
        calls.kill()
        calls.communicate()


@pytest.fixture(scope="module")
def stock(mesh: Lab) -> Lab:
    """A program runs on the server, and the mesh knows nothing of it."""
    mesh.detach("server", "python3", str(PROGRAMS / "http_echo.py"), PORT, "stock")
    address = f"http://{mesh.ip('server')}:{PORT}/"
    eventually(lambda: mesh.curl("outside", address).status == 200, "the program answers")
    return mesh


def _ready(lab: Lab) -> bool:
    return any(each["name"] == "stock" and each["ready"] for each in lab.agent("server")["workloads"])


def test_a_running_service_joins_and_leaves_the_mesh_without_a_failed_request(stock: Lab) -> None:
    text = SERVICE.format(server=stock.ip("server"))
    with load(stock, "outside", f"http://{stock.ip('server')}:{PORT}/") as tally:
        for _ in range(3):
            stock.apply(text)
            eventually(lambda: _ready(stock), "the workload is ready")
            stock.hostmesh("delete", "-f", "-", text_in=text)
            eventually(lambda: not stock.agent("server")["capture"]["inbound_ports"], "nothing is captured")
    assert tally["sent"] > 300
    assert tally["failed"] == 0, tally


STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
"""
MORE = """
apiVersion: v1
kind: Service
metadata: {{name: more-{number}}}
spec: {{selector: {{app: stock}}, ports: [{{name: http, port: {port}}}]}}
"""


def test_a_strict_workload_gets_and_loses_ports_and_no_request_to_the_others_fails(stock: Lab) -> None:
    stock.apply(SERVICE.format(server=stock.ip("server")))
    eventually(lambda: _ready(stock), "the workload is ready")
    stock.apply(STRICT)
    eventually(lambda: stock.curl("client", f"http://stock:{PORT}/").status == 200, "client calls stock")
    more = "---".join(MORE.format(number=number, port=int(PORT) + number) for number in range(1, 3))
    with load(stock, "client", f"http://stock:{PORT}/") as tally:
        for _ in range(2):
            stock.apply(more)
            eventually(lambda: len(stock.agent("server")["capture"]["inbound_ports"]) == 3, "three are captured")
            stock.hostmesh("delete", "-f", "-", text_in=more)
            eventually(lambda: len(stock.agent("server")["capture"]["inbound_ports"]) == 1, "one is captured")
    stock.hostmesh("delete", "-f", "-", text_in=STRICT)
    assert tally["sent"] > 300
    assert tally["failed"] == 0, tally


def test_changes_and_kills_fail_no_request_of_the_mesh(stock: Lab) -> None:
    stock.apply(SERVICE.format(server=stock.ip("server")))
    eventually(lambda: stock.curl("client", f"http://stock:{PORT}/").status == 200, "client calls stock")
    with load(stock, "client", f"http://stock:{PORT}/") as tally:
        for number in range(1, 6):
            stock.apply(RULES.format(weight=number * 20, rest=100 - number * 20, limit=1000 + number))
        for host in ("client", "server"):
            stock.verb("kill", f"agent/{host}")
        stock.verb("stop", "controller")
        for host in ("server", "client"):
            stock.verb("start", f"agent/{host}")
        stock.verb("start", "controller")
        stock.apply(RULES.format(weight=50, rest=50, limit=2000))
    stock.hostmesh("delete", "-f", "-", text_in=RULES.format(weight=50, rest=50, limit=2000))
    assert tally["sent"] > 300
    assert tally["failed"] == 0, tally
