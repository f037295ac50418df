"""The controller and its command line, from their packages, on a host of their own."""

from collections.abc import Iterator

import pytest

from e2e.driver import Lab
from hosts import mesh as meshes
from hosts import repository
from hosts.machine import Machine
from hosts.repository import Repository
from hosts.roots import DEBIAN

UNIT = "hostmesh-controller.service"


@pytest.fixture(params=list(DEBIAN))
def machine(
    lab: Lab, packages: Repository, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    made = Machine(lab, f"keeper-{request.param}", request.param, 64, tmp_path_factory.mktemp("keeper") / "disk")
    try:
        meshes.bare(made, packages)
        repository.apt(made, "update")
        yield made
    finally:
        made.remove()


def test_the_controller_serves_under_its_unit_is_upgraded_and_is_gone_after_a_purge(
    machine: Machine, packages: Repository
) -> None:
    built, names = packages.built, ("hostmesh", "hostmesh-controller")
    repository.install(machine, *(f"{each}={built.version}" for each in names))
    found = machine.unit(UNIT, "ActiveState", "SubState", "StatusText", "NRestarts")
    assert (found["ActiveState"], found["SubState"], found["NRestarts"]) == ("active", "running", "0"), machine.journal(
        UNIT
    )
    assert "serves revision" in found["StatusText"]
    owner = machine.run("stat", "-c", "%U %a", "/var/lib/hostmesh-controller").stdout
    assert owner == "hostmesh-controller 700\n"
    told = machine.run("hostmesh", "register", "web-1", "--address", "192.0.2.7", "-o", "json").stdout
    assert "join_string" in told
    for version in (built.following, built.version):
        before = machine.unit(UNIT, "MainPID")["MainPID"]
        repository.install(machine, *(f"{each}={version}" for each in names))
        assert machine.unit(UNIT, "ActiveState")["ActiveState"] == "active"
        assert machine.unit(UNIT, "MainPID")["MainPID"] != before
        assert "web-1" in machine.run("hostmesh", "host", "list").stdout
    security = machine.run("systemd-analyze", "security", "--no-pager", UNIT, check=False).stdout
    print(f"{machine.suite}: {security.splitlines()[-1]}")
    assert float(security.rpartition(f"level for {UNIT}: ")[2].split()[0]) <= 1.9
    repository.apt(machine, "purge", *reversed(names))
    assert machine.run("test", "-e", "/var/lib/hostmesh-controller", check=False).returncode != 0
    assert machine.run("getent", "passwd", "hostmesh-controller", check=False).returncode != 0
