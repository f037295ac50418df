"""The cold copy: what is in it is what is sent hot, byte for byte; who is told of what; what the disk may do to it."""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from structlog.testing import capture_logs

from golden.objects import mesh_of, obj, vips_of
from golden.test_golden import CASES, mesh_of_case
from hostmesh_agent.absence import is_no_cluster
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.cold import Cold
from hostmesh_agent.cold_copy import FILE, ColdCopy, ColdCopyError
from hostmesh_agent.exchange import Exchange
from hostmesh_api.cold import ANY_CALLER, BUCKETS, bucket_of, page_name, with_caller, without_leading
from hostmesh_api.delta import ClientStream, Push, Resource, Update
from hostmesh_api.identity import parse_identity
from hostmesh_api.wire import CLUSTER_TYPE, COLD_TYPE, ENDPOINT_TYPE, VIRTUAL_HOST_TYPE
from hostmesh_controller import xds
from hostmesh_controller.cold import PAGES_AT_ONCE
from hostmesh_controller.hub import Connection, Hub
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.xds import cold_pages
from hostmesh_controller.xds.cold_pages import seen_by
from hostmesh_controller.xds.host_config import outbound_identity
from waiting import until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MANY = 64 * 2**20
SECTOR = 512


def service(name: str, protocol: str = "http") -> ApiObject:
    ports = [{"name": protocol, "port": 80 if protocol == "http" else 9000}]
    return obj("Service", name, {"selector": {"app": name}, "ports": ports})


def workload(name: str, address: str) -> ApiObject:
    return obj("WorkloadEntry", f"{name}-1", {"address": address, "labels": {"app": name}})


def host(name: str, address: str) -> ApiObject:
    return obj("Host", name, {"addresses": [address]})


def objects() -> list[ApiObject]:
    hosts = [host("one", "10.0.0.1"), host("two", "10.0.0.2")]
    return [*hosts, service("a"), service("raw", "tcp"), workload("a", "10.0.9.1"), workload("raw", "10.0.9.2")]


class Fleet:
    """Hosts that ask one hub for cold copies alone."""

    def __init__(self, mesh: Mesh) -> None:
        self.hub = Hub(mesh, 1)
        self.woken: list[str] = []

    def connect(self, name: str, held: dict[str, str] | None = None) -> Connection:
        connection = self.hub.connect(name, "peer", NOW, lambda: self.woken.append(name))
        asked = DeltaDiscoveryRequest(
            type_url=COLD_TYPE, resource_names_subscribe=["*"], initial_resource_versions=held or {}
        )
        self.hub.receive(connection, asked, NOW)
        return connection

    def settle(self, *connections: Connection) -> list[Push]:
        """Let all that is due be made and sent; return what held anything."""
        sent: list[Push] = []
        if self.hub.cold.has_changed:
            self.hub.cold.take()
        while self.hub.cold.step():
            for connection in connections:
                for push in self.hub.pushes(connection):
                    sent.append(push)
                    self.hub.receive(connection, ClientStream.ack(COLD_TYPE, push.nonce), NOW)
        return [push for push in sent if push.names or push.removed]

    def publish(self, *changed: ApiObject, gone: ApiObject | None = None) -> None:
        mesh = self.hub.mesh
        new: dict[ObjectKey, ApiObject | None] = {each.key: each for each in changed}
        new |= {} if gone is None else {gone.key: None}
        here = [each for each in {**mesh.objects, **new}.values() if each is not None]
        mesh, touched = update(mesh, new, vips_of(here), mesh.runtime)
        self.hub.publish(mesh, touched, self.hub.revision + 1)


def pages_of(pushes: list[Push]) -> list[Resource]:
    return [
        page for push in pushes for page in ClientStream.update(DeltaDiscoveryResponse.FromString(push.data)).resources
    ]


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[ColdCopy]:
    made = ColdCopy(tmp_path, MANY)
    yield made
    made.close()


def filled(copy: ColdCopy, mesh: Mesh, name: str) -> Cold:
    fleet = Fleet(mesh)
    copy.write(pages_of(fleet.settle(fleet.connect(name))), ())
    return Cold(copy, caller_of(mesh, name))


def caller_of(mesh: Mesh, name: str) -> Callable[[], str]:
    slug = parse_identity(outbound_identity(mesh, mesh.hosts[name])).slug
    return lambda: slug


