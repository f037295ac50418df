"""One Envoy takes another's place, and is put back, while calls of every kind go on: none of them fails."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest

from apps.stage import APPS
from e2e.driver import PROGRAMS, PYTHON, Lab, eventually, new_lab

BINARY = "/var/lib/hostmesh-test/envoy"
KINDS = 8
DRAIN_S = 12
STAGES = ("warming", "probation", "draining")
PATIENCE = r"s/^\[envoy\]/&\nrehearsal_s = 2\nprobation_s = 4\nhung_after_s = 3/"

MESH = """
apiVersion: hostmesh.io/v1
kind: MeshConfig
metadata: {{name: default}}
spec: {{defaultConfig: {{drainDuration: {drain_s}s}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: stock}}
spec: {{selector: {{app: all}}, ports: [{{name: http, port: 8095}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: lines}}
spec: {{selector: {{app: all}}, ports: [{{name: tcp, port: 9000}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo}}
spec: {{selector: {{app: all}}, ports: [{{name: grpc, port: 9090}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: chat}}
spec: {{selector: {{app: all}}, ports: [{{name: http, port: 9070}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: all}}
spec: {{address: {server}, serviceAccount: all, labels: {{app: all}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: edge, namespace: istio-system}}
spec: {{address: {server}, labels: {{istio: ingressgateway}}, serviceAccount: edge}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: istio-system}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: [shop.example.com]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: [shop.example.com]
  gateways: [istio-system/edge]
  http: [{{route: [{{destination: {{host: stock}}}}]}}]
"""

CRIPPLED = "--disable-extensions envoy.filters.listener/envoy.filters.listener.tls_inspector"
"""What it lacks is in every listener that takes calls from other hosts, and not in the bootstrap."""
OVERLOADED = (
    "{overload_manager: {refresh_interval: 0.1s, resource_monitors: [{name: envoy.resource_monitors.fixed_heap, "
    "typed_config: {'@type': "
    "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1}}], "
    "actions: [{name: envoy.overload_actions.stop_accepting_requests, triggers: "
    "[{name: envoy.resource_monitors.fixed_heap, threshold: {value: 0.01}}]}]}}"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Client and server in the mesh; the server is a gateway too. Owners that are in a hurry."""
    with new_lab() as lab:
        lab.verb("up", "client", "server")
        program = ("env", f"PYTHONPATH={APPS.parent}", PYTHON, "-m", "apps.programs.streams")
        lab.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8095", "stock")
        for kind, port in (("tcp", "9000"), ("grpc", "9090"), ("ws", "9070")):
            lab.detach("server", *program, kind, "one", port)
        lab.apply(MESH.format(server=lab.ip("server"), drain_s=DRAIN_S))
        for host in ("client", "server"):
            lab.exec(host, "sed", "-i", PATIENCE, "/etc/hostmesh/agent.toml")
            lab.verb("restart", f"agent/{host}")
        lab.wait_for_workloads()
        eventually(lambda: lab.curl("client", "http://stock:8095/").status == 200, "the client calls")
        gateway = f"http://{lab.ip('server')}/"
        eventually(lambda: lab.curl("client", gateway, "-H", "host: shop.example.com").status == 200, "the gateway")
        for host in ("client", "server"):
            with_the_meshs_settings(lab, host)
        yield lab


def with_the_meshs_settings(lab: Lab, host: str) -> None:
    """Let Envoy run as the mesh wants it, which it learnt after its start."""
    envoy = eventually(lambda: _different(lab, host), "the agent knows the mesh's settings")
    lab.exec(host, "kill", str((envoy or {})["pid"]))
    eventually(lambda: not lab.agent(host)["envoy"]["restart_needed"] and steady(lab, host), "Envoy is another")


def _different(lab: Lab, host: str) -> dict[str, Any] | None:
    envoy: dict[str, Any] = lab.agent(host)["envoy"]
    return envoy if envoy["restart_needed"] else None


def binary(lab: Lab, host: str, *, before: str = "", arguments: str = "") -> tuple[str, ...]:
    """Put a program that becomes the real Envoy on the host, and return what `envoy upgrade` is told of it."""
    real = lab.exec(host, "sh", "-c", "ls -t /var/lib/hostmesh/envoy-bin/1*/envoy").stdout.split()[0]
    script = f'#!/bin/sh\n{before}\nexec {real} "$@" {arguments}\n'
    sha256 = hashlib.sha256(script.encode()).hexdigest()
    path = f"{BINARY}-{sha256[:8]}"
    lab.put(host, path, script)
    lab.exec(host, "chmod", "755", path)
    return ("--binary", path, "--sha256", sha256)


@contextmanager
def calls(lab: Lab) -> Iterator[dict[str, Any]]:
    """Call of every kind; what became of it is there when the context is left."""
    program = (PYTHON, str(PROGRAMS / "every_kind.py"), lab.ip("server"))
    process = lab.popen("client", "env", f"PYTHONPATH={APPS.parent}", *program)
    found: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield found
        output, _ = process.communicate("", timeout=30)
        found.update(json.loads(output))
    finally:
        process.kill()
        process.communicate()


def upgrade(lab: Lab, host: str, *words: str) -> str:
    """`envoy upgrade`; return "" when the new one serves, else what is said."""
    done = lab.exec(host, "hostmesh-agent", "envoy", "upgrade", *words, check=False)
    return "" if done.returncode == 0 else done.stderr


def steady(lab: Lab, host: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        envoy: dict[str, Any] = lab.agent(host)["envoy"]
        return envoy if envoy["stage"] == "steady" and envoy["other_pid"] is None and envoy["state"] == "live" else None

    return eventually(found, f"one Envoy is left on {host}", timeout_s=60) or {}


def until_stage(lab: Lab, host: str, stages: Sequence[str]) -> None:
    """Wait for the first of the stages; on a slow machine it may be over when one looks."""
    eventually(lambda: lab.agent(host)["envoy"].get("stage") in stages, stages[0])


def none_failed(tally: dict[str, Any]) -> None:
    assert (tally["failures"], tally["stuck"]) == ({}, []), tally
    assert len(tally["counts"]) == KINDS, tally
    assert min(tally["counts"].values()) > 50, tally


BAD: Final = {
    "it ended before it served": {"arguments": "--no-such-argument"},
    "killed by SIGSEGV": {"before": "(sleep 1; kill -SEGV $$) &"},
    "it refuses ": {"arguments": CRIPPLED},
    "calls through it failed: HTTP 503": {"arguments": f'--config-yaml "{OVERLOADED}"'},
}
"""What is said of each bad version, and what is bad about it."""


def test_bad_versions_are_put_back_and_fail_no_call(lab: Lab) -> None:
    """One that does not start, one that crashes, one that refuses listeners, and one that answers 503."""
    pid = steady(lab, "server")["pid"]
    with calls(lab) as tally:
        for why, bad in BAD.items():
            assert why in upgrade(lab, "server", *binary(lab, "server", **bad))
            envoy = steady(lab, "server")
            assert (envoy["pid"], why in envoy["put_back"]) == (pid, True)
            assert any("Envoy was put back" in each for each in lab.agent("server")["problems"])
    none_failed(tally)
    upgrade(lab, "server", "--reset")
    eventually(lambda: not lab.agent("server")["envoy"]["put_back"], "nothing is wrong any more")


def test_an_upgrade_at_both_ends_fails_no_call_of_any_kind(lab: Lab) -> None:
    """Three conversations go on over all of it: they stay with the old Envoys."""
    with calls(lab) as tally:
        changes = [
            lab.popen(host, "hostmesh-agent", "envoy", "upgrade", *binary(lab, host)) for host in ("server", "client")
        ]
        assert [(each.wait(60), each.communicate()[0])[0] for each in changes] == [0, 0]
        for host in ("server", "client"):
            envoy = lab.agent(host)["envoy"]
            assert (envoy["instance"], envoy["version"]) == ("green", "custom")
            assert envoy["stage"] == "draining", "the conversations hold the old one"
            planned = json.loads(lab.exec(host, "hostmesh-agent", "capture", "plan", "-o", "json").stdout)
            assert planned["difference"] == [], "a trial now would lead the rules elsewhere"
    none_failed(tally)


def test_agents_killed_during_an_upgrade_are_followed_by_ones_that_finish_it(lab: Lab) -> None:
    """And the way back to the first Envoy, which binds the gateway's port itself, loses nothing either."""
    assert steady(lab, "server")["instance"] == "green"
    with calls(lab) as tally:
        lab.exec("server", "hostmesh-agent", "envoy", "upgrade", "--reset", "--no-wait")
        for stage in STAGES:
            until_stage(lab, "server", STAGES[STAGES.index(stage) :])
            lab.verb("kill", "agent/server")
            lab.verb("start", "agent/server")
            eventually(lambda: lab.agent("server")["agent"]["running"], "the next agent runs")
    none_failed(tally)
    assert steady(lab, "server")["instance"] == "blue"


def test_an_envoy_that_hangs_is_named_and_replaced(lab: Lab) -> None:
    pid = steady(lab, "server")["pid"]
    lab.exec("server", "kill", "-STOP", str(pid))
    told = eventually(lambda: hung(lab, "server"), "it is told", 30) or {}
    assert any("Envoy hangs" in each for each in told["problems"])
    assert {each["health_reason"] for each in told["workloads"]} == {"Envoy hangs"}
    eventually(lambda: lab.curl("client", "http://stock:8095/").status == 200, "it is replaced", timeout_s=40)
    envoy = steady(lab, "server")
    assert envoy["pid"] != pid
    assert not envoy["hung"]


def test_an_envoy_that_hangs_after_a_failed_upgrade_is_replaced_by_its_like(lab: Lab) -> None:
    before = steady(lab, "server")
    bad = binary(lab, "server", arguments="--no-such-argument", before="# stays the choice")
    try:
        assert "it ended before it served" in upgrade(lab, "server", *bad)
        lab.exec("server", "kill", "-STOP", str(before["pid"]))
        eventually(lambda: hung(lab, "server"), "it is told", 30)
        eventually(lambda: lab.curl("client", "http://stock:8095/").status == 200, "it is replaced", timeout_s=40)
        envoy = steady(lab, "server")
        assert (envoy["pid"] != before["pid"], envoy["version"]) == (True, before["version"])
        assert "it ended before it served" in envoy["put_back"], "that is told still"
    finally:
        upgrade(lab, "server", "--reset")


def hung(lab: Lab, host: str) -> dict[str, Any] | None:
    told = lab.agent(host)
    return told if told["envoy"]["hung"] else None


TALK = """
import socket, sys
with socket.create_connection(("lines", 9000)) as talk, talk.makefile() as heard:
    print(heard.readline(), end="", flush=True)
    sys.stdin.read()
"""


def test_a_drained_host_is_called_by_nobody_until_it_is_undrained(lab: Lab) -> None:
    assert lab.curl("client", "http://stock:8095/").status == 200
    talk = lab.popen("client", "python3", "-c", TALK)
    assert talk.stdout is not None
    assert talk.stdout.readline() == "220 one\n"
    try:
        waited = lab.exec("server", "hostmesh-agent", "drain", "--within", "4", check=False)
        assert "1 calls are still under way after 4 s" in waited.stderr
        assert lab.agent("server")["withdrawn"].startswith("the host is drained")
        talk.communicate("")
        lab.exec("server", "hostmesh-agent", "drain", "--within", "30")
        assert lab.curl("client", "http://stock:8095/").status == 503
    finally:
        talk.kill()
        talk.communicate()
        lab.exec("server", "hostmesh-agent", "undrain")
    eventually(lambda: lab.curl("client", "http://stock:8095/").status == 200, "it is called again")


LONG_TALK = """
import json, socket, sys, time
answers, last = 0, 0.0
with socket.create_connection(("lines", 9000)) as talk, talk.makefile("rw") as heard:
    talk.settimeout(5)
    print(heard.readline(), end="", flush=True)
    try:
        while True:
            heard.write("x\\n")
            heard.flush()
            if not heard.readline():
                break
            answers, last = answers + 1, time.time()
            time.sleep(0.1)  # not a wait: how often it says something
    except ConnectionError:
        pass
    print(json.dumps({"answers": answers, "last": last, "ended": time.time()}), flush=True)
"""


def test_a_connection_stays_with_the_old_envoy_for_the_drain_time_and_ends_then(lab: Lab) -> None:
    """The machine's clock is the lab's: times of both are compared."""
    steady(lab, "server")
    talk = lab.popen("client", "python3", "-c", LONG_TALK)
    assert talk.stdout is not None
    assert talk.stdout.readline() == "220 one\n"
    try:
        assert upgrade(lab, "server", *binary(lab, "server", before="# drains")) == ""
        before = time.time()
        while (stage := lab.agent("server")["envoy"]["stage"]) == "probation":
            before = time.time()
        draining_by = time.time()
        assert stage == "draining"
        found = json.loads(talk.communicate(timeout=DRAIN_S + 30)[0])
    finally:
        talk.kill()
        talk.communicate()
    # It began between the two; the agent looks every second.
    assert found["last"] >= before + DRAIN_S - 0.5, found
    assert found["ended"] <= draining_by + DRAIN_S + 8, found
    assert found["ended"] - found["last"] < 2, "it was answered to the end"
    assert steady(lab, "server")["pid"]
    assert lab.curl("client", "http://stock:8095/").status == 200
