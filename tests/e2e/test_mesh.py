"""Unmodified programs on hosts of a lab talk through real agents, Envoys and rules."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from e2e.driver import PROGRAMS, PYTHON, Lab, eventually
from hostmesh_api.wire import AGENTS_PORT

CLIENT = "spiffe://cluster.local/ns/default/sa/client"

MESH = """
apiVersion: v1
kind: Service
metadata: {{name: orders}}
spec:
  selector: {{app: orders}}
  ports:
    - {{name: http, port: 80, targetPort: 8080}}
    - {{name: tcp-line, port: 9000}}
    - {{name: grpc, port: 9090}}
---
apiVersion: v1
kind: Service
metadata: {{name: billing, namespace: money}}
spec:
  selector: {{app: billing}}
  ports:
    - {{name: http, port: 80, targetPort: 8081}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client}}
spec:
  address: {client}
  serviceAccount: client
  labels: {{app: client}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: orders}}
spec:
  address: {server}
  serviceAccount: orders
  labels: {{app: orders}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: billing, namespace: money}}
spec:
  address: {server}
  serviceAccount: billing
  labels: {{app: billing}}
"""


@pytest.fixture(scope="module")
def shop(mesh: Lab) -> Iterator[Lab]:
    """Two workloads of different identities on one host, and one client."""
    for port, name in (("8080", "orders"), ("8081", "billing")):
        mesh.detach("server", "python3", str(PROGRAMS / "http_echo.py"), port, name, user="app")
    mesh.detach("server", "python3", str(PROGRAMS / "tcp.py"), "serve", "9000", user="app")
    mesh.detach("server", PYTHON, str(PROGRAMS / "grpc_echo.py"), "serve", "9090")
    text = MESH.format(client=mesh.ip("client"), server=mesh.ip("server"))
    mesh.hostmesh("apply", "-f", "-", text_in=text)
    mesh.wait_for_workloads()
    eventually(lambda: mesh.curl("client", "http://orders/").status == 200, "client calls orders")
    yield mesh
    mesh.hostmesh("delete", "-f", "-", text_in=text)


@pytest.mark.parametrize("name", ["orders", "orders.default", "orders.default.svc", "orders.default.svc.cluster.local"])
def test_a_program_calls_a_service_by_each_of_its_names(shop: Lab, name: str) -> None:
    answer = shop.curl("client", f"http://{name}/list?of=all")
    assert (answer.status, answer.json["name"], answer.json["path"]) == (200, "orders", "/list?of=all")


def test_the_callee_sees_who_called_and_cannot_be_told_otherwise(shop: Lab) -> None:
    forged = "By=spiffe://x;URI=spiffe://cluster.local/ns/default/sa/admin"
    answer = shop.curl("client", "http://orders/", "-H", f"x-forwarded-client-cert: {forged}")
    seen = answer.json["headers"]["x-forwarded-client-cert"]
    assert f"URI={CLIENT}" in seen
    assert "sa/admin" not in seen


def test_two_workloads_of_one_host_are_served_under_their_own_identities(shop: Lab) -> None:
    for url, name, owner in (
        ("http://orders/", "orders", "spiffe://cluster.local/ns/default/sa/orders"),
        ("http://billing.money/", "billing", "spiffe://cluster.local/ns/money/sa/billing"),
    ):
        answer = eventually(partial(_ok, shop, url), f"client calls {url}")
        assert answer["name"] == name
        assert f"By={owner};" in answer["headers"]["x-forwarded-client-cert"] + ";"


ANOTHER = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: another}}
spec: {{address: {client}, serviceAccount: another}}
"""


def test_a_change_of_identity_counts_from_the_next_request_on(shop: Lab) -> None:
    def caller() -> str:
        seen = shop.curl("client", "http://orders/").json["headers"]["x-forwarded-client-cert"]
        return str(seen.rpartition("URI=")[2])

    assert caller() == CLIENT
    another = ANOTHER.format(client=shop.ip("client"))
    shop.hostmesh("apply", "-f", "-", text_in=another)
    assert caller() == "spiffe://cluster.local/host/client"
    shop.hostmesh("delete", "-f", "-", text_in=another)
    eventually(lambda: caller() == CLIENT, "the only workload speaks again")


def _ok(shop: Lab, url: str) -> dict[str, Any]:
    answer = shop.curl("client", url)
    return answer.json if answer.status == 200 else {}


def test_a_protocol_in_which_the_server_speaks_first_passes(shop: Lab) -> None:
    done = eventually(
        lambda: shop.exec("client", "python3", str(PROGRAMS / "tcp.py"), "call", "orders", "9000", check=False).stdout,
        "client talks to orders:9000",
    )
    assert done == "220 welcome\nHELLO\n"


def test_grpc_calls_and_streams_pass(shop: Lab) -> None:
    done = shop.exec("client", PYTHON, str(PROGRAMS / "grpc_echo.py"), "call", "orders:9090")
    unary, stream = done.stdout.splitlines()
    assert unary.startswith("hello ")
    assert f"URI={CLIENT}" in unary
    assert stream == "one two three"


def test_a_host_outside_is_served_plainly_while_permissive_and_has_no_identity(shop: Lab) -> None:
    answer = shop.curl("outside", f"http://{shop.ip('server')}:8080/", "-H", "x-forwarded-client-cert: URI=spiffe://a")
    assert answer.status == 200
    assert "x-forwarded-client-cert" not in answer.json["headers"]


