"""What programs really do is seen: who speaks plaintext, when it can be refused, and who may be let in."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.driver import PROGRAMS, Lab, eventually

MESH = """
apiVersion: v1
kind: Namespace
metadata: {{name: watched}}
---
apiVersion: v1
kind: Service
metadata: {{name: stock, namespace: watched}}
spec:
  selector: {{app: stock}}
  ports: [{{name: http, port: 8095}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock, namespace: watched}}
spec: {{address: {server}, serviceAccount: stock, labels: {{app: stock}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: buyer, namespace: watched}}
spec: {{address: {client}, serviceAccount: buyer, labels: {{app: buyer}}}}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: watched}
spec: {mtls: {mode: STRICT}}
"""
BUYER = "cluster.local/ns/watched/sa/buyer"


@pytest.fixture
def stock(mesh: Lab) -> Iterator[Lab]:
    mesh.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8095", "stock", user="app")
    text = MESH.format(client=mesh.ip("client"), server=mesh.ip("server"))
    mesh.hostmesh("apply", "-f", "-", text_in=text)
    mesh.wait_for_workloads()
    yield mesh
    mesh.hostmesh("delete", "-f", "-", text_in=text)


def readiness(lab: Lab, window: str) -> tuple[int, dict[str, Any]]:
    done = lab.hostmesh("mtls", "readiness", "stock", "-n", "watched", "--window", window, "-o", "json", check=False)
    return done.returncode, json.loads(done.stdout)["items"][0]


def test_plaintext_callers_are_named_until_they_speak_mutual_tls_and_then_a_policy_fits(stock: Lab) -> None:
    direct, by_name = f"http://{stock.ip('server')}:8095/", "http://stock.watched:8095/"
    eventually(lambda: stock.curl("client", direct).status == 200, "the program answers")
    for _ in range(3):
        assert stock.curl("outside", direct).status == 200

    def both() -> dict[str, Any]:
        found = {each["caller"]: each for each in readiness(stock, "1h")[1]["plaintext"]}
        # The last of its calls may be told with the next report.
        return found if len(found) == 2 and found[stock.ip("outside")]["count"] >= 3 else {}

    callers = eventually(both, "both callers are seen", 40)
    assert callers[stock.ip("outside")]["reason"] == "outside-the-mesh"
    assert callers[stock.ip("outside")]["count"] == 3
    assert (callers[stock.ip("client")]["host"], callers[stock.ip("client")]["reason"]) == ("client", "not-captured")
    code, found = readiness(stock, "1h")
    assert (code, found["state"]) == (1, "plaintext")
    warned = stock.hostmesh("apply", "--dry-run", "-f", "-", text_in=STRICT)
    assert f"{stock.ip('client')} (host client)" in warned.stdout + warned.stderr

    # The caller that is in the mesh calls by name now; the other one has stopped.
    assert stock.curl("client", by_name).status == 200
    eventually(lambda: readiness(stock, "4s")[0] == 0, "nobody speaks plaintext", 40)
    assert readiness(stock, "4s")[1]["state"] == "ready"
    assert readiness(stock, "1h")[0] == 1

    def suggested() -> str:
        done = stock.hostmesh("authz", "suggest", "-n", "watched", "--workload", "stock", check=False)
        return done.stdout if done.returncode == 0 else ""

    text = eventually(suggested, "a policy is suggested", 40)
    assert f"- {BUYER}" in text
    assert f"# Not allowed, for want of an identity: {stock.ip('outside')} on port 8095: outside the mesh." in text
    assert "istio.io/dry-run: 'true'" in text
    report = stock.hostmesh("mtls", "report", "-n", "watched")
    assert f"spiffe://{BUYER}" in report.stdout
