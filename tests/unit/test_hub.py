"""The hub with a real mesh: who is woken by a change, and what each is sent."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from structlog.testing import capture_logs

from golden.objects import mesh_of, obj
from hostmesh_api.delta import Answer, ClientStream, Push, Source
from hostmesh_api.origin import Origin
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    CONFIRMATION_NAME,
    CONFIRMATION_TYPE,
    ENDPOINT_TYPE,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    VIRTUAL_HOST_TYPE,
)
from hostmesh_controller import hub
from hostmesh_controller.hub import Connection, Hub, TooManyNamesError
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.objects import ApiObject

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B = "outbound|80||a.default.svc.cluster.local", "outbound|80||b.default.svc.cluster.local"


def service(name: str) -> ApiObject:
    return obj("Service", name, {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]})


def workload(name: str, address: str) -> ApiObject:
    return obj("WorkloadEntry", f"{name}-1", {"address": address, "labels": {"app": name}})


def the_mesh() -> Mesh:
    hosts = [obj("Host", name, {"addresses": [f"10.0.0.{number}"]}) for number, name in enumerate(["one", "two"], 1)]
    return mesh_of([*hosts, service("a"), service("b"), workload("a", "10.0.9.1"), workload("b", "10.0.9.2")])


class Fleet:
    """Hosts connected to one hub; remembers who was woken."""

    def __init__(self, max_names: int = 100, max_name_chars: int = 10_000, max_answers: int = 1000) -> None:
        self.hub = Hub(the_mesh(), 1, max_names=max_names, max_name_chars=max_name_chars, max_answers=max_answers)
        self.woken: list[str] = []

    def connect(self, host: str) -> Connection:
        return self.hub.connect(host, "peer", NOW, lambda: self.woken.append(host))

    def ask(self, connection: Connection, type_url: str, *names: str, held: Mapping[str, str] | None = None) -> None:
        request = DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=names, initial_resource_versions=held or {}
        )
        self.hub.receive(connection, request, NOW)

    def take(self, connection: Connection) -> list[Push]:
        """Return what is due, acknowledged."""
        pushes = list(self.hub.pushes(connection))
        for push in pushes:
            self.hub.receive(connection, ClientStream.ack(push.type_url, push.nonce), NOW)
        return pushes

    def publish(self, *objects: ApiObject) -> None:
        self.woken.clear()
        mesh, touched = update(self.hub.mesh, {each.key: each for each in objects}, self.hub.mesh.vips, {})
        self.hub.publish(mesh, touched, self.hub.revision + 1)


class Noting:
    """A source of a stream that notes of which names it is asked."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.asked: list[str] = []

    def names(self, type_url: str) -> Iterable[str] | None:
        return self._source.names(type_url)

    def answer(self, type_url: str, name: str) -> Answer | None:
        self.asked.append(name)
        return self._source.answer(type_url, name)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def names(pushes: list[Push]) -> list[str]:
    return [name for push in pushes for name in push.names]


def test_a_change_of_an_endpoint_wakes_those_who_asked_for_it_and_sends_them_that_alone(fleet: Fleet) -> None:
    one, two = fleet.connect("one"), fleet.connect("two")
    fleet.ask(one, ENDPOINT_TYPE, A)
    fleet.ask(two, ENDPOINT_TYPE, B)
    fleet.take(one)
    fleet.take(two)
    fleet.publish(workload("a", "10.0.9.77"))
    assert fleet.woken == ["one"]
    assert names(fleet.take(one)) == [A]
    assert fleet.take(two) == []


def test_a_change_during_a_write_is_not_lost(fleet: Fleet) -> None:
    one = fleet.connect("one")
    fleet.ask(one, ENDPOINT_TYPE, A)
    writing = fleet.hub.pushes(one)
    first = next(writing)
    fleet.hub.receive(one, ClientStream.ack(first.type_url, first.nonce), NOW)
    fleet.publish(workload("a", "10.0.9.77"))
    rest = [*writing, *fleet.hub.pushes(one)]
    assert names(rest) == [A]
    assert b"10.0.9.77" in rest[0].data


