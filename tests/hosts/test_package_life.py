"""A host's whole life with the packages: apt install, join, upgrades and back under load, reboot, removal, purge."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from e2e.driver import Lab, eventually
from e2e.test_under_load import load
from hosts import mesh as meshes
from hosts import repository
from hosts.calls import outbound
from hosts.machine import Machine
from hosts.mesh import STOCK
from hosts.newcomer import COUNTER, Newcomer
from hosts.repository import ENVOY, OTHER_ENVOY, Repository
from hosts.roots import DEBIAN
from hosts.test_life import AGENT, envoy, restarted, state

UNITS: Final = ("hostmesh-drain.service", "hostmesh-guard.service")
"""What has done its work and stays active: a restart of one drains the host, of the other closes ports."""
TAKES_OURS: Final = 'Unattended-Upgrade::Origins-Pattern { "origin=hostmesh"; };\n'
QUICK: Final = "[envoy]\nrehearsal_s = 1\nprobation_s = 2\n"
AUTO: Final = f'{QUICK}upgrade = "auto"\n'


@pytest.fixture(scope="module", params=list(DEBIAN))
def newcomer(
    lab: Lab,
    packages: Repository,
    counter: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Newcomer]:
    """A host of each of Debian's versions, which has not heard of hostmesh."""
    suite, index = request.param, 60 + list(DEBIAN).index(request.param)
    made = Newcomer(lab, packages, Machine(lab, f"new-{suite}", suite, index, tmp_path_factory.mktemp(suite) / "disk"))
    with ExitStack() as stack:
        stack.callback(made.remove)
        made.boot()
        made.look()
        yield made


@pytest.fixture
def host(newcomer: Newcomer) -> Newcomer:
    newcomer.arrive()
    return newcomer


def test_a_host_calls_and_is_called_with_mutual_tls_within_a_minute_of_its_apt_install(
    newcomer: Newcomer, record_property: Callable[[str, object], None]
) -> None:
    machine, version = newcomer.machine, newcomer.packages.built.version
    string = meshes.join_string(newcomer.lab, machine)
    assert newcomer.calls() is newcomer.is_called() is False
    began = time.monotonic()
    repository.install(machine, f"hostmesh-agent={version}", f"hostmesh-envoy={version}")
    installed_s = time.monotonic() - began
    # A host that has not joined runs nothing.
    assert state(machine)["ActiveState"] == "inactive"
    told = machine.run("hostmesh-agent", "join", string).stdout
    joined_s = time.monotonic() - began
    assert "hostmesh-agent.service is enabled and runs" in told
    assert state(machine)["ActiveState"] == "active"
    eventually(newcomer.is_called, "it is called with mutual TLS", timeout_s=60)
    eventually(newcomer.calls, "it calls with mutual TLS", timeout_s=60)
    took_s = time.monotonic() - began
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    text = f"{took_s:.0f} s (installed {installed_s:.0f} s, joined {joined_s:.0f} s; load {load:.0f} on {cores} cores)"
    print(f"{machine.suite}: from apt install to the first request with mutual TLS: {text}")
    record_property("seen", f"Debian {DEBIAN[machine.suite]}: {text}")
    # The figure is of a machine that has processors to spare; it is told in any case.
    assert took_s < 60 or load > 2 * cores


class Calls:
    """All the time another host calls this one, and this one calls that."""

    def __init__(self, host: Newcomer) -> None:
        self._host = host
        self._stack = ExitStack()

    def __enter__(self) -> "Calls":
        self._inbound = self._stack.enter_context(load(self._host.lab, "client", self._host.url))
        url = f"http://counter:{COUNTER}/"
        self._outbound = self._stack.enter_context(outbound(self._host.machine, url, COUNTER))
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)
        if failure[0] is None:
            for each in (self._inbound, self._outbound):
                assert (each["failed"], each["sent"] > 10) == (0, True), each
            print(f"{self._host.machine.suite}: {self._inbound['sent']} and {self._outbound['sent']} calls, none lost")


