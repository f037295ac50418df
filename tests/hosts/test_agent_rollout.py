"""Another agent and another packaged Envoy come to real hosts by a Rollout; bad ones go again, by the host itself.

one    Debian 13
two    Debian 12

Both know a repository of apt, and their owner takes what the controller's mirror has, signed, and what apt has.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from shipping.parts import AGENT, ENVOY

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from e2e.test_under_load import load
from hosts import mesh as meshes
from hosts import versions
from hosts.machine import Machine
from hosts.mesh import STOCK, STOCK_UNIT

OLD, NEW, BAD = "0.1.0", "0.2.0", "0.3.0"
ENDS: Final = "raise SystemExit('this version does not come up')"
HOST: Final = """
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {{name: {host}, labels: {{tier: real}}}}
spec: {{addresses: [{address}]}}
"""
SERVICE: Final = """
apiVersion: v1
kind: Service
metadata: {name: stock}
spec: {selector: {app: stock}, ports: [{name: http, port: 8095}]}
"""
ENTRY: Final = """
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock-{host}}}
spec: {{address: {address}, serviceAccount: stock, labels: {{app: stock}}}}
"""
OWNER: Final = """
[envoy]
rehearsal_s = 2
probation_s = 4
[updates]
controller = ["agent", "envoy"]
sources = ["mirror", "packages"]
keys = ["{key}"]
"""
ROLLOUT: Final = """
apiVersion: hostmesh.io/v1
kind: Rollout
metadata: {{name: {name}}}
spec:
  component: {component}
  source: {source}
  version: {version}
  hosts: {{matchLabels: {{tier: real}}}}
  canary: 1
  watch: 5s
  deadline: 8m
"""
URL: Final = f"http://stock:{STOCK}/"
UPGRADED_WITHIN_S: Final = 400


@dataclass(frozen=True)
class Fleet:
    lab: Lab
    hosts: tuple[Machine, Machine]
    key: Path

    def sign(self, package: Path, version: str) -> None:
        mirror = str(self.lab.root / "controller" / "state" / "artifacts")
        words = ("--component", "agent", "--version", version, "--key", str(self.key), "--to", mirror)
        self.lab.hostmesh("rollout", "sign", str(package), *words)

    def roll_out(self, name: str, version: str, component: str = "agent", source: str = "mirror") -> None:
        self.lab.apply(ROLLOUT.format(name=name, version=version, component=component, source=source))

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lab.hostmesh("rollout", "status", name, "-o", "json").stdout)
        return found

    def reaches(self, name: str, stage: str) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            found = self.status(name)
            over = {"done", "halted"} - {stage}
            assert found["stage"] not in over, self.story(found)
            counts = found["counts"]
            return found if found["stage"] == stage and not counts["returning"] else None

        found = eventually(there, f"{name} is {stage}", UPGRADED_WITHIN_S)
        assert found is not None
        return found

    def story(self, found: dict[str, Any]) -> str:
        """What is to be known where something else became of it."""
        journals = (
            f"{each.name} {unit}:\n{each.journal(unit, '-n', '30')}"
            for each in self.hosts
            for unit in ("hostmesh-upgrade@*", "hostmesh-agent.service")
        )
        return "\n".join([json.dumps(found), *journals])

    def installed(self, package: str = "hostmesh-agent") -> dict[str, str]:
        shown = "--showformat=${db:Status-Status} ${Version}"
        return {each.name: each.run("dpkg-query", "--show", shown, package).stdout for each in self.hosts}

    def agents(self) -> dict[str, str]:
        """What the agents say that they are."""
        return {each.name: each.agent()["agent"].get("version", "") for each in self.hosts}

    def envoys(self) -> dict[str, int]:
        return {each.name: each.agent()["envoy"]["pid"] for each in self.hosts}

    def back_to(self, version: str) -> None:
        def are() -> bool:
            return set(self.agents().values()) == {version}

        eventually(are, f"all agents are {version}", UPGRADED_WITHIN_S)


def install(machine: Machine, repository: Path, key: str) -> None:
    """Boot a host, and install the old version by apt, from a repository that holds the new ones, too."""
    machine.make()
    machine.binds = {repository: Path("/packages")}
    machine.put("/opt/http_echo.py", (PROGRAMS / "http_echo.py").read_text())
    machine.start()
    machine.run("sh", "-ec", "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*")
    machine.put("/etc/apt/sources.list.d/hostmesh.list", "deb [trusted=yes] file:/packages ./\n")
    machine.run("apt-get", "--quiet", "update")
    wanted = (f"hostmesh-agent={OLD}", f"hostmesh-envoy={OLD}")
    machine.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes", "install", *wanted)
    machine.put("/etc/hostmesh/agent.toml", OWNER.format(key=key))
    meshes.program(machine, "stock", STOCK_UNIT.replace("hostmesh-ready", "network").format(name=machine.name))


def repository_in(directory: Path) -> Path:
    """Make a repository for apt. The bad agent is not in it: the controller's mirror alone brings that."""
    place = directory / "repository"
    place.mkdir()
    packages = [
        *(versions.good(AGENT, each) for each in (OLD, NEW)),
        versions.good(ENVOY, OLD),
        versions.other_envoy(NEW, OLD, starts=True),
        versions.other_envoy(BAD, OLD, starts=False),
    ]
    for each in packages:
        shutil.copy(each, place / each.name)
    found = subprocess.run(
        ["apt-ftparchive", "packages", "."], cwd=place, capture_output=True, text=True, timeout=120, check=True
    )
    (place / "Packages").write_text(found.stdout)
    return place


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    if not shutil.which("apt-ftparchive"):
        pytest.skip("needs apt-ftparchive: make test-packages installs it")
    with a_fleet() as made:
        yield made