def test_an_endpoint_push_of_one_service_is_small(fleet: Fleet) -> None:
    one = fleet.connect("one")
    fleet.ask(one, ENDPOINT_TYPE, A)
    (push,) = fleet.take(one)
    # 450 bytes on the wire are promised; frames, TLS and TCP take about 80 of them.
    assert len(push.data) < 350


def test_a_host_that_comes_back_with_the_same_versions_is_sent_nothing(fleet: Fleet) -> None:
    one = fleet.connect("one")
    held: dict[str, dict[str, str]] = {}
    for type_url, wanted in ((LISTENER_TYPE, ()), (CLUSTER_TYPE, ("*", A)), (ENDPOINT_TYPE, (A,))):
        fleet.ask(one, type_url, *wanted)
        for push in fleet.take(one):
            message = DeltaDiscoveryResponse.FromString(push.data)
            held.setdefault(type_url, {}).update({each.name: each.version for each in message.resources})
    again = fleet.connect("one")
    fleet.ask(again, LISTENER_TYPE, "*", held=held[LISTENER_TYPE])
    fleet.ask(again, CLUSTER_TYPE, "*", A, held=held[CLUSTER_TYPE])
    fleet.ask(again, ENDPOINT_TYPE, A, held=held[ENDPOINT_TYPE])
    assert fleet.take(again) == []


def test_a_second_stream_of_a_host_takes_over_and_the_first_is_told_to_end(fleet: Fleet) -> None:
    first = fleet.connect("one")
    second = fleet.connect("one")
    assert (first.closed, second.closed) == (True, False)
    assert fleet.woken == ["one"]
    fleet.hub.disconnect(first)
    assert fleet.hub.connected() == 1


def test_a_service_that_appears_reaches_the_host_that_asked_for_it_before_it_existed(fleet: Fleet) -> None:
    one = fleet.connect("one")
    later = "outbound|80||later.default.svc.cluster.local"
    fleet.ask(one, CLUSTER_TYPE, "*", later)
    assert later in names(fleet.take(one))
    assert fleet.take(one) == []
    fleet.publish(service("later"))
    assert later in names(fleet.take(one))


def test_a_host_that_gets_another_identity_gets_other_clusters(fleet: Fleet) -> None:
    one, two = fleet.connect("one"), fleet.connect("two")
    for each in (one, two):
        fleet.ask(each, CLUSTER_TYPE, "*", A)
        fleet.take(each)
    fleet.publish(obj("WorkloadEntry", "shop", {"address": "10.0.0.1", "serviceAccount": "shop"}))
    (push,) = fleet.take(one)
    assert push.names == (A,)
    assert b"certs/ns.default.sa.shop" in push.data
    assert fleet.take(two) == []


def test_convergence_waits_for_the_acknowledgement(fleet: Fleet) -> None:
    one = fleet.connect("one")
    fleet.ask(one, ENDPOINT_TYPE, A)
    fleet.take(one)
    fleet.publish(workload("a", "10.0.9.77"))
    assert fleet.hub.converged(2) == {"one": False}
    pushes = list(fleet.hub.pushes(one))
    assert fleet.hub.converged(2) == {"one": False}
    fleet.hub.receive(one, ClientStream.ack(pushes[0].type_url, pushes[0].nonce), NOW)
    assert fleet.hub.converged(2) == {"one": True}
    assert fleet.hub.converged(3) == {"one": False}


def test_a_refusal_is_kept_by_name_with_its_message(fleet: Fleet) -> None:
    one = fleet.connect("one")
    fleet.ask(one, ENDPOINT_TYPE, A)
    (push,) = fleet.hub.pushes(one)
    fleet.hub.receive(one, ClientStream.nack(push.type_url, push.nonce, "no such thing"), NOW)
    (state,) = fleet.hub.proxies()
    assert [(each.names, each.message) for each in state.nacks] == [((A,), "no such thing")]
    assert fleet.hub.counts.nacks[ENDPOINT_TYPE] == 1


