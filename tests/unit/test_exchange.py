"""Conversations through the exchange: Envoy on one side, the controller on the other, no I/O."""

from contextlib import suppress
from datetime import UTC, datetime

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from hostmesh_agent.cache import Entry
from hostmesh_agent.config import FloorSettings
from hostmesh_agent.exchange import GIVEN_UP_AFTER, Exchange
from hostmesh_agent.listening import bound_ports
from hostmesh_agent.policy_floor.floor import Floor
from hostmesh_agent.policy_floor.table import load
from hostmesh_api.delta import ClientStream, Push, Resource, Update
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    VIRTUAL_HOST_TYPE,
)
from hostmesh_controller.xds import clusters
from hostmesh_controller.xds.encoding import resource as encoded

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def resource(name: str, version: str) -> Resource:
    return Resource(name, version, ResourceMessage(name=name, version=version).SerializeToString())


def virtual_host(name: str, version: str) -> Resource:
    message = ResourceMessage(name=name, version=version)
    message.resource.type_url = VIRTUAL_HOST_TYPE
    return Resource(name, version, message.SerializeToString())


def ask(type_url: str, *names: str) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names)


def sent(push: Push) -> dict[str, str]:
    return {each.name: each.version for each in DeltaDiscoveryResponse.FromString(push.data).resources}


def describe(requests: list[DeltaDiscoveryRequest]) -> list[str]:
    """Say in short what is told to the controller."""
    out = []
    for each in requests:
        kind = each.type_url.rsplit(".", 1)[1]
        if each.HasField("error_detail"):
            out.append(f"nack {kind} {each.response_nonce}: {each.error_detail.message}")
        elif each.response_nonce:
            out.append(f"ack {kind} {each.response_nonce}")
        else:
            names = [*each.resource_names_subscribe, *(f"-{name}" for name in each.resource_names_unsubscribe)]
            out.append(f"want {kind} {' '.join(names)} {dict(each.initial_resource_versions)}")
    return out


def connected(*entries: Entry) -> Exchange:
    exchange = Exchange(entries)
    exchange.connected()
    exchange.envoy_connected()
    return exchange


def only(pushes: list[Push]) -> Push:
    (push,) = pushes
    return push


def test_a_wish_of_envoy_goes_to_the_controller_once_and_its_answer_to_envoy() -> None:
    exchange = connected()
    assert describe(exchange.receive(ask(ENDPOINT_TYPE, "a"), NOW)) == ["want ClusterLoadAssignment a {}"]
    assert exchange.pushes() == []
    exchange.update(Update(ENDPOINT_TYPE, "u1", (resource("a", "1"),), ()))
    push = only(exchange.pushes())
    assert sent(push) == {"a": "1"}
    assert exchange.settle(NOW) == []
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    assert describe(exchange.settle(NOW)) == ["ack ClusterLoadAssignment u1"]
    (change,) = exchange.take_changes()
    assert change.entry == Entry(ENDPOINT_TYPE, False, resource("a", "1"))


def test_nothing_is_acknowledged_to_the_controller_while_envoy_is_away() -> None:
    exchange = connected()
    exchange.receive(ask(LISTENER_TYPE), NOW)
    exchange.envoy_disconnected()
    exchange.update(Update(LISTENER_TYPE, "u1", (resource("in", "1"),), ()))
    assert exchange.settle(NOW) == []
    exchange.envoy_connected()
    exchange.receive(ask(LISTENER_TYPE), NOW)
    push = only(exchange.pushes())
    assert exchange.settle(NOW) == []
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    assert describe(exchange.settle(NOW)) == ["ack Listener u1"]


def test_envoy_is_answered_from_disk_when_the_controller_never_came() -> None:
    exchange = Exchange(
        [Entry(LISTENER_TYPE, True, resource("in", "7")), Entry(CLUSTER_TYPE, False, resource("outbound|1", "2"))]
    )
    exchange.envoy_connected()
    exchange.receive(ask(LISTENER_TYPE), NOW)
    assert sent(only(exchange.pushes())) == {"in": "7"}
    exchange.receive(ask(CLUSTER_TYPE, "outbound|1"), NOW)
    assert sent(only(exchange.pushes())) == {"outbound|1": "2"}


