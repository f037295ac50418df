"""Envoy keeps the chain of a port for as long as the kernel captures it, whatever becomes of the HostConfig."""

from datetime import UTC, datetime
from typing import Final

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from hostmesh_agent.cache import Entry
from hostmesh_agent.exchange import Exchange
from hostmesh_api.delta import ClientStream, Resource, Update
from hostmesh_api.v1.hostmesh_pb2 import HostConfig, Workload
from hostmesh_api.wire import CLUSTER_TYPE, HOST_CONFIG_TYPE, INBOUND_PORT, LISTENER_TYPE, VIRTUAL_HOST_TYPE
from hostmesh_controller.xds.encoding import resource

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


def captures(*ports: int) -> Resource:
    workloads = [Workload(namespace="n", name=f"w{port}", ports=[port]) for port in ports]
    return resource("self", HostConfig(host="h", workloads=workloads))


def listener(name: str, port: int, chains: str) -> Resource:
    made = Listener(name=name, stat_prefix=chains)
    made.address.socket_address.port_value = port
    return resource(name, made)


BOTH, LESS = listener("virtualInbound", INBOUND_PORT, "both"), listener("virtualInbound", INBOUND_PORT, "less")
OTHER, NEWER = listener("0.0.0.0_80", 80, "1"), listener("0.0.0.0_80", 80, "2")


def life() -> Exchange:
    """An exchange whose Envoy serves two captured ports."""
    made = Exchange(
        [
            Entry(HOST_CONFIG_TYPE, False, captures(80, 90)),
            Entry(LISTENER_TYPE, True, BOTH),
            Entry(LISTENER_TYPE, True, OTHER),
        ]
    )
    made.connected()
    asks(made)
    return made


def asks(made: Exchange) -> set[Resource]:
    """Let an Envoy begin; return the listeners that it gets."""
    made.envoy_connected()
    for type_url, names in ((CLUSTER_TYPE, ()), (LISTENER_TYPE, ()), (VIRTUAL_HOST_TYPE, ("80/new",))):
        made.receive(DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names), NOW)
    return takes(made)


def takes(made: Exchange) -> set[Resource]:
    """Let Envoy take what is due; return it, but for empty answers."""
    taken: set[Resource] = set()
    while pushes := made.pushes():
        for push in pushes:
            taken.update(ClientStream.update(DeltaDiscoveryResponse.FromString(push.data)).resources)
            made.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    return taken


def send(made: Exchange, type_url: str, *resources: Resource) -> None:
    made.update(Update(type_url, f"u-{type_url}", resources, ()))


def test_a_chain_stays_while_what_came_without_a_word_of_its_own_is_applied() -> None:
    """It waited for what came with it, or was held back, and an operator wants it: nothing is owed for it then."""
    made = life()
    send(made, HOST_CONFIG_TYPE, captures(80))
    send(made, LISTENER_TYPE, LESS)
    assert made.held_back
    made.accept()
    assert takes(made) == set()
    made.own_settled("", NOW)
    assert takes(made) == {LESS}


def test_a_chain_stays_while_its_port_is_released_though_the_controller_is_lost() -> None:
    made = life()
    send(made, HOST_CONFIG_TYPE, captures(80, 90, 100))
    send(made, LISTENER_TYPE, LESS)
    made.disconnected()
    assert takes(made) == set()
    made.own_settled("", NOW)
    assert takes(made) == {LESS}


def refused(*, ports: tuple[int, ...]) -> Exchange:
    """An exchange whose agent could not apply what came with other listeners."""
    made = life()
    send(made, HOST_CONFIG_TYPE, captures(*ports))
    send(made, LISTENER_TYPE, LESS, NEWER)
    made.accept()
    made.own_settled("the disk is full", NOW)
    return made


def test_a_chain_stays_while_the_agent_cannot_release_its_port_and_other_things_do_not_wait() -> None:
    made = refused(ports=(80,))
    new = resource("80/new", Listener(name="x"))
    send(made, VIRTUAL_HOST_TYPE, new)
    assert takes(made) == {NEWER, new}
    assert not [each for each in made.settle(NOW) if each.type_url == LISTENER_TYPE], "it is not said to have it"
    assert made.accepted_version(LISTENER_TYPE, BOTH.name) == BOTH.version


def test_an_envoy_that_begins_while_the_agent_cannot_release_a_port_has_its_chain() -> None:
    made = refused(ports=(80,))
    made.envoy_disconnected()
    assert asks(made) == {BOTH, NEWER}


def test_a_chain_goes_once_the_agent_has_released_its_port_at_last() -> None:
    made = refused(ports=(80,))
    takes(made)
    made.try_again()
    assert takes(made) == set()
    new = resource("80/new", Listener(name="x"))
    send(made, VIRTUAL_HOST_TYPE, new)
    assert takes(made) == {new}, "a try holds up nothing else"
    made.own_settled("", NOW)
    assert made.host_config() == captures(80)
    assert takes(made) == {LESS}
    made.settle(NOW)
    assert made.accepted_version(LISTENER_TYPE, LESS.name) == LESS.version


@pytest.mark.parametrize("ports", [(80, 90), (80, 90, 100)])
def test_what_the_agent_refuses_keeps_no_chains_where_no_port_would_be_released(ports: tuple[int, ...]) -> None:
    """They may hold a policy: that counts at once."""
    assert takes(refused(ports=ports)) == {LESS, NEWER}