def test_a_host_has_no_other_hosts_configuration(fleet: Fleet) -> None:
    one = fleet.connect("one")
    fleet.ask(one, HOST_CONFIG_TYPE, "self", "two")
    (push,) = fleet.take(one)
    assert (push.names, push.removed) == (("self",), ("two",))


def test_names_are_bounded() -> None:
    fleet = Fleet(max_names=3)
    one = fleet.connect("one")
    with pytest.raises(TooManyNamesError, match="more than 3"):
        fleet.ask(one, ENDPOINT_TYPE, *"abcd")


def test_a_request_that_is_too_big_is_refused_before_any_of_it_is_looked_up() -> None:
    fleet = Fleet(max_names=3)
    one = fleet.connect("one")
    fleet.ask(one, ENDPOINT_TYPE, A)
    fleet.take(one)
    with pytest.raises(TooManyNamesError, match="more than 3"):
        fleet.ask(one, ENDPOINT_TYPE, *"bcd")
    assert (fleet.take(one), list(one.watched)) == ([], [(ENDPOINT_TYPE, A)])
    fleet.ask(one, ENDPOINT_TYPE, A, A)
    with pytest.raises(TooManyNamesError, match="more than 3"):
        fleet.ask(one, CLUSTER_TYPE, held=dict.fromkeys("abcd", "1"))


def test_long_names_are_bounded_together_and_room_comes_back_with_names_given_up() -> None:
    fleet = Fleet(max_name_chars=100)
    one = fleet.connect("one")
    fleet.ask(one, ENDPOINT_TYPE, "n" * 90)
    with pytest.raises(TooManyNamesError, match="more than 100 characters"):
        fleet.ask(one, ENDPOINT_TYPE, "m" * 20)
    fleet.hub.receive(one, DeltaDiscoveryRequest(type_url=ENDPOINT_TYPE, resource_names_unsubscribe=["n" * 90]), NOW)
    fleet.ask(one, ENDPOINT_TYPE, "m" * 20)


def test_types_that_a_host_makes_up_are_bounded(fleet: Fleet) -> None:
    one = fleet.connect("one")
    with pytest.raises(TooManyNamesError, match="types"):
        fleet.ask(one, "t" * 1000)
    for number in range(hub.MAX_TYPES):
        fleet.ask(one, f"made-up/{number}")
    with pytest.raises(TooManyNamesError, match="types"):
        fleet.ask(one, CLUSTER_TYPE)


def test_a_huge_refusal_is_kept_short(fleet: Fleet) -> None:
    one = fleet.connect("one")
    fleet.ask(one, ENDPOINT_TYPE, A)
    (push,) = fleet.hub.pushes(one)
    fleet.hub.receive(one, ClientStream.nack(push.type_url, push.nonce, "x" * 1_000_000), NOW)
    ((kept,),) = (each.nacks for each in fleet.hub.proxies())
    assert len(kept.message) < 10_000


def test_names_that_come_and_go_leave_nothing_behind() -> None:
    fleet = Fleet(max_names=200, max_answers=50)
    one = fleet.connect("one")
    fleet.ask(one, CLUSTER_TYPE, "*")
    fleet.take(one)
    reached = []
    for turn in range(20):
        clusters = [f"outbound|80||nobody-{turn}-{number}.test" for number in range(30)]
        for type_url, asked in (
            (CLUSTER_TYPE, clusters),
            (ENDPOINT_TYPE, clusters),
            (VIRTUAL_HOST_TYPE, [f"80/{name}" for name in clusters]),
        ):
            fleet.ask(one, type_url, *asked)
            fleet.take(one)
            gone = DeltaDiscoveryRequest(type_url=type_url, resource_names_unsubscribe=asked)
            fleet.hub.receive(one, gone, NOW)
        assert fleet.hub.answers_kept() <= 50
        reached.append((len(fleet.hub.mesh.memo), len(one.watched), one.name_chars))
    assert len(set(reached)) == 1, reached