def untouched(machine: Machine) -> dict[str, Any]:
    """What no package may touch: Envoy, the rules, the drain and the guard, and the program."""
    return {
        "envoy": envoy(machine),
        "rules": machine.rules(),
        "stock": machine.unit("stock.service", "MainPID"),
        **{unit: machine.unit(unit, "ActiveEnterTimestampMonotonic", "ActiveState") for unit in UNITS},
    }


def version_of(machine: Machine) -> str:
    return machine.run("hostmesh-agent", "--version").stdout.split()[1]


def test_apt_upgrades_and_downgrades_the_agent_under_load_and_no_request_is_lost(host: Newcomer) -> None:
    machine, built = host.machine, host.packages.built
    for version in (built.following, built.version):
        before, kept = state(machine), untouched(machine)
        with Calls(host):
            repository.install(machine, f"hostmesh-agent={version}")
            restarted(machine, before)
            machine.run("hostmesh-agent", "wait", "--timeout", "60")
        assert untouched(machine) == kept
        assert version_of(machine) == version
        assert "installed" in machine.run("dpkg-query", "-W", "-f", "${Status}", "hostmesh-agent").stdout
    machine.run("systemctl", "stop", AGENT)
    repository.install(machine, f"hostmesh-agent={built.following}")
    # One that its owner has stopped stays down.
    assert state(machine)["ActiveState"] == "inactive"
    repository.install(machine, f"hostmesh-agent={built.version}")
    machine.run("systemctl", "start", AGENT)
    assert version_of(machine) == built.version


def runs(machine: Machine, version: str) -> int:
    """Return the process of this Envoy once it is there alone; 0: it is not."""
    found = machine.agent()["envoy"]
    alone = found["stage"] == "steady" and found["other_pid"] is None and found["state"] == "live"
    return int(found["pid"]) if alone and found["version"] == version else 0


def test_another_envoy_of_the_package_takes_over_beside_the_old_one_and_no_request_is_lost(
    host: Newcomer, record_property: Callable[[str, object], None]
) -> None:
    machine, version = host.machine, host.packages.built.version
    kept = machine.run("cat", "/etc/hostmesh/agent.toml").stdout
    assert kept.count("[envoy]\n") == 1
    configured(machine, kept.replace("[envoy]\n", QUICK))
    first = eventually(lambda: runs(machine, ENVOY), "this tree's Envoy", timeout_s=60)
    with Calls(host):
        repository.install(machine, f"hostmesh-envoy={OTHER_ENVOY}")
        # The package touches no process; whoever looks after the host says when.
        assert envoy(machine) == first
        machine.run("hostmesh-agent", "envoy", "upgrade", timeout_s=120)
        second = eventually(lambda: runs(machine, OTHER_ENVOY), "the other Envoy alone", timeout_s=90)
    assert second != first
    # With `upgrade = "auto"` apt alone is enough.
    configured(machine, kept.replace("[envoy]\n", AUTO))
    with Calls(host):
        repository.install(machine, f"hostmesh-envoy={version}")
        third = eventually(lambda: runs(machine, ENVOY), "this tree's Envoy again", timeout_s=90)
    assert third != second
    configured(machine, kept)
    record_property("seen", f"Debian {DEBIAN[machine.suite]}: Envoy {ENVOY} → {OTHER_ENVOY} → {ENVOY}")


def configured(machine: Machine, text: str) -> None:
    """Give the agent this configuration."""
    machine.put("/etc/hostmesh/agent.toml", text)
    before = state(machine)
    machine.run("systemctl", "restart", AGENT)
    restarted(machine, before)
    machine.run("hostmesh-agent", "wait", "--timeout", "60")


