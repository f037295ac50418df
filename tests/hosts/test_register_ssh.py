"""Real hosts are joined from the controller over SSH, in each way that packages get there, and removed again."""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from e2e.driver import Lab, eventually
from hosts.calls import call_from, call_from_lab, identity_of_caller
from hosts.fleet import OPERATOR, logged_out, named_after_us, reachable
from hosts.machine import Machine
from hosts.mesh import STOCK, STOCK_UNIT, program
from hosts.newcomer import COUNTER, Newcomer
from hosts.repository import Repository
from hosts.test_leave import settled
from ssh.ssh_host import key_pair

SUITES: Final = {"repository": "trixie", "packages": "bookworm", "bundle": "bullseye", "dnf": "bookworm+dnf"}
pytestmark = pytest.mark.timeout(900)
NAME: Final = "fresh"
SERVICE: Final = f"""
apiVersion: v1
kind: Service
metadata: {{name: {NAME}}}
spec:
  selector: {{app: {NAME}}}
  ports: [{{name: http, port: {STOCK}}}]
"""
BASE: Final = "[base]\nname=what a distribution of rpm's has\nbaseurl={url}/base\ngpgcheck=0\n"


KEPT_BY_DNF: Final = (
    *("/var/lib/rpm", "/var/lib/dnf", "/etc/dnf", "/etc/rpm", "/run/dnf", "/run/lock"),
    *("/usr/share/fish:", "/usr/share/fish/vendor_completions.d:", "/usr/share/zsh/site-functions:"),
    *("/usr/share/man/man5:", "/usr/share/man/man8:"),
)
"""Its own databases and records; and folders that belong to a package of every distribution of rpm's, empty."""


@dataclass
class Fresh:
    """A host with sshd and nothing of ours, and how the operator comes into it."""

    lab: Lab
    machine: Machine
    before: Newcomer
    login: tuple[str, ...]
    source: tuple[str, ...]

    def register(self, *options: str) -> dict[str, Any]:
        words = ("register", NAME, *self.login, *self.source, "--port", f"http={STOCK}", "-o", "json", *options)
        words += ("--service-account", NAME)
        done = self.lab.hostmesh(*words, check=False)
        assert done.stdout, done.stderr
        (told,) = json.loads(done.stdout)
        assert isinstance(told, dict)
        return told

    def left(self) -> list[str]:
        logged_out(self.machine)
        left = [each for each in self.before.left() if not any(name in each for name in KEPT_BY_DNF)]
        keys = self.machine.run("sh", "-c", "rpm -qa 'gpg-pubkey*' 2>/dev/null || true").stdout.split()
        return [*left, *keys, *named_after_us(self.machine)]

    def is_called(self) -> bool:
        seen = call_from_lab(self.lab, "client", f"http://{NAME}:{STOCK}/")
        return seen is not None and identity_of_caller(seen).endswith("/sa/counter")


@pytest.fixture(params=list(SUITES))
def fresh(
    lab: Lab,
    packages: Repository,
    counter: None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Fresh]:
    if not shutil.which("ssh-keygen"):
        pytest.skip("needs ssh-keygen: make test-hosts installs it")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    way = str(request.param)
    machine = Machine(lab, NAME, SUITES[way], 53, tmp_path / NAME)
    try:
        key = key_pair(tmp_path / "id")
        reachable(machine, key, tmp_path)
        program(machine, "stock", STOCK_UNIT.replace("hostmesh-ready", "network").format(name=NAME))
        if way == "dnf":
            _live_by_dnf(machine, packages)
        lab.apply(SERVICE)
        pin = machine.run("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key").stdout.split()[1]
        login = ("--ssh", f"{OPERATOR}@{machine.ip}", "--sudo", "--identity", str(key), "--host-key", pin)
        # What a login leaves behind is there before anything is compared.
        target = (f"{OPERATOR}@{machine.ip}", "true")
        subprocess.run(
            [
                "ssh",
                "-i",
                str(key),
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                f"UserKnownHostsFile={tmp_path}/k",
                *target,
            ],
            check=True,
        )
        logged_out(machine)
        before = Newcomer(lab, packages, machine, settled(machine))
        yield Fresh(lab, machine, before, login, _source(way, packages, tmp_path))
    finally:
        lab.hostmesh("host", "remove", NAME, "--workloads", "--yes", check=False)
        lab.hostmesh("delete", "-f", "-", text_in=SERVICE, check=False)
        machine.remove()


def _source(way: str, packages: Repository, folder: Path) -> tuple[str, ...]:
    built = packages.built
    debs = [built.dist / built.deb(each) for each in ("hostmesh-envoy", "hostmesh-agent", "hostmesh")]
    if way == "packages":
        return tuple(f"--package={each}" for each in debs[:2])
    if way == "bundle":
        with tarfile.open(folder / "bundle.tar", "w") as tar:
            for each in debs:
                tar.add(each, f"dist/{each.name}")
        return "--bundle", str(folder / "bundle.tar")
    (folder / "repository.asc").write_text(packages.key)
    return "--repository", packages.url, "--repository-key", str(folder / "repository.asc")


def _live_by_dnf(machine: Machine, packages: Repository) -> None:
    """A Debian whose packages come by dnf: no distribution of rpm's is to be had here."""
    machine.run("mv", "/usr/bin/apt-get", "/usr/bin/apt-get.away")
    machine.put("/etc/yum.repos.d/base.repo", BASE.format(url=packages.url))
    machine.put("/etc/dnf/vars/releasever", "1")
    # Debian's rpm has a database for each user; that of a distribution of rpm's is the system's.
    machine.put("/etc/rpm/macros", "%_dbpath /var/lib/rpm\n")
    machine.run("dnf", "-q", "-y", "install", "base")


def test_a_real_host_is_joined_over_ssh_is_told_anew_and_leaves_nothing(fresh: Fresh) -> None:
    lab, machine = fresh.lab, fresh.machine
    # What cannot be shown is taken back, whole.
    failed = fresh.register("--verify", "http://nobody.default/")
    assert (failed["outcome"], failed["step"], failed["left_behind"]) == ("failed", "verify", []), failed
    assert fresh.left() == []
    assert NAME not in lab.hostmesh("host", "list").stdout
    # A service of the mesh is found, and called.
    told = fresh.register()
    assert told["outcome"] == "joined", told
    assert told["request"].startswith(f"GET http://counter.default.svc:{COUNTER}/ from the host: HTTP/1.1 200"), told
    assert identity_of_caller(call_from(machine, f"http://counter:{COUNTER}/") or {}).endswith(f"/sa/{NAME}")
    assert fresh.register("--verify", f"http://counter:{COUNTER}/")["outcome"] == "unchanged"
    # It serves once it has the label by which its Service finds it.
    assert not fresh.is_called()
    assert fresh.register("--label", f"app={NAME}")["outcome"] == "updated"
    eventually(fresh.is_called, "it is called with mutual TLS", timeout_s=60)
    assert machine.run("systemctl", "is-enabled", "hostmesh-agent.service").stdout == "enabled\n"
    lab.hostmesh("host", "remove", NAME, "--workloads", "--yes", *fresh.login)
    assert fresh.left() == []
    assert NAME not in lab.hostmesh("host", "list").stdout
    lab.hostmesh("host", "remove", NAME, "--yes", *fresh.login)