def asked(mesh: Mesh, name: str) -> Iterator[tuple[str, str]]:
    """Yield what a host's Envoy may ask for when its programs call the services that it sees."""
    viewer = mesh.viewer_of(name)
    for each in seen_by(mesh, viewer).services:
        for cluster in cold_pages.cluster_names(mesh, viewer, each):
            yield CLUSTER_TYPE, cluster
            yield ENDPOINT_TYPE, cluster
        for port in filter(cold_pages.speaks_http, each.ports):
            for header in cold_pages.host_headers(mesh, viewer, each):
                yield VIRTUAL_HOST_TYPE, f"{port.number}/{header}"
                yield VIRTUAL_HOST_TYPE, f"{port.number}/{header if ':' not in header else f'[{header}]'}:{port.number}"


def is_nothing(type_url: str, resource: Resource) -> bool:
    return is_no_cluster(resource) if type_url == CLUSTER_TYPE else xds.is_absent(resource)


@pytest.mark.parametrize("case", CASES)
def test_what_is_in_the_copy_is_what_is_sent_hot_byte_for_byte(case: str, tmp_path: Path) -> None:
    mesh = mesh_of_case(case)
    compared = 0
    for number, name in enumerate(mesh.hosts):
        copy = ColdCopy(tmp_path / str(number), MANY)
        cold = filled(copy, mesh, name)
        for type_url, each in asked(mesh, name):
            found, hot = cold.answer(type_url, each), xds.resource(mesh, name, type_url, each)
            if found is None and hot is not None and type_url != ENDPOINT_TYPE:
                hot = None if is_nothing(type_url, hot) else hot
            assert found == hot, (name, type_url, each)
            compared += found is not None
        copy.close()
    assert compared or not any(seen_by(mesh, mesh.viewer_of(name)).services for name in mesh.hosts)


def test_nobody_is_told_before_it_is_their_turn_and_hosts_that_see_the_same_share_the_bytes() -> None:
    fleet = Fleet(mesh_of(objects()))
    one, two = fleet.connect("one"), fleet.connect("two")
    assert not fleet.woken
    assert not list(fleet.hub.pushes(one))
    for _ in range(BUCKETS):
        assert fleet.hub.cold.step()
    assert not fleet.woken, "a part of a copy is none"
    pushes = fleet.settle(one, two)
    assert [page.body for page in pages_of(pushes)].count(pages_of(pushes)[0].body) == 2
    assert fleet.hub.converged(1) == {"one": True, "two": True}


def test_a_moved_endpoint_costs_each_copy_one_page_of_endpoints_and_nothing_before_its_time() -> None:
    fleet = Fleet(mesh_of(objects()))
    one, two = fleet.connect("one"), fleet.connect("two")
    fleet.settle(one, two)
    for number in range(3):
        fleet.publish(workload("a", f"10.0.9.{20 + number}"))
    assert not fleet.hub.cold.step(), "what is gathered waits"
    page = page_name("endpoints", bucket_of("a.default.svc.cluster.local"))
    assert [push.names for push in fleet.settle(one, two)] == [(page,), (page,)]
    assert fleet.settle(one, two) == []


def test_a_service_more_costs_its_own_pages_and_one_that_goes_takes_them_away() -> None:
    fleet = Fleet(mesh_of(objects()))
    one = fleet.connect("one")
    fleet.settle(one)
    fleet.publish(service("z"))
    bucket = bucket_of("z.default.svc.cluster.local")
    assert [push.names for push in fleet.settle(one)] == [(page_name("config", bucket), page_name("endpoints", bucket))]
    fleet.publish(gone=service("z"))
    (push,) = fleet.settle(one)
    assert set(push.removed) == {page_name("config", bucket), page_name("endpoints", bucket)}


def test_a_route_of_one_service_to_another_is_told_when_the_other_changes() -> None:
    http = [{"route": [{"destination": {"host": "raw", "port": {"number": 9000}}}]}]
    fleet = Fleet(mesh_of([*objects(), obj("VirtualService", "a", {"hosts": ["a"], "http": http})]))
    one = fleet.connect("one")
    fleet.settle(one)
    fleet.publish(obj("VirtualService", "a", {"hosts": ["a"], "http": [{**http[0], "timeout": "3s"}]}))
    assert [push.names for push in fleet.settle(one)] == [
        (page_name("config", bucket_of("a.default.svc.cluster.local")),)
    ]


