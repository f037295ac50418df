"""Conversations about configurations of extensions, which Envoy gets when what they need is on the host."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_agent.cache import Entry
from hostmesh_agent.exchange import GIVEN_UP_AFTER, Exchange
from hostmesh_api.delta import ClientStream, Push, Resource, Update
from hostmesh_api.wire import EXTENSION_TYPE

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def resource(name: str, version: str) -> Resource:
    return Resource(name, version, ResourceMessage(name=name, version=version).SerializeToString())


@dataclass
class Local:
    """What is decided, by the controller's version; what is not there is not decided."""

    decided: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def given(self, wanted: Resource) -> Resource | None:
        found = self.decided.get(wanted.version)
        return None if found is None else resource(wanted.name, f"{wanted.version}.{found}")

    def refused(self, wanted: Resource, why: str) -> None:
        self.decided[wanted.version] = "instead"
        self.told.append(f"{wanted.name}: {why}")

    def forget(self, name: str) -> None:
        self.told.append(f"-{name}")


def connected(local: Local, *entries: Entry) -> Exchange:
    exchange = Exchange(entries, extensions=local)
    exchange.connected()
    exchange.envoy_connected()
    exchange.receive(DeltaDiscoveryRequest(type_url=EXTENSION_TYPE, resource_names_subscribe=["a"]), NOW)
    return exchange


def sent(pushes: list[Push]) -> dict[str, str]:
    return {
        each.name: each.version for push in pushes for each in DeltaDiscoveryResponse.FromString(push.data).resources
    }


def acknowledge(exchange: Exchange, push: Push) -> list[DeltaDiscoveryRequest]:
    exchange.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    return exchange.settle(NOW)


def refuse(exchange: Exchange, push: Push) -> list[DeltaDiscoveryRequest]:
    exchange.receive(ClientStream.nack(push.type_url, push.nonce, "bad"), NOW)
    return exchange.settle(NOW)


def test_a_configuration_is_held_back_until_it_is_decided_what_envoy_gets() -> None:
    local = Local()
    exchange = connected(local)
    exchange.update(Update(EXTENSION_TYPE, "u1", (resource("a", "1"),), ()))
    assert exchange.pushes() == []
    assert exchange.settle(NOW) == []
    local.decided["1"] = "there"
    exchange.extension_decided("a")
    pushes = exchange.pushes()
    assert sent(pushes) == {"a": "1.there"}
    (answer,) = acknowledge(exchange, pushes[0])
    assert (answer.response_nonce, answer.HasField("error_detail")) == ("u1", False)
    # On disk is what the controller sent: the next life decides anew.
    (change,) = exchange.take_changes()
    assert change.entry == Entry(EXTENSION_TYPE, False, resource("a", "1"))


def test_envoy_keeps_what_it_has_while_a_change_is_not_decided() -> None:
    local = Local({"1": "there"})
    exchange = connected(local, Entry(EXTENSION_TYPE, False, resource("a", "1")))
    pushes = exchange.pushes()
    assert sent(pushes) == {"a": "1.there"}
    acknowledge(exchange, pushes[0])
    exchange.update(Update(EXTENSION_TYPE, "u2", (resource("a", "2"),), ()))
    assert exchange.pushes() == []


def test_something_stands_for_a_first_configuration_that_envoy_refuses_and_the_controller_is_told() -> None:
    local = Local({"1": "broken"})
    exchange = connected(local)
    exchange.update(Update(EXTENSION_TYPE, "u1", (resource("a", "1"),), ()))
    (push,) = exchange.pushes()
    (answer,) = refuse(exchange, push)
    assert answer.error_detail.message == "a: bad"
    assert local.told == ["a: bad"]
    exchange.extension_decided("a")
    assert sent(exchange.pushes()) == {"a": "1.instead"}


def test_a_later_configuration_that_envoy_refuses_is_undone() -> None:
    local = Local({"1": "there", "2": "broken"})
    exchange = connected(local, Entry(EXTENSION_TYPE, False, resource("a", "1")))
    acknowledge(exchange, exchange.pushes()[0])
    exchange.update(Update(EXTENSION_TYPE, "u2", (resource("a", "2"),), ()))
    (push,) = exchange.pushes()
    refuse(exchange, push)
    assert local.told == []
    assert exchange.accepted_version(EXTENSION_TYPE, "a") == "1"


def test_a_configuration_that_the_controller_takes_back_stays_until_its_filter_has_gone() -> None:
    local = Local({"1": "there"})
    exchange = connected(local, Entry(EXTENSION_TYPE, False, resource("a", "1")))
    acknowledge(exchange, exchange.pushes()[0])
    exchange.update(Update(EXTENSION_TYPE, "u2", (), ("a",)))
    assert [push for push in exchange.pushes() if push.removed] == []
    exchange.receive(DeltaDiscoveryRequest(type_url=EXTENSION_TYPE, resource_names_unsubscribe=["a"]), NOW)
    exchange.settle(NOW + GIVEN_UP_AFTER)
    assert local.told == ["-a"]
