"""A host whose names systemd-resolved finds, as Debian sets it up."""

import pytest

from e2e.driver import eventually
from hosts.conftest import OUTSIDE_ADDRESS, OUTSIDE_NAME
from hosts.machine import Machine
from hosts.mesh import VAULT, Mesh


@pytest.fixture
def till(mesh: Mesh) -> Machine:
    eventually(lambda: address(mesh.till, OUTSIDE_NAME), "the network's server answers", timeout_s=30)
    return mesh.till


def address(machine: Machine, name: str) -> str:
    """What a program of the host finds, by the C library."""
    return machine.run("getent", "ahostsv4", name, check=False).stdout.partition(" ")[0]


def test_names_of_the_mesh_and_all_others_are_found_through_systemd_resolved(till: Machine) -> None:
    assert "127.0.0.53" in till.run("cat", "/etc/resolv.conf").stdout
    for name in ("vault.default.svc.cluster.local", "vault.default.svc", "vault.default", "vault"):
        assert address(till, name).startswith("240.240."), name
    assert address(till, OUTSIDE_NAME) == OUTSIDE_ADDRESS
    told = till.run("resolvectl", "query", "vault.default.svc.cluster.local").stdout
    assert "link: hostmesh0" in told
    assert till.run("curl", "-sS", "--fail", "-m", "10", f"http://vault:{VAULT}/seen").stdout == "0"


def test_names_of_others_are_found_while_neither_agent_nor_envoy_runs_and_those_of_the_mesh_afterwards(
    till: Machine,
) -> None:
    envoy = till.agent()["envoy"]["pid"]
    till.run("systemctl", "stop", "hostmesh-agent.service")
    till.run("kill", "-KILL", str(envoy))
    try:
        assert address(till, OUTSIDE_NAME) == OUTSIDE_ADDRESS
    finally:
        till.run("systemctl", "start", "hostmesh-agent.service")
    till.run("hostmesh-agent", "wait", "--timeout", "60")
    assert address(till, "vault.default").startswith("240.240.")


def test_names_of_the_mesh_are_found_again_after_systemd_resolved_was_started_anew(till: Machine) -> None:
    till.run("systemctl", "restart", "systemd-resolved.service")
    eventually(lambda: address(till, "vault.default").startswith("240.240."), "the mesh's names", timeout_s=60)
    assert address(till, OUTSIDE_NAME) == OUTSIDE_ADDRESS
