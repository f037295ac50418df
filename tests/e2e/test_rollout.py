"""A rollout of Envoy under load: a bad version halts at the canary and is put back, a good one reaches all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from e2e.test_under_load import load

SERVERS = ("one", "two", "three")
PATIENCE = r"s/^\[envoy\]/&\nrehearsal_s = 2\nprobation_s = 4\nhung_after_s = 3/"

ROLLOUT = """
apiVersion: hostmesh.io/v1
kind: Rollout
metadata: {{name: next}}
spec:
  version: {version}
  canary: 1
  waves: [2]
  watch: {watch}
  deadline: 90s
  health: {{minCalls: 20}}
"""

MESH = """
apiVersion: v1
kind: Service
metadata: {{name: stock}}
spec: {{selector: {{app: stock}}, ports: [{{name: http, port: 8095}}]}}
"""
ENTRY = """
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock-{host}}}
spec: {{address: {address}, serviceAccount: stock, labels: {{app: stock}}}}
"""


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("key") / "key.pem"


@pytest.fixture(scope="module")
def lab(key: Path) -> Iterator[Lab]:
    """A client and three servers whose owners let the controller bring an Envoy that their key has signed."""
    with new_lab() as lab:
        lab.verb("up", "client", *SERVERS)
        public = lab.hostmesh("rollout", "key", str(key)).stdout.strip()
        for host in SERVERS:
            lab.detach(host, "python3", str(PROGRAMS / "http_echo.py"), "8095", host)
        lab.apply(MESH.format() + "".join(ENTRY.format(host=host, address=lab.ip(host)) for host in SERVERS))
        updates = f'\\n[updates]\\ncontroller = ["envoy"]\\nkeys = ["{public}"]\\n'
        for host in ("client", *SERVERS):
            lab.exec(host, "sed", "-i", PATIENCE, "/etc/hostmesh/agent.toml")
            lab.exec(host, "sh", "-c", f"printf '{updates}' >> /etc/hostmesh/agent.toml")
            lab.verb("restart", f"agent/{host}")
        lab.wait_for_workloads()
        eventually(lambda: lab.curl("client", "http://stock:8095/").status == 200, "the client calls")
        yield lab


def sign(lab: Lab, key: Path, version: str, *, before: str = "", arguments: str = "") -> None:
    """Put a program that becomes the real Envoy into the controller's mirror, as another version."""
    real = lab.exec("one", "sh", "-c", "ls -t /var/lib/hostmesh/envoy-bin/1.40.0/envoy").stdout.split()[0]
    script = key.parent / f"envoy-{version}"
    script.write_text(f'#!/bin/sh\n# {version}\n{before}\nexec {real} "$@" {arguments}\n')
    mirror = str(lab.root / "controller" / "state" / "artifacts")
    lab.hostmesh("rollout", "sign", str(script), "--version", version, "--key", str(key), "--to", mirror)


def status(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.hostmesh("rollout", "status", "next", "-o", "json").stdout)
    return found


def versions(lab: Lab) -> dict[str, str]:
    return {host: lab.agent(host)["envoy"]["version"] for host in ("client", *SERVERS)}


def halted_and_back(lab: Lab) -> dict[str, Any] | None:
    found = status(lab)
    return found if found["stage"] == "halted" and found["counts"]["returned"] == 1 else None


def test_a_version_that_crashes_halts_at_the_canary_and_no_call_fails(lab: Lab, key: Path) -> None:
    before = versions(lab)
    sign(lab, key, "1.41.0", before="(sleep 1; kill -SEGV $$) &")
    with load(lab, "client", "http://stock:8095/") as tally:
        lab.apply(ROLLOUT.format(version="1.41.0", watch="4s"))
        found = eventually(lambda: halted_and_back(lab), "it halts", timeout_s=90) or {}
    assert "SIGSEGV" in found["reason"]
    assert len(found["hosts"]) == 1
    assert versions(lab) == before
    assert (tally["failed"], tally["sent"] > 100) == (0, True), tally
    table = lab.hostmesh("rollout", "status").stdout
    assert "halted" in table
    assert "next" in table


def test_a_good_version_reaches_all_wave_by_wave_and_no_call_fails(lab: Lab, key: Path) -> None:
    sign(lab, key, "1.41.1")
    with load(lab, "client", "http://stock:8095/") as tally:
        lab.apply(ROLLOUT.format(version="1.41.1", watch="4s"))
        eventually(lambda: status(lab)["stage"] == "done", "all have it", timeout_s=240)
    assert set(versions(lab).values()) == {"1.41.1"}
    assert (tally["failed"], tally["sent"] > 100) == (0, True), tally


def test_an_operator_pauses_and_aborts_it_and_all_go_back(lab: Lab, key: Path) -> None:
    sign(lab, key, "1.41.2")
    lab.apply(ROLLOUT.format(version="1.41.2", watch="4s"))
    eventually(lambda: status(lab)["counts"]["well"] == 1, "the canary is well", timeout_s=90)
    lab.hostmesh("rollout", "pause", "next")
    assert status(lab)["paused"]
    lab.hostmesh("rollout", "abort", "next")
    eventually(lambda: set(versions(lab).values()) == {"1.41.1"}, "all are as they were", timeout_s=90)
    refused = lab.hostmesh("rollout", "resume", "next", check=False)
    assert refused.returncode != 0
    assert "apply it again" in refused.stderr


def test_one_that_turns_bad_after_the_hosts_own_probation_is_called_back(lab: Lab, key: Path) -> None:
    before = versions(lab)
    sign(lab, key, "1.41.3", before="(sleep 30; kill -SEGV $$) &")
    lab.apply(ROLLOUT.format(version="1.41.3", watch="90s"))
    found = eventually(lambda: halted_and_back(lab), "it halts", timeout_s=200) or {}
    assert "Envoy has ended" in found["reason"]
    assert len(found["hosts"]) == 1
    assert versions(lab) == before
    with load(lab, "client", "http://stock:8095/") as tally:
        eventually(lambda: lab.curl("client", "http://stock:8095/").status == 200, "calls go on")
    assert tally["failed"] == 0, tally


def test_a_host_that_leaves_keeps_nothing_of_it(lab: Lab) -> None:
    host, state = status(lab)["hosts"][0]["host"], "/var/lib/hostmesh"
    assert "updates.json" in lab.exec(host, "ls", state).stdout
    lab.exec(host, "hostmesh-agent", "leave")
    left = lab.exec(host, "ls", state).stdout
    assert "updates" not in left
    assert "envoy-binary.json" not in left
