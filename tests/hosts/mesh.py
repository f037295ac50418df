"""A mesh of real hosts: the controller and two small hosts are a lab's, the others boot systemd.

client, outside     hosts of the lab, the second not in the mesh: they call, and hold a canary
shop                Debian 13: serves `vault` (STRICT) and `stock`, which is also the `desk`
till                Debian 12: serves `stock` too; systemd-resolved finds its names
stall               Debian 11: serves `stall`
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from e2e.driver import PROGRAMS, Lab, eventually
from hosts import repository
from hosts.machine import Machine
from hosts.repository import Repository

VAULT: Final = 8097
STOCK: Final = 8095
JOINED_WITHIN_S: Final = 60
SERVICES: Final = """
apiVersion: v1
kind: Service
metadata: {{name: vault}}
spec:
  selector: {{app: vault}}
  ports: [{{name: http, port: 8097}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: vault}}
spec: {{address: {shop}, serviceAccount: vault, labels: {{app: vault}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: vault}}
spec:
  selector: {{matchLabels: {{app: vault}}}}
  mtls: {{mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {{name: stock}}
spec:
  selector: {{app: stock}}
  ports: [{{name: http, port: 8095}}]
---
apiVersion: v1
kind: Service
metadata: {{name: desk}}
spec:
  selector: {{app: stock, at: shop}}
  ports: [{{name: http, port: 8095}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock-shop}}
spec: {{address: {shop}, serviceAccount: stock, labels: {{app: stock, at: shop}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock-till}}
spec: {{address: {till}, serviceAccount: stock, labels: {{app: stock}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: stall}}
spec:
  selector: {{app: stall}}
  ports: [{{name: http, port: 8095}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stall}}
spec: {{address: {stall}, serviceAccount: stall, labels: {{app: stall}}}}
"""
EARLY: Final = """
[Unit]
Description=vault, which serves before there is a network
DefaultDependencies=no
After=local-fs.target
Before=network-pre.target
[Service]
ExecStart=/usr/bin/python3 /opt/canary.py serve 8097
User=www-data
[Install]
WantedBy=sysinit.target
"""
STOCK_UNIT: Final = """
[Unit]
Description=stock
Wants=hostmesh-ready.target
After=hostmesh-ready.target
[Service]
ExecStart=/usr/bin/python3 /opt/http_echo.py 8095 {name}
User=www-data
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Mesh:
    lab: Lab
    shop: Machine
    till: Machine
    stall: Machine

    @property
    def hosts(self) -> tuple[Machine, ...]:
        return self.shop, self.till, self.stall

    def vault(self, host: str = "client") -> int | None:
        """How much of the canary the vault saw, as it tells the mesh's client; None while it cannot be reached."""
        answer = self.lab.curl(host, f"http://vault:{VAULT}/seen")
        return int(answer.body) if answer.status == 200 else None


def bare(machine: Machine, packages: Repository) -> None:
    """Boot a host with the tests' programs, which has not heard of hostmesh but for where it is to be had."""
    machine.make()
    for name in ("canary.py", "http_echo.py", "host_snapshot.py"):
        machine.put(f"/opt/{name}", (PROGRAMS / name).read_text())
    packages.used_by(machine)
    machine.start()


def install(packages: Repository, *machines: Machine) -> None:
    """Boot new hosts, and install the agent of this tree by apt, on all at once."""
    # One after the other, and here: a host ends with the thread that started it.
    for each in machines:
        bare(each, packages)
    with ThreadPoolExecutor(len(machines)) as pool:
        list(pool.map(lambda each: repository.install_agent(each, packages.built.version), machines))


def program(machine: Machine, name: str, unit: str) -> None:
    """Install a program's unit, and start it."""
    machine.put(f"/etc/systemd/system/{name}.service", unit)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "--quiet", "enable", "--now", f"{name}.service")


def resolve_by_systemd(machine: Machine, dns: str) -> None:
    """Have systemd-resolved find the host's names, as Debian's package does, from a server of the network."""
    machine.run("rm", "/etc/systemd/system/systemd-resolved.service")
    network = machine.run("cat", "/etc/systemd/network/10-host0.network").stdout
    machine.put("/etc/systemd/network/10-host0.network", f"{network}DNS={dns}\nDomains=~.\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "--quiet", "enable", "--now", "systemd-resolved.service")
    machine.run("systemctl", "restart", "systemd-networkd.service")
    machine.run("ln", "-sf", "../run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf")


def join_string(lab: Lab, machine: Machine) -> str:
    told = json.loads(lab.hostmesh("register", machine.name, "--address", machine.ip, "-o", "json").stdout)
    return str(told["join_string"])


def join(lab: Lab, machine: Machine) -> None:
    """Join the mesh. The agent has said that it runs when this returns: `join` starts its unit."""
    machine.run("hostmesh-agent", "join", "-", text_in=join_string(lab, machine) + "\n")


def captured(machine: Machine, port: int) -> None:
    eventually(
        lambda: port in machine.agent()["capture"].get("inbound_ports", ()), f"{port} is captured", JOINED_WITHIN_S
    )