def broken_rule(host: str) -> ApiObject:
    """An object that no check lets in and that the constructors stumble over."""
    rule = obj("DestinationRule", f"broken-{host}", {"host": host, "trafficPolicy": {"tls": {"mode": "DISABLE"}}})
    assert isinstance(rule.spec, DestinationRuleSpec)
    assert rule.spec.traffic_policy is not None
    policy = rule.spec.traffic_policy.model_copy(update={"outlier_detection": "none such"})
    return replace(rule, spec=rule.spec.model_copy(update={"traffic_policy": policy}))


def test_what_cannot_be_made_is_told_and_takes_nothing_else_from_anybody(fleet: Fleet) -> None:
    one = fleet.connect("one")
    fleet.ask(one, CLUSTER_TYPE, "*", A, B)
    held = names(fleet.take(one))
    assert {A, B} <= set(held)
    with capture_logs() as logs:
        fleet.publish(broken_rule("a"), obj("DestinationRule", "b", {"host": "b", "trafficPolicy": {"tls": {}}}))
        pushes = fleet.take(one)
        fleet.take(one)
    assert names(pushes) == [B]
    assert [removed for push in pushes for removed in push.removed] == []
    assert [(each["name"], each["log_level"]) for each in logs] == [(A, "error")]
    assert fleet.hub.counts.faults[CLUSTER_TYPE] >= 1
    fleet.publish(obj("DestinationRule", "broken-a", {"host": "a", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}))
    assert names(fleet.take(one)) == [A]


def test_a_cluster_of_copies_follows_the_rules_of_its_service_though_nobody_asks_for_it(fleet: Fleet) -> None:
    one = fleet.connect("one")
    fleet.ask(one, CLUSTER_TYPE, "*")
    fleet.take(one)
    routes = [{"route": [{"destination": {"host": "a"}}], "mirror": {"host": "b"}}]
    fleet.publish(obj("VirtualService", "v", {"hosts": ["a"], "http": routes}))
    assert names(fleet.take(one)) == [B]
    fleet.publish(obj("DestinationRule", "b", {"host": "b", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}))
    assert names(fleet.take(one)) == [B]
    fleet.publish(obj("VirtualService", "v", {"hosts": ["a"], "http": [{"route": routes[0]["route"]}]}))
    fleet.take(one)
    # It goes on to be held, and is then not asked for when requests go there.
    fleet.publish(obj("DestinationRule", "b", {"host": "b", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}))
    assert names(fleet.take(one)) == [B]


def test_a_service_more_is_told_to_the_listeners_by_which_it_is_called_and_nothing_else_is_looked_at(
    fleet: Fleet,
) -> None:
    one = fleet.connect("one")
    fleet.ask(one, LISTENER_TYPE, "*")
    fleet.ask(one, HOST_CONFIG_TYPE, "self")
    fleet.ask(one, CLUSTER_TYPE, "*", A)
    fleet.take(one)
    one.source = source = Noting(one.source)
    fleet.publish(obj("Service", "c", {"ports": [{"name": "http", "port": 81}]}))
    assert fleet.woken == ["one"]
    assert names(fleet.take(one)) == ["0.0.0.0_81"]
    assert source.asked == ["0.0.0.0_81", "dns"]
    del source.asked[:]
    tcp = [{"route": [{"destination": {"host": "a"}, "weight": 1}, {"destination": {"host": "b"}, "weight": 1}]}]
    fleet.publish(obj("VirtualService", "t", {"hosts": ["a"], "tcp": tcp}))
    assert source.asked == []