def test_a_host_that_sees_little_has_little() -> None:
    sidecar = obj("Sidecar", "default", {"egress": [{"hosts": ["./a.default.svc.cluster.local"]}]})
    fleet = Fleet(mesh_of([*objects(), sidecar]))
    (push,) = fleet.settle(fleet.connect("one"))
    bucket = bucket_of("a.default.svc.cluster.local")
    assert push.names == (page_name("config", bucket), page_name("endpoints", bucket))


def test_who_comes_back_with_the_same_versions_is_sent_nothing() -> None:
    fleet = Fleet(mesh_of(objects()))
    one = fleet.connect("one")
    held = {page.name: page.version for page in pages_of(fleet.settle(one))}
    fleet.hub.disconnect(one)
    again = Fleet(mesh_of(objects()))
    assert held
    assert again.settle(again.connect("one", held)) == []


def test_a_large_copy_comes_in_small_responses_of_which_each_is_acknowledged_before_the_next() -> None:
    many = [service(f"s{number}") for number in range(60)]
    fleet = Fleet(mesh_of([host("one", "10.0.0.1"), *many]))
    one = fleet.connect("one")
    while fleet.hub.cold.step():
        pass
    first = list(fleet.hub.pushes(one))
    assert [len(push.names) for push in first] == [PAGES_AT_ONCE]
    assert not fleet.hub.cold.step(), "nothing is due before the first is on disk"
    fleet.hub.receive(one, ClientStream.ack(COLD_TYPE, first[0].nonce), NOW)
    assert fleet.hub.cold.step()


def broken_rule() -> ApiObject:
    """An object that no check lets in and that the constructors stumble over."""
    rule = obj("DestinationRule", "broken", {"host": "a", "trafficPolicy": {"tls": {"mode": "DISABLE"}}})
    assert isinstance(rule.spec, DestinationRuleSpec)
    assert rule.spec.traffic_policy is not None
    policy = rule.spec.traffic_policy.model_copy(update={"outlier_detection": "none such"})
    return replace(rule, spec=rule.spec.model_copy(update={"traffic_policy": policy}))


def test_a_page_that_cannot_be_made_leaves_hosts_what_they_have() -> None:
    fleet = Fleet(mesh_of(objects()))
    one = fleet.connect("one")
    fleet.settle(one)
    with capture_logs() as logs:
        fleet.publish(broken_rule(), service("z"))
        pushes = fleet.settle(one)
    broken = page_name("config", bucket_of("a.default.svc.cluster.local"))
    assert [each["page"] for each in logs if "could not be made" in each["event"]] == [broken]
    (push,) = pushes
    assert broken not in (*push.names, *push.removed)
    assert page_name("config", bucket_of("z.default.svc.cluster.local")) in push.names


def test_a_short_name_that_is_a_services_own_name_means_that_one(tmp_path: Path) -> None:
    spec = {"hosts": ["a.default"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "DNS"}
    mesh = mesh_of([*objects(), obj("ServiceEntry", "other", spec)])
    copy = ColdCopy(tmp_path, MANY)
    found = filled(copy, mesh, "one").answer(VIRTUAL_HOST_TYPE, "80/a.default")
    assert found == xds.resource(mesh, "one", VIRTUAL_HOST_TYPE, "80/a.default")
    copy.close()


# On the host


def test_a_damaged_page_is_left_out_and_comes_again(tmp_path: Path) -> None:
    copy = ColdCopy(tmp_path, MANY)
    mesh = mesh_of(objects())
    filled(copy, mesh, "one")
    page = page_name("config", bucket_of("a.default.svc.cluster.local"))
    before = set(copy.versions())
    copy.close()
    with sqlite3.connect(tmp_path / FILE) as raw:
        raw.execute(
            "UPDATE page SET body = CAST(substr(body, 1, 40) || x'00' || substr(body, 42) AS BLOB) WHERE name=?",
            (page,),
        )
    raw.close()
    copy = ColdCopy(tmp_path, MANY)
    cold = Cold(copy, lambda: "host")
    assert cold.answer(VIRTUAL_HOST_TYPE, "80/a") is None
    assert cold.answer(CLUSTER_TYPE, "outbound|9000||raw.default.svc.cluster.local") is not None
    assert page not in cold.opening().initial_resource_versions
    assert set(copy.versions()) == before - {page}
    copy.close()


@pytest.mark.parametrize("damage", [b"", b"no database at all" * 100])
def test_a_file_that_is_no_copy_is_set_aside_or_begun_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE).write_bytes(damage)
    copy = ColdCopy(tmp_path, MANY)
    assert copy.versions() == {}
    filled(copy, mesh_of(objects()), "one")
    assert copy.size()[0] == 2
    copy.close()


