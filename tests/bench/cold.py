"""What the cold copy of a large mesh costs: the controller, the wire, and the host that keeps it."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from bench.endpoint import LARGE, mesh_of_services, workload
from bench.figure import Figure
from hostmesh_api.delta import ClientStream, Push
from hostmesh_api.wire import COLD_TYPE
from hostmesh_controller.cold_pace import PAUSE_S, WINDOW_S
from hostmesh_controller.hub import Connection, Hub
from hostmesh_controller.mesh import update

HOSTS: Final = 1_000
_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
_PROBE: Final = Path(__file__).with_name("cold_probe.py")


class _Fleet:
    """Hosts of one locality, thus of one viewer, that ask for cold copies alone."""

    def __init__(self, services: int) -> None:
        self.hub = Hub(mesh_of_services(services), 1)
        self.woken: list[str] = []

    def connect(self, count: int) -> list[Connection]:
        made: list[Connection] = []
        for index in range(count):
            name = f"h{index * 3}"
            connection = self.hub.connect(name, "peer", _NOW, partial(self.woken.append, name))
            asked = DeltaDiscoveryRequest(type_url=COLD_TYPE, resource_names_subscribe=["*"])
            self.hub.receive(connection, asked, _NOW)
            made.append(connection)
        return made


def cold() -> Sequence[Figure]:
    """Fill the copies of many hosts, move one endpoint, and let a process with the agent's parts keep a copy."""
    fleet = _Fleet(LARGE)
    (first,) = fleet.connect(1)
    began_s = time.process_time()
    pushes = _settle_all(fleet, [first])
    made_s = time.process_time() - began_s
    hosts = fleet.connect(HOSTS)
    began_s = time.process_time()
    _settle_all(fleet, hosts)
    each_s = (time.process_time() - began_s) / len(hosts)
    item = workload(7)
    mesh, touched = update(fleet.hub.mesh, {item.key: item}, fleet.hub.mesh.vips, fleet.hub.mesh.runtime)
    began_s = time.process_time()
    fleet.hub.publish(mesh, touched, 2)
    published_s = time.process_time() - began_s
    fleet.hub.cold.take()
    moved = _settle_all(fleet, hosts)
    moved_s = time.process_time() - began_s
    size = sum(len(push.data) for push in pushes)
    probe = _probe(pushes)
    return (
        Figure(f"cold copy of {LARGE} services, over the wire", size / 1e6, "MB", 5, "compressed, in small responses"),
        Figure("the same on a host's disk", probe["disk_bytes"] / 1e6, "MB", 10),
        Figure("agent memory because of it", probe["rss_bytes"] / 1e6, "MB", 5, "resident, after it came and was used"),
        Figure("agent, CPU to take all of it", probe["cpu_s"] * 1e3, "ms", 2_000, "once"),
        Figure(
            "answer from it: virtual host, cluster and endpoints", probe["answer_s"] * 1e3, "ms", 50, "median of 200"
        ),
        Figure(
            "controller, CPU to make it",
            made_s,
            "s",
            10,
            "once for all hosts that see the same; at most 10 % of a core",
        ),
        Figure(
            "controller, CPU to give it to one host", each_s * 1e3, "ms", 5, f"without transport; {len(hosts)} hosts"
        ),
        Figure(
            f"controller, CPU for one endpoint moved, in {len(hosts)} copies",
            moved_s * 1e3,
            "ms",
            500,
            f"without transport; {len(moved[0].data)} bytes to each; {published_s * 1e3:.2f} ms of it at once",
        ),
        Figure(
            f"age of a copy of {HOSTS} hosts at most, where one page changes",
            WINDOW_S + HOSTS * PAUSE_S,
            "s",
            60,
            f"changes are gathered for {WINDOW_S:.0f} s, then a host has its turn each {PAUSE_S * 1e3:.0f} ms",
        ),
    )


def _settle_all(fleet: _Fleet, hosts: Sequence[Connection]) -> list[Push]:
    """Let every host have what is due to it, in the order in which they have their turn."""
    sent: list[Push] = []
    by_host = {each.host: each for each in hosts}
    while fleet.hub.cold.step():
        while fleet.woken:
            connection = by_host[fleet.woken.pop()]
            for push in fleet.hub.pushes(connection):
                sent.append(push)
                fleet.hub.receive(connection, ClientStream.ack(COLD_TYPE, push.nonce), _NOW)
    return sent


def _probe(pushes: Sequence[Push]) -> dict[str, float]:
    with TemporaryDirectory(prefix="hostmesh-bench-") as directory:
        for number, push in enumerate(pushes):
            (Path(directory) / f"{number:04}.response").write_bytes(push.data)
        done = subprocess.run(
            [sys.executable, str(_PROBE), directory], check=True, capture_output=True, text=True, timeout=120
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
