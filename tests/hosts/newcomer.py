"""A host that has not heard of hostmesh, with a program of its own; and the way in by apt and a join string."""

from dataclasses import dataclass, field
from typing import Final

from e2e.driver import PROGRAMS, Lab, eventually
from e2e.test_leave import changes
from hosts import mesh as meshes
from hosts import repository, roots
from hosts.calls import call_from, call_from_lab, identity_of_caller
from hosts.machine import Machine
from hosts.mesh import STOCK, STOCK_UNIT
from hosts.repository import Repository
from hosts.test_leave import settled, snapshot

COUNTER: Final = 8094
"""Where the mesh's small host answers, so that others have somebody to call."""
_SERVICE: Final = """
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: {port}}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}}}
spec: {{address: {address}, serviceAccount: {name}, labels: {{app: {name}}}}}
"""
_KEPT_BY_OTHERS: Final = (
    *("/var/lib/dpkg", "/var/cache/", "/var/log/", "/var/lib/apt/", "/var/lib/systemd/deb-systemd"),
    *("/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/.pwd.lock", "/etc/subuid-", "/etc/subgid-"),
    *("/run/needrestart", "/var/lib/needrestart", "unattended-upgrades", "/run/dbus/", "/opt/"),
)
"""What apt, dpkg, needrestart and the programs of users keep for themselves: databases, logs, backups of what was
before; and the tests' own programs."""


@dataclass
class Newcomer:
    """`before` is all that could be seen of it before the first package came; what came `home` is remembered."""

    lab: Lab
    packages: Repository
    machine: Machine
    before: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.machine.name}:{STOCK}/"

    @property
    def service(self) -> str:
        return _SERVICE.format(name=self.machine.name, address=self.machine.ip, port=STOCK)

    def boot(self) -> None:
        meshes.bare(self.machine, self.packages)
        unit = STOCK_UNIT.replace("hostmesh-ready", "network").format(name=self.machine.name)
        meshes.program(self.machine, "stock", unit)
        self.lab.apply(self.service)

    def look(self) -> None:
        """Remember how it was."""
        repository.apt(self.machine, "update")
        # The kernel looks for others with its IPv6 addresses first, and they are no whole addresses meanwhile.
        tentative = ("ip", "addr", "show", "tentative")
        eventually(lambda: not self.machine.run(*tentative).stdout, "its addresses are its own", timeout_s=30)
        self.before = settled(self.machine)

    def arrive(self) -> None:
        """Be a host of the mesh with this tree's version; nothing happens if it is one."""
        version = self.packages.built.version
        shown = self.machine.run("hostmesh-agent", "--version", check=False).stdout
        if not shown.startswith(f"hostmesh-agent {version} "):
            repository.install(self.machine, f"hostmesh-agent={version}", f"hostmesh-envoy={version}")
        if self.machine.run("test", "-e", "/var/lib/hostmesh/host.json", check=False).returncode != 0:
            meshes.join(self.lab, self.machine)
        eventually(self.is_called, "it is called with mutual TLS", timeout_s=60)
        eventually(self.calls, "it calls with mutual TLS", timeout_s=60)

    def is_called(self) -> bool:
        """Tell whether another host's call arrives with that host's certificate."""
        seen = call_from_lab(self.lab, "client", self.url)
        return seen is not None and identity_of_caller(seen).endswith("/sa/counter")

    def calls(self) -> bool:
        """Tell whether another host sees this one's certificate."""
        seen = call_from(self.machine, f"http://counter:{COUNTER}/")
        return seen is not None and identity_of_caller(seen).endswith(f"/sa/{self.machine.name}")

    def left(self) -> list[str]:
        """Return what is not as it was before the first package came."""
        return [
            f"{name}: {_difference(before or '', after or '')}"
            for name, (before, after) in changes(self.before, snapshot(self.machine)).items()
            if not any(each in name for each in _KEPT_BY_OTHERS) and not self._is_as_in_root(name)
        ]

    def _is_as_in_root(self, name: str) -> bool:
        """Tell whether something was written to the disk again as it was in the root below."""
        path = name.removeprefix("disk ").lstrip("/")
        upper, lower = self.machine.written / path, roots.root(self.machine.suite) / path
        try:
            ours, its = upper.lstat(), lower.lstat()
        except FileNotFoundError:
            return False
        same = (ours.st_mode, ours.st_uid, ours.st_gid) == (its.st_mode, its.st_uid, its.st_gid)
        return same and (upper.is_dir() or (upper.is_file() and upper.read_bytes() == lower.read_bytes()))

    def remove(self) -> None:
        self.lab.hostmesh("delete", "-f", "-", text_in=self.service, check=False)
        self.lab.hostmesh("host", "remove", self.machine.name, "--yes", check=False)
        self.machine.remove()


def _difference(before: str, after: str) -> str:
    old, new = before.splitlines(), after.splitlines()
    return f"was {[each for each in old if each not in new]}, is {[each for each in new if each not in old]}"


def serve_counter(lab: Lab) -> None:
    """Have the lab's small host answer calls of the mesh."""
    lab.detach("client", "python3", str(PROGRAMS / "http_echo.py"), str(COUNTER), "counter", user="app")
    lab.apply(_SERVICE.format(name="counter", address=lab.ip("client"), port=COUNTER))
