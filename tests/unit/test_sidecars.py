"""Sidecar: what is left of the mesh for those for whom it holds."""

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster

from golden.objects import mesh_of, obj, vips_of
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh, build, update
from hostmesh_controller.mesh.sidecars import beyond
from hostmesh_controller.mesh.visibility import service_at, service_named, view
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.messages import message_of


def service(name: str, namespace: str = "default", *ports: int) -> ApiObject:
    listed = [{"name": f"http-{port}", "port": port} for port in ports or (80,)]
    return obj("Service", name, {"selector": {"app": name}, "ports": listed}, namespace)


def sidecar(name: str = "default", namespace: str = "default", **spec: Any) -> ApiObject:
    return obj("Sidecar", name, spec, namespace)


def egress(*hosts: str, port: int | None = None) -> dict[str, Any]:
    listener: dict[str, Any] = {"hosts": list(hosts)}
    return listener if port is None else {**listener, "port": {"number": port, "protocol": "HTTP", "name": "http"}}


def objects() -> list[ApiObject]:
    labels = {"app": "shop"}
    return [
        obj("Host", "one", {"addresses": ["10.0.0.1"], "namespace": "default"}),
        obj("Host", "two", {"addresses": ["10.0.0.2"]}),
        obj("WorkloadEntry", "shop", {"address": "10.0.0.2", "labels": labels}),
        service("a", "default", 80, 90),
        service("b", "other"),
        service("c", "other"),
    ]


def the_mesh(*more: ApiObject) -> Mesh:
    return mesh_of([*objects(), *more])


def names(mesh: Mesh, host: str = "one") -> list[str]:
    found = view(mesh, mesh.viewer_of(host)).services
    return [
        f"{each.id.hostname.removesuffix('.svc.cluster.local')}:{port.number}" for each in found for port in each.ports
    ]


@pytest.mark.parametrize(
    ("listeners", "left"),
    [
        ([egress("*/*")], ["a.default:80", "a.default:90", "b.other:80", "c.other:80"]),
        ([egress("./*")], ["a.default:80", "a.default:90"]),
        ([egress("other/*")], ["b.other:80", "c.other:80"]),
        ([egress("other/b.other.svc.cluster.local")], ["b.other:80"]),
        ([egress("*/*.other.svc.cluster.local")], ["b.other:80", "c.other:80"]),
        ([egress("~/*")], []),
        ([egress("./*", port=90), egress("other/*")], ["a.default:90", "b.other:80", "c.other:80"]),
        ([egress("other/b.other.svc.cluster.local", port=80)], ["b.other:80"]),
    ],
)
def test_the_hosts_of_the_egress_listeners_are_what_is_seen(listeners: list[dict[str, Any]], left: list[str]) -> None:
    assert names(the_mesh(sidecar(egress=listeners))) == left


def test_what_is_not_imported_has_no_name_no_address_no_virtual_host_and_no_port() -> None:
    mesh = the_mesh(sidecar(egress=[egress("other/b.other.svc.cluster.local")]))
    viewer = mesh.viewer_of("one")
    a = service_named(the_mesh(), "a.default.svc.cluster.local", the_mesh().viewer_of("one"))
    assert a is not None
    assert a.vip4 is not None
    assert service_named(mesh, a.id.hostname, viewer) is None
    assert service_at(mesh, a.vip4, 80, viewer) is None
    found = xds.resource(mesh, "one", wire.VIRTUAL_HOST_TYPE, f"80/{a.id.hostname}")
    assert found is not None
    assert xds.is_absent(found)
    assert "0.0.0.0_90" not in xds.wildcard(mesh, "one", wire.LISTENER_TYPE)


def test_a_route_may_lead_where_a_program_cannot_call() -> None:
    http = [{"route": [{"destination": {"host": "c.other.svc.cluster.local"}}]}]
    route = obj("VirtualService", "b", {"hosts": ["b.other.svc.cluster.local"], "http": http}, "other")
    mesh = the_mesh(sidecar(egress=[egress("other/b.other.svc.cluster.local")]), route)
    cluster = xds.resource(mesh, "one", wire.CLUSTER_TYPE, "outbound|80||c.other.svc.cluster.local")
    assert cluster is not None
    message = message_of(cluster)
    assert isinstance(message, Cluster)
    assert message.type == Cluster.EDS


def test_one_that_selects_the_workload_wins_over_the_namespaces_and_that_over_the_root_namespaces() -> None:
    root = sidecar("root", "istio-system", egress=[egress("other/*")])
    own = sidecar("own", egress=[egress("./*")])
    selecting = sidecar("selecting", workloadSelector={"labels": {"app": "shop"}}, egress=[egress("~/*")])
    assert names(the_mesh(root)) == ["b.other:80", "c.other:80"]
    assert names(the_mesh(root, own)) == ["a.default:80", "a.default:90"]
    assert names(the_mesh(root, own, selecting), "two") == []
    assert names(the_mesh(root, own, selecting), "one") == ["a.default:80", "a.default:90"]


def test_a_dot_in_the_root_namespace_is_the_callers_own_namespace() -> None:
    assert names(the_mesh(sidecar("root", "istio-system", egress=[egress("./*")]))) == ["a.default:80", "a.default:90"]


def test_unknown_destinations_are_open_unless_the_sidecar_or_the_mesh_closes_them() -> None:
    closed = {"mode": "REGISTRY_ONLY"}
    everywhere = obj("MeshConfig", "default", {"outboundTrafficPolicy": closed})
    opened = sidecar(outboundTrafficPolicy={"mode": "ALLOW_ANY"})
    for mesh, expected in (
        (the_mesh(), False),
        (the_mesh(everywhere), True),
        (the_mesh(sidecar(outboundTrafficPolicy=closed)), True),
        (the_mesh(everywhere, opened), False),
    ):
        assert beyond(mesh, mesh.viewer_of("one")).closed is expected


def test_a_changed_sidecar_touches_those_for_whom_it_holds_and_gives_what_a_new_build_gives() -> None:
    before = the_mesh(sidecar(egress=[egress("./*")]))
    changed = sidecar(egress=[egress("other/*")])
    after, touched = update(before, {changed.key: changed}, before.vips, before.runtime)
    assert names(after) == ["b.other:80", "c.other:80"]
    assert {"one", "two"} <= touched.hosts
    whole = [*objects(), changed]
    again = build(before.settings, whole, vips_of(whole), before.runtime)
    assert names(again) == names(after)
    gone, touched = update(after, {changed.key: None}, after.vips, after.runtime)
    assert names(gone) == names(the_mesh())
    assert {"one", "two"} <= touched.hosts
