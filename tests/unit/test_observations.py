"""Observed calls in the controller: who is believed, what is summed up and kept, and how much."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from golden.objects import mesh_of, obj
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ObservedCall, ObservedCalls, WorkloadLease
from hostmesh_controller import observed
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.observations import Observations
from hostmesh_controller.observed import MAX_CALLERS, NOT_TOLD_APART
from hostmesh_controller.reports import bounded
from hostmesh_controller.store import CallKey, CallRecord, PortKey, StoreError
from hostmesh_controller.store.sql import SqlStore
from hostmesh_controller.store.sqlite import open_store

START = datetime(2026, 1, 1, tzinfo=UTC)
WEB = "spiffe://cluster.local/ns/default/sa/web"
DB = PortKey("default", "db", 8080)
TCP = {"name": "tcp", "port": 1}
OBJECTS = [
    obj("Host", "web", {"addresses": ["10.0.0.1"]}),
    obj("Host", "db", {"addresses": ["10.0.0.2", "10.0.0.3"]}),
    obj("WorkloadEntry", "web", {"address": "10.0.0.1", "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("WorkloadEntry", "db", {"address": "10.0.0.2", "labels": {"app": "db"}, "serviceAccount": "db"}),
    obj("WorkloadEntry", "db-old", {"address": "10.0.0.3", "labels": {"app": "old"}, "serviceAccount": "db"}),
    obj(
        "Service",
        "db",
        {"selector": {"app": "db"}, "ports": [{"name": "http", "port": 8080}, {"name": "tcp", "port": 1}]},
    ),
    obj("Service", "old", {"selector": {"app": "old"}, "ports": [TCP]}),
]


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> SqlStore:
    return open_store(tmp_path / "store.sqlite")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@pytest.fixture
def observations(store: SqlStore, clock: Clock) -> Observations:
    return Observations(store, clock, timedelta(days=30))


def report(*calls: ObservedCall, epoch: str = "e", ports: tuple[int, ...] = (8080, 1)) -> HostReport:
    lease = WorkloadLease(namespace="default", name="db", captured_ports=ports)
    return HostReport(leases=[lease], calls=ObservedCalls(epoch=epoch, calls=calls))


def call(chain: str = "0.0.0.0_8080|mtls", caller: str = WEB, count: int = 1, **more: object) -> ObservedCall:
    return ObservedCall(chain=chain, caller=caller, count=count, **{"methods": ["GET"], **more})  # type: ignore[arg-type] # any field


def counts(observations: Observations) -> dict[CallKey, int]:
    return {key: each.count for key, each in observations.calls.items()}


def test_calls_are_of_the_workload_that_has_the_chains_port_on_the_host(observations: Observations, mesh: Mesh) -> None:
    told = [call(), call("0.0.0.0_8080|plaintext", "10.0.0.9"), call("10.0.0.3_1|plaintext", "10.0.0.9", methods=[])]
    observations.reported("db", report(*told), mesh)
    assert counts(observations) == {
        CallKey(*DB, "mtls", WEB): 1,
        CallKey(*DB, "plaintext", "10.0.0.9"): 1,
        CallKey("default", "db-old", 1, "plaintext", "10.0.0.9"): 1,
    }


def test_a_host_cannot_tell_of_calls_to_the_workloads_of_others(observations: Observations, mesh: Mesh) -> None:
    lease = WorkloadLease(namespace="default", name="db", captured_ports=[8080])
    observations.reported("web", HostReport(leases=[lease], calls=ObservedCalls(calls=[call()])), mesh)
    assert not observations.calls
    assert set(observations.ports) == {observed.host_itself("web")}


@pytest.mark.parametrize(
    "nonsense",
    [
        call("0.0.0.0_9999|mtls"),
        call("virtualInbound-blackhole"),
        call("0.0.0.0_8080|sideways"),
        call(caller="10.0.0.9"),
        call(caller="spiffe://elsewhere/ns/default/sa/web"),
        call(caller="spiffe://cluster.local/ns/default/sa/../web"),
        call(caller='spiffe://cluster.local/ns/x/sa/"]\naction: ALLOW'),
        call("0.0.0.0_8080|plaintext", WEB),
        call("0.0.0.0_8080|plaintext", "10.0.0.9\x1b[2J"),
        call("0.0.0.0_8080|plaintext", "1" * 5000),
    ],
)
def test_callers_and_chains_that_cannot_be_are_ignored(
    nonsense: ObservedCall, observations: Observations, mesh: Mesh
) -> None:
    observations.reported("db", report(nonsense), mesh)
    assert not observations.calls


def test_methods_are_those_that_are_known(observations: Observations, mesh: Mesh) -> None:
    observations.reported("db", report(call(methods=["GET", "OTHER", "x: y", "BREW"])), mesh)
    (record,) = observations.calls.values()
    assert record.methods == {"GET", "OTHER"}


def test_sums_that_are_told_again_add_nothing_and_those_of_another_epoch_all(
    observations: Observations, mesh: Mesh
) -> None:
    for epoch, told, total in [("a", 5, 5), ("a", 5, 5), ("a", 8, 8), ("b", 2, 10), ("b", 3, 11), ("b", 1, 12)]:
        observations.reported("db", report(call(count=told, denied=told), epoch=epoch), mesh)
        (record,) = observations.calls.values()
        assert (record.count, record.denied) == (total, total)


def test_when_a_caller_was_seen_is_told_by_the_controllers_clock(
    observations: Observations, clock: Clock, mesh: Mesh
) -> None:
    observations.reported("db", report(call(first_seen_s=60, last_seen_s=10)), mesh)
    clock.now += timedelta(hours=1)
    observations.reported("db", report(call(count=2, first_seen_s=3660, last_seen_s=5)), mesh)
    (record,) = observations.calls.values()
    assert record.first_seen == START - timedelta(seconds=60)
    assert record.last_seen == clock.now - timedelta(seconds=5)


def test_so_many_callers_of_a_port_are_told_apart_and_the_rest_is_one(observations: Observations, mesh: Mesh) -> None:
    many = [call("0.0.0.0_8080|plaintext", f"10.1.{i // 250}.{i % 250}") for i in range(MAX_CALLERS + 30)]
    for start in range(0, len(many), 500):
        observations.reported("db", report(*many[start : start + 500]), mesh)
    assert len(observations.calls) == MAX_CALLERS + 1
    rest = observations.calls[CallKey(*DB, "plaintext", NOT_TOLD_APART)]
    assert (rest.count, rest.last_seen) == (0, START)


def test_no_more_is_kept_of_the_mesh_than_may_be(
    observations: Observations, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostmesh_controller.observations.MAX_RECORDS", 10)
    monkeypatch.setattr("hostmesh_controller.observations.MAX_CALLERS", 1)
    for index in range(30):
        observations.reported("db", report(call(caller=f"{WEB}{index}")), mesh)
        observations.reported("db", report(call("10.0.0.3_1|mtls", f"{WEB}{index}")), mesh)
    assert len(observations.calls) <= 11


def test_a_port_is_watched_while_its_agent_counts_and_captures_it(
    observations: Observations, clock: Clock, mesh: Mesh
) -> None:
    observations.reported("db", report(ports=(8080,)), mesh)
    clock.now += timedelta(hours=1)
    observations.reported("db", report(ports=(8080, 1)), mesh)
    since = {key.port: each.since for key, each in observations.ports.items()}
    assert since == {8080: START, 1: clock.now, 0: START}
    observations.reported("db", report(ports=(1,)), mesh)
    clock.now += timedelta(hours=1)
    observations.reported("db", report(ports=(8080, 1)), mesh)
    assert observations.ports[DB].since == clock.now
    without = HostReport(leases=[WorkloadLease(namespace="default", name="db", captured_ports=[8080])])
    observations.reported("db", without, mesh)
    assert not observations.ports


class Writes:
    """A store that counts what is written to it, and can fail."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.failing = False
        self.rows: list[int] = []

    def calls(self) -> list[CallRecord]:
        return self._store.calls()

    def watched_ports(self):  # type: ignore[no-untyped-def] # as the store's
        return self._store.watched_ports()

    def flows(self):  # type: ignore[no-untyped-def] # as the store's
        return self._store.flows()

    def put_flows(self, flows=(), gone=()) -> None:  # type: ignore[no-untyped-def] # as the store's
        self._store.put_flows(flows, gone)

    def put_observations(self, calls=(), ports=(), **gone) -> None:  # type: ignore[no-untyped-def] # as the store's
        if self.failing:
            raise StoreError("disk full")
        self.rows.append(len(calls) + len(ports))
        self._store.put_observations(calls, ports, **gone)


