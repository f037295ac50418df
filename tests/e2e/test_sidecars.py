"""Sidecars and mesh-wide settings in a lab: what a host may call, where its programs are, how its Envoy is run."""

import json
from collections.abc import Iterator

import pytest

from e2e.driver import PROGRAMS, Lab, eventually

SHOP = """
apiVersion: v1
kind: Service
metadata: {{name: shop}}
spec: {{selector: {{app: shop}}, ports: [{{name: http, port: 80, targetPort: 18080}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: caller}}
spec: {{address: {client}, serviceAccount: caller, labels: {{app: caller}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: shop}}
spec: {{address: {server}, serviceAccount: shop, labels: {{app: shop}}}}
"""
CLOSED = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: caller}
spec:
  workloadSelector: {labels: {app: caller}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""
INGRESS = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: shop}
spec:
  workloadSelector: {labels: {app: shop}}
  ingress:
  - port: {number: 18080, protocol: HTTP, name: http}
    defaultEndpoint: 127.0.0.1:18081
"""
LOGGED = """
apiVersion: hostmesh.io/v1
kind: MeshConfig
metadata: {name: default}
spec: {accessLogFile: /dev/stdout}
"""
DRAINING = """
apiVersion: hostmesh.io/v1
kind: MeshConfig
metadata: {name: default}
spec: {defaultConfig: {drainDuration: 9s}}
"""


@pytest.fixture(scope="module")
def shop(mesh: Lab) -> Iterator[Lab]:
    # The lab is shared: others' programs have the ports one would think of.
    for port, name in (("18080", "shop"), ("18081", "inside")):
        mesh.detach("server", "python3", str(PROGRAMS / "http_echo.py"), port, name, user="app")
    for port in ("22", "53", "8080"):
        mesh.detach("outside", "python3", str(PROGRAMS / "http_echo.py"), port, "outside")
    text = SHOP.format(client=mesh.ip("client"), server=mesh.ip("server"))
    mesh.apply(text)
    mesh.wait_for_workloads()
    eventually(lambda: mesh.curl("client", "http://shop/").status == 200, "the caller calls the shop")
    yield mesh
    mesh.hostmesh("delete", "-f", "-", text_in=text)


def test_a_closed_host_calls_the_mesh_and_nothing_else_but_keeps_its_ways_in_its_controller_and_its_names(
    shop: Lab,
) -> None:
    outside = shop.ip("outside")
    assert shop.curl("client", f"http://{outside}:8080/").status == 200
    told = shop.hostmesh("apply", "-f", "-", text_in=CLOSED)
    assert "capture every outbound TCP connection" in told.stdout + told.stderr
    try:
        eventually(lambda: shop.curl("client", f"http://{outside}:8080/").status == 0, "the outside is closed")
        assert shop.curl("client", f"http://{outside}:80/").status == 502
        assert shop.curl("client", "http://shop/").status == 200
        for port in (22, 53):
            assert shop.curl("client", f"http://{outside}:{port}/").status == 200
        agent = shop.agent("client")
        assert agent["capture"]["state"] == "on"
        found = json.loads(shop.hostmesh("proxy", "status", "-o", "json").stdout)
        assert any(each["host"] == "client" for each in found), "its stream to the controller is there"
    finally:
        shop.hostmesh("delete", "-f", "-", text_in=CLOSED)
    eventually(lambda: shop.curl("client", f"http://{outside}:8080/").status == 200, "the outside is open again")


def test_a_program_that_listens_on_loopback_is_called_by_its_ingress(shop: Lab) -> None:
    shop.apply(INGRESS)
    try:
        eventually(lambda: shop.curl("client", "http://shop/").json["name"] == "inside", "the ingress leads inside")
    finally:
        shop.hostmesh("delete", "-f", "-", text_in=INGRESS)
    eventually(lambda: shop.curl("client", "http://shop/").json["name"] == "shop", "the ingress is gone")


def test_the_access_log_is_in_the_log_that_the_agent_keeps_of_envoy(shop: Lab) -> None:
    shop.apply(LOGGED)

    def logged() -> bool:
        shop.curl("client", "http://shop/logged")
        found = shop.exec("client", "sh", "-c", "cat /var/lib/hostmesh/envoy/envoy.log", check=False)
        return '"GET /logged HTTP/1.1" 200 - via_upstream' in found.stdout

    try:
        # Envoy writes it every ten seconds.
        eventually(logged, "the line of the request", timeout_s=30)
    finally:
        shop.hostmesh("delete", "-f", "-", text_in=LOGGED)


def test_the_status_says_that_the_next_envoy_is_run_otherwise(shop: Lab) -> None:
    shop.apply(DRAINING)
    try:
        needed = eventually(lambda: shop.agent("client")["envoy"]["restart_needed"], "the status tells")
        assert "arguments" in needed
        assert shop.curl("client", "http://shop/").status == 200
    finally:
        shop.hostmesh("delete", "-f", "-", text_in=DRAINING)
    eventually(lambda: not shop.agent("client")["envoy"]["restart_needed"], "the running one is as it should be")
