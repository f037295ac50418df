"""What one endpoint's change costs the controller in a large mesh and in a small one: it should be the same."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Final

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from bench.figure import Figure
from golden.objects import SETTINGS, obj, vips_of
from hostmesh_api.delta import ClientStream
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE
from hostmesh_controller.hub import Connection, Hub
from hostmesh_controller.mesh import HostRuntime, Mesh, build, update
from hostmesh_controller.mesh.table import Table
from hostmesh_controller.model.objects import ApiObject, ObjectKey

SMALL: Final = 50
LARGE: Final = 5_000
ROUNDS: Final = 200
WORKLOAD: Final = "reviews-1-0"
NAME: Final = "outbound|9080||reviews-1.default.svc.cluster.local"
_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TIMES: Final = 1.5
"""Shards of tables are larger in a large mesh, and are copied; all else is the same."""


def _address(index: int) -> str:
    return f"10.{64 + index // 62_500}.{index // 250 % 250}.{index % 250 + 1}"


def workload(change: int) -> ApiObject:
    """Return the workload whose change is measured: its address and a label depend on `change`."""
    labels = {"app": "reviews-1", "env": "live", "build": str(change)}
    return obj("WorkloadEntry", WORKLOAD, {"address": f"198.51.100.{change % 250 + 1}", "labels": labels})


def mesh_of_services(count: int) -> Mesh:
    """Return a mesh with as many hosts as services; everybody is ready, and carries one label that all carry."""
    objects: list[ApiObject] = []
    for index in range(count):
        name = f"reviews-{index}"
        objects.append(obj("Host", f"h{index}", {"addresses": [_address(index)], "locality": f"eu/eu-{index % 3}"}))
        objects.append(obj("Service", name, {"selector": {"app": name}, "ports": [{"name": "http", "port": 9080}]}))
        labels = {"app": name, "env": "live"}
        objects.append(obj("WorkloadEntry", f"{name}-1", {"address": _address(index), "labels": labels}))
    objects.append(workload(0))
    runtime = Table[str, HostRuntime]()
    mesh = build(SETTINGS, objects, vips_of(objects), runtime)
    ready = {host: HostRuntime(True, frozenset(mesh.workloads_by_host.get(host, ()))) for host in mesh.hosts}
    return update(mesh, {}, mesh.vips, runtime.changed(ready))[0]


class World:
    """A hub that shows a mesh to one host, which has one service's cluster and endpoints."""

    def __init__(self, services: int) -> None:
        self.mesh = mesh_of_services(services)
        self.hub = Hub(self.mesh, 1, max_names=100, max_name_chars=10_000)
        self._revision = 1
        self.connection: Connection = self.hub.connect("h0", "peer", _NOW, lambda: None)
        for type_url in (CLUSTER_TYPE, ENDPOINT_TYPE):
            asked = DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=[NAME])
            self.hub.receive(self.connection, asked, _NOW)
        self._send()

    def _send(self) -> list[tuple[str, str]]:
        sent: list[tuple[str, str]] = []
        for push in self.hub.pushes(self.connection):
            sent += [(push.type_url, name) for name in push.names]
            self.hub.receive(self.connection, ClientStream.ack(push.type_url, push.nonce), _NOW)
        return sent

    def move(self, change: int) -> list[tuple[str, str]]:
        """Change address and a label of the workload, and return what the host was sent."""
        item = workload(change)
        return self._take({item.key: item}, self.mesh.runtime)

    def ready(self, change: int) -> list[tuple[str, str]]:
        """Change whether the service's other workload can be called with mutual TLS, and return what was sent."""
        assert isinstance(self.mesh.runtime, Table)
        facts = HostRuntime(True, frozenset() if change % 2 else frozenset(self.mesh.workloads_by_host["h1"]))
        return self._take({}, self.mesh.runtime.changed({"h1": facts}))

    def _take(self, changed: Mapping[ObjectKey, ApiObject], runtime: Any) -> list[tuple[str, str]]:
        self.mesh, touched = update(self.mesh, changed, self.mesh.vips, runtime)
        self._revision += 1
        self.hub.publish(self.mesh, touched, self._revision)
        return self._send()


def calls(work: Callable[[], object]) -> int:
    """Return how many functions are called, which is the same on every machine."""
    count = 0

    def see(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def took_s(change: Callable[[int], object]) -> float:
    """Return the time of one change, the least of many."""
    best = float("inf")
    for number in range(2, ROUNDS + 2):
        start = time.perf_counter()
        change(number)
        best = min(best, time.perf_counter() - start)
    return best


def endpoint() -> Sequence[Figure]:
    """Measure both kinds of change in both meshes."""
    worlds = World(SMALL), World(LARGE)
    result: list[Figure] = []
    for what, changes in (
        ("an endpoint's address and label", [world.move for world in worlds]),
        ("an endpoint's readiness", [world.ready for world in worlds]),
    ):
        small_s, large_s = map(took_s, changes)
        counts = [calls(lambda change=change: change(ROUNDS + 3)) for change in changes]  # type: ignore[misc] # bound early
        detail = f"{small_s * 1e6:.0f} and {large_s * 1e6:.0f} us; {counts[0]} and {counts[1]} calls of functions"
        ratio = large_s / small_s
        result.append(Figure(f"{what}: {LARGE} services against {SMALL}", ratio, "times", _TIMES, detail))
    return result
