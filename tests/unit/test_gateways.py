"""Which host serves what at the edge: how Gateways are merged, and whom a change concerns."""

from datetime import UTC, datetime
from typing import Any

import pytest
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from pydantic import ValidationError

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.hub import Hub
from hostmesh_controller.mesh import Mesh, build, update
from hostmesh_controller.mesh.gateways import NO_GATEWAYS, HostGateways
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.messages import message_of

HOSTS = [
    obj("Host", "edge", {"addresses": ["10.0.0.1"]}),
    obj("Host", "web", {"addresses": ["10.0.0.2"]}),
    obj("WorkloadEntry", "edge", {"address": "10.0.0.1", "labels": {"app": "edge"}}),
    obj("WorkloadEntry", "web", {"address": "10.0.0.2", "labels": {"app": "web"}}),
    obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8080}]}),
    obj("Service", "mail", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8081}]}),
]


def server(number: int, protocol: str, *hosts: str, bind: str = "", **tls: Any) -> dict[str, Any]:
    name = f"{protocol.lower()}-{number}-{hosts[0].partition('.')[0].strip('*')}{bind}".replace("/", "").rstrip("-")
    found: dict[str, Any] = {"port": {"number": number, "name": name, "protocol": protocol}, "hosts": list(hosts)}
    return found | ({"bind": bind} if bind else {}) | ({"tls": tls} if tls else {})


def gateway(name: str, *servers: dict[str, Any], namespace: str = "default", age: int = 0) -> ApiObject:
    spec = {"selector": {"app": "edge"}, "servers": list(servers)}
    return obj("Gateway", name, spec, namespace, age=age)


def routed(name: str, *hosts: str, to: str = "web", gateways: tuple[str, ...] = ("g",), **more: Any) -> ApiObject:
    http = [{"route": [{"destination": {"host": to}}]}]
    return obj("VirtualService", name, {"hosts": list(hosts), "gateways": list(gateways), "http": http}, **more)


def served(*objects: ApiObject) -> HostGateways:
    return mesh_of([*HOSTS, *objects]).gateways.get("edge", NO_GATEWAYS)


def ports(found: HostGateways) -> dict[str, list[str]]:
    return {port.listener: [each.server.port.name for each in port.servers] for port in found.ports}


FILES = {"mode": "SIMPLE", "serverCertificate": "/c", "privateKey": "/k"}


def test_a_host_is_a_gateway_where_a_selector_takes_one_of_its_workloads() -> None:
    mesh = mesh_of([*HOSTS, gateway("g", server(80, "HTTP", "*"))])
    assert set(mesh.gateways) == {"edge"}
    everywhere = obj("Gateway", "all", {"servers": [server(80, "HTTP", "*")]})
    assert set(mesh_of([*HOSTS, everywhere]).gateways) == set()


def test_labels_of_the_host_lie_beneath_its_workloads() -> None:
    bare = obj("Host", "bare", {"addresses": ["10.0.0.9"]}, labels={"app": "edge"})
    assert set(mesh_of([bare, gateway("g", server(80, "HTTP", "*"))]).gateways) == {"bare"}


def test_plaintext_http_of_several_gateways_shares_a_port_and_a_table() -> None:
    found = served(
        gateway("a", server(80, "HTTP", "a.example.com"), age=1),
        gateway("b", server(80, "HTTP2", "b.example.com"), server(80, "GRPC", "c.example.com"), age=2),
    )
    assert ports(found) == {"0.0.0.0_80": ["http-80-a", "http2-80-b", "grpc-80-c"]}
    assert {each.route for each in found.ports[0].servers} == {"http.80"}


@pytest.mark.parametrize("second", [server(80, "TCP", "*"), server(80, "HTTPS", "b.example.com", **FILES)])
def test_what_does_not_fit_the_older_server_of_a_port_is_passed_over_and_told(second: dict[str, Any]) -> None:
    found = served(gateway("b", second, age=2), gateway("a", server(80, "HTTP", "a.example.com"), age=1))
    assert ports(found) == {"0.0.0.0_80": ["http-80-a"]}
    assert "port 80 is already taken by server 'http-80-a' of Gateway default/a" in found.passed_over[0]


def test_two_tcp_servers_cannot_share_a_port_and_two_addresses_can() -> None:
    one, two = server(9000, "TCP", "*"), server(9000, "TCP", "b.example.com")
    assert len(served(gateway("a", one, two)).passed_over) == 1
    found = served(gateway("a", one, server(9000, "TCP", "*", bind="10.0.0.1"), server(9000, "HTTP", "*", bind="::1")))
    assert set(ports(found)) == {"0.0.0.0_9000", "10.0.0.1_9000", "::1_9000"}
    assert not found.passed_over


def test_tls_servers_share_a_port_and_no_host_is_served_twice() -> None:
    found = served(
        gateway(
            "a", server(443, "HTTPS", "a.example.com", **FILES), server(443, "TLS", "p.example.com", mode="PASSTHROUGH")
        ),
        gateway("b", server(443, "HTTPS", "a.example.com", "z.example.com", **FILES), age=5),
    )
    assert ports(found) == {"0.0.0.0_443": ["https-443-a", "tls-443-p"]}
    assert "port 443 already serves a.example.com" in found.passed_over[0]