@contextmanager
def a_fleet() -> Iterator[Fleet]:
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="hm-rollout-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        repository = repository_in(directory)
        print(f"packages: {time.monotonic() - began:.1f} s")
        lab = stack.enter_context(new_lab())
        lab.verb("up", "client")
        key = directory / "key.pem"
        public = lab.hostmesh("rollout", "key", str(key)).stdout.strip()
        hosts = (
            Machine(lab, "one", "trixie", 50, directory / "one"),
            Machine(lab, "two", "bookworm", 51, directory / "two"),
        )
        for each in hosts:
            stack.callback(each.remove)
            install(each, repository, public)
        lab.apply(SERVICE + "".join(ENTRY.format(host=each.name, address=each.ip) for each in hosts))
        for each in hosts:
            meshes.join(lab, each)
            meshes.captured(each, STOCK)
        # The lab's own hosts have no packages, and are not asked.
        lab.apply("".join(HOST.format(host=each.name, address=each.ip) for each in hosts))
        fleet = Fleet(lab, hosts, key)
        fleet.sign(versions.good(AGENT, NEW), NEW)
        fleet.sign(versions.bad_agent(BAD, NEW, ENDS), BAD)
        eventually(lambda: lab.curl("client", URL).status == 200, "the client calls", 30)
        print(f"hosts and mesh: made in {time.monotonic() - began:.1f} s")
        yield fleet


@pytest.mark.timeout(900, func_only=True)
def test_a_good_agent_reaches_all_hosts_and_goes_back_when_it_is_called_back(fleet: Fleet) -> None:
    envoys = fleet.envoys()
    with load(fleet.lab, "client", URL) as tally:
        fleet.roll_out("good", NEW)
        fleet.reaches("good", "done")
        assert set(fleet.agents().values()) == {NEW}
        assert set(fleet.installed().values()) == {f"installed {NEW}"}
        fleet.lab.hostmesh("rollout", "abort", "good")
        fleet.back_to(OLD)
        fleet.reaches("good", "aborted")
    assert set(fleet.installed().values()) == {f"installed {OLD}"}
    # An agent that changes is seen by nobody.
    assert fleet.envoys() == envoys
    assert (tally["failed"], tally["sent"] > 1000) == (0, True), tally
    table = fleet.lab.hostmesh("rollout", "status", "good").stdout
    assert "agent" in table
    assert NEW in table
    fleet.lab.hostmesh("delete", "Rollout", "good")


def tried(machine: Machine) -> list[dict[str, Any]]:
    """What became of requests on a host, as the program of root's told it."""
    script = "cat /var/lib/hostmesh-upgrade/results/*.json 2>/dev/null || true"
    return [json.loads(line) for line in machine.run("sh", "-c", script).stdout.splitlines()]


def is_watched(machine: Machine) -> bool:
    """Tell whether the bad agent is installed, and has not been judged yet."""
    shown = "--showformat=${db:Status-Status} ${Version}"
    found = machine.run("dpkg-query", "--show", shown, "hostmesh-agent", check=False).stdout
    pending = machine.run("test", "-e", "/var/lib/hostmesh-upgrade/pending.json", check=False)
    return pending.returncode == 0 and found == f"installed {BAD}"