def test_a_new_stream_to_the_controller_says_what_is_held_and_asks_for_what_was_used() -> None:
    exchange = Exchange(
        [Entry(LISTENER_TYPE, True, resource("in", "7")), Entry(CLUSTER_TYPE, False, resource("used", "2"))]
    )
    assert describe(exchange.connected()) == [
        "want HostConfig self {}",
        "want Cluster used {'used': '2'}",
        "want Listener * {'in': '7'}",
    ]


def test_what_is_not_settled_when_a_stream_is_lost_is_told_anew_on_the_next_one() -> None:
    """The controller may have gone back to what Envoy accepted, or have removed what is new, and nobody heard it."""
    exchange = connected(
        Entry(LISTENER_TYPE, True, resource("in", "1")), Entry(LISTENER_TYPE, True, resource("goes", "1"))
    )
    exchange.receive(ask(LISTENER_TYPE), NOW)
    push = only(exchange.pushes())
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.settle(NOW)
    exchange.update(Update(LISTENER_TYPE, "u2", (resource("in", "2"), resource("new", "1")), ("goes",)))
    exchange.disconnected()
    opening = next(each for each in exchange.connected() if each.type_url == LISTENER_TYPE)
    assert dict(opening.initial_resource_versions) == {"in": "", "goes": "", "new": ""}


def test_what_envoy_refuses_is_undone_and_told_and_not_kept_on_disk() -> None:
    exchange = connected(Entry(LISTENER_TYPE, True, resource("in", "1")))
    exchange.receive(ask(LISTENER_TYPE), NOW)
    push = only(exchange.pushes())
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.update(Update(LISTENER_TYPE, "u2", (resource("in", "2"),), ()))
    push = only(exchange.pushes())
    exchange.receive(ClientStream.nack(push.type_url, push.nonce, "bad filter"), NOW)
    assert exchange.pushes() == []
    assert describe(exchange.settle(NOW)) == ["nack Listener u2: in: bad filter"]
    assert exchange.take_changes() == []
    assert exchange.refusals[-1].message == "bad filter"
    exchange.envoy_connected()
    exchange.receive(ask(LISTENER_TYPE), NOW)
    assert sent(only(exchange.pushes())) == {"in": "1"}


def test_what_envoy_refused_is_offered_again_when_its_files_have_changed() -> None:
    exchange = connected()
    exchange.receive(ask(LISTENER_TYPE), NOW)
    exchange.update(Update(LISTENER_TYPE, "u1", (resource("in", "1"),), ()))
    push = only(exchange.pushes())
    exchange.receive(ClientStream.nack(push.type_url, push.nonce, "no such file"), NOW)
    assert exchange.pushes() == []
    exchange.settle(NOW)
    exchange.try_again()
    push = only(exchange.pushes())
    assert sent(push) == {"in": "1"}
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.settle(NOW)
    assert exchange.accepted_version(LISTENER_TYPE, "in") == "1"
    exchange.try_again()
    assert exchange.pushes() == []


def test_an_update_is_acknowledged_though_envoy_asks_for_a_name_that_nobody_knows_yet() -> None:
    """The controller has one response of a type in flight: it could not answer for the name before that."""
    exchange = connected()
    exchange.receive(ask(ROUTE_TYPE, "http.80"), NOW)
    exchange.update(Update(ROUTE_TYPE, "u1", (resource("http.80", "1"),), ()))
    push = only(exchange.pushes())
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    assert describe(exchange.settle(NOW)) == ["ack RouteConfiguration u1"]
    exchange.update(Update(ROUTE_TYPE, "u2", (resource("http.80", "2"),), ()))
    assert describe(exchange.receive(ask(ROUTE_TYPE, "http.8090"), NOW)) == ["want RouteConfiguration http.8090 {}"]
    push = only(exchange.pushes())
    assert sent(push) == {"http.80": "2"}
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    assert exchange.pushes() == []
    assert describe(exchange.settle(NOW)) == ["ack RouteConfiguration u2"]
    exchange.update(Update(ROUTE_TYPE, "u3", (resource("http.8090", "1"),), ()))
    assert sent(only(exchange.pushes())) == {"http.8090": "1"}


