"""What ServiceEntries mean: several of one name, endpoints by name, blocks of addresses, virtual addresses."""

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import mesh_of, obj, vips_of
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh, update, virtual_hostnames
from hostmesh_controller.mesh.step import BLOCKS
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import service_at, service_named
from hostmesh_controller.model.objects import ApiObject

HOST = "api.example.com"
ONE = obj("Host", "one", {"addresses": ["10.0.0.1"], "locality": "eu/eu-1"})


def port(number: int, name: str = "", protocol: str = "HTTP") -> dict[str, Any]:
    return {"number": number, "name": name or f"p{number}", "protocol": protocol}


def entry(name: str, *ports: dict[str, Any], age: int = 0, namespace: str = "default", **spec: Any) -> ApiObject:
    whole = {"hosts": [HOST], "resolution": "STATIC", "ports": list(ports or (port(80),)), **spec}
    return obj("ServiceEntry", name, whole, namespace, age=age)


def body(mesh: Mesh, type_url: str, name: str) -> bytes:
    found = xds.resource(mesh, "one", type_url, name)
    assert found is not None
    return Resource.FromString(found.body).resource.value


def addresses(mesh: Mesh, number: int, hostname: str = HOST) -> list[str]:
    assignment = ClusterLoadAssignment.FromString(body(mesh, wire.ENDPOINT_TYPE, f"outbound|{number}||{hostname}"))
    found = [each.endpoint.address for group in assignment.endpoints for each in group.lb_endpoints]
    return [each.pipe.path or f"{each.socket_address.address}:{each.socket_address.port_value}" for each in found]


def cluster(mesh: Mesh, name: str) -> Cluster:
    return Cluster.FromString(body(mesh, wire.CLUSTER_TYPE, name))


def looked_up(mesh: Mesh, name: str) -> list[str]:
    groups = cluster(mesh, name).load_assignment.endpoints
    return [each.endpoint.address.socket_address.address for group in groups for each in group.lb_endpoints]


def test_entries_of_one_name_in_a_namespace_are_one_service() -> None:
    first = entry("a", port(80), age=1, endpoints=[{"address": "192.0.2.1"}])
    second = entry("b", port(80), port(81), age=2, endpoints=[{"address": "192.0.2.2"}])
    mesh = mesh_of([ONE, first, second])
    found = service_named(mesh, HOST, Viewer())
    assert found is not None
    assert [each.number for each in found.ports] == [80, 81]
    assert addresses(mesh, 80) == ["192.0.2.1:80", "192.0.2.2:80"]
    assert addresses(mesh, 81) == ["192.0.2.2:81"]


def test_a_port_that_is_named_otherwise_is_another_port() -> None:
    first = entry("a", port(80, "web"), age=1, endpoints=[{"address": "192.0.2.1"}])
    second = entry("b", port(80, "other"), age=2, endpoints=[{"address": "192.0.2.2"}])
    assert addresses(mesh_of([ONE, first, second]), 80) == ["192.0.2.1:80"]


def test_entries_of_one_name_elsewhere_or_shown_to_others_are_not_one() -> None:
    first = entry("a", port(80), age=1, endpoints=[{"address": "192.0.2.1"}])
    elsewhere = entry("b", port(81), age=2, namespace="other", endpoints=[{"address": "192.0.2.2"}])
    private = entry("c", port(82), age=2, exportTo=["."], endpoints=[{"address": "192.0.2.3"}])
    found = service_named(mesh_of([ONE, first, elsewhere, private]), HOST, Viewer())
    assert found is not None
    assert [each.number for each in found.ports] == [80]


def test_a_change_of_one_part_changes_the_endpoints_of_the_whole() -> None:
    first = entry("a", port(80), age=1, endpoints=[{"address": "192.0.2.1"}])
    second = entry("b", port(80), age=2, endpoints=[{"address": "192.0.2.2"}])
    mesh = mesh_of([ONE, first, second])
    changed = entry("b", port(80), age=2, endpoints=[{"address": "192.0.2.9"}])
    after, touched = update(mesh, {changed.key: changed}, mesh.vips, mesh.runtime)
    assert HOST in touched.endpoints
    assert addresses(after, 80) == ["192.0.2.1:80", "192.0.2.9:80"]


def test_names_that_are_looked_up_are_those_of_the_ports_own_entries() -> None:
    first = entry("a", port(80), age=1, resolution="DNS", endpoints=[{"address": "a.example.com"}])
    second = entry("b", port(81), age=2, resolution="DNS", endpoints=[{"address": "b.example.com"}])
    mesh = mesh_of([ONE, first, second])
    assert looked_up(mesh, f"outbound|80||{HOST}") == ["a.example.com"]
    assert looked_up(mesh, f"outbound|81||{HOST}") == ["b.example.com"]


