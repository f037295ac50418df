"""What a change would send, told before it is made: the same as what is then sent."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from golden.objects import mesh_of, obj, vips_of
from hostmesh_api.delta import ClientStream
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, HOST_CONFIG_TYPE, LISTENER_TYPE, VIRTUAL_HOST_TYPE
from hostmesh_controller.hub import Connection, Hub
from hostmesh_controller.impact import Effect, concerned, impact
from hostmesh_controller.mesh import Mesh, Touched, update
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.messages import as_json, message_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A = "a.default.svc.cluster.local"
CLUSTER = f"outbound|80||{A}"
BALANCED = {"loadBalancer": {"simple": "RANDOM"}}


def service(name: str, port: int = 80) -> ApiObject:
    return obj("Service", name, {"selector": {"app": name}, "ports": [{"name": "http", "port": port}]})


def workload(name: str, address: str) -> ApiObject:
    return obj("WorkloadEntry", f"{name}-1", {"address": address, "labels": {"app": name}})


def objects() -> list[ApiObject]:
    hosts = [obj("Host", name, {"addresses": [f"10.0.0.{number}"]}) for number, name in enumerate(["one", "two"], 1)]
    return [*hosts, service("a"), service("b"), workload("a", "10.0.9.1"), workload("b", "10.0.9.2")]


@pytest.fixture
def connected() -> tuple[Hub, list[Connection]]:
    """Two hosts that call `a`, of which the first also calls `b`."""
    hub = Hub(mesh_of(objects()), 1)
    connections = [hub.connect(host, "peer", NOW, lambda: None) for host in ("one", "two")]
    for connection in connections:
        names = [A, *(["b.default.svc.cluster.local"] if connection.host == "one" else [])]
        _ask(hub, connection, LISTENER_TYPE)
        _ask(hub, connection, HOST_CONFIG_TYPE)
        _ask(hub, connection, CLUSTER_TYPE, "*", *(f"outbound|80||{name}" for name in names))
        _ask(hub, connection, ENDPOINT_TYPE, *(f"outbound|80||{name}" for name in names))
        _ask(hub, connection, VIRTUAL_HOST_TYPE, *(f"80/{name}" for name in names))
        list(_sent(hub, connection))
    return hub, connections


def _ask(hub: Hub, connection: Connection, type_url: str, *names: str) -> None:
    hub.receive(connection, DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names), NOW)


def _sent(hub: Hub, connection: Connection) -> Iterator[tuple[str, str, str]]:
    for push in list(hub.pushes(connection)):
        yield from ((connection.host, push.type_url, name) for name in (*push.names, *push.removed))
        hub.receive(connection, ClientStream.ack(push.type_url, push.nonce), NOW)


def changed(hub: Hub, *changes: ApiObject) -> tuple[Mesh, Touched]:
    by_key = {each.key: each for each in changes}
    after = [each for each in {**hub.mesh.objects, **by_key}.values() if each is not None]
    return update(hub.mesh, by_key, vips_of(after), hub.mesh.runtime)


def impact_of(hub: Hub, *changes: ApiObject) -> tuple[Effect, ...]:
    mesh, touched = changed(hub, *changes)
    return impact(hub.mesh, mesh, *concerned(hub, touched))


def told(effects: tuple[Effect, ...]) -> set[tuple[str, str, str]]:
    return {(host, each.type_url, each.name) for each in effects for host in each.hosts}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(workload("a", "10.0.9.77"), id="an endpoint"),
        pytest.param(service("a", 81), id="a service's port"),
        pytest.param(service("new", 8080), id="a new service"),
        pytest.param(
            obj("DestinationRule", "b", {"host": "b", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}})
        ),
        pytest.param(
            obj("Host", "two", {"addresses": ["10.0.0.2"], "namespace": "elsewhere"}), id="a host's namespace"
        ),
    ],
)
def test_what_a_change_would_send_is_what_it_then_sends(
    connected: tuple[Hub, list[Connection]], change: ApiObject
) -> None:
    hub, connections = connected
    mesh, touched = changed(hub, change)
    effects = impact(hub.mesh, mesh, *concerned(hub, touched))
    hub.publish(mesh, touched, 2)
    sent = {each for connection in connections for each in _sent(hub, connection)}
    assert told(effects) == sent
    assert sent


def test_one_change_for_many_hosts_is_told_once_with_both_sides(connected: tuple[Hub, list[Connection]]) -> None:
    hub, _ = connected
    rule = obj("DestinationRule", "a", {"host": "a", "trafficPolicy": BALANCED})
    found = impact_of(hub, rule)
    assert [(each.type_url, each.name, each.hosts) for each in found] == [(CLUSTER_TYPE, CLUSTER, ("one", "two"))]
    sides = [message_of(side) for side in (found[0].before, found[0].after) if side is not None]
    assert [as_json(side)["lbPolicy"] for side in sides if side is not None] == ["LEAST_REQUEST", "RANDOM"]


def test_a_name_that_comes_to_be_has_no_side_before(connected: tuple[Hub, list[Connection]]) -> None:
    hub, connections = connected
    _ask(hub, connections[0], VIRTUAL_HOST_TYPE, "80/c.default.svc.cluster.local")
    found = impact_of(hub, service("c"))
    new = next(each for each in found if each.type_url == VIRTUAL_HOST_TYPE)
    assert (new.before, new.after is not None, new.hosts) == (None, True, ("one",))


def test_a_change_that_concerns_nobody_connected_says_nothing(connected: tuple[Hub, list[Connection]]) -> None:
    hub, connections = connected
    for connection in connections:
        hub.disconnect(connection)
    assert impact_of(hub, workload("a", "10.0.9.77")) == ()
