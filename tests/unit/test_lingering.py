"""What goes away goes after those who use it have heard of that: ports, identities, destinations."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from golden.objects import mesh_of, obj
from hostmesh_api.delta import ClientStream, Push
from hostmesh_api.origin import Origin
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    HOST_CONFIG_NAME,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
)
from hostmesh_controller.hub import Connection, Hub
from hostmesh_controller.lingering import GRACE_S, LONGEST_S, PAST_S
from hostmesh_controller.mesh import HostRuntime, Touched, update
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from unit.test_hub import NOW

CALLED = "outbound|80||web.default.svc.cluster.local"
SUBSET = "outbound|80|v1|web.default.svc.cluster.local"
WEB = ObjectKey("WorkloadEntry", "default", "web")
RULE = ObjectKey("DestinationRule", "default", "web")
INBOUND = "inbound|80||"


def entry(account: str = "one") -> ApiObject:
    labels = {"app": "web", "version": "v1"}
    return obj("WorkloadEntry", "web", {"address": "10.0.0.2", "labels": labels, "serviceAccount": account})


def rule() -> ApiObject:
    spec = {"host": "web", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}
    return obj("DestinationRule", "web", spec)


class World:
    """`caller` calls `web` on `server`; time goes when it is told to."""

    def __init__(self) -> None:
        hosts = [obj("Host", name, {"addresses": [f"10.0.0.{at}"]}) for at, name in enumerate(("caller", "server"), 1)]
        service = obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]})
        self.now_s = 0.0
        self.objects = [*hosts, service, entry(), rule()]
        self.hub = Hub(mesh_of(self.objects), 1, now_s=lambda: self.now_s)
        self.caller, self.server = self.connect_caller(), self.connect_server()
        self.take(self.caller)
        self.take(self.server)

    def connect_caller(self) -> Connection:
        caller = self.hub.connect("caller", "peer", NOW, lambda: None)
        self.ask(caller, CLUSTER_TYPE, "*", CALLED, SUBSET)
        self.ask(caller, ENDPOINT_TYPE, CALLED, SUBSET)
        return caller

    def connect_server(self, held: Mapping[str, str] = MappingProxyType({})) -> Connection:
        """`held` is type to the name of what it still has of that type, in a version that nobody knows."""
        server = self.hub.connect("server", "peer", NOW, lambda: None)
        for type_url, name in ((HOST_CONFIG_TYPE, HOST_CONFIG_NAME), (CLUSTER_TYPE, "*"), (LISTENER_TYPE, "*")):
            request = DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=[name])
            if type_url in held:
                request.initial_resource_versions[held[type_url]] = "old"
            self.hub.receive(server, request, NOW)
        return server

    def served_as(self) -> set[str]:
        """Return the accounts of the identities that the server is told to serve under."""
        made = self.hub.answer("server", HOST_CONFIG_TYPE, HOST_CONFIG_NAME)
        assert made is not None
        assert made.resource is not None
        return {each for each in ("one", "two") if f"/sa/{each}".encode() in made.resource.body}

    def ask(self, connection: Connection, type_url: str, *names: str) -> None:
        self.hub.receive(connection, DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names), NOW)

    def send(self, connection: Connection) -> list[Push]:
        return list(self.hub.pushes(connection))

    def take(self, connection: Connection) -> set[str]:
        """Return the names of what is due, acknowledged."""
        pushes = self.send(connection)
        for push in pushes:
            self.hub.receive(connection, ClientStream.ack(push.type_url, push.nonce), NOW)
        return {name for push in pushes for name in (*push.names, *push.removed)}

    def publish(self, changed: dict[ObjectKey, ApiObject | None], runtime: HostRuntime | None = None) -> None:
        known = {"server": runtime} if runtime is not None else self.hub.mesh.runtime
        mesh, touched = update(self.hub.mesh, changed, self.hub.mesh.vips, known)
        self.hub.publish(mesh, touched, self.hub.revision + 1)

    def goes_on(self, for_s: float) -> bool:
        self.now_s += for_s
        return self.hub.let_go()


@pytest.fixture
def world() -> World:
    return World()


def test_a_host_serves_a_port_until_its_callers_have_heard_that_it_is_gone(world: World) -> None:
    world.publish({WEB: None})
    # Its agent keeps the cluster of the port.
    assert world.take(world.server) <= {INBOUND}
    assert world.goes_on(GRACE_S * 2)
    assert world.take(world.server) == set()
    assert CALLED in world.take(world.caller)
    assert world.goes_on(0.0)
    assert world.take(world.server) == set()
    world.goes_on(GRACE_S)
    assert {HOST_CONFIG_NAME, "virtualInbound"} <= world.take(world.server)


def test_a_host_that_goes_on_as_it_was_has_not_what_was_written(world: World) -> None:
    """So `apply` does not return: what was written with it, such as a policy, is not in force there yet."""
    world.publish({WEB: None})
    for each in (world.caller, world.server):
        world.take(each)
    assert world.hub.converged(world.hub.revision) == {"caller": True, "server": False}
    assert [each.settled for each in world.hub.proxies()] == [True, False]
    world.goes_on(0.0)
    world.goes_on(GRACE_S)
    world.take(world.server)
    assert world.hub.converged(world.hub.revision) == {"caller": True, "server": True}


def test_a_caller_that_does_not_answer_is_not_waited_for(world: World) -> None:
    world.publish({WEB: None})
    world.send(world.caller)
    world.goes_on(LONGEST_S)
    assert HOST_CONFIG_NAME in world.take(world.server)


def test_a_caller_that_is_gone_is_not_waited_for(world: World) -> None:
    world.publish({WEB: None})
    world.hub.disconnect(world.caller)
    world.goes_on(0.0)
    world.goes_on(GRACE_S)
    assert HOST_CONFIG_NAME in world.take(world.server)


def test_a_port_more_is_served_at_once(world: World) -> None:
    more = obj("Service", "more", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 81}]})
    world.publish({more.key: more})
    assert {HOST_CONFIG_NAME, "inbound|81||"} <= world.take(world.server)


def test_callers_take_another_identity_before_it_is_shown(world: World) -> None:
    world.publish({WEB: entry("two")})
    assert world.take(world.server) == set()
    assert CALLED in world.take(world.caller)
    world.goes_on(0.0)
    world.goes_on(GRACE_S)
    assert {HOST_CONFIG_NAME, "virtualInbound"} <= world.take(world.server)


def test_after_a_start_callers_that_are_on_their_way_are_told_before_an_identity_goes(world: World) -> None:
    """Also where the host itself comes later than the change."""
    awaited = True
    world.hub.await_callers(lambda _: awaited)
    for each in (world.caller, world.server):
        world.hub.disconnect(each)
    world.publish({WEB: entry("two")})
    world.server = world.connect_server()
    world.take(world.server)
    world.goes_on(LONGEST_S * 2)
    assert world.served_as() == {"one"}

    world.caller = world.connect_caller()
    awaited = False
    assert world.goes_on(0.0)
    world.goes_on(GRACE_S)
    assert world.served_as() == {"one"}
    assert CALLED in world.take(world.caller)
    world.goes_on(0.0)
    world.goes_on(GRACE_S)
    assert world.served_as() == {"two"}


def test_after_a_start_those_that_are_awaited_in_vain_are_not_waited_for(world: World) -> None:
    awaited = True
    world.hub.await_callers(lambda _: awaited)
    world.hub.disconnect(world.caller)
    world.publish({WEB: None})
    assert world.goes_on(LONGEST_S)
    assert HOST_CONFIG_NAME not in world.take(world.server)
    awaited = False
    world.goes_on(0.0)
    world.goes_on(GRACE_S)
    assert HOST_CONFIG_NAME in world.take(world.server)


def starts(world: World, runtime: HostRuntime, awaited: Callable[[], bool]) -> None:
    """Another controller starts with what is stored, and with what the server reported last."""
    objects = world.objects
    world.hub = Hub(mesh_of([]), 0, now_s=lambda: world.now_s)
    world.hub.await_callers(lambda _: awaited())
    mesh, _ = update(world.hub.mesh, {each.key: each for each in objects}, world.hub.mesh.vips, {"server": runtime})
    world.hub.publish(mesh, Touched(everything=True), 2)


SHOWS_ONE = HostRuntime(
    joined=True, presented=frozenset({(("default", "web"), "spiffe://cluster.local/ns/default/sa/one")})
)


@pytest.mark.parametrize(
    ("reported", "stored"),
    [(SHOWS_ONE, entry("two")), (replace(SHOWS_ONE, captured=frozenset({80, 81})), entry("one"))],
    ids=["another identity", "a port that is gone"],
)
def test_after_a_start_a_host_keeps_what_it_reported_until_callers_have_heard_what_is_stored(
    world: World, reported: HostRuntime, stored: ApiObject
) -> None:
    """The controller died between a write and what hosts were to be told of it."""
    awaited = True
    world.objects[-2] = stored
    starts(world, reported, lambda: awaited)
    server = world.connect_server(held={HOST_CONFIG_TYPE: HOST_CONFIG_NAME, LISTENER_TYPE: "virtualInbound"})
    assert not {HOST_CONFIG_NAME, "virtualInbound"} & world.take(server)
    caller = world.connect_caller()
    awaited = False
    assert world.goes_on(0.0)
    assert CALLED in world.take(caller)
    world.goes_on(0.0)
    world.goes_on(GRACE_S)
    assert {HOST_CONFIG_NAME, "virtualInbound"} <= world.take(server)


def test_after_a_start_a_host_that_shows_what_is_stored_is_told_at_once(world: World) -> None:
    starts(world, SHOWS_ONE, lambda: True)
    server = world.connect_server(held={HOST_CONFIG_TYPE: HOST_CONFIG_NAME, LISTENER_TYPE: "virtualInbound"})
    assert {HOST_CONFIG_NAME, "virtualInbound"} <= world.take(server)


def test_after_a_start_a_host_that_has_lost_what_it_had_is_told_what_is_stored(world: World) -> None:
    world.objects[-2] = entry("two")
    starts(world, SHOWS_ONE, lambda: True)
    assert {HOST_CONFIG_NAME, "virtualInbound"} <= world.take(world.connect_server())


def accepted(world: World) -> bytes:
    """Of all that the caller is sent of the cluster."""
    made = world.hub.answer("caller", CLUSTER_TYPE, CALLED)
    assert made is not None
    assert made.resource is not None
    return made.resource.body


def test_callers_take_the_identity_that_the_host_shows_still(world: World) -> None:
    shows = HostRuntime(
        joined=True, presented=frozenset({(("default", "web"), "spiffe://cluster.local/ns/default/sa/one")})
    )
    world.publish({WEB: entry("two")}, shows)
    # Longer than who answered is taken in any case.
    world.goes_on(LONGEST_S)
    assert b"/sa/one" in accepted(world)
    assert b"/sa/two" in accepted(world)
    now = frozenset({(("default", "web"), "spiffe://cluster.local/ns/default/sa/two")})
    world.publish({}, replace(shows, presented=now))
    assert b"/sa/one" in accepted(world)
    world.goes_on(PAST_S)
    assert CALLED in world.take(world.caller)
    assert b"/sa/one" not in accepted(world)


def test_who_answered_is_taken_until_callers_have_heard_that_it_does_not_any_more(world: World) -> None:
    world.publish({WEB: None})
    assert b"/sa/one" in accepted(world)
    world.goes_on(PAST_S)
    assert b"/sa/one" not in accepted(world)


@pytest.mark.parametrize("uri", ["spiffe://cluster.local/ns/other/sa/one", "spiffe://else/ns/default/sa/one", "nobody"])
def test_a_host_cannot_have_callers_take_an_identity_of_another_namespace(world: World, uri: str) -> None:
    world.publish({}, HostRuntime(joined=True, presented=frozenset({(("default", "web"), uri)})))
    assert uri.encode() not in accepted(world)


def has_endpoints(world: World) -> bool:
    """Whether what the caller would be sent of the subset's cluster is one that gets endpoints."""
    made = world.hub.answer("caller", CLUSTER_TYPE, SUBSET)
    assert made is not None
    assert made.resource is not None
    sent = DeltaDiscoveryResponse(resources=[])
    resource = sent.resources.add()
    resource.MergeFromString(made.resource.body)
    cluster = Cluster()
    resource.resource.Unpack(cluster)
    return cluster.type == Cluster.EDS