def test_a_page_that_was_damaged_while_the_agent_runs_is_not_used(tmp_path: Path) -> None:
    copy = ColdCopy(tmp_path, MANY)
    cold = filled(copy, mesh_of(objects()), "one")
    assert cold.answer(VIRTUAL_HOST_TYPE, "80/a") is not None
    with sqlite3.connect(tmp_path / FILE) as raw:
        raw.execute("UPDATE page SET version = 'other'")
    raw.close()
    assert cold.answer(VIRTUAL_HOST_TYPE, "80/a") is None
    copy.close()


def test_a_copy_of_another_format_is_set_aside(tmp_path: Path) -> None:
    ColdCopy(tmp_path, MANY).close()
    with sqlite3.connect(tmp_path / FILE) as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    copy = ColdCopy(tmp_path, MANY)
    assert (tmp_path / f"{FILE}.unreadable").exists()
    copy.close()


def test_a_sector_that_was_overwritten_ends_nothing_and_what_was_in_it_comes_again(tmp_path: Path) -> None:
    many = [service(f"s{number}") for number in range(30)]
    mesh = mesh_of([host("one", "10.0.0.1"), *many])
    copy = ColdCopy(tmp_path / "whole", MANY)
    cold = filled(copy, mesh, "one")
    whole = dict(copy.versions())
    answers = {each: cold.answer(*each) for each in list(asked(mesh, "one"))[:12]}
    fleet = Fleet(mesh)
    pages = {page.name: page for page in pages_of(fleet.settle(fleet.connect("one")))}
    copy.close()
    data = (tmp_path / "whole" / FILE).read_bytes()
    chance = random.Random(7)
    lost = 0
    for at in range(0, len(data), SECTOR):
        directory = tmp_path / str(at)
        directory.mkdir()
        damage = chance.choice((bytes(SECTOR), chance.randbytes(SECTOR)))
        (directory / FILE).write_bytes(data[:at] + damage + data[at + SECTOR :])
        alarms = Alarms()
        copy = ColdCopy(directory, MANY, alarms)
        cold = Cold(copy, caller_of(mesh, "one"))
        assert all(cold.answer(*each) in (None, answer) for each, answer in answers.items())
        # A tree that is damaged where nothing has looked shows when it is written.
        with suppress(ColdCopyError):
            copy.write(list(pages.values()), ())
        held = cold.opening().initial_resource_versions
        copy.write([page for name, page in pages.items() if held.get(name) != page.version], set(held) - set(pages))
        assert copy.versions() == whole, at
        assert {each: cold.answer(*each) for each in answers} == answers
        lost += (directory / f"{FILE}.unreadable").exists()
        assert list(alarms) == []
        copy.close()
        shutil.rmtree(directory)
    assert lost


def test_what_was_set_aside_first_is_kept_whatever_is_damaged_later(tmp_path: Path) -> None:
    for damage in (b"first" * 1000, b"second" * 1000):
        (tmp_path / FILE).write_bytes(damage)
        alarms = Alarms()
        copy = ColdCopy(tmp_path, MANY, alarms)
        assert [each.code for each in alarms] == ["cold.lost"]
        filled(copy, mesh_of(objects()), "one")
        assert list(alarms) == []
        copy.close()
    assert (tmp_path / f"{FILE}.unreadable").read_bytes().startswith(b"first")


def test_what_there_is_no_room_for_is_left_out_by_name(tmp_path: Path) -> None:
    copy = ColdCopy(tmp_path, 700)
    mesh = mesh_of(objects())
    cold = filled(copy, mesh, "one")
    assert copy.left_out
    assert copy.size()[1] <= 700
    (problem,) = cold.problems()
    assert "cold.max_mb" in problem
    copy.write((), copy.left_out)
    assert cold.problems() == []
    copy.close()


async def test_a_copy_that_cannot_be_written_is_not_acknowledged_until_it_can(copy: ColdCopy, tmp_path: Path) -> None:
    fleet = Fleet(mesh_of(objects()))
    (push,) = fleet.settle(fleet.connect("one"))
    cold, told = Cold(copy, lambda: "host", retry_s=0.05), list[DeltaDiscoveryRequest]()
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(cold.run(told.append))
        cold.take(DeltaDiscoveryResponse.FromString(push.data))
        await until(lambda: bool(cold.problems()), "it says why")
        assert "not up to date" in cold.problems()[0]
        assert not told
        other.execute("ROLLBACK")
        await until(lambda: bool(told), "it is written")
        running.cancel()
    other.close()
    assert cold.problems() == []
    assert [each.response_nonce for each in told] == [push.nonce]