def test_a_subset_of_names_that_are_looked_up_has_those_with_its_labels() -> None:
    endpoints = [{"address": "eu.example.com", "labels": {"at": "eu"}}, {"address": "us.example.com"}]
    subsets = [{"name": "eu", "labels": {"at": "eu"}}, {"name": "none", "labels": {"at": "moon"}}]
    rule = obj("DestinationRule", "a", {"host": HOST, "subsets": subsets})
    mesh = mesh_of([ONE, entry("a", resolution="DNS", endpoints=endpoints), rule])
    assert looked_up(mesh, f"outbound|80|eu|{HOST}") == ["eu.example.com"]
    assert cluster(mesh, f"outbound|80|none|{HOST}").type == Cluster.STATIC


def test_a_workload_that_is_known_by_name_is_for_services_that_look_up() -> None:
    named = obj("WorkloadEntry", "w", {"address": "w.example.com", "labels": {"app": "w"}})
    selecting: dict[str, Any] = {"workloadSelector": {"labels": {"app": "w"}}}
    by_name = entry("a", resolution="DNS", location="MESH_INTERNAL", **selecting)
    assert looked_up(mesh_of([ONE, named, by_name]), f"outbound|80||{HOST}") == ["w.example.com"]
    static = entry("a", location="MESH_INTERNAL", **selecting)
    assert addresses(mesh_of([ONE, named, static]), 80) == []


def test_an_endpoint_can_be_a_unix_socket_of_the_caller() -> None:
    mesh = mesh_of([ONE, entry("a", endpoints=[{"address": "unix:///run/api.sock"}])])
    assert addresses(mesh, 80) == ["/run/api.sock"]


def test_an_endpoint_is_where_its_host_is_unless_it_says_so() -> None:
    own = entry("a", location="MESH_INTERNAL", endpoints=[{"address": "10.0.0.1"}])
    mesh = mesh_of([ONE, own])
    assignment = ClusterLoadAssignment.FromString(body(mesh, wire.ENDPOINT_TYPE, f"outbound|80||{HOST}"))
    assert assignment.endpoints[0].locality.zone == "eu-1"
    moved = obj("Host", "one", {"addresses": ["10.0.0.1"], "locality": "us/us-1"})
    after, touched = update(mesh, {moved.key: moved}, mesh.vips, mesh.runtime)
    assert HOST in touched.endpoints
    assignment = ClusterLoadAssignment.FromString(body(after, wire.ENDPOINT_TYPE, f"outbound|80||{HOST}"))
    assert assignment.endpoints[0].locality.zone == "us-1"


@pytest.mark.parametrize(
    ("resolution", "expected"), [("STATIC", (HOST,)), ("DNS", (HOST,)), ("DNS_ROUND_ROBIN", (HOST,)), ("NONE", ())]
)
def test_a_name_whose_endpoints_callers_dial_themselves_has_no_virtual_address(
    resolution: str, expected: tuple[str, ...]
) -> None:
    item = entry("a", resolution=resolution)
    assert virtual_hostnames(item, "cluster.local") == expected
    found = service_named(mesh_of([ONE, item]), HOST, Viewer())
    assert found is not None
    assert (found.vip4 is not None) is bool(expected)


def test_a_block_touches_what_is_found_by_blocks_alone() -> None:
    mesh = mesh_of([ONE, entry("a", port(80, protocol="TCP"), addresses=["192.0.2.0/24"], resolution="NONE")])
    dialled = "tcp|192.0.2.7:80"
    assert BLOCKS in xds.dependencies(mesh, "one", wire.CLUSTER_TYPE, dialled)
    assert BLOCKS in xds.dependencies(mesh, "one", wire.VIRTUAL_HOST_TYPE, "80/192.0.2.7")
    assert BLOCKS not in xds.dependencies(mesh, "one", wire.CLUSTER_TYPE, f"outbound|80||{HOST}")
    smaller = obj(
        "ServiceEntry",
        "b",
        {
            "hosts": ["b.example.com"],
            "addresses": ["192.0.2.0/28"],
            "resolution": "NONE",
            "ports": [port(80, protocol="TCP")],
        },
    )
    vips = vips_of([*mesh.objects.values(), smaller])
    after, touched = update(mesh, {smaller.key: smaller}, vips, mesh.runtime)
    assert not touched.everything
    assert touched.services >= {BLOCKS, "b.example.com"}
    found = service_at(after, "192.0.2.7", 80, Viewer())
    assert found is not None
    assert found.id.hostname == "b.example.com"


def test_the_mesh_decides_whom_an_entry_is_shown_to_that_does_not_say() -> None:
    config = obj("MeshConfig", "default", {"defaultServiceExportTo": ["."]})
    mesh = mesh_of([ONE, entry("a"), config])
    assert service_named(mesh, HOST, Viewer("default")) is not None
    assert service_named(mesh, HOST, Viewer("other")) is None
