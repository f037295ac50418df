"""A sudden loss of configuration is held back; what people do with a few services is not."""

from collections.abc import Iterable
from datetime import UTC, datetime

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from google.protobuf.message import Message

from hostmesh_agent.cache import Entry
from hostmesh_agent.exchange import Exchange
from hostmesh_agent.loss import LEAST_TABLE_BYTES, MANY_ENDPOINTS, loss
from hostmesh_api.delta import ClientStream, Resource, Update
from hostmesh_api.origin import Origin
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
        (5, "5 of 12 clusters would go at once"),
        (4, ""),  # a third: a program or two
    ],
)
def test_much_of_what_is_there_is_a_loss_and_a_third_is_not(gone: int, said: str) -> None:
    assert loss(CLUSTER_TYPE, CLUSTERS, dict.fromkeys(NAMES[:gone])) == said


@pytest.mark.parametrize(("gone", "there", "is_loss"), [(12, 22, True), (4, 8, True), (3, 3, False), (10, 30, False)])
def test_half_of_a_mesh_is_a_loss_be_it_large_or_small(gone: int, there: int, *, is_loss: bool) -> None:
    many = held(*(cluster(f"c{number}") for number in range(there)))
    assert bool(loss(CLUSTER_TYPE, many, dict.fromkeys(list(many)[:gone]))) == is_loss


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


def test_endpoints_that_hosts_take_along_are_measured_by_what_hosts_do() -> None:
    def of(count: int) -> str:
        return loss(ENDPOINT_TYPE, SERVED, {name: endpoints(name, 0) for name in NAMES[:count]}, MANY_ENDPOINTS)

    assert not of(7), "two hosts are drained"
    assert of(8) == "8 of 12 services' endpoints would go at once"


def test_more_than_a_third_of_a_hosts_own_ports_is_much_be_it_one() -> None:
    before = held(host_config(*range(1, 10)))
    assert (
        loss(HOST_CONFIG_TYPE, before, held(host_config())) == "9 of 9 ports of this host's programs would go at once"
    )
    assert not loss(HOST_CONFIG_TYPE, before, held(host_config(*range(1, 7)))), "a third"
    assert loss(HOST_CONFIG_TYPE, held(host_config(1)), held(host_config())), "most hosts serve one program"
    assert loss(HOST_CONFIG_TYPE, held(host_config(1, 2, 3, 4)), held(host_config(4))), "one of four came back"


