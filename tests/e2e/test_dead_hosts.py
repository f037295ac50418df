"""A host that dies is called no more within 15 s; one whose agent is dead, or hangs, is called on."""

import json
import os
import signal
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
CUT_OFF = {
    "deaf": "table inet cut_off {{ chain c {{ type filter hook input priority -300; {family} saddr {to} drop; }} }}",
    "mute": "table inet cut_off {{ chain d {{ type filter hook output priority -300; {family} daddr {to} drop; }} }}",
}
"""What the controller sends is lost, or what it is sent; what hosts send each other is not."""
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


def test_a_dead_host_leaves_in_time_and_stays_out_over_a_restart_of_the_controller_and_nobody_else_leaves(
    pair: Lab,
) -> None:
    agent = pair.status()["hosts"]["s2"]["agent"]["pid"]
    pair.verb("kill", "host/s1")
    eventually(lambda: endpoints(pair) == {"s2"}, "its endpoint is gone", timeout_s=PROMISED_S)
    assert seen(pair, "s1")["lease"] == "withdrawn"
    # The other one's agent hangs: its host does not, and answers for it.
    os.kill(agent, signal.SIGSTOP)
    try:
        with load(pair, "client", "http://pair/") as tally:
            pair.verb("restart", "controller")
            assert seen(pair, "s1")["lease"] == "withdrawn"
            eventually(lambda: seen(pair, "client")["lease"] == "alive", "its agent is back", timeout_s=30)
            eventually(lambda: seen(pair, "s2")["lease"] == "agent-away", "its host answers for it")
            assert endpoints(pair) == {"s2"}
        assert tally["failed"] == 0, tally
    finally:
        os.kill(agent, signal.SIGCONT)
    eventually(lambda: seen(pair, "s2")["lease"] == "alive", "its agent goes on", timeout_s=30)
    pair.verb("start", "host/s1")
    run_program(pair, "s1")
    eventually(lambda: seen(pair, "s1")["lease"] == "alive", "it is back", timeout_s=60)
    eventually(lambda: answering(pair) == set(HOSTS), "both serve", timeout_s=30)


def test_a_host_whose_envoy_is_held_down_is_called_by_nobody_until_it_runs(pair: Lab) -> None:
    pair.verb("stop", "envoy/s1")
    eventually(lambda: endpoints(pair) == {"s2"}, "its endpoint is gone")
    assert answering(pair) == {"s2"}
    assert seen(pair, "s1")["envoy_down"]
    pair.verb("start", "envoy/s1")
    eventually(lambda: endpoints(pair) == set(HOSTS), "its endpoint is back")
    eventually(lambda: answering(pair) == set(HOSTS), "both serve")


def test_what_is_lost_in_one_direction_ends_a_lease_but_never_the_last_endpoints(pair: Lab) -> None:
    with load(pair, "client", "http://pair/") as tally:
        cut_off(pair, "s1", "deaf")
        cut_off(pair, "s2", "mute")
        withdrawn = {"withdrawn"}
        eventually(lambda: {seen(pair, each)["lease"] for each in HOSTS} == withdrawn, "both are", timeout_s=PROMISED_S)
        assert endpoints(pair) == set(HOSTS)
        for host in HOSTS:
            pair.exec(host, "nft", "delete", "table", "inet", "cut_off")
        eventually(lambda: {seen(pair, each)["lease"] for each in HOSTS} == {"alive"}, "both are back", timeout_s=40)
    assert tally["failed"] == 0, tally


def cut_off(lab: Lab, host: str, *ways: str) -> None:
    for family, version in (("ip", "-4"), ("ip6", "-6")):
        route = lab.exec(host, "ip", version, "route", "show", "default").stdout.split()
        if route:
            # The controller is on the machine that the hosts' way out leads to.
            text = "\n".join(CUT_OFF[way].format(family=family, to=route[2]) for way in ways or CUT_OFF)
            lab.exec(host, "nft", "-f", "-", text_in=text)


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


def test_a_host_that_is_shut_down_leaves_as_soon_as_its_lease_is_over(pair: Lab) -> None:
    pair.verb("stop", "host/s2")
    eventually(lambda: endpoints(pair) == {"s1"}, "its endpoint is gone", timeout_s=8)
    assert answering(pair) == {"s1"}
