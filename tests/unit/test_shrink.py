"""A sudden loss of configuration is held back; what people do with a few services is not."""

from datetime import UTC, datetime

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from google.protobuf.message import Message

from hostmesh_agent.cache import Entry
from hostmesh_agent.exchange import Exchange
from hostmesh_agent.shrink import LEAST_TABLE_BYTES, loss
from hostmesh_api.delta import ClientStream, Resource, Update
from hostmesh_api.v1.hostmesh_pb2 import HostConfig, Workload
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    CONFIRMATION_NAME,
    CONFIRMATION_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    HELD_BACK,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    VIRTUAL_HOST_TYPE,
)
from hostmesh_controller.xds.clusters import missing
from hostmesh_controller.xds.encoding import absent
from hostmesh_controller.xds.encoding import resource as encoded

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = tuple(f"outbound|80||s{number}" for number in range(12))


def cluster(name: str, stat: str = "") -> Resource:
    return encoded(name, Cluster(name=name, type=Cluster.EDS, alt_stat_name=stat))


def endpoints(name: str, count: int) -> Resource:
    message = ClusterLoadAssignment(cluster_name=name)
    for _ in range(count):
        message.endpoints.add().lb_endpoints.add()
    return encoded(name, message)


def host_config(*ports: int) -> Resource:
    workloads = [Workload(namespace="n", name=f"w{port}", ports=[port]) for port in ports]
    return encoded("self", HostConfig(host="h", workloads=workloads))


def listener(name: str, size: int) -> Resource:
    message: Message = ResourceMessage(name="x" * size)
    return encoded(name, message)


def held(*resources: Resource) -> dict[str, Resource]:
    return {each.name: each for each in resources}


CLUSTERS = held(*map(cluster, NAMES))
SERVED = held(*(endpoints(name, 2) for name in NAMES))


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (12, "12 of 12 clusters would go at once"),
        (8, "8 of 12 clusters would go at once"),
        (7, ""),  # an application of a few services
    ],
)
def test_most_of_many_is_a_loss_and_a_few_are_not(gone: int, said: str) -> None:
    assert loss(CLUSTER_TYPE, CLUSTERS, dict.fromkeys(NAMES[:gone])) == said


def test_half_of_many_is_what_people_do() -> None:
    many = held(*(cluster(f"c{number}") for number in range(40)))
    assert loss(CLUSTER_TYPE, many, dict.fromkeys(list(many)[:20])) == ""
    assert loss(CLUSTER_TYPE, many, dict.fromkeys(list(many)[:21])) == "21 of 40 clusters would go at once"


def test_what_stands_for_nothing_counts_as_gone() -> None:
    gone = {name: encoded(name, missing(name)) for name in NAMES}
    assert loss(CLUSTER_TYPE, CLUSTERS, gone)
    assert not loss(CLUSTER_TYPE, held(*gone.values()), dict.fromkeys(NAMES)), "it was nothing before"
    hosts = held(*(encoded(f"80/{name}", Cluster(name=name)) for name in NAMES))
    assert loss(VIRTUAL_HOST_TYPE, hosts, {name: absent(name) for name in hosts})


def test_services_that_lose_their_endpoints_all_at_once_are_a_loss_and_one_is_not() -> None:
    assert loss(ENDPOINT_TYPE, SERVED, {name: endpoints(name, 0) for name in NAMES})
    assert not loss(ENDPOINT_TYPE, SERVED, {NAMES[0]: endpoints(NAMES[0], 0)})
    assert not loss(ENDPOINT_TYPE, SERVED, {name: endpoints(name, 1) for name in NAMES}), "each still has one"


def test_a_host_that_loses_most_of_its_own_ports_is_told_from_a_program_that_leaves() -> None:
    before = held(host_config(*range(1, 10)))
    assert (
        loss(HOST_CONFIG_TYPE, before, held(host_config())) == "9 of 9 ports of this host's programs would go at once"
    )
    assert not loss(HOST_CONFIG_TYPE, before, held(host_config(1, 2, 3)))
    assert not loss(HOST_CONFIG_TYPE, held(host_config(1, 2, 3, 4)), held(host_config())), "a small host is emptied"
    assert not loss(HOST_CONFIG_TYPE, held(host_config(1)), held(host_config())), "its only program leaves"


