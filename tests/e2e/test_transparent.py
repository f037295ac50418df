"""Programs see the address of who calls (inbound mode tproxy): a real Envoy, the agent's own rules, both families."""

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.driver import PROGRAMS, Lab, eventually

ECHO = str(PROGRAMS / "http_echo.py")
HTTP, TCP, ELSEWHERE = 8093, 8094, 8095
SEEN = """
apiVersion: v1
kind: Service
metadata: {{name: seen}}
spec:
  selector: {{app: seen}}
  ports: [{{name: http, port: 8093}}, {{name: tcp, port: 8094}}, {{name: http-two, port: 8095}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: seen}}
spec: {{address: {server}, serviceAccount: seen, labels: {{app: seen}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: seen}}
spec:
  workloadSelector: {{labels: {{app: seen}}}}
  ingress: [{{port: {{number: 8095, name: http, protocol: HTTP}}, defaultEndpoint: "127.0.0.1:8095"}},
    {{port: {{number: 8093, name: http, protocol: HTTP}}}}, {{port: {{number: 8094, name: tcp, protocol: TCP}}}}]
"""
POLICY = """
apiVersion: hostmesh.io/v1
kind: CapturePolicy
metadata: {name: transparent, namespace: istio-system}
spec:
  selector: {matchLabels: {app: seen}}
  inbound: {mode: tproxy}
"""
ENVOYS_OWN = {"127.0.0.6", "::6"}
OF_A_CALL = {"x-request-id", "x-envoy-attempt-count", "traceparent"}


def said(lab: Lab, caller: str, url: str) -> dict[str, Any]:
    """What the program says of a call; {} without an answer."""
    answer = lab.curl(caller, url)
    return answer.json if answer.status == 200 else {}


def peer(lab: Lab, caller: str, url: str) -> str:
    return str(said(lab, caller, url).get("peer", "")).removeprefix("::ffff:")


def headers(lab: Lab, caller: str, url: str) -> dict[str, str]:
    return {name: value for name, value in said(lab, caller, url)["headers"].items() if name not in OF_A_CALL}


def needed(lab: Lab) -> str:
    return str(lab.agent("server")["envoy"]["restart_needed"])


def traces(lab: Lab) -> str:
    """What of it is in the kernel of the server."""
    shown = (
        "ip rule; ip -6 rule; ip route show table 1506; ip -6 route show table 1506; nft list table inet hostmesh",
    )
    lines = lab.exec("server", "sh", "-c", *shown, check=False).stdout.splitlines()
    return "\n".join(line for line in lines if "1506" in line or "0x5e2" in line or "0x000005e2" in line)


@pytest.fixture
def seen(mesh: Lab) -> Iterator[Lab]:
    for port in (HTTP, TCP, ELSEWHERE):
        mesh.detach("server", "python3", ECHO, str(port), "seen", user="app")
    text = SEEN.format(server=mesh.ip("server"))
    mesh.apply(text)
    urls = [f"http://seen:{port}/" for port in (HTTP, TCP, ELSEWHERE)]
    eventually(lambda: all(said(mesh, "client", url) for url in urls), "client calls seen")
    yield mesh
    for written in (POLICY, text):
        mesh.hostmesh("delete", "-f", "-", "--ignore-missing", text_in=written, check=False)
    eventually(lambda: not mesh.agent("server")["capture"]["waiting_for"], "capture follows")
    mesh.verb("kill", "envoy/server")
    eventually(lambda: not needed(mesh) and mesh.agent("server")["envoy"]["pid"], "Envoy is as before", timeout_s=30)
    mesh.exec("server", "pkill", "-f", "http_echo.py 809[345]", check=False)


def test_programs_see_who_calls_and_nothing_else_is_other_than_with_redirect(seen: Lab) -> None:
    server, client, outside = (seen.ip(each) for each in ("server", "client", "outside"))
    server6, outside6 = (seen.verb("ip", each, "--v6").stdout.strip() for each in ("server", "outside"))
    plain, plain6, mutual = f"http://{server}:{HTTP}/", f"http://[{server6}]:{HTTP}/", f"http://seen:{HTTP}/"
    assert peer(seen, "outside", plain) in ENVOYS_OWN
    before = headers(seen, "outside", plain), headers(seen, "client", mutual)
    assert "x-forwarded-client-cert" in before[1]
    assert traces(seen) == ""

    # A running Envoy cannot gain the right: until the next one redirect goes on, and it is said.
    seen.apply(POLICY)
    eventually(lambda: "capabilities" in needed(seen), "the next Envoy may use its clients' addresses")
    assert peer(seen, "outside", plain) in ENVOYS_OWN
    seen.verb("kill", "envoy/server")
    eventually(lambda: peer(seen, "outside", plain) == outside, "plaintext: the client's own address", timeout_s=30)
    assert peer(seen, "outside", plain6) == outside6
    eventually(lambda: peer(seen, "client", mutual) == client, "mutual TLS: the same")
    assert peer(seen, "client", f"http://seen:{TCP}/") == client
    assert peer(seen, "server", mutual) == server
    # Where the program is called at another address, the client's has no meaning there.
    assert peer(seen, "client", f"http://seen:{ELSEWHERE}/") == "127.0.0.1"
    assert (headers(seen, "outside", plain), headers(seen, "client", mutual)) == before

    many = ["sh", "-c", f"for i in $(seq 200); do curl -sS -m 5 -o /dev/null -w '%{{http_code}} ' {plain}; done"]
    assert seen.exec("outside", *many, user="app").stdout.split() == ["200"] * 200

    # Taken back, the rules stay for as long as there is an Envoy that needs them.
    seen.hostmesh("delete", "-f", "-", text_in=POLICY)
    eventually(lambda: "capabilities" in needed(seen), "the next Envoy may not")
    eventually(lambda: peer(seen, "outside", plain) in ENVOYS_OWN, "Envoy's own address again")
    assert traces(seen) != ""
    seen.verb("kill", "envoy/server")
    eventually(lambda: peer(seen, "outside", plain) in ENVOYS_OWN, "redirect goes on", timeout_s=30)
    eventually(lambda: traces(seen) == "", "nothing is left of it")