def test_each_response_says_from_which_state_of_the_store_it_was_made() -> None:
    fleet = Fleet()
    one = fleet.connect("one")
    fleet.ask(one, ENDPOINT_TYPE, A)

    def said(pushes: list[Push]) -> list[Origin | None]:
        return [ClientStream.update(DeltaDiscoveryResponse.FromString(each.data)).origin for each in pushes]

    assert said(fleet.take(one)) == [None], "nobody has said which store it is"
    fleet.hub.tell_origin(lambda revision: Origin("aa", revision, "00"))
    fleet.publish(workload("a", "10.0.9.7"))
    assert said(fleet.take(one)) == [Origin("aa", 2, "00", is_written=True)]
    fleet.hub.tell_origin(lambda revision: Origin("bb", revision, "00"))
    fleet.ask(one, ENDPOINT_TYPE, B)
    assert said(fleet.take(one)) == [Origin("bb", 2, "00")]


def test_what_operators_wrote_explains_one_response_of_each_type_to_those_whom_it_concerns() -> None:
    fleet = Fleet()
    fleet.hub.tell_origin(lambda revision: Origin("aa", revision, "00"))
    one = fleet.connect("one")

    def explained() -> list[tuple[str, bool]]:
        found = [ClientStream.update(DeltaDiscoveryResponse.FromString(each.data)) for each in fleet.take(one)]
        return [(each.type_url, each.origin is not None and each.origin.is_written) for each in found]

    fleet.ask(one, ENDPOINT_TYPE, A)
    assert explained() == [(ENDPOINT_TYPE, True)], "a stream begins with all that was written while the host was away"
    fleet.publish(workload("b", "10.0.9.8"))
    fleet.ask(one, ENDPOINT_TYPE, B)
    assert explained() == [(ENDPOINT_TYPE, False)], "that write was none of its own, and it has asked since"
    fleet.publish(workload("a", "10.0.9.7"))
    assert explained() == [(ENDPOINT_TYPE, True)]
    fleet.ask(one, ENDPOINT_TYPE, "outbound|80||c.shop.svc.cluster.local")
    assert explained() == [(ENDPOINT_TYPE, False)], "all that was written had been acknowledged"


def test_what_was_written_while_a_host_was_away_explains_also_what_it_asks_for_last() -> None:
    """Agents ask for one type after the other; what comes of the first may be acknowledged before they ask again."""
    fleet = Fleet()
    fleet.hub.tell_origin(lambda revision: Origin("aa", revision, "00"))
    one = fleet.connect("one")
    for type_url, name in ((ENDPOINT_TYPE, A), (CLUSTER_TYPE, A)):
        fleet.ask(one, type_url, name)
        found = [ClientStream.update(DeltaDiscoveryResponse.FromString(each.data)).origin for each in fleet.take(one)]
        assert found == [Origin("aa", fleet.hub.revision, "00", is_written=True)]
    fleet.ask(one, CLUSTER_TYPE, B)
    assert [ClientStream.update(DeltaDiscoveryResponse.FromString(each.data)).origin for each in fleet.take(one)] == [
        Origin("aa", fleet.hub.revision, "00")
    ]


def test_a_confirmation_is_for_one_loss_and_not_for_the_next_on_the_same_stream(fleet: Fleet) -> None:
    one = fleet.connect("one")
    assert not fleet.hub.confirm("one", NOW), "nothing is held back"
    fleet.ask(one, CONFIRMATION_TYPE, CONFIRMATION_NAME)
    assert fleet.take(one) == []
    assert fleet.hub.confirm("one", NOW)
    assert names(fleet.take(one)) == [CONFIRMATION_NAME]
    over = DeltaDiscoveryRequest(type_url=CONFIRMATION_TYPE, resource_names_unsubscribe=[CONFIRMATION_NAME])
    fleet.hub.receive(one, over, NOW)
    assert not fleet.hub.confirm("one", NOW)
    fleet.ask(one, CONFIRMATION_TYPE, CONFIRMATION_NAME)
    assert fleet.take(one) == [], "nobody wants this one yet"
    assert fleet.hub.confirm("one", NOW)
    assert names(fleet.take(one)) == [CONFIRMATION_NAME]
