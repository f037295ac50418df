"""After `leave --purge` a real host is as it was before it joined; the package's own files excepted."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.driver import eventually
from e2e.test_leave import changes, written
from hosts import mesh as meshes
from hosts.machine import Machine
from hosts.mesh import STOCK, STOCK_UNIT, Mesh
from hosts.repository import Repository

WORKLOAD = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock-guest}}
spec: {{address: {address}, serviceAccount: stock, labels: {{app: stock}}}}
"""
BY_ITSELF = (
    "/run/systemd/",
    "/run/log/",
    "/run/udev/",
    "/var/log/",
    "/var/lib/systemd/",
    "/var/tmp/systemd-",
    "/run/user",
    "/run/utmp",
)
"""What systemd writes whoever comes or goes: states of units, journals, seeds; and who was logged in."""


@pytest.fixture(scope="module")
def guest(mesh: Mesh, packages: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A host with the agent installed that has not joined."""
    made = Machine(mesh.lab, "guest", "trixie", 52, tmp_path_factory.mktemp("guest") / "guest")
    try:
        meshes.install(packages, made)
        meshes.program(made, "stock", STOCK_UNIT.replace("hostmesh-ready", "network").format(name="guest"))
        meshes.resolve_by_systemd(made, mesh.lab.ip("outside"))
        mesh.lab.apply(WORKLOAD.format(address=made.ip))
        yield made
    finally:
        mesh.lab.hostmesh("delete", "-f", "-", text_in=WORKLOAD.format(address=made.ip), check=False)
        made.remove()


def snapshot(machine: Machine) -> dict[str, str]:
    found: dict[str, str] = json.loads(machine.run("python3", "-I", "-S", "/opt/host_snapshot.py").stdout)
    top = str(machine.written)
    found |= {f"disk {path.removeprefix(top)}": state for path, state in written(Path(top))}
    return {name: state for name, state in found.items() if not any(each in name for each in BY_ITSELF)}


def settled(machine: Machine) -> dict[str, str]:
    """What can be seen once the boot and the tests' own doings are over: twice the same."""
    last: list[dict[str, str]] = [{}]

    def again() -> bool:
        before, last[0] = last[0], snapshot(machine)
        return not changes(before, last[0])

    eventually(again, "the host does not change any more", timeout_s=30)
    return last[0]


@pytest.mark.parametrize("alive", [True, False], ids=["all alive", "agent and Envoy dead, controller gone"])
def test_a_real_host_that_left_is_as_it_was(mesh: Mesh, guest: Machine, alive: bool) -> None:
    before = settled(guest)
    meshes.join(mesh.lab, guest)
    meshes.captured(guest, STOCK)
    assert "hostmesh0" in guest.run("ip", "link").stdout
    if not alive:
        envoy = guest.agent()["envoy"]["pid"]
        guest.run("systemctl", "stop", "hostmesh-agent.service")
        guest.run("kill", "-KILL", str(envoy))
        mesh.lab.verb("stop", "controller")
    try:
        began = time.monotonic()
        # As an operator would: the unit may still run, and must not begin anew.
        done = guest.run("hostmesh-agent", "leave", "--purge")
        assert time.monotonic() - began < 45
    finally:
        if not alive:
            mesh.lab.verb("start", "controller")
            mesh.lab.hostmesh("host", "remove", guest.name, check=False)
    assert "this host has left the mesh" in done.stdout
    guest.eventually(
        lambda: guest.unit("hostmesh-agent.service", "ActiveState")["ActiveState"] in {"inactive", "failed"},
        "the unit has ended",
        30,
    )
    eventually(lambda: not changes(before, snapshot(guest)), f"as it was: {list(changes(before, snapshot(guest)))}", 10)
    assert changes(before, snapshot(guest)) == {}
