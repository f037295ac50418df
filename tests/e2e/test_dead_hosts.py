"""A host that dies is called no more within 15 s; one whose agent is dead is called on."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from e2e.test_under_load import load

HOSTS = ("s1", "s2")
PROMISED_S = 15.0

PAIR = """
apiVersion: v1
kind: Service
metadata: {name: pair}
spec:
  selector: {app: pair}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""
CUT_OFF = """
table inet cut_off {{
  chain in {{ type filter hook input priority -300; {family} saddr {controller} drop; }}
  chain out {{ type filter hook output priority -300; {family} daddr {controller} drop; }}
}}
"""
"""What the controller sends and is sent is lost; what hosts send each other is not."""
ENTRY = """
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {host}}}
spec: {{address: {address}, labels: {{app: pair}}, serviceAccount: pair}}
"""


def run_program(lab: Lab, host: str) -> None:
    lab.detach(host, "python3", str(PROGRAMS / "http_echo.py"), "8080", host, user="app")


def answering(lab: Lab) -> set[str]:
    answers = [lab.curl("client", "http://pair/") for _ in range(6)]
    return {each.json["name"] if each.status == 200 else "" for each in answers}


def endpoints(lab: Lab) -> set[str]:
    """The hosts whose endpoints the client's Envoy has."""
    admin = ("curl", "-sS", "--unix-socket", "/var/lib/hostmesh/envoy/admin.sock")
    shown = lab.exec("client", *admin, "http://envoy/clusters?filter=pair").stdout
    found = {line.split("::")[1].rpartition(":")[0] for line in shown.splitlines() if line.count("::") > 2}
    return {host for host, address in _addresses(lab).items() if address in found}


@cache
def _addresses(lab: Lab) -> dict[str, str]:
    return {host: lab.ip(host) for host in HOSTS}


def seen(lab: Lab, host: str) -> dict[str, Any]:
    """What the controller says of a host."""
    done = lab.hostmesh("host", "show", host, "-o", "json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """A client, and a service of two hosts."""
    with new_lab() as lab:
        lab.verb("up", "client", *HOSTS)
        lab.apply(PAIR + "".join(ENTRY.format(host=host, address=lab.ip(host)) for host in HOSTS))
        for host in HOSTS:
            run_program(lab, host)
        lab.wait_for_workloads()
        eventually(lambda: answering(lab) == set(HOSTS), "both serve", timeout_s=30)
        yield lab


def test_a_host_whose_agent_is_dead_is_called_on(pair: Lab) -> None:
    with load(pair, "client", "http://pair/") as tally:
        pair.verb("kill", "agent/s1")
        eventually(lambda: seen(pair, "s1")["lease"] == "agent-away", "its host answers for it")
        first = seen(pair, "s1")["missing_since"]
        eventually(lambda: seen(pair, "s1")["missing_since"] > first, "it is asked again")
        assert seen(pair, "s1")["lease"] == "agent-away"
        assert endpoints(pair) == set(HOSTS)
        pair.verb("start", "agent/s1")
        eventually(lambda: seen(pair, "s1")["lease"] == "alive", "the agent is back", timeout_s=30)
    assert tally["failed"] == 0, tally


def test_a_host_without_power_leaves_the_endpoints_of_its_callers_in_time_and_comes_back(pair: Lab) -> None:
    pair.verb("kill", "host/s1")
    eventually(lambda: endpoints(pair) == {"s2"}, "its endpoint is gone", timeout_s=PROMISED_S)
    assert seen(pair, "s1")["lease"] == "withdrawn"
    assert answering(pair) == {"s2"}
    pair.verb("start", "host/s1")
    run_program(pair, "s1")
    eventually(lambda: seen(pair, "s1")["lease"] == "alive", "it is back", timeout_s=60)
    eventually(lambda: answering(pair) == set(HOSTS), "both serve", timeout_s=30)


def cut_off(lab: Lab, host: str) -> None:
    for family, version in (("ip", "-4"), ("ip6", "-6")):
        route = lab.exec(host, "ip", version, "route", "show", "default").stdout.split()
        if route:
            # The controller is on the machine that the hosts' way out leads to.
            lab.exec(host, "nft", "-f", "-", text_in=CUT_OFF.format(family=family, controller=route[2]))


def test_a_controller_that_hears_nobody_withdraws_nobody(pair: Lab) -> None:
    everybody = ("client", *HOSTS)
    with load(pair, "client", "http://pair/") as tally:
        for host in everybody:
            cut_off(pair, host)
        eventually(lambda: {seen(pair, each)["lease"] for each in everybody} == {"held"}, "all are held", timeout_s=30)
        for host in everybody:
            pair.exec(host, "nft", "delete", "table", "inet", "cut_off")
        eventually(lambda: {seen(pair, each)["lease"] for each in everybody} == {"alive"}, "all are back", timeout_s=40)
        assert endpoints(pair) == set(HOSTS)
    assert tally["failed"] == 0, tally
