"""Hosts on which others write rules, too: a Docker, and firewalld. Each goes on as it was, with us and after us."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from e2e.driver import Lab, eventually
from e2e.test_under_load import load
from hostmesh_agent.places import GREEN, PORTS
from hosts import mesh as meshes
from hosts import repository
from hosts.machine import Machine
from hosts.mesh import STOCK
from hosts.newcomer import Newcomer
from hosts.repository import Repository
from hosts.roots import DEBIAN
from netns.others import DOCKER

PUBLISHED: Final = 8088
IN_CONTAINER: Final = ("ip", "netns", "exec", "container")
DOCKER_UNIT: Final = """
[Unit]
Description=what dockerd does when it starts: a bridge, its rules, and a container with a published port
After=network.target
[Service]
ExecStartPre=/bin/sh /opt/docker.sh
ExecStart=/sbin/ip netns exec container /usr/bin/python3 /opt/http_echo.py 80 container
[Install]
WantedBy=multi-user.target
"""
DOCKER_STARTS: Final = """
set -e
ip link show docker0 >/dev/null 2>&1 && exit 0
sysctl -q -w net.ipv4.ip_forward=1
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip netns add container
ip link add veth7 type veth peer name eth0 netns container
ip link set veth7 master docker0 up
ip -n container address add 172.17.0.2/16 dev eth0
ip -n container link set lo up
ip -n container link set eth0 up
ip -n container route add default via 172.17.0.1
iptables-restore --noflush < /opt/docker.rules
"""


def others(machine: Machine) -> str:
    """Return all rules that are not ours, without counters."""
    listed = machine.rules()
    listed = re.sub(r"table inet hostmesh \{.*?\n\}\n", "", listed, flags=re.DOTALL)
    legacy = machine.run("sh", "-c", "iptables-legacy-save; ip6tables-legacy-save", check=False).stdout
    return listed + "\n".join(line for line in legacy.splitlines() if line.startswith("-A"))


def new(lab: Lab, packages: Repository, name: str, suite: str, index: int, directory: Path) -> Newcomer:
    return Newcomer(lab, packages, Machine(lab, name, suite, index, directory / "disk"))


@pytest.fixture(scope="module", params=("bullseye", "trixie"))
def dock(
    lab: Lab,
    packages: Repository,
    counter: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Newcomer]:
    """A host with a container whose port is published, before hostmesh comes."""
    index = 70 + list(DEBIAN).index(request.param)
    made = new(lab, packages, f"dock-{request.param}", request.param, index, tmp_path_factory.mktemp("dock"))
    try:
        made.boot()
        made.machine.put("/opt/docker.rules", DOCKER)
        made.machine.put("/opt/docker.sh", DOCKER_STARTS)
        meshes.program(made.machine, "docker-like", DOCKER_UNIT)
        eventually(lambda: published(made) == "container", "the container answers", timeout_s=30)
        repository.apt(made.machine, "update")
        yield made
    finally:
        made.remove()


def published(host: Newcomer) -> str:
    """Return who answers a stranger at the port that the container has on the host."""
    answer = host.lab.curl("outside", f"http://{host.machine.ip}:{PUBLISHED}/")
    return str(answer.json["name"]) if answer.status == 200 else ""


def reaches_out(host: Newcomer) -> bool:
    """Tell whether the container reaches the network through its host."""
    url = f"{host.packages.url}/hostmesh.asc"
    return host.machine.run(*IN_CONTAINER, "curl", "-sf", "-m", "10", url, check=False).returncode == 0


def test_beside_a_docker_published_ports_and_containers_are_what_they_were_through_join_boot_and_purge(
    dock: Newcomer,
) -> None:
    machine, rules = dock.machine, others(dock.machine)
    assert "172.17.0.2" in rules
    with load(dock.lab, "outside", f"http://{machine.ip}:{PUBLISHED}/") as calls:
        dock.arrive()
        assert reaches_out(dock)
    assert (calls["failed"], calls["sent"] > 10) == (0, True), calls
    assert others(machine) == rules
    machine.reboot()
    eventually(lambda: published(dock) == "container", "the container answers after a boot", timeout_s=60)
    eventually(dock.is_called, "it is called with mutual TLS after a boot", timeout_s=60)
    eventually(dock.calls, "it calls with mutual TLS after a boot", timeout_s=60)
    assert reaches_out(dock)
    assert others(machine) == rules
    repository.apt(machine, "purge", "hostmesh-agent", "hostmesh-envoy")
    assert published(dock) == "container"
    assert reaches_out(dock)
    assert others(machine) == rules
    assert "hostmesh" not in machine.rules()


@pytest.fixture(scope="module", params=("bookworm", "trixie"))
def wall(
    lab: Lab,
    packages: Repository,
    counter: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Newcomer]:
    """A host with Debian's firewalld, which lets in what the operator's guide says, before hostmesh comes."""
    index = 74 + list(DEBIAN).index(request.param)
    made = new(lab, packages, f"wall-{request.param}", request.param, index, tmp_path_factory.mktemp("wall"))
    try:
        made.boot()
        machine = made.machine
        machine.run("rm", "/etc/systemd/system/firewalld.service")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "--quiet", "enable", "--now", "firewalld.service")
        for port in (STOCK, *(each.inbound for each in PORTS.values()), PORTS[GREEN].door):
            machine.run("firewall-cmd", "-q", f"--add-port={port}/tcp", "--permanent")
        machine.run("firewall-cmd", "-q", "--reload")
        repository.apt(machine, "update")
        yield made
    finally:
        made.remove()


def answers(host: Newcomer, port: int) -> bool:
    return host.lab.curl("outside", f"http://{host.machine.ip}:{port}/").status == 200


def test_beside_firewalld_calls_go_on_and_what_it_closes_stays_closed_through_join_reload_boot_and_purge(
    wall: Newcomer,
) -> None:
    machine = wall.machine
    machine.put(
        "/etc/systemd/system/closed.service", "[Service]\nExecStart=/usr/bin/python3 /opt/http_echo.py 8096 no\n"
    )
    machine.run("systemctl", "start", "closed.service")
    assert "firewalld" in others(machine)
    assert (answers(wall, STOCK), answers(wall, 8096)) == (True, False)
    wall.arrive()
    kept = machine.rules("table", "inet", "hostmesh")
    for words in (("firewall-cmd", "-q", "--reload"), ("systemctl", "restart", "firewalld.service")):
        machine.run(*words)
        assert machine.rules("table", "inet", "hostmesh") == kept
        assert (wall.is_called(), wall.calls(), answers(wall, 8096)) == (True, True, False)
    machine.reboot()
    machine.run("systemctl", "start", "closed.service")
    assert machine.unit("firewalld.service", "ActiveState")["ActiveState"] == "active"
    eventually(wall.is_called, "it is called with mutual TLS after a boot", timeout_s=60)
    eventually(wall.calls, "it calls with mutual TLS after a boot", timeout_s=60)
    assert not answers(wall, 8096)
    repository.apt(machine, "purge", "hostmesh-agent", "hostmesh-envoy")
    assert "hostmesh" not in machine.rules()
    assert (answers(wall, STOCK), answers(wall, 8096)) == (True, False)