def test_a_large_table_of_names_that_loses_more_than_a_third_is_a_loss() -> None:
    large = held(listener("dns", LEAST_TABLE_BYTES * 2))
    assert "dns would lose" in loss(LISTENER_TYPE, large, held(listener("dns", LEAST_TABLE_BYTES)))
    assert not loss(LISTENER_TYPE, large, held(listener("dns", LEAST_TABLE_BYTES * 3 // 2)))
    assert not loss(LISTENER_TYPE, held(listener("dns", 8000)), held(listener("dns", 10)))


@pytest.mark.parametrize("name", ["virtualInbound", "0.0.0.0_8443", "10.0.0.1_8080"])
def test_a_listener_that_loses_keys_of_end_users_tokens_is_none(name: str) -> None:
    """Whoever issues them withdraws some by himself: of a gateway's 20 KiB of keys two thirds may go at once."""
    assert not loss(LISTENER_TYPE, held(listener(name, 24 * 1024)), held(listener(name, 8 * 1024)))


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
    told = made.update(Update(CONFIRMATION_TYPE, "c1", (encoded(CONFIRMATION_NAME, Cluster()),), ()))
    assert [list(each.resource_names_unsubscribe) for each in told] == [[], [CONFIRMATION_NAME]], "it is for this loss"
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


# What explains a loss, and what comes with it


def at(revision: int, lineage: str = "aa") -> Origin:
    return Origin(lineage, revision, "00")


HOSTS = held(*(encoded(f"80/{name}", Cluster(name=name)) for name in NAMES))
MORE = held(*(cluster(f"more-{number}") for number in range(40)))
HALF = NAMES[:7]


def whole(known: Origin | None = None) -> Exchange:
    """An exchange with a connected Envoy that has everything of three types."""
    made = Exchange(
        [
            Entry(type_url, False, each)
            for type_url, entries in (
                (CLUSTER_TYPE, CLUSTERS | MORE),
                (ENDPOINT_TYPE, SERVED),
                (VIRTUAL_HOST_TYPE, HOSTS),
            )
            for each in entries.values()
        ],
        origin=known,
    )
    made.connected()
    made.envoy_connected()
    for type_url, entries in ((CLUSTER_TYPE, CLUSTERS | MORE), (ENDPOINT_TYPE, SERVED), (VIRTUAL_HOST_TYPE, HOSTS)):
        made.receive(DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=list(entries)), NOW)
    settle(made)
    return made


def settle(made: Exchange) -> list[tuple[str, ...]]:
    """Let Envoy take what is due; return what was removed."""
    removed = []
    while pushes := made.pushes():
        for push in pushes:
            removed.append(push.removed)
            made.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    return [each for each in removed if each]


def removal(type_url: str, names: Iterable[str], origin: Origin | None) -> Update:
    """A response, as it comes after something was written for this host."""
    return Update(type_url, "u", (), tuple(names), origin and origin._replace(is_written=True))


def gone_hosts() -> list[str]:
    return [f"80/{name}" for name in HALF]


def test_a_loss_that_somebody_wrote_is_taken_at_once_in_all_types() -> None:
    made = whole(at(7))
    assert made.update(removal(CLUSTER_TYPE, NAMES, at(8))) == []
    assert made.update(removal(VIRTUAL_HOST_TYPE, list(HOSTS), at(8))) == []
    assert not made.held_back
    assert not made.undecided
    assert sorted(name for each in settle(made) for name in each) == sorted([*NAMES, *HOSTS])


def test_an_agent_that_is_killed_before_envoy_took_what_was_written_is_told_it_again_and_believes_it() -> None:
    made = whole(at(7))
    made.update(removal(CLUSTER_TYPE, NAMES, at(8)))
    assert made.origin_to_keep() == at(7), "what is on disk is of that"
    settle(made)
    made.settle(NOW)
    assert made.take_changes()
    assert made.origin_to_keep() == at(8)


def test_what_nobody_wrote_is_not_believed_by_the_next_agent_either() -> None:
    made = whole(at(7))
    made.update(removal(CLUSTER_TYPE, NAMES[:1], at(8)))
    made.update(removal(CLUSTER_TYPE, NAMES[1:3], at(8))._replace(origin=at(8)))
    assert made.undecided
    assert made.origin_to_keep() == at(8)


@pytest.mark.parametrize("said", [at(7), at(6), at(8, "bb")])
def test_a_loss_that_nobody_wrote_is_held_back(said: Origin) -> None:
    made = whole(at(7))
    made.update(removal(VIRTUAL_HOST_TYPE, gone_hosts(), said))
    assert made.held_back == "7 of 12 virtual hosts would go at once"
    assert settle(made) == []


def test_what_came_before_the_type_that_shows_the_loss_is_held_back_with_it() -> None:
    made = whole(at(7))
    made.update(removal(CLUSTER_TYPE, HALF, at(7)))
    assert made.held_back == "", "7 of 52 are not much"
    assert made.undecided
    assert settle(made) == [], "it waits for what comes with it"
    made.update(removal(VIRTUAL_HOST_TYPE, gone_hosts(), at(7)))
    assert made.held_back
    made.decide()
    assert settle(made) == [], "all of it is held back"
    made.accept()
    assert sorted(name for each in settle(made) for name in each) == sorted([*HALF, *gone_hosts()])


def test_what_comes_after_the_type_that_shows_the_loss_is_held_back_too() -> None:
    made = whole(at(7))
    made.update(removal(VIRTUAL_HOST_TYPE, gone_hosts(), at(7)))
    made.update(removal(CLUSTER_TYPE, NAMES[:1], at(7)))
    made.decide()
    assert settle(made) == []


def test_what_nobody_wrote_and_is_not_much_is_taken_after_a_moment() -> None:
    made = whole(at(7))
    assert made.update(removal(CLUSTER_TYPE, NAMES[:2], at(7))) == []
    assert settle(made) == []
    made.decide()
    assert sorted(name for each in settle(made) for name in each) == sorted(NAMES[:2])
    assert not made.undecided


def test_a_loss_in_small_steps_is_seen_while_they_wait() -> None:
    made = whole(at(7))
    for name in gone_hosts()[:5]:
        made.update(removal(VIRTUAL_HOST_TYPE, [name], at(7)))
    assert made.held_back == "5 of 12 virtual hosts would go at once"
    assert settle(made) == []


def test_what_was_written_meanwhile_takes_the_place_of_what_waits() -> None:
    made = whole(at(7))
    made.update(removal(CLUSTER_TYPE, NAMES[:2], at(7)))
    back = cluster(NAMES[0], "other")
    made.update(Update(CLUSTER_TYPE, "u2", (back,), (), at(8)))
    made.decide()
    assert [names for names in settle(made) if NAMES[0] in names] == []


def test_writes_that_follow_do_not_release_what_is_held_back() -> None:
    made = whole(at(7))
    made.update(removal(VIRTUAL_HOST_TYPE, gone_hosts(), at(7)))
    made.update(removal(CLUSTER_TYPE, NAMES, at(8)))
    assert made.held_back
    assert settle(made) == []
    assert made.origin_to_keep() is None
    made.disconnected()
    made.connected()
    made.update(removal(VIRTUAL_HOST_TYPE, gone_hosts(), at(9)))
    assert made.held_back, "nor do they on the next stream"


def test_endpoints_come_and_go_with_the_hosts_while_a_stream_lasts() -> None:
    made = whole(at(7))
    made.update(Update(ENDPOINT_TYPE, "u0", (endpoints(NAMES[0], 3),), (), at(7)))
    made.decide()
    settle(made)
    made.update(Update(ENDPOINT_TYPE, "u1", tuple(endpoints(name, 0) for name in NAMES[:7]), (), at(7)))
    assert not made.held_back
    assert not made.undecided, "callers hear of it at once"


def test_the_first_endpoints_to_change_after_a_quiet_beginning_do_not_wait_either() -> None:
    """A controller that has nothing new for a host says nothing when the stream begins; a drain comes hours later."""
    made = whole(at(7))
    made.opening_over()
    made.update(Update(ENDPOINT_TYPE, "u1", tuple(endpoints(name, 0) for name in NAMES[:7]), (), at(7)))
    assert not made.held_back
    assert not made.undecided, "callers hear of it at once"
    made.disconnected()
    made.connected()
    made.update(Update(ENDPOINT_TYPE, "u1", tuple(endpoints(name, 3) for name in NAMES[:1]), (), at(7)))
    assert made.undecided, "what the next stream begins with is looked at again"


def test_a_workload_that_becomes_ready_is_called_at_once_under_the_identity_that_its_cluster_gets_for_it() -> None:
    """The cluster comes first. Were it to wait, and its endpoints not, callers would refuse who they meet."""
    made = whole(at(7))
    made.opening_over()
    made.update(Update(CLUSTER_TYPE, "u0", (cluster(NAMES[0], "one identity more"),), (), at(7)))
    made.update(Update(ENDPOINT_TYPE, "u1", (endpoints(NAMES[0], 3),), (), at(7)))
    assert not made.undecided
    assert [push.type_url for push in made.pushes()] == [CLUSTER_TYPE, ENDPOINT_TYPE]


def test_what_takes_something_away_waits_on_a_stream_that_stands_and_so_does_what_comes_with_it() -> None:
    made = whole(at(7))
    made.opening_over()
    made.update(removal(CLUSTER_TYPE, HALF, at(7)))
    made.update(Update(CLUSTER_TYPE, "u1", (cluster(NAMES[11], "other"),), (), at(7)))
    assert made.undecided
    assert made.pushes() == []
    made.update(removal(VIRTUAL_HOST_TYPE, gone_hosts(), at(7)))
    assert made.held_back
    assert made.pushes() == []


def test_far_too_many_endpoints_are_held_back_alone() -> None:
    made = whole(at(7))
    made.update(Update(ENDPOINT_TYPE, "u0", (endpoints(NAMES[0], 3),), (), at(7)))
    made.decide()
    settle(made)
    told = made.update(Update(ENDPOINT_TYPE, "u1", tuple(endpoints(name, 0) for name in NAMES[:9]), (), at(7)))
    assert "9 of 12 services' endpoints" in told[0].error_detail.message
    more = Update(ENDPOINT_TYPE, "u2", (endpoints(NAMES[11], 5),), (), at(7))
    assert made.update(more)[0].HasField("error_detail")
    assert [push.names for push in made.pushes()] == [(NAMES[11],)], "others' endpoints change all the same"
    assert made.update(removal(CLUSTER_TYPE, NAMES[:1], at(7))) == [], "and so does what else changes"
    made.decide()
    assert (NAMES[0],) in settle(made)
    made.update(Update(ENDPOINT_TYPE, "u3", tuple(endpoints(name, 2) for name in NAMES[:4]), (), at(7)))
    assert not made.held_back, "five of them are what hosts do"


def test_endpoints_that_are_gone_when_a_stream_begins_are_a_loss_like_any_other() -> None:
    made = whole(at(7))
    made.update(Update(ENDPOINT_TYPE, "u1", tuple(endpoints(name, 0) for name in NAMES[:5]), (), at(7)))
    assert made.held_back == "5 of 12 services' endpoints would go at once"


def test_a_controller_that_says_nothing_of_its_store_is_judged_response_by_response() -> None:
    made = whole()
    made.update(removal(CLUSTER_TYPE, HALF, None))
    assert not made.undecided
    assert settle(made)
    made.update(removal(VIRTUAL_HOST_TYPE, gone_hosts(), None))
    assert made.held_back
