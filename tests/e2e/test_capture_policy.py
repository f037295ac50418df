"""What becomes of connections while there is no Envoy: a CapturePolicy says it, and it is measured."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.driver import PROGRAMS, Lab, eventually

CANARY = str(PROGRAMS / "canary.py")
PORT, OWN = "8098", "8099"
GONE = 0
"""The status of no answer."""

DOOR = """
apiVersion: v1
kind: Service
metadata: {{name: door}}
spec:
  selector: {{app: door}}
  ports: [{{name: http, port: 8098}}, {{name: http-own, port: 8099}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: door}}
spec: {{address: {server}, serviceAccount: door, labels: {{app: door}}}}
"""
POLICY = """
apiVersion: hostmesh.io/v1
kind: CapturePolicy
metadata: {{name: failing, namespace: istio-system}}
spec:
  scope: all
  inbound: {{failureMode: {mode}}}
  outbound: {{failureMode: {mode}{more}}}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: door}
spec:
  selector: {matchLabels: {app: door}}
  mtls: {mode: PERMISSIVE}
  portLevelMtls: {"8099": {mode: STRICT}}
"""


def captured(lab: Lab, host: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.agent(host)["capture"]
    return found


def gap(lab: Lab, host: str, direction: str) -> dict[str, Any]:
    return next((each for each in captured(lab, host)["gaps"] if each["direction"] == direction), {})


def statuses(lab: Lab, caller: str, *urls: str) -> list[int]:
    return [lab.curl(caller, url).status for url in urls]


@pytest.fixture
def door(mesh: Lab) -> Iterator[Lab]:
    """A program of two ports on the server, and one outside of the mesh; both directions fail as `say` says."""
    for host in ("server", "outside"):
        for port in (PORT, OWN):
            mesh.detach(host, "python3", CANARY, "serve", port, user="app")
    text = DOOR.format(server=mesh.ip("server"))
    mesh.apply(text)
    eventually(lambda: {int(PORT), int(OWN)} <= {*captured(mesh, "server")["inbound_ports"]}, "the ports are captured")
    eventually(lambda: statuses(mesh, "client", f"http://door:{PORT}/seen") == [200], "client calls door")
    yield mesh
    for host in ("server", "client"):
        mesh.verb("start", f"envoy/{host}")
    for written in (POLICY.format(mode="open", more=""), STRICT, text):
        mesh.hostmesh("delete", "-f", "-", "--ignore-missing", text_in=written, check=False)
    for host in ("server", "outside"):
        mesh.exec(host, "pkill", "-f", f"canary.py serve ({PORT}|{OWN})", check=False)
    eventually(lambda: not captured(mesh, "client")["waiting_for"], "all is captured again", timeout_s=30)


@pytest.fixture
def say(door: Lab) -> Callable[[str], None]:
    """Apply the policy with a failure mode, and see both hosts hold to it."""

    def apply(mode: str, more: str = "") -> None:
        door.apply(POLICY.format(mode=mode, more=more))
        direct = f"http://{door.ip('outside')}:{PORT}/seen"
        eventually(lambda: statuses(door, "client", direct) == [200], "scope all is in force, and others are called")

    return apply


def test_open_passes_by_while_there_is_no_envoy_but_never_strict_nor_into_the_mesh(
    door: Lab, say: Callable[[str], None]
) -> None:
    say("open")
    inward = [f"http://{door.ip('server')}:{port}/seen" for port in (PORT, OWN)]
    outward, into_the_mesh = f"http://{door.ip('outside')}:{PORT}/seen", f"http://door:{PORT}/seen"
    door.verb("stop", "envoy/server")
    door.verb("stop", "envoy/client")
    eventually(lambda: statuses(door, "outside", *inward) == [200, 200], "plaintext passes by")
    eventually(lambda: statuses(door, "client", outward) == [200], "what is outside is called directly")
    assert door.curl("client", into_the_mesh).status == GONE
    assert gap(door, "server", "inbound") | {"refused_ms": 0, "passed_ms": 0, "count": 1, "total_ms": 0} == {
        "direction": "inbound",
        "failure_mode": "open",
        "lasts": True,
        "refused_ms": 0,
        "passed_ms": 0,
        "count": 1,
        "total_ms": 0,
    }

    door.apply(STRICT)
    eventually(lambda: statuses(door, "outside", *inward) == [200, GONE], "the port is closed that turned strict")
    door.verb("start", "envoy/server")
    door.verb("start", "envoy/client")
    eventually(lambda: not captured(door, "server")["waiting_for"], "all is captured again", timeout_s=30)
    assert statuses(door, "outside", *inward) == [200, GONE]
    urls = [f"http://door:{port}/seen" for port in (PORT, OWN)]
    eventually(lambda: statuses(door, "client", *urls) == [200, 200], "client calls door by mutual TLS", timeout_s=30)
    last = gap(door, "server", "inbound")
    assert not last["lasts"]
    assert last["passed_ms"] > 0
    assert last["refused_ms"] < 2000
    assert gap(door, "client", "outbound")["passed_ms"] > 0

    def reported() -> Any:
        shown = json.loads(door.hostmesh("host", "show", "server", "-o", "json").stdout)
        return [each for each in shown["report"]["capture"].get("gaps", ()) if not each.get("lasts")]

    (told,) = [each for each in eventually(reported, "the controller knows") if each["direction"] == "inbound"]
    assert int(told["passed_ms"]) == last["passed_ms"]


def test_closed_refuses_while_there_is_no_envoy_and_whom_a_policy_excludes_is_not_concerned(
    door: Lab, say: Callable[[str, str], None]
) -> None:
    say("closed", ", exclude: [{users: [root]}]")
    outward = f"http://{door.ip('outside')}:{PORT}/seen"
    door.verb("kill", "envoy/server")
    door.verb("stop", "envoy/server")
    door.verb("stop", "envoy/client")
    eventually(lambda: gap(door, "server", "inbound").get("lasts"), "the gap is seen")
    assert statuses(door, "outside", f"http://{door.ip('server')}:{PORT}/seen") == [GONE]
    assert door.curl("client", outward).status == GONE
    assert door.exec("client", "curl", "-sS", "-m", "10", outward).stdout
    assert gap(door, "server", "inbound")["failure_mode"] == "closed"
    door.verb("start", "envoy/server")
    door.verb("start", "envoy/client")
    eventually(lambda: not gap(door, "server", "inbound")["lasts"], "the gap is over", timeout_s=30)
    last = gap(door, "server", "inbound")
    assert last["refused_ms"] > 0
    assert last["passed_ms"] == 0