def test_a_bad_resource_does_not_keep_its_neighbours_from_being_accepted() -> None:
    exchange = connected()
    exchange.receive(ask(LISTENER_TYPE), NOW)
    exchange.update(Update(LISTENER_TYPE, "u1", (resource("bad", "1"), resource("good", "1")), ()))
    push = only(exchange.pushes())
    exchange.receive(ClientStream.nack(push.type_url, push.nonce, "no"), NOW)
    assert exchange.settle(NOW) == []
    push = only(exchange.pushes())
    assert sent(push) == {"bad": "1"}
    exchange.receive(ClientStream.nack(push.type_url, push.nonce, "no"), NOW)
    push = only(exchange.pushes())
    assert sent(push) == {"good": "1"}
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    assert describe(exchange.settle(NOW)) == ["nack Listener u1: bad: no"]
    assert [change.name for change in exchange.take_changes()] == ["good"]


def test_what_the_controller_removes_is_removed_from_envoy_and_from_disk() -> None:
    exchange = connected(Entry(LISTENER_TYPE, True, resource("old", "1")))
    exchange.receive(ask(LISTENER_TYPE), NOW)
    push = only(exchange.pushes())
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.update(Update(LISTENER_TYPE, "u2", (), ("old",)))
    push = only(exchange.pushes())
    assert push.removed == ("old",)
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    assert describe(exchange.settle(NOW)) == ["ack Listener u2"]
    (change,) = exchange.take_changes()
    assert (change.name, change.entry) == ("old", None)


def test_an_inbound_cluster_outlives_its_chain_until_envoy_connects_again() -> None:
    exchange = connected()
    exchange.receive(ask(CLUSTER_TYPE), NOW)
    exchange.update(Update(CLUSTER_TYPE, "u1", (resource("inbound|80||", "1"), resource("other", "1")), ()))
    push = only(exchange.pushes())
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.settle(NOW)
    exchange.take_changes()

    exchange.update(Update(CLUSTER_TYPE, "u2", (), ("inbound|80||",)))
    assert exchange.pushes() == []
    assert describe(exchange.settle(NOW)) == ["ack Cluster u2"]
    (change,) = exchange.take_changes()
    assert (change.name, change.entry) == ("inbound|80||", None)

    exchange.update(Update(CLUSTER_TYPE, "u3", (resource("inbound|80||", "1"),), ()))
    assert exchange.pushes() == []
    assert describe(exchange.settle(NOW)) == ["ack Cluster u3"]

    exchange.update(Update(CLUSTER_TYPE, "u4", (), ("inbound|80||",)))
    exchange.settle(NOW)
    exchange.envoy_connected()
    again = DeltaDiscoveryRequest(type_url=CLUSTER_TYPE, initial_resource_versions={"inbound|80||": "1", "other": "1"})
    exchange.receive(again, NOW)
    push = only(exchange.pushes())
    assert (sent(push), push.removed) == ({}, ("inbound|80||",))


def test_an_unknown_name_waits_for_the_controller_and_fails_at_once_when_it_stays_away() -> None:
    exchange = connected()
    exchange.receive(ask(VIRTUAL_HOST_TYPE, "80/nobody"), NOW)
    exchange.disconnected()
    assert exchange.pushes() == []
    exchange.cut_off()
    push = only(exchange.pushes())
    (message,) = DeltaDiscoveryResponse.FromString(push.data).resources
    assert (message.name, list(message.aliases), message.HasField("resource")) == ("80/nobody", ["80/nobody"], False)
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.connected()
    exchange.update(Update(VIRTUAL_HOST_TYPE, "u1", (virtual_host("80/nobody", "3"),), ()))
    assert sent(only(exchange.pushes())) == {"80/nobody": "3"}


