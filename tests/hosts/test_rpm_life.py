"""A host's life with the .rpm packages, by dnf. The host is Debian's: no distribution of rpm's is to be had here."""

from collections.abc import Iterator

import pytest

from e2e.driver import Lab, eventually
from hosts import mesh as meshes
from hosts.machine import Machine
from hosts.newcomer import Newcomer
from hosts.repository import Repository
from hosts.test_life import restarted, state
from hosts.test_package_life import Calls, untouched, version_of

REPO = """
[hostmesh]
name=hostmesh
baseurl={url}/rpm
gpgkey={url}/hostmesh.asc
gpgcheck=1
repo_gpgcheck=1
[base]
name=what a distribution of rpm's has
baseurl={url}/base
gpgcheck=0
"""


@pytest.fixture(scope="module")
def hat(lab: Lab, packages: Repository, counter: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    """A host that has dnf, and no package of ours."""
    made = Newcomer(lab, packages, Machine(lab, "hat", "bookworm+dnf", 78, tmp_path_factory.mktemp("hat") / "disk"))
    try:
        made.boot()
        made.machine.put("/etc/yum.repos.d/hostmesh.repo", REPO.format(url=packages.url))
        yield made
    finally:
        made.remove()


def dnf(machine: Machine, *words: str) -> None:
    machine.run("dnf", "-y", "-q", "--releasever=1", "--setopt=install_weak_deps=False", *words, timeout_s=300)


def test_a_host_lives_by_dnf_as_by_apt(hat: Newcomer) -> None:
    machine, built = hat.machine, hat.packages.built
    dnf(machine, "install", f"hostmesh-agent-{built.version}", f"hostmesh-envoy-{built.version}")
    assert state(machine)["ActiveState"] == "inactive"
    string = meshes.join_string(hat.lab, machine)
    assert "is enabled and runs" in machine.run("hostmesh-agent", "join", string).stdout
    eventually(hat.is_called, "it is called with mutual TLS", timeout_s=60)
    eventually(hat.calls, "it calls with mutual TLS", timeout_s=60)
    for verb, version in (("upgrade", built.following), ("downgrade", built.version)):
        before, kept = state(machine), untouched(machine)
        with Calls(hat):
            dnf(machine, verb, f"hostmesh-agent-{version}")
            restarted(machine, before)
            machine.run("hostmesh-agent", "wait", "--timeout", "60")
        assert untouched(machine) == kept
        assert version_of(machine) == version
    machine.reboot()
    eventually(hat.is_called, "it is called with mutual TLS after a boot", timeout_s=60)
    dnf(machine, "remove", "hostmesh-agent", "hostmesh-envoy")
    assert "hostmesh" not in machine.rules()
    assert machine.run("pgrep", "-f", "envoy-bin", check=False).stdout == ""
    assert "hostmesh" not in machine.run("systemctl", "list-unit-files", "--no-legend").stdout
    assert machine.run("getent", "passwd", "hostmesh-envoy", check=False).returncode != 0
    for path in ("/var/lib/hostmesh", "/run/hostmesh", "/usr/lib/hostmesh-agent", "/usr/lib/hostmesh-envoy"):
        assert machine.run("test", "-e", path, check=False).returncode != 0, path
    eventually(lambda: hat.lab.curl("client", hat.url).status == 200, "called without it", timeout_s=30)
