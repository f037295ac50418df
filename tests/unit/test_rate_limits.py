"""RateLimit: whom it holds for, what it says to Envoy, and what a change of it touches."""

from typing import Any

import pytest

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh, build, update
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.rate_limit import LimitMatch
from hostmesh_controller.xds.extension_types import Direction, Traffic
from hostmesh_controller.xds.rate_limit_terms import condition
from hostmesh_controller.xds.rate_limits import limits_of

RULE = {"name": "few", "limit": {"requests": 5, "per": "1m"}}


def limit(name: str = "limit", namespace: str = "default", app: str | None = None, **rule: Any) -> ApiObject:
    spec: dict[str, Any] = {"rules": [{**RULE, **rule}]}
    if app is not None:
        spec["selector"] = {"matchLabels": {"app": app}}
    return obj("RateLimit", name, spec, namespace)


def objects() -> list[ApiObject]:
    ports = [{"name": "http", "port": 80}, {"name": "http-more", "port": 81}]
    return [
        obj("Host", "one", {"addresses": ["10.0.0.1"]}, labels={"site": "north"}),
        obj("Host", "two", {"addresses": ["10.0.0.2"]}),
        obj("WorkloadEntry", "shop", {"address": "10.0.0.1", "labels": {"app": "shop"}}),
        obj("WorkloadEntry", "other", {"address": "10.0.0.2", "labels": {"app": "other"}}, "elsewhere"),
        obj("Service", "shop", {"selector": {"app": "shop"}, "ports": ports}),
    ]


def held(mesh: Mesh, host: str, port: int = 80) -> int:
    """Return how many filters hold for a port of the host's workload."""
    (workload,) = mesh.workloads_of(host)
    found = limits_of(mesh, mesh.hosts[host], Traffic(Direction.INBOUND, port, workload))
    return len(found.http) + len(found.network)


@pytest.mark.parametrize(
    ("item", "one", "two"),
    [
        (limit(), 1, 0),
        (limit(namespace="elsewhere"), 0, 1),
        (limit(namespace="istio-system"), 1, 1),
        (limit(app="shop"), 1, 0),
        (limit(app="nothing"), 0, 0),
        (limit(app="other", namespace="istio-system"), 0, 1),
        (limit(match=[{"ports": [81]}]), 0, 0),
        (limit(match=[{"ports": [81]}, {"methods": ["GET"]}]), 1, 0),
    ],
)
def test_a_limit_holds_for_the_workloads_and_ports_that_it_selects(item: ApiObject, one: int, two: int) -> None:
    mesh = mesh_of([*objects(), item])
    assert (held(mesh, "one"), held(mesh, "two")) == (one, two)


def test_labels_of_the_host_lie_beneath_those_of_its_workloads() -> None:
    spec = {"selector": {"matchLabels": {"site": "north"}}, "rules": [RULE]}
    mesh = mesh_of([*objects(), obj("RateLimit", "north", spec)])
    assert (held(mesh, "one"), held(mesh, "two")) == (1, 0)


def test_outbound_calls_are_not_limited_at_the_caller() -> None:
    mesh = mesh_of([*objects(), limit(namespace="istio-system")])
    assert limits_of(mesh, mesh.hosts["one"], Traffic(Direction.OUTBOUND, 80)).http == ()


def test_the_cluster_of_a_rate_limit_service_comes_without_being_asked_for_to_those_who_need_it() -> None:
    counted = {"name": "counted", "match": [{"methods": ["GET"]}]}
    spec = {"global": {"service": "limits", "port": 8090, "domain": "shop"}, "rules": [counted]}
    mesh = mesh_of([*objects(), obj("RateLimit", "counted", spec)])
    name = "outbound|8090||limits.default.svc.cluster.local"
    assert name in xds.wildcard(mesh, "one", wire.CLUSTER_TYPE)
    assert name not in xds.wildcard(mesh, "two", wire.CLUSTER_TYPE)


def test_a_change_touches_the_hosts_it_selected_and_selects_and_equals_a_new_build() -> None:
    before = mesh_of([*objects(), limit(app="shop", namespace="istio-system")])
    moved = limit(app="other", namespace="istio-system")
    after, touched = update(before, {moved.key: moved}, before.vips, before.runtime)
    assert touched.hosts == {"one", "two"}
    again = build(before.settings, [*objects(), moved], before.vips, before.runtime)
    for host in ("one", "two"):
        results = [xds.resource(mesh, host, wire.LISTENER_TYPE, "virtualInbound") for mesh in (after, again)]
        assert results[0] == results[1]
    assert not update(after, {moved.key: moved}, after.vips, after.runtime)[1].hosts


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"paths": [{"exact": '/a"b'}]}, r'request.url_path == "/a\"b"'),
        ({"paths": [{"prefix": "/a"}, {"regex": "/b|/c"}]}, 'request.url_path.matches("^(?:/b|/c)$")'),
        ({"methods": ["GET", "PUT"]}, 'request.method in ["GET", "PUT"]'),
        ({"hosts": ["*.shop.com"]}, r'request.host.matches("(?i)^.*\\.shop\\.com(:[0-9]+)?$")'),
        ({"headers": {"X-Key": {}}}, '"x-key" in request.headers'),
        ({"identities": ["shop/*"]}, r'.matches("^spiffe://[^/]+/ns/shop/sa/[^/]+$")'),
    ],
)
def test_a_condition_is_an_expression_that_no_text_can_leave(match: dict[str, Any], expected: str) -> None:
    assert expected in condition("few", [LimitMatch.model_validate(match)])


def test_without_a_match_everything_is_meant() -> None:
    assert condition("few", []) == '"few"'