def give_up(type_url: str, *names: str) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(type_url=type_url, resource_names_unsubscribe=names)


def test_a_name_that_a_living_envoy_gives_up_is_given_up_everywhere() -> None:
    exchange = connected(Entry(ENDPOINT_TYPE, False, resource("a", "1")))
    exchange.receive(ask(ENDPOINT_TYPE, "a"), NOW)
    assert exchange.receive(give_up(ENDPOINT_TYPE, "a"), NOW) == []
    assert exchange.settle(NOW) == []
    assert describe(exchange.settle(NOW + GIVEN_UP_AFTER)) == ["want ClusterLoadAssignment -a {}"]
    (change,) = exchange.take_changes()
    assert change.entry is None


def test_what_envoy_gives_up_on_its_way_out_is_kept_for_the_next_one() -> None:
    exchange = connected(Entry(ENDPOINT_TYPE, False, resource("a", "1")))
    exchange.receive(ask(ENDPOINT_TYPE, "a"), NOW)
    exchange.receive(give_up(ENDPOINT_TYPE, "a"), NOW)
    exchange.envoy_disconnected()
    exchange.envoy_connected()
    assert exchange.settle(NOW + GIVEN_UP_AFTER) == []
    exchange.receive(ask(ENDPOINT_TYPE, "a"), NOW)
    assert sent(only(exchange.pushes())) == {"a": "1"}


def test_the_agents_own_configuration_is_acknowledged_when_applied_and_undone_when_refused() -> None:
    exchange = connected()
    exchange.update(Update(HOST_CONFIG_TYPE, "h1", (resource("self", "1"),), ()))
    assert describe(exchange.own_settled("", NOW)) == ["ack HostConfig h1"]
    exchange.update(Update(HOST_CONFIG_TYPE, "h2", (resource("self", "2"),), ()))
    assert describe(exchange.own_settled("would capture SSH", NOW)) == ["nack HostConfig h2: self: would capture SSH"]
    assert exchange.host_config() == resource("self", "1")
    assert [change.entry.resource.version for change in exchange.take_changes() if change.entry] == ["1"]


def test_a_virtual_host_that_goes_away_is_removed_and_then_answered_as_nobody() -> None:
    exchange = connected()
    exchange.receive(ask(VIRTUAL_HOST_TYPE, "80/a"), NOW)
    exchange.update(Update(VIRTUAL_HOST_TYPE, "u1", (virtual_host("80/a", "1"),), ()))
    push = only(exchange.pushes())
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.update(Update(VIRTUAL_HOST_TYPE, "u2", (resource("80/a", "none"),), ()))
    push = only(exchange.pushes())
    assert (sent(push), push.removed) == ({}, ("80/a",))
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.receive(ask(VIRTUAL_HOST_TYPE, "80/a"), NOW)
    assert sent(only(exchange.pushes())) == {"80/a": "none"}


def test_endpoints_are_told_again_behind_a_cluster_that_changed() -> None:
    exchange = connected()
    for type_url in (CLUSTER_TYPE, ENDPOINT_TYPE):
        exchange.receive(ask(type_url, "a"), NOW)
        exchange.update(Update(type_url, "u1", (resource("a", "1"),), ()))
    for push in exchange.pushes():
        exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.update(Update(CLUSTER_TYPE, "u2", (resource("a", "2"),), ()))
    assert [(push.type_url, sent(push)) for push in exchange.pushes()] == [
        (CLUSTER_TYPE, {"a": "2"}),
        (ENDPOINT_TYPE, {"a": "1"}),
    ]


