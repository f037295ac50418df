"""A fleet as ansible finds it: bare hosts with sshd and a user who may become root, and a control node.

The control node is this machine: what `ansible-playbook` runs with is below one directory, in namespaces of its own, so
that no connection outlives a run, and all that it writes to any file is looked through (`watched.py`).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from e2e.driver import PROGRAMS, Lab, eventually
from e2e.test_under_load import LOAD
from hostmesh_api.joinstring import PREFIX
from hosts import mesh as meshes
from hosts.machine import Machine
from hosts.mesh import STOCK, STOCK_UNIT
from hosts.newcomer import Newcomer
from hosts.repository import Repository
from hosts.test_leave import settled
from ssh.ssh_host import key_pair

TREE: Final = Path(__file__).parents[2]
COLLECTION: Final = TREE / "ansible"
TOOLS: Final = TREE / ".cache" / "ansible" / "bin"
OPERATOR: Final = "steward"
SECRET: Final = PREFIX.replace(".", r"\.") + "[A-Za-z0-9_-]{100}"
"""A join string."""
_RUN_WITHIN_S: Final = 800


@dataclass(frozen=True)
class Run:
    """One run of a playbook: `hosts` is what its recap says of each."""

    code: int
    said: str
    took_s: float
    hosts: dict[str, dict[str, int]]
    written: int
    secrets_in: list[str]

    def count(self, what: str) -> int:
        return sum(each[what] for each in self.hosts.values())


@dataclass
class Fleet:
    """`controller` and `agents` are hosts of the inventory, by their names there."""

    lab: Lab
    directory: Path
    repository: Repository
    controller: Machine
    agents: tuple[Machine, ...]
    untouched: dict[str, Newcomer] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def machines(self) -> tuple[Machine, ...]:
        return self.controller, *self.agents

    @property
    def key(self) -> Path:
        return self.directory / "key"

    def boot(self) -> None:
        self._set()
        (self.directory / "home").mkdir()
        key_pair(self.key)
        known = []
        for each in self.machines:
            reachable(each, self.key, self.directory)
            public = self.directory / f"host-{each.name}.pub"
            known.append(f"{each.ip} {' '.join(public.read_text().split()[:2])}\n")
        (self.directory / "known_hosts").write_text("".join(known))
        for each in self.agents:
            unit = STOCK_UNIT.replace("hostmesh-ready", "network").format(name=each.name)
            meshes.program(each, "stock", unit)
        self._write_inventory()
        # What a login leaves behind is there before anything is compared.
        first, _ = self.control("ansible", "-i", str(self.inventory), "all", "-m", "ansible.builtin.ping")
        assert first.returncode == 0, first.stdout + first.stderr
        for each in self.machines:
            logged_out(each)
            self.untouched[each.name] = Newcomer(self.lab, self.repository, each, settled(each))

    def _set(self) -> None:
        self.settings = {
            "repository_url": self.repository.url,
            "repository_key": self.repository.key,
            "controller_config": f'addresses = ["{self.controller.ip}"]\n[listen]\nadmin = "0.0.0.0:15014"\n',
        }

    def left(self, machine: Machine) -> list[str]:
        """Return what is not as it was before the first run, and every file that is called after us."""
        logged_out(machine)
        return [*self.untouched[machine.name].left(), *named_after_us(machine)]

    def _write_inventory(self) -> None:
        agents = {
            each.name: {
                "ansible_host": each.ip,
                "agent_addresses": [each.ip],
                "agent_workload_namespace": "shop",
                "agent_workload_service_account": "stock",
                "agent_workload_ports": [f"http={STOCK}"],
                "agent_workload_labels": {"app": "stock"},
            }
            for each in self.agents
        }
        inventory = {
            "all": {"vars": {**self._ssh(), **self.settings}},
            "hostmesh_controllers": {"hosts": {self.controller.name: {"ansible_host": self.controller.ip}}},
            "hostmesh_agents": {"hosts": agents},
        }
        self.inventory.write_text(json.dumps(inventory))

    def _ssh(self) -> dict[str, str]:
        return {
            "ansible_user": OPERATOR,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.directory}/known_hosts",
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    @property
    def inventory(self) -> Path:
        return self.directory / "hosts.yml"

    def play(self, playbook: str, *options: str, **settings: Any) -> Run:
        """Run a playbook of the collection; settings are extra variables."""
        path = COLLECTION / "playbooks" / f"{playbook}.yml"
        words = ["ansible-playbook", "-i", str(self.inventory), "-e", json.dumps(settings), *options, str(path)]
        began = time.monotonic()
        done, report = self.control(*words)
        took_s = time.monotonic() - began
        print(f"{playbook} {' '.join(options)}: {took_s:.1f} s")
        hosts = _recap(done.stdout)
        return Run(done.returncode, done.stdout + done.stderr, took_s, hosts, report["written"], report["holding"])

    def control(
        self, *words: str, cwd: Path = COLLECTION, **more: str
    ) -> "tuple[subprocess.CompletedProcess[str], dict[str, Any]]":
        """Run a program of ansible's on the control node."""
        report = self.directory / "written.json"
        home = self.directory / "home"
        environment = {
            "PATH": f"{TOOLS}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(home),
            "TMPDIR": str(home),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(COLLECTION / "ansible.cfg"),
            **more,
        }
        spaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
        watch = (sys.executable, "-I", "-S", str(Path(__file__).with_name("watched.py")), str(report), SECRET, "--")
        done = subprocess.run(
            [*spaces, *watch, *words],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_WITHIN_S,
            check=False,
        )
        return done, json.loads(report.read_text())

    def hostmesh(self, *words: str, text_in: str = "") -> str:
        """Run `hostmesh` where the operator of the mesh does: on the controller's host."""
        return self.controller.run("hostmesh", *words, text_in=text_in).stdout

    def remove(self) -> None:
        for each in self.machines:
            if each.directory.exists():
                each.remove()