def test_a_large_table_of_names_that_loses_half_is_a_loss() -> None:
    large = held(listener("dns", LEAST_TABLE_BYTES))
    assert "dns would lose" in loss(LISTENER_TYPE, large, held(listener("dns", 1000)))
    assert not loss(LISTENER_TYPE, large, held(listener("dns", LEAST_TABLE_BYTES // 2 + 1000)))
    assert not loss(LISTENER_TYPE, held(listener("dns", 9000)), held(listener("dns", 10)))


def exchange() -> Exchange:
    made = Exchange(Entry(CLUSTER_TYPE, False, each) for each in CLUSTERS.values())
    made.connected()
    made.envoy_connected()
    made.receive(DeltaDiscoveryRequest(type_url=CLUSTER_TYPE, resource_names_subscribe=NAMES), NOW)
    for push in made.pushes():
        made.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    return made


def lost(made: Exchange, nonce: str = "u1") -> list[DeltaDiscoveryRequest]:
    return made.update(Update(CLUSTER_TYPE, nonce, (), NAMES[:10]))


def test_a_loss_is_refused_by_name_and_nothing_of_it_reaches_envoy_or_the_disk() -> None:
    made = exchange()
    refused, asked = lost(made)
    assert refused.error_detail.message.startswith(f"{HELD_BACK}10 of 12 clusters would go at once")
    assert (asked.type_url, list(asked.resource_names_subscribe)) == (CONFIRMATION_TYPE, [CONFIRMATION_NAME])
    assert made.pushes() == []
    assert made.settle(NOW) == []
    assert made.take_changes() == []
    assert made.held_back


def test_what_changes_of_things_that_are_here_waits_too_and_what_is_new_passes() -> None:
    made = exchange()
    lost(made)
    changed, new = cluster(NAMES[11], "other"), cluster("outbound|80||new")
    made.receive(DeltaDiscoveryRequest(type_url=CLUSTER_TYPE, resource_names_subscribe=[new.name]), NOW)
    (refused,) = made.update(Update(CLUSTER_TYPE, "u2", (changed, new), ()))
    assert refused.HasField("error_detail")
    (push,) = made.pushes()
    assert push.names == (new.name,)


def test_expulsions_pass() -> None:
    made = exchange()
    lost(made)
    made.receive(DeltaDiscoveryRequest(type_url=EXTENSION_TYPE, resource_names_subscribe=["expelled"]), NOW)
    assert made.update(Update(EXTENSION_TYPE, "u2", (encoded("expelled", Cluster()),), ())) == []
    (push,) = made.pushes()
    assert push.names == ("expelled",)


def test_what_was_lost_and_comes_back_ends_it_without_a_word_to_envoy() -> None:
    made = exchange()
    lost(made)
    told = made.update(Update(CLUSTER_TYPE, "u2", tuple(CLUSTERS[name] for name in NAMES[:10]), ()))
    assert not made.held_back
    assert [list(each.resource_names_unsubscribe) for each in told] == [[CONFIRMATION_NAME]]
    assert made.pushes() == []


def test_a_loss_that_an_operator_confirms_is_taken() -> None:
    made = exchange()
    lost(made)
    made.update(Update(CONFIRMATION_TYPE, "c1", (encoded(CONFIRMATION_NAME, Cluster()),), ()))
    assert not made.held_back
    (push,) = made.pushes()
    assert sorted(push.removed) == sorted(NAMES[:10])


def test_a_controller_without_a_confirmation_confirms_nothing() -> None:
    made = exchange()
    lost(made)
    made.update(Update(CONFIRMATION_TYPE, "c1", (), (CONFIRMATION_NAME,)))
    assert made.held_back


def test_a_loss_in_two_parts_is_still_held_back_with_the_second() -> None:
    made = exchange()
    lost(made)
    (refused,) = made.update(Update(CLUSTER_TYPE, "u2", (), NAMES[10:]))
    assert refused.HasField("error_detail")
    assert made.pushes() == []


def test_a_new_stream_starts_from_what_is_here() -> None:
    made = exchange()
    lost(made)
    made.disconnected()
    assert not made.held_back
    requests = {each.type_url: each for each in made.connected()}
    assert len(requests[CLUSTER_TYPE].initial_resource_versions) == len(NAMES)
    assert CONFIRMATION_TYPE not in requests, "nothing is there to confirm"