@pytest.mark.timeout(900, func_only=True)
def test_a_host_puts_a_bad_agent_back_with_no_controller_and_the_rollout_halts_at_the_canary(fleet: Fleet) -> None:
    envoys, before = fleet.envoys(), {each.name: len(tried(each)) for each in fleet.hosts}
    with load(fleet.lab, "client", URL) as tally:
        fleet.roll_out("bad", BAD)
        canary = eventually(lambda: next(filter(is_watched, fleet.hosts), None), "it is tried", UPGRADED_WITHIN_S)
        assert canary is not None
        fleet.lab.verb("stop", "controller")
        eventually(lambda: canary.agent()["agent"].get("version") == OLD, "the former agent is back", UPGRADED_WITHIN_S)
        fleet.lab.verb("start", "controller")
        found = fleet.reaches("bad", "halted")
    assert "the agent did not come up: it ended 3 times; 0.1.0 was put back" in found["reason"]
    assert [each["host"] for each in found["hosts"]] == [canary.name]
    assert set(fleet.installed().values()) == {f"installed {OLD}"}
    (other,) = [each for each in fleet.hosts if each is not canary]
    assert len(tried(other)) == before[other.name]
    assert fleet.envoys() == envoys
    assert (tally["failed"], tally["sent"] > 100) == (0, True), tally
    fleet.lab.hostmesh("delete", "Rollout", "bad")


@pytest.mark.timeout(900, func_only=True)
def test_after_a_power_cut_the_next_boot_puts_a_bad_agent_back(fleet: Fleet) -> None:
    fleet.roll_out("cut", BAD)
    canary = eventually(lambda: next(filter(is_watched, fleet.hosts), None), "it is tried", UPGRADED_WITHIN_S)
    assert canary is not None
    canary.cut_power()
    canary.launch()
    canary.eventually(lambda: canary.init, "it boots", 60)
    canary.eventually(
        lambda: canary.agent()["agent"].get("version") == OLD if canary.init else False,
        "the former agent is back",
        UPGRADED_WITHIN_S,
    )
    found = fleet.reaches("cut", "halted")
    assert "was put back" in found["reason"]
    assert "recover" not in canary.run("systemctl", "--failed", "--no-legend").stdout
    fleet.lab.hostmesh("delete", "Rollout", "cut")


@pytest.mark.timeout(900, func_only=True)
def test_the_hosts_own_package_manager_brings_an_agent(fleet: Fleet) -> None:
    fleet.roll_out("apt", NEW, source="packages")
    fleet.reaches("apt", "done")
    assert set(fleet.agents().values()) == {NEW}
    assert set(fleet.installed().values()) == {f"installed {NEW}"}
    fleet.lab.hostmesh("delete", "Rollout", "apt")


@pytest.mark.timeout(900, func_only=True)
def test_the_hosts_own_package_manager_brings_an_envoy_and_takes_a_bad_one_back(fleet: Fleet) -> None:
    before = fleet.envoys()
    with load(fleet.lab, "client", URL) as tally:
        fleet.roll_out("proxy", NEW, "envoy", "packages")
        fleet.reaches("proxy", "done")
        new = fleet.envoys()
        assert not set(new.items()) & set(before.items())
        fleet.lab.hostmesh("delete", "Rollout", "proxy")
        fleet.roll_out("proxy", BAD, "envoy", "packages")
        found = fleet.reaches("proxy", "halted")
    assert "it ended before it served" in found["reason"]
    assert len(found["hosts"]) == 1
    assert set(fleet.installed("hostmesh-envoy").values()) == {f"installed {NEW}"}
    assert fleet.envoys() == new
    assert (tally["failed"], tally["sent"] > 100) == (0, True), tally
    fleet.lab.hostmesh("delete", "Rollout", "proxy")


@pytest.mark.timeout(900, func_only=True)
def test_without_the_owners_word_a_host_refuses_and_the_rollout_halts_with_the_cure(fleet: Fleet) -> None:
    for each in fleet.hosts:
        each.run("sed", "-i", 's/^controller = .*/controller = ["envoy"]/', "/etc/hostmesh/agent.toml")
        each.run("systemctl", "restart", "hostmesh-agent.service")
    before = fleet.installed()
    (present,) = set(fleet.agents().values())
    other = OLD if present == NEW else NEW
    fleet.roll_out("unasked", other, source="packages")
    found = fleet.reaches("unasked", "halted")
    assert "lets no controller bring versions of agent" in found["reason"]
    # A stolen agent that asks all the same gets nothing either: the program of root's reads agent.toml itself.
    (host, *_) = fleet.hosts
    unit = f"hostmesh-upgrade@hostmesh-agent:{other}:packages:{'0' * 16}.service"
    assert host.run("systemctl", "start", unit, check=False).returncode != 0
    assert "lets no controller bring versions of agent" in host.journal(unit)
    assert fleet.installed() == before