def test_a_socket_is_refused_by_name() -> None:
    socket = {"port": {"number": 0, "name": "s", "protocol": "HTTP"}, "bind": "unix:///run/x.sock", "hosts": ["*"]}
    with pytest.raises(ValidationError, match="it listens on ports alone"):
        gateway("a", socket)


def test_a_port_is_mapped_by_the_service_before_the_workload_and_named_as_istio_names_it() -> None:
    service = obj(
        "Service",
        "edge",
        {
            "selector": {"app": "edge"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "https", "port": 443, "targetPort": 8443},
            ],
        },
    )
    found = served(
        service,
        gateway(
            "g",
            server(80, "HTTP", "*"),
            server(443, "HTTPS", "a.example.com", **FILES),
            server(81, "HTTP", "*"),
            server(82, "HTTP", "*", bind="10.0.0.1"),
        ),
    )
    assert [(port.listener, each.route) for port in found.ports for each in port.servers] == [
        ("0.0.0.0_81", "http.81"),
        ("0.0.0.0_8080", "http.8080"),
        ("0.0.0.0_8443", "https.443.https-443-a.g.default"),
        ("10.0.0.1_82", "http.82.10.0.0.1"),
    ]


def test_a_service_entry_that_lists_the_gateways_address_maps_its_port_too() -> None:
    entry = obj(
        "ServiceEntry",
        "edge",
        {
            "hosts": ["edge.example.com"],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
            "endpoints": [{"address": "10.0.0.1"}],
        },
        "istio-system",
    )
    assert ports(served(entry, gateway("g", server(80, "HTTP", "*")))) == {"0.0.0.0_8080": ["http-80"]}


