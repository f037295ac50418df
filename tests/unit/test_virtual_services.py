"""Which VirtualService holds for a request: names, wildcards, exports, age, callers, and hosts that no service has."""

from typing import Any

import pytest
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.names import gateway_name

HOSTS = [
    obj("Host", "one", {"addresses": ["10.0.0.1"], "namespace": "default"}),
    obj("Host", "far", {"addresses": ["10.0.0.2"], "namespace": "far"}),
]
SERVICES = [
    obj("Service", "a", {"ports": [{"name": "http", "port": 80}, {"name": "http-2", "port": 8080}]}),
    obj("Service", "b", {"ports": [{"name": "http", "port": 8080}]}),
    obj("Service", "t", {"ports": [{"name": "tcp", "port": 8080}]}),
    obj(
        "ServiceEntry",
        "wild",
        {
            "hosts": ["*.wild.example.com"],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            "resolution": "NONE",
        },
    ),
]
OWN = "default"
"""The name of the route that a service has without a VirtualService."""


def rule(name: str, *hosts: str, namespace: str = "default", age: int = 0, **more: Any) -> ApiObject:
    """Return a VirtualService with one route that has its name."""
    http = {"name": name, "route": [{"destination": {"host": "a"}}], **more.pop("route", {})}
    spec = {"hosts": list(hosts), "http": [http]}
    return obj("VirtualService", name, {**spec, **more}, namespace, age=age)


def routes(rules: list[ApiObject], header: str = "a", port: int = 80, host: str = "one") -> list[str] | None:
    """Return the names of the routes of a host header; None if there is no such thing."""
    mesh = mesh_of([*HOSTS, *SERVICES, *rules])
    found = xds.resource(mesh, host, wire.VIRTUAL_HOST_TYPE, f"{port}/{header}")
    assert found is not None
    body = Resource.FromString(found.body)
    if not body.HasField("resource"):
        return None
    virtual = VirtualHost()
    assert body.resource.Unpack(virtual)
    return [route.name for route in virtual.routes]


A = "a.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], OWN),
        # Of two the older one, of two of one age the one whose name comes first.
        ([rule("new", "a", age=2), rule("old", "a", age=1)], "old"),
        ([rule("y", "a", namespace="aa"), rule("x", A, namespace="zz")], "x"),
        # A name goes before wildcards, and a long wildcard before a short one, whatever their age.
        ([rule("wild", f"*.{A[2:]}", age=1), rule("name", "a", age=2)], "name"),
        ([rule("short", "*.local", age=1), rule("long", "*.svc.cluster.local", age=2)], "long"),
        ([rule("part", "*default.svc.cluster.local", age=1)], "part"),
        # What is exported to the own namespace alone goes first, then what is exported to some, then what is public.
        ([rule("public", "a", age=1), rule("private", "a", age=2, exportTo=["."])], "private"),
        (
            [
                rule("public", "a", age=1),
                rule("given", A, namespace="far", age=2, exportTo=["default", "other"]),
            ],
            "given",
        ),
        (
            [
                rule("given", A, namespace="far", age=1, exportTo=["default"]),
                rule("private", "a", age=2, exportTo=["default"]),
            ],
            "private",
        ),
        ([rule("hidden", A, namespace="far", exportTo=["."])], OWN),
        ([rule("edge", "a", gateways=["edge"])], OWN),
        ([rule("both", "a", gateways=["edge", "mesh"])], "both"),
        # What has no route for the caller and the port leaves the service to the next, and at last to itself.
        ([rule("other", "a", age=1, route={"match": [{"port": 81}]}), rule("next", "a", age=2)], "next"),
        ([rule("other", "a", route={"match": [{"sourceLabels": {"x": "y"}}]})], OWN),
        # But one that names the service keeps wildcards away even so.
        ([rule("other", "a", route={"match": [{"port": 81}]}), rule("wild", "*.local")], OWN),
        ([rule("wild", "*.local", age=1, route={"match": [{"port": 81}]}), rule("wild2", "*.local", age=2)], OWN),
    ],
)
def test_one_virtual_service_holds_for_a_service(rules: list[ApiObject], expected: str) -> None:
    assert routes(rules) == [expected]


def test_routes_of_connections_alone_leave_requests_as_they_are() -> None:
    tcp = obj("VirtualService", "tcp", {"hosts": ["a"], "tcp": [{"route": [{"destination": {"host": "b"}}]}]}, age=1)
    assert routes([tcp]) == [OWN]
    assert routes([tcp, rule("http", "a", age=2)]) == ["http"]


def test_what_is_exported_by_default_is_what_the_mesh_says() -> None:
    config = obj("MeshConfig", "default", {"defaultVirtualServiceExportTo": ["."]})
    assert routes([rule("own", A), config], A) == ["own"]
    assert routes([rule("own", A), config], A, host="far") == [OWN]
    assert routes([rule("own", A, exportTo=["*"]), config], A, host="far") == ["own"]


@pytest.mark.parametrize(
    ("hosts", "header", "port", "found"),
    [
        # Where no host of it is a service: on port 80.
        (("shop.example.com",), "shop.example.com", 80, True),
        (("shop.example.com",), "shop.example.com", 8080, False),
        (("*.shop.example.com",), "eu.shop.example.com", 80, True),
        (("*.shop.example.com",), "shop.example.com", 80, False),
        # Beside a service: on the ports on which that speaks HTTP, too.
        (("shop.example.com", "b"), "shop.example.com", 8080, True),
        (("shop.example.com", "b"), "shop.example.com", 8081, False),
        (("shop.example.com", "t"), "shop.example.com", 8080, False),
        # A name goes before the wildcard of a service.
        (("a.wild.example.com",), "a.wild.example.com", 80, True),
        (("*.wild.example.com",), "b.wild.example.com", 80, True),
    ],
)
def test_a_host_that_no_service_has_can_be_called_where_istio_lets_it(
    hosts: tuple[str, ...], header: str, port: int, found: bool
) -> None:
    assert (routes([rule("r", *hosts)], header, port) == ["r"]) is found


def test_a_host_that_is_for_callers_of_another_namespace_is_not_for_this_one() -> None:
    only = rule("r", "shop.example.com", route={"match": [{"sourceNamespace": "far"}]})
    assert routes([only], "shop.example.com") != ["r"]
    assert routes([only], "shop.example.com", host="far") == ["r"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mesh", "mesh"),
        ("edge", "own/edge"),
        ("other/edge", "other/edge"),
        ("./edge", "own/edge"),
        ("edge.other", "other/edge"),
        ("edge.other.svc.cluster.local", "other/edge"),
    ],
)
def test_a_gateway_is_named_in_istios_ways(name: str, expected: str) -> None:
    assert gateway_name(name, "own") == expected
