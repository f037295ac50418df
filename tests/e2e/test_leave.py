"""`leave --purge` in every state that a host can be in: afterwards it is as it was before `join`, byte for byte."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from hostmesh_api.wire import DNS_ADDRESS

HOSTS = ("well", "killed", "hung", "cut", "alone")
OBJECTS = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""
ENTRY = """---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}}}
spec: {{address: {address}, serviceAccount: web, labels: {{app: web}}}}
"""
SNAPSHOT = str(PROGRAMS / "host_snapshot.py")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Hosts outside the mesh, each with a program that the mesh will serve."""
    with new_lab() as lab:
        lab.verb("up", *(word for name in HOSTS for word in ("--no-join", name)))
        for name in HOSTS:
            lab.detach(name, "python3", str(PROGRAMS / "http_echo.py"), "8080", name, user="app")
            # The lab makes it; on a host it is the agent's to make, and to take away.
            lab.exec(name, "rmdir", "/var/lib/hostmesh")
        lab.apply(OBJECTS + "".join(ENTRY.format(name=name, address=lab.ip(name)) for name in HOSTS))
        yield lab


def snapshot(lab: Lab, host: str) -> dict[str, str]:
    """All that can be seen from inside, and all that the host has written to its own disk."""
    found: dict[str, str] = json.loads(lab.exec(host, "python3", "-I", "-S", SNAPSHOT).stdout)
    disk = lab.root / "hosts" / host / "disk"
    for name in ("etc", "var-lib"):
        found |= {f"disk {path}": state for path, state in written(disk / name / "upper")}
    return found


def written(upper: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(upper.rglob("*")):
        info = path.lstat()
        content = path.read_bytes().hex() if path.is_file() and not path.is_symlink() else ""
        target = str(path.readlink()) if path.is_symlink() else ""
        yield str(path), f"{info.st_mode:o} {info.st_uid}:{info.st_gid} {content}{target}"


def changes(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What is not as it was; a cgroup that another host of the machine has taken away meanwhile does not count."""
    names = [name for name in before | after if not name.startswith("cgroup ") or name in after]
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def join(lab: Lab, host: str) -> None:
    told = json.loads(lab.hostmesh("register", host, "--address", lab.ip(host), "-o", "json").stdout)
    lab.exec(host, "hostmesh-agent", "join", "-", text_in=told["join_string"] + "\n")
    lab.verb("start", f"agent/{host}")
    eventually(lambda: 8080 in lab.agent(host)["capture"].get("inbound_ports", ()), "the program is captured")
    assert "hostmesh" in lab.exec(host, "nft", "list", "ruleset").stdout


def agent_pid(lab: Lab, host: str) -> str:
    return lab.exec(host, "pgrep", "-f", "hostmesh-agent run").stdout.split()[0]


def signal(lab: Lab, host: str, name: str, *pids: object) -> None:
    lab.exec(host, "kill", f"-{name}", *map(str, pids))


def it_has_left_before(lab: Lab, host: str) -> None:
    """Without --purge: Envoy's binary stays, and nothing of the mesh."""
    assert "controller: told" in lab.exec(host, "hostmesh-agent", "leave").stdout
    kept = lab.exec(host, "find", "/var/lib/hostmesh", "-type", "f").stdout.splitlines()
    assert {path.split("/")[4] for path in kept} == {"envoy-bin", "agent.lock"}


def agent_is_killed(lab: Lab, host: str) -> None:
    """And its Envoy lives on, of which no record tells; a draft of a file is left."""
    signal(lab, host, "KILL", agent_pid(lab, host))
    lab.exec(host, "sh", "-c", "rm /var/lib/hostmesh/envoy/envoy.pid.json; echo half > /etc/.resolv.conf.hostmesh")


def agent_and_envoy_hang(lab: Lab, host: str) -> None:
    """The table belongs to the hung agent's socket."""
    signal(lab, host, "STOP", lab.agent(host)["envoy"]["pid"], agent_pid(lab, host))


def leave_is_cut_short(lab: Lab, host: str) -> None:
    """A first `leave` is killed between two of its steps, while it waits for an Envoy that hangs."""
    signal(lab, host, "STOP", lab.agent(host)["envoy"]["pid"])
    with lab.popen(host, "hostmesh-agent", "leave", "--purge") as first:
        resolver = lab.root / "hosts" / host / "disk/etc/upper/resolv.conf"
        eventually(lambda: DNS_ADDRESS not in resolver.read_text(), "names are as before")
        signal(lab, host, "KILL", lab.exec(host, "pgrep", "-f", "hostmesh-agent leave").stdout.split()[0])
        first.wait(timeout=10)
    assert lab.exec(host, "test", "-e", "/var/lib/hostmesh", check=False).returncode == 0


def everything_is_dead(lab: Lab, host: str) -> None:
    """No agent, no Envoy, no controller."""
    envoy = lab.agent(host)["envoy"]["pid"]
    signal(lab, host, "KILL", agent_pid(lab, host), envoy)
    lab.verb("stop", "controller")


@pytest.mark.parametrize(
    ("host", "befalls", "told"),
    [
        ("well", it_has_left_before, "/var/lib/hostmesh removed"),
        ("killed", agent_is_killed, "Envoy: stopped"),
        ("hung", agent_and_envoy_hang, "agent: it did not answer and was killed"),
        ("cut", leave_is_cut_short, ""),
        ("alone", everything_is_dead, "remove the host there (hostmesh host remove)"),
    ],
)
def test_a_host_that_left_is_as_it_was_before_it_joined(
    lab: Lab, host: str, befalls: Callable[[Lab, str], None], told: str
) -> None:
    before = snapshot(lab, host)
    join(lab, host)
    befalls(lab, host)
    began = time.monotonic()
    done = lab.exec(host, "hostmesh-agent", "leave", "--purge", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 45
    assert told in done.stdout
    assert changes(before, snapshot(lab, host)) == {}


def test_a_host_that_never_joined_can_leave_and_nothing_of_it_is_left(lab: Lab) -> None:
    host = HOSTS[0]
    before = snapshot(lab, host)
    lab.exec(host, "hostmesh-agent", "leave")
    assert changes(before, snapshot(lab, host)) == {}
