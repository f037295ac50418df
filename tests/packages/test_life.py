"""The packages on real hosts of a mesh: installed, upgraded under load, removed and purged."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from e2e.test_leave import changes
from e2e.test_under_load import load
from hosts import mesh as meshes
from hosts import roots
from hosts.machine import Machine
from hosts.mesh import STOCK, STOCK_UNIT
from hosts.test_leave import settled, snapshot
from hosts.test_life import envoy, restarted, state
from packages.conftest import Built

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: stock}}
spec:
  selector: {{app: stock}}
  ports: [{{name: http, port: 8095}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock}}
spec: {{address: {address}, serviceAccount: stock, labels: {{app: stock}}}}
"""
AGENT = "hostmesh-agent.service"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if not shutil.which("systemd-nspawn"):
        pytest.skip("needs systemd-nspawn: make test-hosts installs it")
    with new_lab() as made:
        made.verb("up", "client")
        yield made


@pytest.fixture(params=("bookworm", "trixie"))
def shop(lab: Lab, built: Built, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A host with a program, which has not heard of hostmesh."""
    directory = Path(tempfile.mkdtemp(prefix="hm-packages-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        machine = Machine(lab, f"shop-{request.param}", request.param, 60, directory / "shop")
        machine.binds = {built.dist: Path("/packages")}
        stack.callback(machine.remove)
        machine.make()
        for name in ("http_echo.py", "host_snapshot.py"):
            machine.put(f"/opt/{name}", (PROGRAMS / name).read_text())
        machine.start()
        meshes.program(machine, "stock", STOCK_UNIT.replace("hostmesh-ready", "network").format(name=machine.name))
        lab.apply(SERVICE.format(address=machine.ip))
        yield machine
        lab.hostmesh("delete", "-f", "-", text_in=SERVICE.format(address=machine.ip), check=False)
        lab.hostmesh("host", "remove", machine.name, check=False)


def dpkg(machine: Machine, *words: str) -> str:
    return machine.run(
        "env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--force-unsafe-io", *words, timeout_s=300
    ).stdout


def install(machine: Machine, built: Built, version: str, *names: str) -> None:
    dpkg(machine, "--install", *(f"/packages/{built.deb(each, version)}" for each in names))


def joined(lab: Lab, machine: Machine, built: Built) -> None:
    install(machine, built, built.version, "hostmesh-envoy", "hostmesh-agent")
    assert state(machine)["ActiveState"] == "inactive"
    meshes.join(lab, machine)
    meshes.captured(machine, STOCK)
    called = lambda: lab.curl("client", f"http://stock:{STOCK}/").status == 200  # noqa: E731 - one condition
    eventually(called, "the client calls it through the mesh", timeout_s=30)


def rules(machine: Machine) -> str:
    return machine.run("nft", "-s", "list", "ruleset").stdout


def test_an_upgrade_under_load_restarts_the_agent_alone(lab: Lab, shop: Machine, built: Built) -> None:
    joined(lab, shop, built)
    status = shop.agent()
    assert status["envoy"]["version"] == "1.40.0"
    for version in (built.following, built.version):  # and the way back
        before, ours, kept = state(shop), envoy(shop), rules(shop)
        with load(lab, "client", f"http://stock:{STOCK}/") as calls:
            install(shop, built, version, "hostmesh-envoy", "hostmesh-agent")
            restarted(shop, before)
        assert calls["failed"] == 0
        assert calls["sent"] > 10
        assert envoy(shop) == ours
        assert rules(shop) == kept
        assert shop.unit("hostmesh-drain.service", "ActiveState")["ActiveState"] == "active"
        assert shop.run("hostmesh-agent", "--version").stdout.startswith(f"hostmesh-agent {version} ")
    shop.run("systemctl", "stop", AGENT)
    install(shop, built, built.following, "hostmesh-envoy", "hostmesh-agent")
    # One that its owner has stopped stays down.
    assert state(shop)["ActiveState"] == "inactive"


def test_a_removal_is_a_leave_and_a_purge_leaves_nothing(lab: Lab, shop: Machine, built: Built) -> None:
    before = settled(shop)
    joined(lab, shop, built)
    with load(lab, "client", f"http://{shop.ip}:{STOCK}/") as calls:
        dpkg(shop, "--remove", "hostmesh-agent")
    # A connection that was kept open through Envoy ends with it: each of the four callers loses one call at most.
    assert calls["failed"] <= 4
    assert calls["sent"] > 10
    assert "hostmesh" not in rules(shop)
    assert shop.run("pgrep", "-f", "envoy-bin", check=False).stdout == ""
    # The links by which they are enabled stay until a purge, and lead nowhere.
    listed = shop.run("systemctl", "list-units", "--state=active,activating,failed", "--no-legend", "hostmesh-*").stdout
    assert listed.strip() == ""
    assert shop.run("test", "-e", "/var/lib/hostmesh/host.json", check=False).returncode != 0
    dpkg(shop, "--purge", "hostmesh-agent", "hostmesh-envoy")
    eventually(lambda: not left(shop, before, snapshot(shop)), f"as it was: {left(shop, before, snapshot(shop))}", 10)
    assert left(shop, before, snapshot(shop)) == []
    # Whoever calls it goes on, in plaintext.
    eventually(lambda: lab.curl("client", f"http://stock:{STOCK}/").status == 200, "called without it", timeout_s=30)


def left(machine: Machine, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return what differs, without what dpkg and the programs of users keep for themselves."""
    own = ("/var/lib/dpkg", "/var/cache/", "/var/log/", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-")
    skipped = (*own, "/etc/.pwd.lock", "/etc/subuid-", "/etc/subgid-")
    return [
        each
        for each in changes(before, after)
        if not any(name in each for name in skipped) and not is_as_in_root(machine, each)
    ]


def is_as_in_root(machine: Machine, name: str) -> bool:
    """Tell whether something was written to the disk again as it was in the root below."""
    path = name.removeprefix("disk ").lstrip("/")
    upper, lower = machine.written / path, roots.root(machine.suite) / path
    try:
        ours, its = upper.lstat(), lower.lstat()
    except FileNotFoundError:
        return False
    same = (ours.st_mode, ours.st_uid, ours.st_gid) == (its.st_mode, its.st_uid, its.st_gid)
    return same and (upper.is_dir() or (upper.is_file() and upper.read_bytes() == lower.read_bytes()))


def test_the_controller_serves_under_its_unit_and_is_gone_after_a_purge(shop: Machine, built: Built) -> None:
    names = ("hostmesh", "hostmesh-controller")
    install(shop, built, built.version, *names)
    unit = "hostmesh-controller.service"
    found = shop.unit(unit, "ActiveState", "SubState", "StatusText", "NRestarts")
    assert (found["ActiveState"], found["SubState"], found["NRestarts"]) == ("active", "running", "0"), shop.journal(
        unit
    )
    assert "serves revision" in found["StatusText"]
    assert shop.run("stat", "-c", "%U %a", "/var/lib/hostmesh-controller").stdout == "hostmesh-controller 700\n"
    told = shop.run("hostmesh", "register", "web-1", "--address", "192.0.2.7", "-o", "json").stdout
    assert "join_string" in told
    before = shop.unit(unit, "MainPID")["MainPID"]
    install(shop, built, built.following, *names)
    assert shop.unit(unit, "MainPID", "ActiveState")["ActiveState"] == "active"
    assert shop.unit(unit, "MainPID")["MainPID"] != before
    assert "web-1" in shop.run("hostmesh", "host", "list").stdout
    security = shop.run("systemd-analyze", "security", "--no-pager", unit, check=False).stdout
    assert float(security.rpartition(f"level for {unit}: ")[2].split()[0]) <= 1.9
    dpkg(shop, "--purge", *reversed(names))
    assert shop.run("test", "-e", "/var/lib/hostmesh-controller", check=False).returncode != 0
    assert shop.run("getent", "passwd", "hostmesh-controller", check=False).returncode != 0