def test_what_names_certificates_is_held_back_until_the_agent_has_put_them_in_place() -> None:
    exchange = connected()
    for type_url in (CLUSTER_TYPE, LISTENER_TYPE):
        exchange.receive(ask(type_url), NOW)
    exchange.receive(ask(VIRTUAL_HOST_TYPE, "80/web"), NOW)
    exchange.update(Update(HOST_CONFIG_TYPE, "h1", (resource("self", "1"),), ()))
    for type_url in (CLUSTER_TYPE, LISTENER_TYPE):
        exchange.update(Update(type_url, "u1", (resource("in", "1"),), ()))
    # Its routes lead to clusters that wait.
    exchange.update(Update(VIRTUAL_HOST_TYPE, "u1", (virtual_host("80/web", "1"),), ()))
    assert exchange.pushes() == []
    exchange.own_settled("", NOW)
    assert [push.type_url for push in exchange.pushes()] == [CLUSTER_TYPE, LISTENER_TYPE, VIRTUAL_HOST_TYPE]


def test_endpoints_that_go_away_stay_as_long_as_the_routes_to_them_are_held_back() -> None:
    exchange = connected()
    exchange.receive(ask(ENDPOINT_TYPE, "v1"), NOW)
    exchange.update(Update(ENDPOINT_TYPE, "u1", (resource("v1", "1"),), ()))
    exchange.receive(ClientStream.ack(ENDPOINT_TYPE, only(exchange.pushes()).nonce), NOW)
    exchange.update(Update(HOST_CONFIG_TYPE, "h1", (resource("self", "1"),), ()))
    exchange.update(Update(ENDPOINT_TYPE, "u2", (), ("v1",)))
    assert exchange.pushes() == []
    exchange.own_settled("", NOW)
    assert only(exchange.pushes()).removed == ("v1",)


def test_a_failed_write_is_kept_for_the_next_one() -> None:
    exchange = connected()
    exchange.update(Update(HOST_CONFIG_TYPE, "h1", (resource("self", "1"),), ()))
    exchange.own_settled("", NOW)
    changes = exchange.take_changes()
    exchange.return_changes(changes)
    assert exchange.take_changes() == changes


def nobody(name: str) -> Resource:
    body = ResourceMessage(name=name, version="0", aliases=[name])
    return Resource(name, "0", body.SerializeToString())


def test_programs_that_call_ever_new_hosts_do_not_use_up_what_the_controller_grants() -> None:
    exchange = Exchange(max_chosen=3)
    exchange.envoy_connected()
    exchange.connected()
    exchange.receive(ask(VIRTUAL_HOST_TYPE, "80/real", "80/no-1", "80/no-2"), NOW)
    real = Resource("80/real", "1", ResourceMessage(name="80/real", resource=Any(type_url="x")).SerializeToString())
    exchange.update(Update(VIRTUAL_HOST_TYPE, "u1", (real, nobody("80/no-1"), nobody("80/no-2")), ()))
    push = only(exchange.pushes())
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.settle(NOW)
    exchange.take_changes()

    dropped, asked = exchange.receive(ask(VIRTUAL_HOST_TYPE, "80/another"), NOW)
    assert sorted(dropped.resource_names_unsubscribe) == ["80/no-1", "80/no-2"]
    assert list(asked.resource_names_subscribe) == ["80/another"]
    assert {change.name for change in exchange.take_changes() if change.entry is None} == {"80/no-1", "80/no-2"}