def reachable(machine: Machine, key: Path, directory: Path) -> None:
    """Boot a host with sshd, a user who may become root, and the tests' programs."""
    machine.make()
    (machine.written / "etc/systemd/system/ssh.service").unlink()
    host_key = key_pair(directory / f"host-{machine.name}")
    machine.put("/etc/ssh/ssh_host_ed25519_key", host_key.read_text())
    (machine.written / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    for name in ("http_echo.py", "host_snapshot.py"):
        machine.put(f"/opt/{name}", (PROGRAMS / name).read_text())
    machine.put("/opt/load.py", LOAD.read_text())
    # Nobody needs these disks after a power cut of the machine below them.
    machine.put("/etc/dpkg/dpkg.cfg.d/quick", "force-unsafe-io\n")
    machine.start()
    machine.run("useradd", "--create-home", "--shell", "/bin/sh", OPERATOR)
    machine.put(f"/home/{OPERATOR}/.ssh/authorized_keys", key.with_suffix(".pub").read_text())
    machine.put(f"/etc/sudoers.d/{OPERATOR}", f"{OPERATOR} ALL=(ALL) NOPASSWD: ALL\n")


def logged_out(machine: Machine) -> None:
    """Return when nothing of the operator's session runs any more: systemd ends it ten seconds after the last login."""
    nobody = ("sh", "-c", f"! pgrep -u {OPERATOR}")
    eventually(lambda: machine.run(*nobody, check=False).returncode == 0, "nobody is logged in", timeout_s=60)


def named_after_us(machine: Machine) -> list[str]:
    elsewhere = ("/proc/*", "/sys/*", "/var/log/*")
    words = [word for each in elsewhere for word in ("-not", "-path", each)]
    return machine.run("find", "/", "-xdev", "-iname", "*hostmesh*", *words).stdout.splitlines()


def _recap(said: str) -> dict[str, dict[str, int]]:
    found = {}
    for line in said.partition("PLAY RECAP")[2].splitlines()[1:]:
        name, colon, counts = line.partition(":")
        if colon and "=" in counts:
            pairs = (each.split("=") for each in counts.split())
            found[name.strip()] = {what: int(number) for what, number in pairs}
    return found


def why_no_ansible() -> str:
    return "" if os.access(TOOLS / "ansible-playbook", os.X_OK) else "needs ansible: make test-hosts installs it"


def versions(machines: Sequence[Machine]) -> list[str]:
    """The agents' versions, as their packages have them."""
    shown = ("dpkg-query", "-W", "-f", "${Version}", "hostmesh-agent")
    return [each.run(*shown, check=False).stdout for each in machines]