def test_a_service_with_istios_label_maps_no_port() -> None:
    label = {"experimental.istio.io/disable-gateway-port-translation": "true"}
    spec = {"selector": {"app": "edge"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    found = served(obj("Service", "edge", spec, labels=label), gateway("g", server(80, "HTTP", "*")))
    assert ports(found) == {"0.0.0.0_80": ["http-80"]}


def test_a_service_that_comes_later_moves_the_port_and_the_update_is_what_build_makes() -> None:
    first = mesh_of([*HOSTS, gateway("g", server(80, "HTTP", "*"))])
    service = obj(
        "Service", "edge", {"selector": {"app": "edge"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    )
    vips = dict(first.vips) | {"edge.default.svc.cluster.local": 99}
    changed, touched = update(first, {service.key: service}, vips, first.runtime)
    assert "edge" in touched.hosts
    assert ports(changed.gateways["edge"]) == {"0.0.0.0_8080": ["http-80"]}
    whole = build(first.settings, list(changed.objects.values()), vips, first.runtime)
    assert dict(whole.gateways) == dict(changed.gateways)
    assert dict(whole.bound) == dict(changed.bound)


def test_a_gateways_port_is_not_captured_and_is_called_in_plaintext_and_the_others_as_ever() -> None:
    service = obj(
        "Service",
        "edge",
        {
            "selector": {"app": "edge"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 9999}],
        },
    )
    strict = obj("PeerAuthentication", "default", {"mtls": {"mode": "STRICT"}}, "istio-system")
    mesh = mesh_of([*HOSTS, service, strict, gateway("g", server(80, "HTTP", "*"))])
    assert [port.number for port in inbound_ports(mesh, "edge")] == [9999]
    (ids,) = mesh.services_by_hostname["edge.default.svc.cluster.local"]
    (member,) = mesh.endpoints[ids].members.values()
    assert {number: each.tls for number, each in member.endpoints.items()} == {80: False, 9999: True}
    gone = update(mesh, {gateway("g", server(80, "HTTP", "*")).key: None}, mesh.vips, mesh.runtime)[0]
    assert [port.number for port in inbound_ports(gone, "edge")] == [8080, 9999]
    (member,) = gone.endpoints[ids].members.values()
    assert member.endpoints[80].tls


def table(mesh: Mesh, name: str = "http.80") -> dict[str, list[str]]:
    found = xds.resource(mesh, "edge", wire.ROUTE_TYPE, name)
    message = message_of(found) if found else None
    assert isinstance(message, RouteConfiguration)
    return {host.name: list(host.domains) for host in message.virtual_hosts}


@pytest.mark.parametrize(
    ("hosts", "own", "expected"),
    [
        (["*"], ["a.example.com"], {"a.example.com:80": ["a.example.com"]}),
        (["*.example.com"], ["a.example.com", "b.other.com"], {"a.example.com:80": ["a.example.com"]}),
        (
            ["a.example.com", "b.example.com"],
            ["*.example.com"],
            {"a.example.com:80": ["a.example.com", "b.example.com"]},
        ),
        (["default/a.example.com"], ["a.example.com"], {"a.example.com:80": ["a.example.com"]}),
        (["./a.example.com"], ["a.example.com"], {"a.example.com:80": ["a.example.com"]}),
        (["*/a.example.com"], ["a.example.com"], {"a.example.com:80": ["a.example.com"]}),
        (["other/a.example.com"], ["a.example.com"], {"blackhole:80": ["*"]}),
        (["b.example.com"], ["a.example.com"], {"blackhole:80": ["*"]}),
        (["A.Example.com"], ["a.example.com"], {"a.example.com:80": ["a.example.com"]}),
    ],
)
def test_the_hosts_of_a_server_and_of_a_virtual_service_meet(
    hosts: list[str], own: list[str], expected: dict[str, list[str]]
) -> None:
    assert table(mesh_of([*HOSTS, gateway("g", server(80, "HTTP", *hosts)), routed("v", *own)])) == expected


@pytest.mark.parametrize(("name", "bound"), [("g", True), ("default/g", True), ("g.default", True), ("other/g", False)])
def test_a_virtual_service_binds_by_every_name_of_a_gateway(name: str, bound: bool) -> None:
    mesh = mesh_of([*HOSTS, gateway("g", server(80, "HTTP", "*")), routed("v", "a.example.com", gateways=(name,))])
    assert ("a.example.com:80" in table(mesh)) == bound


def test_one_that_is_not_exported_to_the_gateways_namespace_is_not_there() -> None:
    hidden = obj(
        "VirtualService",
        "v",
        {
            "hosts": ["a.example.com"],
            "gateways": ["default/g"],
            "exportTo": ["."],
            "http": [{"route": [{"destination": {"host": "web"}}]}],
        },
        "other",
    )
    assert table(mesh_of([*HOSTS, gateway("g", server(80, "HTTP", "*")), hidden])) == {"blackhole:80": ["*"]}


def hub_of(mesh: Mesh, name: str = "http.80") -> tuple[Hub, Any]:
    """Return a hub to which the gateway's host is connected, with its table."""
    hub = Hub(mesh, 1)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    connection = hub.connect("edge", "peer", moment, lambda: None)
    hub.receive(connection, DeltaDiscoveryRequest(type_url=wire.ROUTE_TYPE, resource_names_subscribe=[name]), moment)
    for push in list(hub.pushes(connection)):
        answer = DeltaDiscoveryRequest(type_url=wire.ROUTE_TYPE, response_nonce=push.nonce)
        hub.receive(connection, answer, moment)
    return hub, connection


def sent(hub: Hub, connection: Any, mesh: Mesh, changed: ApiObject, *, gone: bool = False) -> tuple[list[str], bool]:
    """Return the tables that a change sends, and whether the host was looked at for it at all."""
    looked: list[bool] = []
    connection.wake = lambda: looked.append(True)
    new, touched = update(mesh, {changed.key: None if gone else changed}, mesh.vips, mesh.runtime)
    hub.publish(new, touched, 2)
    return [name for push in hub.pushes(connection) for name in push.names], bool(looked)


BASE = [*HOSTS, gateway("g", server(80, "HTTP", "*")), routed("v", "a.example.com")]


def test_a_virtual_service_that_is_bound_changes_the_table_and_one_that_is_not_does_not_even_wake_the_host() -> None:
    mesh = mesh_of(BASE)
    for changed, expected in (
        (routed("v", "a.example.com", to="mail"), (["http.80"], True)),
        (routed("more", "b.example.com"), (["http.80"], True)),
        (routed("elsewhere", "b.example.com", gateways=("other/g",)), ([], False)),
        (routed("inside", "mail", to="mail", gateways=("mesh",)), ([], False)),
    ):
        hub, connection = hub_of(mesh)
        assert sent(hub, connection, mesh, changed) == expected, changed.key
    hub, connection = hub_of(mesh)
    assert sent(hub, connection, mesh, routed("v", "a.example.com"), gone=True) == (["http.80"], True)


def test_a_destination_that_changes_its_only_port_changes_the_table() -> None:
    mesh = mesh_of(BASE)
    hub, connection = hub_of(mesh)
    moved = obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8090}]})
    assert sent(hub, connection, mesh, moved)[0] == ["http.80"]


def test_routes_of_connections_touch_the_hosts_that_serve_them_alone() -> None:
    mesh = mesh_of([*HOSTS, gateway("g", server(9000, "TCP", "*"))])
    assert xds.resource(mesh, "edge", wire.LISTENER_TYPE, "0.0.0.0_9000") is None
    tcp = obj(
        "VirtualService",
        "v",
        {
            "hosts": ["a.example.com"],
            "gateways": ["g"],
            "tcp": [{"route": [{"destination": {"host": "web", "port": {"number": 8080}}}]}],
        },
    )
    changed, touched = update(mesh, {tcp.key: tcp}, mesh.vips, mesh.runtime)
    assert "edge" in touched.hosts
    assert xds.resource(changed, "edge", wire.LISTENER_TYPE, "0.0.0.0_9000") is not None
