"""In STRICT no plaintext reaches the program: a canary calls from outside all the time, through kills and changes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.driver import PROGRAMS, Lab, eventually

CANARY = str(PROGRAMS / "canary.py")
PORT = "8097"

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: vault}}
spec:
  selector: {{app: vault}}
  ports: [{{name: http, port: 8097}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: vault}}
spec: {{address: {server}, serviceAccount: vault, labels: {{app: vault}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: vault}}
spec:
  selector: {{matchLabels: {{app: vault}}}}
  mtls: {{mode: STRICT}}
"""

POLICY = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: vault}}
spec:
  selector: {{matchLabels: {{app: vault}}}}
  mtls: {{mode: STRICT}}
  portLevelMtls: {{"{port}": {{mode: PERMISSIVE}}}}
"""


@contextmanager
def canary(lab: Lab) -> Iterator[dict[str, int]]:
    """Call the program from outside the mesh all the time; what came of it is there when the context is left."""
    calls = lab.popen("outside", "python3", CANARY, "call", lab.ip("server"), PORT)
    tally: dict[str, int] = {}
    try:
        yield tally
        output, _ = calls.communicate("", timeout=30)
        tally.update(json.loads(output))
    finally:
        calls.kill()
        calls.communicate()


@pytest.fixture
def vault(mesh: Lab) -> Iterator[Lab]:
    mesh.detach("server", "python3", CANARY, "serve", PORT, user="app")
    text = SERVICE.format(server=mesh.ip("server"))
    mesh.apply(text)
    eventually(lambda: PORT in map(str, mesh.agent("server")["capture"]["inbound_ports"]), "the port is captured")
    eventually(lambda: seen(mesh) is not None, "client calls vault")
    yield mesh
    mesh.hostmesh("delete", "-f", "-", text_in=text)
    mesh.exec("server", "pkill", "-f", f"canary.py serve {PORT}", check=False)


def seen(lab: Lab) -> int | None:
    """How much of the canary the program saw, as it tells the mesh's client; None while it cannot be reached."""
    answer = lab.curl("client", f"http://vault:{PORT}/seen")
    return int(answer.body) if answer.status == 200 else None


def test_no_plaintext_reaches_a_strict_port_while_everything_is_killed_and_changed(vault: Lab) -> None:
    with canary(vault) as tally:
        vault.exec("server", "nft", "flush", "ruleset")
        vault.verb("kill", "envoy/server")
        vault.verb("kill", "agent/server")
        vault.verb("kill", "envoy/server")
        vault.verb("start", "agent/server")
        vault.exec("server", "nft", "flush", "ruleset")
        vault.apply(POLICY.format(port=8098))
        vault.verb("stop", "controller")
        vault.verb("kill", "agent/server")
        vault.verb("start", "agent/server")
        vault.verb("start", "controller")
        vault.apply(POLICY.format(port=8099))
        eventually(lambda: seen(vault) is not None, "client calls vault again", timeout_s=30)
    assert sum(tally.values()) > 100
    assert "answered" not in tally, tally
    assert seen(vault) == 0


def test_the_rules_of_a_running_agent_are_cleared_through_it(vault: Lab) -> None:
    try:
        assert "nothing is captured" in vault.exec("server", "hostmesh-agent", "capture", "clear").stdout
        assert vault.exec("server", "nft", "list", "ruleset").stdout == ""
    finally:
        vault.exec("server", "hostmesh-agent", "capture", "resume")
    with canary(vault) as tally:
        eventually(lambda: seen(vault) is not None, "client calls vault again")
    assert sum(tally.values()) > 0
