"""What an edited VirtualService sends, and to whom: one virtual host to its users, and nothing else to anybody."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_api.delta import ClientStream
from hostmesh_controller.hub import Connection, Hub
from hostmesh_controller.mesh import update
from hostmesh_controller.model.objects import ApiObject

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B = "80/a.default.svc.cluster.local", "80/b.default.svc.cluster.local"
ALL = ("users", "others", "far")
Pushed = set[tuple[str, str, str]]
"""Host, type, name."""


def service(name: str, protocol: str = "http", port: int = 80) -> ApiObject:
    spec = {"selector": {"app": name}, "ports": [{"name": protocol, "port": port}]}
    return obj("Service", name, spec)


def http(name: str, *routes: dict[str, Any], hosts: tuple[str, ...] = ("a",), **more: Any) -> ApiObject:
    return obj("VirtualService", name, {"hosts": list(hosts), "http": list(routes), **more})


def to(host: str, **more: Any) -> dict[str, Any]:
    return {"route": [{"destination": {"host": host}}], **more}


def tcp(*weights: int, **more: Any) -> ApiObject:
    names = ("db", "a", "b")
    route = [{"destination": {"host": name}, "weight": weight} for name, weight in zip(names, weights, strict=False)]
    return obj("VirtualService", "db", {"hosts": ["db"], "tcp": [{"route": route}], **more})


OBJECTS = [
    obj("Host", "users", {"addresses": ["10.0.0.1"], "namespace": "default"}),
    obj("Host", "others", {"addresses": ["10.0.0.2"], "namespace": "default"}),
    obj("Host", "far", {"addresses": ["10.0.0.3"], "namespace": "far"}),
    service("a"),
    service("b"),
    service("db", "tcp", 5432),
    service("web", "http", 8080),
    http("a", to("a"), {"match": [{"uri": {"prefix": "/part"}}], "delegate": {"name": "part"}}),
    obj("VirtualService", "part", {"http": [to("b")]}),
]


class Fleet:
    """Hosts that use different things; `publish` tells what a change sends to all of them."""

    def __init__(self, *more: ApiObject) -> None:
        self.hub = Hub(mesh_of([*OBJECTS, *more]), 1, max_names=100, max_name_chars=10_000)
        self.woken: list[str] = []
        self.connections: dict[str, Connection] = {}
        for host in ALL:
            self.connections[host] = self.hub.connect(host, "peer", NOW, partial(self.woken.append, host))
            for type_url in (wire.CLUSTER_TYPE, wire.LISTENER_TYPE, wire.HOST_CONFIG_TYPE):
                self.ask(host, type_url, "*")
        for name in (A, B):
            self.ask("users", wire.VIRTUAL_HOST_TYPE, name)
        for host in ("others", "far"):
            self.ask(host, wire.VIRTUAL_HOST_TYPE, B)
        for name in ("outbound|80||a.default.svc.cluster.local", "outbound|80||b.default.svc.cluster.local"):
            self.ask("users", wire.CLUSTER_TYPE, name)
            self.ask("users", wire.ENDPOINT_TYPE, name)
        self.taken()

    def ask(self, host: str, type_url: str, name: str) -> None:
        request = DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=[name])
        self.hub.receive(self.connections[host], request, NOW)

    def taken(self) -> Pushed:
        result: Pushed = set()
        for host, connection in self.connections.items():
            for push in self.hub.pushes(connection):
                sent = DeltaDiscoveryResponse.FromString(push.data)
                result |= {(host, push.type_url, name) for name in (*push.names, *sent.removed_resources)}
                self.hub.receive(connection, ClientStream.ack(push.type_url, push.nonce), NOW)
        return result

    def publish(self, *objects: ApiObject) -> Pushed:
        self.woken.clear()
        mesh, touched = update(self.hub.mesh, {each.key: each for each in objects}, self.hub.mesh.vips, {})
        self.hub.publish(mesh, touched, self.hub.revision + 1)
        return self.taken()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_an_edited_route_is_one_virtual_host_to_its_users(fleet: Fleet) -> None:
    assert fleet.publish(http("a", to("b"))) == {("users", wire.VIRTUAL_HOST_TYPE, A)}
    assert fleet.woken == ["users"]


def test_an_edited_delegate_is_one_virtual_host_to_the_users_of_its_root(fleet: Fleet) -> None:
    edited = obj("VirtualService", "part", {"http": [to("b", timeout="3s")]})
    # What is taken first takes all: the delegate's routes come after it.
    assert fleet.publish(edited) == set()
    first = http("a", {"match": [{"uri": {"prefix": "/part"}}], "delegate": {"name": "part"}}, to("a"))
    assert fleet.publish(first) == {("users", wire.VIRTUAL_HOST_TYPE, A)}
    edited = obj("VirtualService", "part", {"http": [to("b", timeout="4s")]})
    assert fleet.publish(edited) == {("users", wire.VIRTUAL_HOST_TYPE, A)}


def test_a_delegate_that_appears_is_taken_by_the_users_of_its_root() -> None:
    fleet = Fleet(http("b", {"delegate": {"name": "late"}}, hosts=("b",)))
    sent = fleet.publish(obj("VirtualService", "late", {"http": [to("a")]}))
    assert sent == {(host, wire.VIRTUAL_HOST_TYPE, B) for host in ALL}


def test_an_edited_wildcard_reaches_those_it_covers_and_not_those_with_routes_of_their_own(fleet: Fleet) -> None:
    wild = http("wild", to("web"), hosts=("*.default.svc.cluster.local",))
    assert fleet.publish(wild) == {(host, wire.VIRTUAL_HOST_TYPE, B) for host in ALL}


def test_so_does_a_wildcard_of_a_part_of_a_label(fleet: Fleet) -> None:
    part = http("part", to("web"), hosts=("*ault.svc.cluster.local",))
    assert fleet.publish(part) == {(host, wire.VIRTUAL_HOST_TYPE, B) for host in ALL}


def test_a_route_that_is_exported_to_one_namespace_reaches_that_alone(fleet: Fleet) -> None:
    sent = fleet.publish(http("b", to("web"), hosts=("b",), exportTo=["far"]))
    assert sent == {("far", wire.VIRTUAL_HOST_TYPE, B)}


def test_a_route_for_gateways_alone_reaches_nobody(fleet: Fleet) -> None:
    assert fleet.publish(http("b", to("web"), hosts=("b",), gateways=["edge"])) == set()


def test_a_destination_that_gets_a_port_changes_the_routes_that_left_it_open(fleet: Fleet) -> None:
    assert fleet.publish(http("a", to("web"))) == {("users", wire.VIRTUAL_HOST_TYPE, A)}
    two = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8080}, {"name": "http-2", "port": 8081}]}
    sent = fleet.publish(obj("Service", "web", two))
    assert ("users", wire.VIRTUAL_HOST_TYPE, A) in sent
    assert not [each for each in sent if each[1] == wire.VIRTUAL_HOST_TYPE and each[0] != "users"]


def test_what_is_hashed_reaches_the_routes_that_lead_there(fleet: Fleet) -> None:
    policy = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
    sent = fleet.publish(obj("DestinationRule", "a", {"host": "a", "trafficPolicy": policy}))
    assert ("users", wire.VIRTUAL_HOST_TYPE, A) in sent
    assert not [each for each in sent if each[0] != "users"]


def test_weights_of_connections_are_one_listener_to_those_who_see_them(fleet: Fleet) -> None:
    hosts = {(host, wire.LISTENER_TYPE, "0.0.0.0_5432") for host in ALL}
    assert fleet.publish(tcp(50, 50)) == hosts
    assert fleet.publish(tcp(40, 60)) == hosts
    near = {each for each in hosts if each[0] != "far"}
    assert fleet.publish(tcp(40, 60, exportTo=["default"])) == {("far", wire.LISTENER_TYPE, "0.0.0.0_5432")}
    assert fleet.publish(tcp(30, 70, exportTo=["default"])) == near
    assert sorted(fleet.woken) == ["others", "users"]


def test_an_edit_that_leaves_connections_as_they_are_sends_no_listener(fleet: Fleet) -> None:
    both = {"hosts": ["db", "web"], "tcp": [{"route": [{"destination": {"host": "db"}}]}], "http": [to("a")]}
    fleet.publish(obj("VirtualService", "db", both))
    assert fleet.publish(obj("VirtualService", "db", {**both, "http": [to("b")]})) == set()
    assert fleet.woken == []
    # A weight of zero is the same as none: the listener is made again and is what it was.
    none = {"route": [{"destination": {"host": "db"}, "weight": 1}, {"destination": {"host": "a"}, "weight": 0}]}
    assert fleet.publish(obj("VirtualService", "db", {**both, "tcp": [none]})) == set()


def test_a_gateway_has_the_clusters_of_its_mirrors(fleet: Fleet) -> None:
    server = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    edge = {"selector": {"app": "edge"}, "servers": [server]}
    entry = {"address": "10.0.0.3", "labels": {"app": "edge"}}
    fleet.publish(obj("Gateway", "edge", edge), obj("WorkloadEntry", "edge", entry))
    copied = "outbound|8080||web.default.svc.cluster.local"
    sent = fleet.publish(http("shop", to("a", mirror={"host": "web"}), hosts=("shop.com",), gateways=["edge"]))
    assert {each for each in sent if each[1] == wire.CLUSTER_TYPE} == {("far", wire.CLUSTER_TYPE, copied)}


def test_the_cluster_of_a_mirror_is_there_before_it_is_asked_for(fleet: Fleet) -> None:
    copied = "outbound|8080||web.default.svc.cluster.local"
    sent = fleet.publish(http("a", to("a", mirror={"host": "web"})))
    assert ("users", wire.VIRTUAL_HOST_TYPE, A) in sent
    assert {each for each in sent if each[1] != wire.VIRTUAL_HOST_TYPE} == {
        (host, wire.CLUSTER_TYPE, copied) for host in ALL
    }