def test_a_removal_is_a_leave_and_after_a_purge_the_host_is_byte_for_byte_as_it_was(host: Newcomer) -> None:
    machine, lab = host.machine, host.lab
    with load(lab, "client", f"http://{machine.ip}:{STOCK}/") as calls:
        repository.apt(machine, "remove", "hostmesh-agent")
    # A connection that was kept open through Envoy ends with it: each of the four callers loses one call at most.
    assert calls["failed"] <= 4
    assert calls["sent"] > 10
    assert "hostmesh" not in machine.rules()
    assert machine.run("pgrep", "-f", "envoy-bin", check=False).stdout == ""
    listed = machine.run("systemctl", "list-units", "--state=active,activating,failed", "--no-legend", "hostmesh-*")
    assert listed.stdout.strip() == ""
    assert machine.run("test", "-e", "/var/lib/hostmesh/host.json", check=False).returncode != 0
    repository.apt(machine, "purge", "hostmesh-agent", "hostmesh-envoy")
    eventually(lambda: not host.left(), f"it is as it was: {host.left()}", 10)
    assert host.left() == []
    assert "hostmesh" not in machine.run("systemctl", "list-unit-files", "--no-legend").stdout
    assert machine.run("getent", "passwd", "hostmesh-envoy", check=False).returncode != 0
    # Whoever calls it goes on, in plaintext.
    eventually(lambda: lab.curl("client", host.url).status == 200, "called without it", timeout_s=30)


# What follows changes more than hostmesh, and comes after the comparison: the host joins anew.


def replaced(machine: Machine) -> str:
    """Put a library's file anew, as an upgrade of the C library does; return its path."""
    path = machine.run("sh", "-c", "readlink -f /lib/x86_64-linux-gnu/libm.so.6").stdout.strip()
    machine.run("sh", "-c", f"cp -p {path} {path}.dpkg-new && mv {path}.dpkg-new {path}")
    return path


def test_needrestart_restarts_the_agent_and_never_envoy(host: Newcomer) -> None:
    machine = host.machine
    # The program, which has one process and cannot be called while it restarts, is not what is looked at.
    machine.put("/etc/needrestart/conf.d/stock.conf", "$nrconf{override_rc}{qr(^stock)} = 0;\n")
    library = replaced(machine)
    before, kept = state(machine), untouched(machine)
    held = f"{library} (deleted)"
    for pid in (before["MainPID"], str(kept["envoy"])):
        assert held in machine.run("cat", f"/proc/{pid}/maps").stdout
    with Calls(host):
        told = machine.run("env", "DEBIAN_FRONTEND=noninteractive", "needrestart", "-v", "-l", "-r", "a", check=False)
        restarted(machine, before)
        machine.run("hostmesh-agent", "wait", "--timeout", "60")
    assert untouched(machine) == kept, told.stdout + told.stderr
    assert held in machine.run("cat", f"/proc/{kept['envoy']}/maps").stdout
    machine.run("rm", "/etc/needrestart/conf.d/stock.conf")


def test_unattended_upgrades_take_our_packages_where_told_and_lose_no_request(host: Newcomer) -> None:
    machine, built = host.machine, host.packages.built
    place = "/etc/apt/apt.conf.d/99hostmesh-unattended-upgrades"
    before, kept = state(machine), untouched(machine)
    # As Debian has it, it takes nothing of ours.
    machine.run("unattended-upgrade", timeout_s=300)
    assert version_of(machine) == built.version
    machine.put(place, TAKES_OURS)
    with Calls(host):
        told = machine.run("unattended-upgrade", "-v", timeout_s=300)
        assert version_of(machine) == built.following, told.stdout + told.stderr
        restarted(machine, before)
        machine.run("hostmesh-agent", "wait", "--timeout", "60")
    assert untouched(machine) == kept
    machine.run("rm", place)
    repository.install(machine, f"hostmesh-agent={built.version}", f"hostmesh-envoy={built.version}")
    machine.run("hostmesh-agent", "wait", "--timeout", "60")


def test_a_host_boots_into_the_mesh_without_the_controller(host: Newcomer) -> None:
    machine, lab = host.machine, host.lab
    lab.verb("stop", "controller")
    try:
        machine.reboot()
        assert state(machine)["ActiveState"] == "active"
        eventually(host.is_called, "it is called with mutual TLS", timeout_s=60)
        eventually(host.calls, "it calls with mutual TLS", timeout_s=60)
        assert not machine.agent()["controller"]["connected"]
    finally:
        lab.verb("start", "controller")
    eventually(lambda: machine.agent()["controller"]["connected"], "the controller is back", timeout_s=60)