def test_a_write_that_fails_leaves_what_was_there(copy: ColdCopy) -> None:
    cold = filled(copy, mesh_of(objects()), "one")
    copy.close()
    with pytest.raises(ColdCopyError):
        copy.write((), ("config/00",))
    assert cold.answer(CLUSTER_TYPE, "tcp|240.240.0.1:80") is None


def envoys(cold: Cold | None) -> Exchange:
    made = Exchange(cold=cold)
    made.envoy_connected()
    for type_url, name in ((VIRTUAL_HOST_TYPE, "80/a"), (CLUSTER_TYPE, "outbound|80||a.default.svc.cluster.local")):
        made.receive(DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=[name]), NOW)
    return made


def test_envoy_is_answered_from_the_copy_at_once_while_there_is_no_controller(copy: ColdCopy) -> None:
    made = envoys(filled(copy, mesh_of(objects()), "one"))
    assert {push.names for push in made.pushes()} == {
        ("80/a",),
        ("outbound|80||a.default.svc.cluster.local",),
    }


def test_what_the_controller_says_when_it_is_back_is_no_news_if_it_is_the_same(copy: ColdCopy) -> None:
    mesh = mesh_of(objects())
    made = envoys(filled(copy, mesh, "one"))
    for push in made.pushes():
        made.receive(ClientStream.ack(push.type_url, push.nonce), NOW)
    made.connected()
    hot = xds.resource(mesh, "one", VIRTUAL_HOST_TYPE, "80/a")
    assert hot is not None
    made.update(Update(VIRTUAL_HOST_TYPE, "u1", (hot,), ()))
    assert made.pushes() == []
    assert [each.response_nonce for each in made.settle(NOW)] == ["u1"]


def test_while_there_is_a_controller_it_is_asked(copy: ColdCopy) -> None:
    made = Exchange(cold=filled(copy, mesh_of(objects()), "one"))
    made.connected()
    made.envoy_connected()
    made.receive(DeltaDiscoveryRequest(type_url=VIRTUAL_HOST_TYPE, resource_names_subscribe=["80/a"]), NOW)
    assert made.pushes() == []


def test_what_the_hosts_floor_forbids_is_not_taken_from_the_copy_either(copy: ColdCopy) -> None:
    cold = filled(copy, mesh_of(objects()), "one")
    made = Exchange(cold=cold, host_refuses=lambda type_url, _: "no" if type_url == VIRTUAL_HOST_TYPE else "")
    made.envoy_connected()
    made.receive(DeltaDiscoveryRequest(type_url=VIRTUAL_HOST_TYPE, resource_names_subscribe=["80/a"]), NOW)
    assert made.pushes() == []


# The wire


def test_the_callers_directory_is_put_back_however_deep_it_is() -> None:
    message = ResourceMessage(name="certs/other/sds.json", aliases=[f"certs/{ANY_CALLER}/sds.json"])
    message.resource.value = ResourceMessage(aliases=[f"certs/{ANY_CALLER}"]).SerializeToString()
    slug = "ns.shop.sa." + "x" * 150
    changed = ResourceMessage.FromString(with_caller(message.SerializeToString(), slug))
    assert changed.aliases == [f"certs/{slug}/sds.json"]
    assert ResourceMessage.FromString(changed.resource.value).aliases == [f"certs/{slug}"]
    assert changed.name == "certs/other/sds.json"


def test_only_leading_fields_are_taken_off() -> None:
    message = ResourceMessage(version="1", name="n", aliases=["a", "b"]).SerializeToString(deterministic=True)
    assert ResourceMessage.FromString(without_leading(message, (1,))).version == ""
    assert ResourceMessage.FromString(without_leading(message, (3,))).name == "n", "it is not the first"
    assert ResourceMessage.FromString(without_leading(message, (1, 3))).aliases == ["a", "b"]


def test_buckets_are_used_evenly() -> None:
    counts = [0] * BUCKETS
    for number in range(5_000):
        counts[bucket_of(f"reviews-{number}.default.svc.cluster.local")] += 1
    assert max(counts) < 80
