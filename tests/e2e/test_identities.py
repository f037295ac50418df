"""Two programs of one host are seen as two; nobody is seen as another, and nobody passes for Envoy."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab

UNIFIED = next(
    (Path(each) for each in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if Path(each, "cgroup.procs").exists()), None
)
A_UID = 4001
HOSTS = "spiffe://cluster.local/host/client"
A, B = "spiffe://cluster.local/ns/default/sa/a", "spiffe://cluster.local/ns/default/sa/b"
SLICE, UNIT = f"hostmeshtest{os.getpid()}.slice", f"hostmesh-test-{os.getpid()}.service"

pytestmark = pytest.mark.skipif(UNIFIED is None, reason="needs cgroup v2")

MESH = """
apiVersion: v1
kind: Service
metadata: {{name: orders}}
spec:
  selector: {{app: orders}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: tcp-line, port: 9000}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: orders}}
spec: {{address: {server}, serviceAccount: orders, labels: {{app: orders}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: a}}
spec: {{address: {client}, serviceAccount: a, ports: {{x: 7001}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: b}}
spec: {{address: {client}, serviceAccount: b, ports: {{x: 7002}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: lines-for-b}}
spec:
  selector: {{matchLabels: {{app: orders}}}}
  action: DENY
  rules:
    - from: [{{source: {{notPrincipals: ["cluster.local/ns/default/sa/b"]}}}}]
      to: [{{operation: {{ports: ["9000"]}}}}]
"""
AGENT = f"""
[workloads."default/a"]
uids = [{A_UID}]
[workloads."default/b"]
units = ["{UNIT}"]
"""


def unit() -> Path:
    assert UNIFIED is not None
    return UNIFIED / SLICE / UNIT


def start_unit() -> None:
    unit().mkdir(parents=True)


def stop_unit() -> None:
    unit().rmdir()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    start_unit()
    try:
        with new_lab() as found:
            found.verb("up", "client", "server")
            found.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8080", "orders", user="app")
            found.detach("server", "python3", str(PROGRAMS / "tcp.py"), "serve", "9000", user="app")
            found.apply(MESH.format(client=found.ip("client"), server=found.ip("server")))
            found.wait_for_workloads()
            yield found
    finally:
        stop_unit()
        unit().parent.rmdir()


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Lab:
    """The host's owner says who is who, and the mesh that they may be it."""
    toml = lab.exec("client", "cat", "/etc/hostmesh/agent.toml").stdout
    lab.put("client", "/etc/hostmesh/agent.toml", toml + AGENT)
    lab.verb("restart", "agent/client")
    host = json.loads(lab.hostmesh("get", "Host", "client", "-o", "json").stdout)
    host["spec"]["perWorkloadIdentity"] = True
    lab.apply(json.dumps(host))
    eventually(lambda: len(lab.agent("client")["capture"]["callers"]) == 2, "both programs have an identity")
    eventually(lambda: seen(lab, uid=A_UID) == A, "A calls as A")
    return lab


def shell(lab: Lab, command: str, *, uid: int = 0, in_unit: bool = False, marked: str = "") -> str:
    """Run a command on the client as a user, in the unit if that is wanted, and return what it prints."""
    join = f"echo 0 > {unit()}/cgroup.procs && " if in_unit else ""
    user = f"setpriv --reuid={uid} --regid={uid} --clear-groups " if uid else ""
    return lab.exec("client", "sh", "-c", f"{join}exec {user}{command}", check=False).stdout


def seen(lab: Lab, *, uid: int = 0, in_unit: bool = False) -> str:
    """Return as whom the service sees who calls; "" if it is not reached."""
    answer = shell(lab, "curl -sS -m 5 http://orders/", uid=uid, in_unit=in_unit)
    try:
        headers = json.loads(answer)["headers"]
    except ValueError:
        return ""
    return str(headers["x-forwarded-client-cert"].rpartition("URI=")[2])


def test_an_upgrade_from_an_agent_without_cgroups_loses_nothing(lab: Lab) -> None:
    """The older agent is one that finds no cgroup v2; its Envoy is moved when there is one, and goes on."""
    # The host's mounts are its own: for it alone there is something else in that place.
    lab.exec("client", "mount", "-t", "tmpfs", "none", str(UNIFIED))
    lab.verb("restart", "agent/client")
    lab.verb("kill", "envoy/client")
    eventually(lambda: lab.agent("client")["ready"], "Envoy is back")
    assert lab.agent("client")["capture"]["envoy_known_by"].endswith("cgroup v2 is not mounted")
    eventually(lambda: seen(lab) == HOSTS, "orders is called")
    before = lab.agent("client")["envoy"]["pid"]
    load = lab.popen("client", "python3", str(PROGRAMS / "steady.py"), "http://orders/")
    try:
        lab.exec("client", "umount", str(UNIFIED))
        lab.verb("restart", "agent/client")
        eventually(lambda: lab.agent("client")["ready"], "the agent is ready")
        assert lab.agent("client")["capture"]["envoy_known_by"].startswith("its cgroup")
        assert "socket cgroupv2" in lab.exec("client", "nft", "list", "table", "inet", "hostmesh").stdout
        tally = json.loads(load.communicate("", timeout=30)[0])
    finally:
        load.kill()
        load.communicate()
    assert tally.keys() == {"200"}
    assert tally["200"] > 50
    assert lab.agent("client")["envoy"]["pid"] == before


def test_two_programs_of_one_host_are_seen_as_two(shared: Lab) -> None:
    for _ in range(3):
        assert seen(shared, uid=A_UID) == A
        assert seen(shared, in_unit=True) == B
        assert seen(shared, uid=4444) == HOSTS
        assert seen(shared) == HOSTS


def test_a_policy_on_bytes_sees_who_calls(shared: Lab) -> None:
    talk = f"python3 {PROGRAMS / 'tcp.py'} call orders 9000"
    assert "HELLO" in shell(shared, talk, in_unit=True)
    assert "HELLO" not in shell(shared, talk, uid=A_UID)
    assert "HELLO" not in shell(shared, talk)


def test_who_has_envoys_user_and_group_is_captured_like_everybody(shared: Lab) -> None:
    assert shared.agent("client")["capture"]["envoy_known_by"].startswith("its cgroup")
    uid = int(shared.exec("client", "id", "-u", "hostmesh-envoy").stdout)
    assert seen(shared, uid=uid) == HOSTS


def test_a_unit_that_starts_again_has_its_identity_again(shared: Lab) -> None:
    stop_unit()
    eventually(lambda: len(shared.agent("client")["capture"]["callers"]) == 1, "the unit is gone")
    start_unit()
    started = time.monotonic()
    eventually(lambda: len(shared.agent("client")["capture"]["callers"]) == 2, "the unit is known again", timeout_s=5)
    print(f"known again after {time.monotonic() - started:.2f} s")
    assert seen(shared, in_unit=True) == B