def test_programs_that_dial_ever_new_addresses_do_not_use_up_what_the_controller_grants() -> None:
    exchange = Exchange(max_chosen=3)
    exchange.envoy_connected()
    exchange.connected()
    real, named = "tcp|240.240.0.1:80", "outbound|80||a.test"
    tried = [f"tcp|240.240.0.1:{number}" for number in (81, 82)]
    exchange.receive(ask(CLUSTER_TYPE, "*", named, real, *tried), NOW)
    exchange.update(Update(CLUSTER_TYPE, "u1", (resource(real, "1"), resource(named, "1")), tuple(tried)))
    acknowledge(exchange)

    dropped, asked = exchange.receive(ask(CLUSTER_TYPE, "tcp|240.240.0.1:83", "outbound|80||b.test"), NOW)
    assert sorted(dropped.resource_names_unsubscribe) == tried
    assert list(asked.resource_names_subscribe) == ["outbound|80||b.test", "tcp|240.240.0.1:83"]

    [again] = exchange.receive(ask(CLUSTER_TYPE, tried[0]), NOW)
    assert list(again.resource_names_subscribe) == [tried[0]]
    assert exchange.receive(ask(CLUSTER_TYPE, tried[1]), NOW) == []
    found = DeltaDiscoveryResponse.FromString(only(exchange.pushes()).data)
    assert list(found.removed_resources) == [tried[1]]


def test_virtual_hosts_beyond_the_bound_and_names_too_long_for_one_are_answered_here_as_not_there() -> None:
    exchange = Exchange(max_chosen=1)
    exchange.envoy_connected()
    exchange.connected()
    exchange.receive(ask(VIRTUAL_HOST_TYPE, "80/a"), NOW)
    long = "80/" + "a." * 1000
    assert exchange.receive(ask(VIRTUAL_HOST_TYPE, "80/b", long), NOW) == []
    push = only(exchange.pushes())
    found = DeltaDiscoveryResponse.FromString(push.data)
    assert {each.name: each.HasField("resource") for each in found.resources} == {"80/b": False, long: False}
    assert not found.removed_resources


def test_a_cluster_that_comes_back_waits_for_its_endpoints() -> None:
    exchange = connected()
    for type_url in (CLUSTER_TYPE, ENDPOINT_TYPE):
        exchange.receive(ask(type_url, "canary"), NOW)
        exchange.update(Update(type_url, "u1", (resource("canary", "1"),), ()))
    acknowledge(exchange)
    for type_url in (CLUSTER_TYPE, ENDPOINT_TYPE):
        exchange.update(Update(type_url, "u2", (), ("canary",)))
    acknowledge(exchange)
    exchange.receive(DeltaDiscoveryRequest(type_url=ENDPOINT_TYPE, resource_names_unsubscribe=["canary"]), NOW)
    exchange.update(Update(CLUSTER_TYPE, "u3", (resource("canary", "1"),), ()))
    assert sent(only(acknowledge(exchange))) == {"canary": "1"}
    exchange.receive(ask(ENDPOINT_TYPE, "canary"), NOW)
    assert acknowledge(exchange) == []
    exchange.update(Update(ENDPOINT_TYPE, "u3", (resource("canary", "1"),), ()))
    assert sent(only(acknowledge(exchange))) == {"canary": "1"}


def cluster(
    name: str, version: str, kind: Cluster.DiscoveryType.ValueType, policy: Cluster.LbPolicy.ValueType
) -> Resource:
    message = ResourceMessage(name=name, version=version)
    message.resource.Pack(
        Cluster(name=name, type=kind, connect_timeout=Duration(seconds=1, nanos=5000), lb_policy=policy)
    )
    return Resource(name, version, message.SerializeToString())


def test_a_cluster_that_did_not_exist_is_taken_away_before_the_real_one_comes() -> None:
    """Else Envoy goes on answering 503 while the real one is warming."""
    name = "outbound|9080|canary|reviews.shop.svc.cluster.local"
    nothing = encoded(name, clusters.missing(name))
    exchange = connected()
    exchange.receive(ask(CLUSTER_TYPE, name), NOW)
    exchange.update(Update(CLUSTER_TYPE, "u1", (nothing,), ()))
    assert sent(only(acknowledge(exchange))) == {name: nothing.version}
    exchange.update(Update(CLUSTER_TYPE, "u2", (cluster(name, "2", Cluster.EDS, Cluster.ROUND_ROBIN),), ()))
    gone, came = acknowledge(exchange)
    assert (gone.removed, sent(gone), sent(came)) == ((name,), {}, {name: "2"})
    exchange.update(Update(CLUSTER_TYPE, "u3", (cluster(name, "3", Cluster.EDS, Cluster.RANDOM),), ()))
    assert sent(only(acknowledge(exchange))) == {name: "3"}