async def test_what_is_new_is_written_soon_counts_seldom_and_nothing_costs_nothing(
    store: SqlStore, clock: Clock, mesh: Mesh
) -> None:
    writes = Writes(store)
    observations = Observations(writes, clock, timedelta(days=30))
    observations.reported("db", report(call()), mesh)
    await observations.write()
    assert writes.rows == [4]  # a caller, two ports and the host itself
    for count in range(2, 12):
        observations.reported("db", report(call(count=count)), mesh)
        await observations.write()
    assert writes.rows == [4, 1]
    for _ in range(20):
        observations.reported("db", report(), mesh)
        observations.reported("db", report(call(count=11)), mesh)
        await observations.write()
    assert writes.rows == [4, 1, 1]


async def test_all_of_it_is_there_after_a_restart(store: SqlStore, clock: Clock, mesh: Mesh) -> None:
    first = Observations(store, clock, timedelta(days=30))
    first.reported("db", report(call(denied=1), call("0.0.0.0_1|plaintext", "fd00::1", methods=[])), mesh)
    first.reported("db", report(call(count=7)), mesh)
    await first.write(everything=True)
    second = Observations(store, clock, timedelta(days=30))
    await second.open()
    assert second.memory != first.memory
    assert second.calls == first.calls
    assert second.ports == first.ports
    second.reported("db", report(call(count=8)), mesh)
    assert counts(second)[CallKey(*DB, "mtls", WEB)] == 8
    second.reported("db", report(ports=()), mesh)
    await second.write()
    assert [each.key for each in store.watched_ports()] == [observed.host_itself("db")]


async def test_a_store_that_fails_is_written_the_next_time(store: SqlStore, clock: Clock, mesh: Mesh) -> None:
    writes = Writes(store)
    observations = Observations(writes, clock, timedelta(days=30))
    observations.reported("db", report(call()), mesh)
    writes.failing = True
    await observations.write()
    writes.failing = False
    await observations.write()
    assert len(store.calls()) == 1
    assert len(store.watched_ports()) == 3


async def test_a_caller_that_is_not_seen_for_long_is_forgotten(store: SqlStore, clock: Clock, mesh: Mesh) -> None:
    observations = Observations(store, clock, timedelta(days=30))
    observations.reported("db", report(call(), call(caller=f"{WEB}2")), mesh)
    await observations.write()
    clock.now += timedelta(days=29)
    observations.reported("db", report(call(count=2)), mesh)
    clock.now += timedelta(days=2)
    for _ in range(60):
        await observations.write()
    assert [each.caller for each in observations.calls] == [WEB]
    assert [each.key.caller for each in store.calls()] == [WEB]


def test_calls_are_not_kept_with_the_hosts_state() -> None:
    assert not bounded(report(call())).HasField("calls")
