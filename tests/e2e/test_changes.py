"""What is taken away goes after those who use it have heard: no call of any kind fails meanwhile, under STRICT."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from e2e.driver import PROGRAMS, PYTHON, Lab, eventually, new_lab

LOAD = Path(__file__).parents[1] / "faults" / "programs" / "load.py"
HTTP, GRPC, TCP = 8301, 8302, 8303
NO_LONGER = ("tcp-kept", "grpc-stream")
"""What is open for ever may be ended with the chain that let it in, once that has drained."""

MESH = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  selector: {app: shop}
  ports: [{name: http, port: 8301}, {name: grpc, port: 8302}, {name: tcp, port: 8303}]
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {host}}}
spec: {{address: {address}, serviceAccount: {account}, labels: {{app: shop, version: {host}}}}}
"""
ROUTES = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop
  subsets: [{name: one, labels: {version: server}}, {name: two, labels: {version: twin}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
    - route:
        - {destination: {host: shop, subset: one}, weight: 50}
        - {destination: {host: shop, subset: two}, weight: 50}
  tcp:
    - match: [{port: 8303}]
      route:
        - {destination: {host: shop, subset: one, port: {number: 8303}}, weight: 50}
        - {destination: {host: shop, subset: two, port: {number: 8303}}, weight: 50}
"""


def entry(lab: Lab, host: str, account: str = "shop") -> str:
    return ENTRY.format(host=host, address=lab.ip(host), account=account)


@contextmanager
def calls(lab: Lab) -> Iterator[Counter[str]]:
    """Call shop in six ways; what failed is there when the context is left."""
    command = ["nice", "-n", "-10", PYTHON, str(LOAD), f"http://shop:{HTTP}/", f"shop:{GRPC}", f"shop:{TCP}", "secret"]
    program = lab.popen("client", *command)
    failed: Counter[str] = Counter()
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        yield failed
        output, _ = program.communicate("", timeout=30)
        records = json.loads(output)
        assert len(records) > 100
        failed.update(f"{kind}: {fate}" for kind, _, _, fate, _ in records if fate != "ok" and kind not in NO_LONGER)
    finally:
        program.kill()
        program.communicate()


def _listens(lab: Lab, host: str, port: int) -> bool:
    return bool(lab.exec(host, "ss", "-Hltn", f"sport = :{port}").stdout.strip())


@pytest.fixture(scope="module")
def shop() -> Iterator[Lab]:
    with new_lab() as lab:
        lab.verb("up", "client", "server", "twin")
        for host in ("server", "twin"):
            lab.detach(host, "python3", str(PROGRAMS / "http_echo.py"), str(HTTP), host)
            lab.detach(host, PYTHON, str(PROGRAMS / "grpc_echo.py"), "serve", str(GRPC))
            lab.detach(host, "python3", str(PROGRAMS / "tcp.py"), "serve", str(TCP))
            for port in (HTTP, GRPC, TCP):
                eventually(partial(_listens, lab, host, port), f"{host} listens on {port}")
        lab.apply(MESH + "---" + entry(lab, "server") + "---" + entry(lab, "twin"))
        lab.wait_for_workloads()
        yield lab


def lease(lab: Lab, host: str) -> str:
    return str(json.loads(lab.hostmesh("host", "show", host, "-o", "json").stdout)["lease"])


def goes_on_as_it_was(lab: Lab, host: str) -> bool:
    """Whether a host that is connected is not shown what was written last."""
    told = json.loads(lab.hostmesh("proxy", "status", "-o", "json").stdout)
    return any(each["host"] == host and each["connected"] and not each["settled"] for each in told)


def presented(lab: Lab, host: str) -> str:
    """The identity that the controller believes the host's workload shows."""
    told = json.loads(lab.hostmesh("host", "show", host, "-o", "json").stdout)
    return next((str(each.get("presented", "")) for each in told["report"]["leases"] if each["name"] == host), "")


def test_one_of_two_workloads_goes_and_comes_back(shop: Lab) -> None:
    text = entry(shop, "twin")
    with calls(shop) as failed:
        for _ in range(4):
            shop.hostmesh("delete", "-f", "-", text_in=text)
            eventually(lambda: not shop.agent("twin")["capture"]["inbound_ports"], "nothing is captured")
            shop.apply(text)
            shop.wait_for_workloads()
    assert not failed


def test_a_subset_and_the_routes_to_it_come_and_go_at_once(shop: Lab) -> None:
    with calls(shop) as failed:
        for _ in range(5):
            shop.apply(ROUTES)
            shop.hostmesh("delete", "-f", "-", text_in=ROUTES)
    assert not failed


def test_the_only_workload_gets_another_service_account(shop: Lab) -> None:
    twin = entry(shop, "twin")
    shop.hostmesh("delete", "-f", "-", text_in=twin)
    try:
        with calls(shop) as failed:
            for account in ("one", "two", "one", "three", "two", "shop"):
                shop.apply(entry(shop, "server", account))
            eventually(lambda: presented(shop, "server").endswith("/sa/shop"), "it shows the last one", 30)
    finally:
        shop.apply(twin)
    assert not failed


def test_a_workload_shows_its_new_identity_though_its_agent_is_killed_meanwhile(shop: Lab) -> None:
    with calls(shop) as failed:
        shop.apply(entry(shop, "server", "other"))
        shop.verb("kill", "agent/server")
        shop.verb("start", "agent/server")
        eventually(lambda: presented(shop, "server").endswith("/sa/other"), "it shows the other one", 30)
        shop.apply(entry(shop, "server"))
    assert not failed


def test_a_caller_that_comes_back_late_to_a_controller_that_restarted_knows_the_new_identity_first(shop: Lab) -> None:
    """The controller does not know who calls the workload; nobody but the host itself is there yet."""
    twin, agent = entry(shop, "twin"), shop.status()["hosts"]["client"]["agent"]["pid"]
    shop.hostmesh("delete", "-f", "-", text_in=twin)
    try:
        with calls(shop) as failed:
            os.kill(agent, signal.SIGSTOP)
            shop.verb("restart", "controller")
            eventually(lambda: lease(shop, "server") == "alive", "the server's agent is back", 30)
            shop.hostmesh("apply", "--no-wait", "-f", "-", text_in=entry(shop, "server", "late"))
            eventually(lambda: goes_on_as_it_was(shop, "server"), "the server waits for its callers")
            assert presented(shop, "server").endswith("/sa/shop")
            os.kill(agent, signal.SIGCONT)
            eventually(lambda: presented(shop, "server").endswith("/sa/late"), "it shows the new one", 30)
    finally:
        os.kill(agent, signal.SIGCONT)
        shop.apply(entry(shop, "server") + "---" + twin)
    assert not failed