def acknowledge(exchange: Exchange) -> list[Push]:
    """Have Envoy take all that is due to it; return it."""
    taken = []
    while pushes := exchange.pushes():
        taken += pushes
        for push in pushes:
            exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    exchange.settle(NOW)
    return taken


def listening(name: str, stat: str, *ports: int, bound: bool | None = None) -> Resource:
    """Return a listener of these ports, as Envoy's own message; the first is its address, the others are additional."""
    made = Listener(name=name, stat_prefix=stat * 300, ignore_global_conn_limit=True)
    for index, port in enumerate(ports):
        address = made.additional_addresses.add().address if index else made.address
        address.socket_address.address, address.socket_address.port_value = "0.0.0.0", port
    if bound is not None:
        made.bind_to_port.value = bound
    return encoded(name, made)


def test_the_ports_of_a_listener_are_read_from_its_bytes() -> None:
    assert bound_ports(listening("a", "1", 22)) == {22}
    assert bound_ports(listening("a", "1", 8080, 65535)) == {8080, 65535}
    assert bound_ports(listening("a", "1", 22, bound=True)) == {22}
    assert bound_ports(listening("a", "1", 22, bound=False)) == frozenset()
    pipe = Listener(name="a")
    pipe.address.pipe.path = "/run/a"
    assert bound_ports(encoded("a", pipe)) == frozenset()
    whole = listening("a", "1", 22)
    for end in range(len(whole.body)):
        with suppress(DecodeError):
            bound_ports(Resource("a", "1", whole.body[:end]))


def test_a_listener_that_would_take_the_port_of_ssh_is_refused_here_and_what_was_there_stays() -> None:
    before, taking = listening("0.0.0.0_22", "1", 2200), listening("0.0.0.0_22", "2", 22)
    exchange = Exchange(
        [Entry(LISTENER_TYPE, True, before)],
        host_refuses=Floor(FloorSettings(), load(), lambda: frozenset({22})).problem,
    )
    exchange.connected()
    exchange.envoy_connected()
    exchange.receive(ask(LISTENER_TYPE, "*"), NOW)
    acknowledge(exchange)
    other = listening("0.0.0.0_80", "1", 80)
    exchange.update(Update(LISTENER_TYPE, "u1", (taking, other, listening("new", "1", 22)), ()))
    push = only(exchange.pushes())
    assert push.names == ("0.0.0.0_80",)
    told = exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW) + exchange.settle(NOW)
    [nack] = describe(told)
    assert nack == (
        "nack Listener u1: 0.0.0.0_22: SSH is served on port 22 of this host: Envoy must not take it; "
        "new: SSH is served on port 22 of this host: Envoy must not take it"
    )
    assert {each.name for each in exchange.refusals} == {"0.0.0.0_22", "new"}
    assert exchange.accepted_version(LISTENER_TYPE, "0.0.0.0_22") == before.version
    exchange.try_again()
    again = [each for push in exchange.pushes() for each in DeltaDiscoveryResponse.FromString(push.data).resources]
    assert {each.version for each in again} <= {before.version}


def test_a_listener_on_disk_that_would_take_the_port_of_ssh_is_not_offered() -> None:
    entries = [Entry(LISTENER_TYPE, True, listening(name, "1", port)) for name, port in (("a", 22), ("b", 80))]
    exchange = Exchange(entries, host_refuses=Floor(FloorSettings(), load(), lambda: frozenset({22})).problem)
    exchange.envoy_connected()
    exchange.receive(ask(LISTENER_TYPE, "*"), NOW)
    assert only(exchange.pushes()).names == ("b",)