def test_a_subset_that_goes_away_is_there_until_no_route_leads_to_it(world: World) -> None:
    world.publish({RULE: None})
    assert has_endpoints(world)
    assert world.goes_on(PAST_S / 2)
    world.take(world.caller)
    assert has_endpoints(world)
    assert not world.goes_on(PAST_S)
    assert SUBSET in world.take(world.caller)
    assert not has_endpoints(world)


def test_a_destination_goes_though_something_is_published_all_the_time(world: World) -> None:
    world.publish({RULE: None})
    for at in range(20):
        other = obj("Service", f"other-{at}", {"selector": {"app": "other"}, "ports": [{"name": "http", "port": 90}]})
        world.publish({other.key: other})
        world.take(world.caller)
        world.goes_on(PAST_S / 10)
    assert not has_endpoints(world)
    assert not world.goes_on(0.0)


def test_a_storm_of_changes_takes_no_destination_before_its_time(world: World) -> None:
    world.publish({RULE: None})
    for at in range(30):
        other = obj("Service", f"other-{at}", {"selector": {"app": "other"}, "ports": [{"name": "http", "port": 90}]})
        world.publish({other.key: other})
    assert has_endpoints(world)
    world.goes_on(PAST_S)
    assert not has_endpoints(world)


def test_a_subset_that_was_never_there_is_missing_at_once(world: World) -> None:
    name = SUBSET.replace("v1", "v2")
    world.publish({RULE: None})
    world.take(world.caller)
    world.goes_on(PAST_S)
    world.take(world.caller)
    world.publish({})
    world.ask(world.caller, CLUSTER_TYPE, name)
    assert world.take(world.caller) == {name}
    assert not world.goes_on(0.0)


def test_what_goes_late_is_explained_by_the_write_that_took_it(world: World) -> None:
    """Or agents would hold back a host that loses its ports, and a caller that loses many subsets."""
    world.hub.tell_origin(lambda revision: Origin("aa", revision, "00"))
    world.publish({WEB: None, RULE: None})
    world.take(world.server)
    world.take(world.caller)
    world.goes_on(0.0)
    world.goes_on(PAST_S)
    for connection, type_url in ((world.server, HOST_CONFIG_TYPE), (world.caller, CLUSTER_TYPE)):
        late = [push for push in world.send(connection) if push.type_url == type_url]
        assert late
        assert all(push.data.endswith(b"/w") for push in late)
