"""Two Envoys are served the same; one of them judges."""

from datetime import UTC, datetime

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_agent.exchange import GIVEN_UP_AFTER, Exchange
from hostmesh_agent.places import BLUE, GREEN, Instance
from hostmesh_api.delta import ClientStream, Push, Resource, Update
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def resource(name: str, version: str) -> Resource:
    return Resource(name, version, ResourceMessage(name=name, version=version).SerializeToString())


def sent(pushes: list[Push]) -> dict[str, str]:
    found = [DeltaDiscoveryResponse.FromString(push.data) for push in pushes]
    return {each.name: each.version for response in found for each in response.resources}


def take(exchange: Exchange, instance: Instance, refuse: str = "") -> dict[str, str]:
    """Let an Envoy take what is due to it, or refuse it; return what that was."""
    everything: dict[str, str] = {}
    while pushes := exchange.pushes(instance):
        everything |= sent(pushes)
        for push in pushes:
            answer = ClientStream.ack(push.type_url, push.nonce)
            if refuse in push.names:
                answer = ClientStream.nack(push.type_url, push.nonce, "bad")
            exchange.receive(answer, NOW, instance)
    return everything


def subscribe(exchange: Exchange, instance: Instance) -> None:
    exchange.envoy_connected(instance)
    for type_url in (CLUSTER_TYPE, LISTENER_TYPE):
        exchange.receive(DeltaDiscoveryRequest(type_url=type_url), NOW, instance)


def serving() -> Exchange:
    """The first Envoy has a cluster and a listener."""
    exchange = Exchange()
    exchange.connected()
    subscribe(exchange, BLUE)
    exchange.update(Update(CLUSTER_TYPE, "c1", (resource("c", "1"),), ()))
    exchange.update(Update(LISTENER_TYPE, "l1", (resource("in", "1"),), ()))
    take(exchange, BLUE)
    exchange.settle(NOW)
    return exchange


def test_the_second_is_sent_what_the_first_has_and_is_complete_when_it_has_taken_it() -> None:
    exchange = serving()
    assert exchange.lacks(GREEN) == ("it has not asked for its configuration",)
    subscribe(exchange, GREEN)
    assert "it does not have in" in exchange.lacks(GREEN)
    assert take(exchange, GREEN) == {"c": "1", "in": "1"}
    assert exchange.lacks(GREEN) == ()


def test_a_change_goes_to_both_and_what_the_first_takes_is_good() -> None:
    exchange = serving()
    subscribe(exchange, GREEN)
    take(exchange, GREEN)
    exchange.update(Update(LISTENER_TYPE, "l2", (resource("in", "2"),), ()))
    assert take(exchange, BLUE) == {"in": "2"}
    assert [each.response_nonce for each in exchange.settle(NOW)] == ["l2"]
    assert "it does not have in" in exchange.lacks(GREEN)
    assert take(exchange, GREEN) == {"in": "2"}
    assert exchange.lacks(GREEN) == ()


def test_what_the_second_refuses_is_said_of_it_and_changes_nothing_for_the_first() -> None:
    exchange = serving()
    subscribe(exchange, GREEN)
    take(exchange, GREEN, refuse="in")
    assert "it refuses in: bad" in exchange.lacks(GREEN)
    assert (exchange.settle(NOW), exchange.refusals) == ([], [])
    assert exchange.accepted_version(LISTENER_TYPE, "in") == "1"


def test_what_the_first_refuses_is_taken_back_from_the_second() -> None:
    exchange = serving()
    subscribe(exchange, GREEN)
    take(exchange, GREEN)
    exchange.update(Update(LISTENER_TYPE, "l2", (resource("in", "2"),), ()))
    assert take(exchange, GREEN) == {"in": "2"}
    take(exchange, BLUE, refuse="in")
    assert exchange.settle(NOW)[0].HasField("error_detail")
    assert take(exchange, GREEN) == {"in": "1"}
    assert exchange.lacks(GREEN) == ()


def test_what_an_envoy_that_does_not_judge_gives_up_is_not_forgotten() -> None:
    """One that ends gives up all its names on the way out."""
    exchange = serving()
    exchange.receive(DeltaDiscoveryRequest(type_url=ENDPOINT_TYPE, resource_names_subscribe=["c"]), NOW)
    exchange.update(Update(ENDPOINT_TYPE, "e1", (resource("c", "1"),), ()))
    take(exchange, BLUE)
    subscribe(exchange, GREEN)
    exchange.receive(DeltaDiscoveryRequest(type_url=ENDPOINT_TYPE, resource_names_subscribe=["c"]), NOW, GREEN)
    take(exchange, GREEN)
    exchange.judged_by(GREEN)
    exchange.receive(DeltaDiscoveryRequest(type_url=ENDPOINT_TYPE, resource_names_unsubscribe=["c"]), NOW, BLUE)
    exchange.envoy_disconnected(BLUE)
    exchange.settle(NOW)
    assert not exchange.settle(NOW + 2 * GIVEN_UP_AFTER)
    assert exchange.answer(ENDPOINT_TYPE, "c") is not None


def test_from_the_change_on_the_second_ones_word_counts() -> None:
    exchange = serving()
    subscribe(exchange, GREEN)
    take(exchange, GREEN)
    exchange.judged_by(GREEN)
    exchange.update(Update(LISTENER_TYPE, "l2", (resource("in", "2"),), ()))
    take(exchange, GREEN, refuse="in")
    (told,) = exchange.settle(NOW)
    assert told.error_detail.message == "in: bad"
    assert take(exchange, BLUE) == {}, "what the first one has is what is good"