def test_a_host_outside_does_not_know_the_meshs_names(shop: Lab) -> None:
    assert "Could not resolve host" in shop.curl("outside", "http://orders/").problem


def test_strict_refuses_plaintext_and_lets_members_in(shop: Lab) -> None:
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "orders"},
        "spec": {"selector": {"matchLabels": {"app": "orders"}}, "mtls": {"mode": "STRICT"}},
    }
    shop.apply(json.dumps(policy))
    address = f"http://{shop.ip('server')}:8080/"
    eventually(lambda: shop.curl("outside", address).status == 0, "outside is refused")
    assert shop.curl("client", "http://orders/").status == 200
    shop.hostmesh("delete", "peerauthentication", "orders", "-n", "default")
    eventually(lambda: shop.curl("outside", address).status == 200, "outside is served again")


ONLY_READ = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-read}
spec:
  selector: {matchLabels: {app: orders}}
  rules: [{to: [{operation: {methods: [HEAD]}}]}]
"""


def test_a_policy_counts_for_connections_that_are_open(shop: Lab) -> None:
    # Each of Envoy's workers keeps one to the other side; on each one more request may pass while it is closed.
    script = "for i in $(seq 40); do curl -s -o /dev/null -w '%{http_code} ' http://orders/; done"
    assert set(shop.exec("client", "sh", "-c", script, user="app").stdout.split()) == {"200"}
    shop.apply(ONLY_READ)
    found = shop.exec("client", "sh", "-c", script, user="app").stdout.split()
    shop.hostmesh("delete", "-f", "-", text_in=ONLY_READ)
    eventually(lambda: shop.curl("client", "http://orders/").status == 200, "the policy is gone")
    assert found.count("403") >= 30
    assert found[-10:] == ["403"] * 10


def test_the_kernel_watches_the_agents_connection_for_a_controller_that_vanishes(shop: Lab) -> None:
    def watched() -> bool:
        command = ("ss", "-Htno", "state", "established", f"dport = :{AGENTS_PORT}")
        return "timer:(keepalive" in shop.exec("client", *command).stdout

    eventually(watched, "its kernel asks")


def test_a_killed_envoy_comes_back_by_its_agent(shop: Lab) -> None:
    before = shop.status()["hosts"]["server"]["envoy"]["pid"]
    shop.verb("kill", "envoy/server")
    eventually(lambda: shop.status()["hosts"]["server"]["envoy"]["pid"] not in (before, None), "another Envoy")
    eventually(lambda: shop.curl("client", "http://orders/").status == 200, "client is served again")


def test_a_stopped_envoy_stays_down_until_it_is_started(shop: Lab) -> None:
    shop.verb("stop", "envoy/client")
    assert shop.status()["hosts"]["client"]["envoy"]["state"] == "stopped"
    assert shop.agent("client")["envoy"]["state"] == "held"
    # What does not concern the mesh works without Envoy.
    assert shop.curl("client", f"http://{shop.ip('outside')}:1/").status == 0
    assert shop.exec("client", "getent", "hosts", "localhost").returncode == 0
    shop.verb("start", "envoy/client")
    eventually(lambda: shop.curl("client", "http://orders/").status == 200, "client calls again")


def test_every_order_of_ends_and_starts_leads_back_to_service(shop: Lab) -> None:
    for words in (
        "kill agent/client",
        "stop controller",
        "kill envoy/server",
        "restart agent/server",
        "kill controller",
        "start agent/client",
        "restart host/client",
        "start controller",
        "start controller",
        "stop agent/server",
        "start agent/server",
        "start envoy/server",
    ):
        shop.verb(*words.split())
    eventually(lambda: shop.curl("client", "http://orders/").status == 200, "client is served", timeout_s=30)
    assert shop.agent("client")["ready"] is True


def test_a_host_that_boots_without_the_controller_serves_and_calls(shop: Lab) -> None:
    shop.verb("stop", "controller")
    try:
        shop.verb("restart", "host/server")
        shop.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8080", "orders", user="app")
        answer = eventually(lambda: _ok(shop, "http://orders/"), "client is served")
        assert f"URI={CLIENT}" in answer["headers"]["x-forwarded-client-cert"]
    finally:
        shop.verb("start", "controller")


def test_a_host_that_left_is_what_it_was_and_may_come_back(empty_lab: Lab) -> None:
    questions = [
        "nft list ruleset",
        "cat /etc/resolv.conf /etc/hosts",
        "ip rule",
        "ip route show table all",
        # The number of the other end counts up with every boot.
        "ip -br a | sed 's/@if[0-9]*//'",
    ]
    look = ["sh", "-c", "; ".join(questions)]
    empty_lab.verb("up", "--no-join", "one")
    before = empty_lab.exec("one", *look).stdout
    join = empty_lab.hostmesh("register", "one", "--address", empty_lab.ip("one"), "-o", "json").stdout
    text = json.loads(join)["join_string"]
    empty_lab.exec("one", "hostmesh-agent", "join", "-", text_in=text + "\n")
    empty_lab.verb("start", "agent/one")
    assert empty_lab.exec("one", *look).stdout != before
    empty_lab.verb("stop", "controller")
    empty_lab.verb("kill", "agent/one")
    empty_lab.exec("one", "hostmesh-agent", "leave")
    assert empty_lab.exec("one", *look).stdout == before
    empty_lab.verb("restart", "host/one")
    assert empty_lab.exec("one", *look).stdout == before
