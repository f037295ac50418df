"""What must stay small: endpoint pushes, and the work of one change in a large mesh."""

import time
from collections.abc import Callable
from functools import partial

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, Resource

from golden.objects import SETTINGS, obj, vips_of
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, build, update

MAX_PUSH_BYTES = 350
SMALL, LARGE = 50, 5000
RATIO = 8
"""Far above what it is (2, for comparing the state of 1,000 hosts), far below 100, the ratio of the sizes."""


def mesh_with(services: int, per_service: int = 1) -> Mesh:
    hosts = max(10, services // 5)
    address = {index: f"10.1.{index // 250}.{index % 250 + 1}" for index in range(hosts)}
    objects = [obj("Host", f"h{index}", {"addresses": [address[index]]}) for index in range(hosts)]
    for index in range(services):
        name = f"reviews-{index}"
        objects.append(obj("Service", name, {"selector": {"app": name}, "ports": [{"name": "http", "port": 9080}]}))
        for number in range(per_service):
            spec = {"address": address[(index + number) % hosts], "labels": {"app": name}}
            objects.append(obj("WorkloadEntry", f"{name}-{number}", spec))
    mesh = build(SETTINGS, objects, vips_of(objects), {})
    runtime = {name: HostRuntime(True, frozenset(mesh.workloads_by_host.get(name, ()))) for name in mesh.hosts}
    return update(mesh, {}, mesh.vips, runtime)[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_push_of_a_services_endpoints_is_small(count: int) -> None:
    mesh = mesh_with(10, count)
    found = xds.resource(mesh, "h0", wire.ENDPOINT_TYPE, "outbound|9080||reviews-1.default.svc.cluster.local")
    assert found is not None
    assert 8 <= len(found.version) <= 11
    response = DeltaDiscoveryResponse(
        type_url=wire.ENDPOINT_TYPE, nonce="ffff", resources=[Resource.FromString(found.body)]
    )
    assert len(response.SerializeToString()) < MAX_PUSH_BYTES


def best_s(work: Callable[[], object], times: int = 30) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def endpoint_change_s(mesh: Mesh) -> float:
    """Return what it takes to make the endpoints of one service anew, as bytes, after one workload was lost."""
    lost = next(iter(sorted(mesh.workloads_by_host["h1"])))
    facts = mesh.runtime["h1"]
    runtime = {**mesh.runtime, "h1": HostRuntime(True, facts.ready - {lost})}
    name = f"outbound|9080||{lost.name.rpartition('-')[0]}.default.svc.cluster.local"

    def change() -> None:
        after, touched = update(mesh, {}, mesh.vips, runtime)
        assert touched.endpoints
        assert xds.resource(after, "h0", wire.ENDPOINT_TYPE, name)

    return best_s(change)


def workload_change_s(mesh: Mesh) -> float:
    key = next(iter(sorted(mesh.workloads_by_host["h1"])))
    moved = obj("WorkloadEntry", key.name, {"address": "192.0.2.1", "labels": dict(mesh.workloads[key].labels)})
    return best_s(partial(update, mesh, {moved.key: moved}, mesh.vips, mesh.runtime))


def test_one_endpoint_costs_the_same_in_a_large_mesh_as_in_a_small_one() -> None:
    small, large = mesh_with(SMALL), mesh_with(LARGE)
    assert endpoint_change_s(large) < RATIO * endpoint_change_s(small)
    assert workload_change_s(large) < RATIO * workload_change_s(small)
