"""What agents report: kept within bounds, told on when it matters, and not written more often than needed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

import pki
from full_store import refusing
from hostmesh_agent import enrol
from hostmesh_agent.state import State
from hostmesh_api.v1.hostmesh_pb2 import (
    CaptureGap,
    CaptureState,
    Cloud,
    Disk,
    EnvoyState,
    Flow,
    HostFacts,
    HostReport,
    Interface,
    ListeningSocket,
    ObservedFlows,
    WorkloadLease,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import ReportingStub
from hostmesh_api.wire import ADDRESS_STAYS
from hostmesh_controller import reports
from hostmesh_controller.following import Whereabouts
from hostmesh_controller.reports import (
    HostStates,
    bounded,
    has_ipv6,
    healthy_workloads,
    ready_workloads,
    runtime_of,
    whereabouts,
)
from hostmesh_controller.store import HostState, StoreError
from hostmesh_controller.store.sqlite import open_store
from identity_servers import Controller

CART = ("shop", "cart-1")


class World:
    """States over a store that counts its writes."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "store.sqlite"
        self.inner = open_store(self.file)
        self.at = pki.now()
        self.writes: list[str] = []
        self.changes: list[str] = []
        self.known: Mapping[str, HostState] = {}
        """Hosts that are in the store besides."""
        self.states = HostStates(self, self.changes.append, lambda: self.at)

    def put_host_state(self, host: str, state: HostState) -> None:
        self.writes.append(host)
        self.inner.put_host_state(host, state)

    def host_states(self) -> Mapping[str, HostState]:
        return {**self.known, **self.inner.host_states()}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    made.inner.close()


def report(*addresses: str, load: float = 0.0) -> HostReport:
    made = HostReport(facts=HostFacts(hostname="web-1", addresses=addresses))
    made.load.load_1m = load
    return made


async def test_where_a_host_was_before_is_its_last_word_also_for_a_controller_that_started_anew(world: World) -> None:
    await world.states.reported("web-1", report("10.0.0.1"), frozenset())
    known = world.host_states()["web-1"]
    where = whereabouts("web-1", "10.0.0.9", report("10.0.0.9"), known)
    assert where == Whereabouts("web-1", "10.0.0.9", frozenset({"10.0.0.9"}), frozenset({"10.0.0.1"}))
    later = report("10.0.0.9")
    later.alarms.add(code=ADDRESS_STAYS, text="…")
    assert whereabouts("web-1", "10.0.0.9", later, HostState()).astray


async def test_the_first_report_is_written_and_told(world: World) -> None:
    await world.states.reported("web-1", report("10.0.0.1"), frozenset({CART}))
    kept = world.host_states()["web-1"]
    assert kept.ready == {CART}
    assert kept.last_report_at == world.at
    assert HostReport.FromString(kept.report).facts.hostname == "web-1"
    assert world.changes == ["web-1"]


async def test_unchanged_reports_are_written_every_10_minutes_and_told_never(world: World) -> None:
    for tick in range(121):
        await world.states.reported("web-1", report("10.0.0.1", load=float(tick)), frozenset({CART}))
        world.at += timedelta(seconds=10)
    assert len(world.writes) == 3
    assert world.changes == ["web-1"]
    # What is newer than the store is in memory.
    assert (await world.states.state("web-1")).last_report_at == world.at - timedelta(seconds=10)


async def test_a_change_of_readiness_or_address_is_written_and_told_at_once(world: World) -> None:
    steps = [
        (report("10.0.0.1"), frozenset({CART})),
        (report("10.0.0.1"), frozenset[tuple[str, str]]()),
        (report("10.0.0.1", "fd00::1"), frozenset[tuple[str, str]]()),
        (report("fd00::1", "10.0.0.1"), frozenset[tuple[str, str]]()),
    ]
    for each, ready in steps:
        await world.states.reported("web-1", bounded(each), ready)
    assert len(world.writes) == len(world.changes) == 3


def of_ports(*captured: int, until: datetime) -> HostReport:
    """Cart-1, with a certificate and another port that is not captured yet: it is not ready as a whole."""
    lease = WorkloadLease(
        namespace="shop", name="cart-1", captured_ports=captured, certificate_not_after=int(until.timestamp())
    )
    return HostReport(leases=[lease])


async def test_a_workload_that_gets_another_port_is_served_on_the_others_throughout(world: World) -> None:
    await world.states.joined("web-1")
    said = of_ports(8080, until=world.at + timedelta(hours=1))
    await world.states.reported("web-1", said, frozenset())
    told = runtime_of(await world.states.state("web-1"))
    assert told.serves(("shop", "cart-1"), 8080)
    assert not told.serves(("shop", "cart-1"), 8081)
    assert not told.serves(("shop", "cart-2"), 8080)


async def test_a_port_is_not_served_any_more_once_the_certificate_has_ended(world: World) -> None:
    await world.states.joined("web-1")
    said = of_ports(8080, until=world.at + timedelta(hours=1))
    await world.states.reported("web-1", said, frozenset())
    told = len(world.changes)
    world.at += timedelta(hours=1)
    # The agent believes that all is as it was.
    await world.states.reported("web-1", said, frozenset())
    assert len(world.changes) == told + 1
    assert not runtime_of(await world.states.state("web-1")).serves(("shop", "cart-1"), 8080)


async def test_the_store_knows_before_anybody_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.sqlite")
    seen: list[frozenset[tuple[str, str]]] = []
    states = HostStates(store, lambda host: seen.append(store.host_states()[host].ready), pki.now)
    await states.reported("web-1", report(), frozenset({CART}))
    assert seen == [{CART}]
    store.close()


async def test_a_restarted_controller_goes_on_from_the_store_and_tells_nothing_new(world: World) -> None:
    await world.states.joined("web-1")
    await world.states.reported("web-1", report("10.0.0.1"), frozenset({CART}))
    joined_at = world.at
    world.at += timedelta(seconds=10)
    again = HostStates(world, world.changes.append, lambda: world.at)
    world.changes.clear()
    await again.reported("web-1", report("10.0.0.1"), frozenset({CART}))
    assert world.changes == []
    assert world.host_states()["web-1"].joined_at == joined_at


async def test_what_callers_must_know_waits_for_no_room_on_the_controllers_disk_and_is_written_once_there_is(
    world: World,
) -> None:
    await world.states.joined("web-1")
    await world.states.reported("web-1", report("10.0.0.1"), frozenset({CART}))
    told = len(world.changes)
    with refusing(world.file, "INSERT ON hosts"), capture_logs() as logs:
        for _ in range(3):
            await world.states.reported("web-1", report("10.0.0.1"), frozenset())
            assert (await world.states.state("web-1")).ready == frozenset()
        # What only the store's word makes true is refused.
        with pytest.raises(StoreError, match="disk is full"):
            await world.states.left("web-1")
    assert len(world.changes) == told + 1
    assert [each["event"] for each in logs] == ["report_not_written"]
    assert world.host_states()["web-1"].ready == {CART}
    await world.states.reported("web-1", report("10.0.0.1"), frozenset())
    assert world.host_states()["web-1"].ready == frozenset()
    writes = len(world.writes)
    await world.states.reported("web-1", report("10.0.0.1"), frozenset())
    assert (len(world.writes), len(world.changes)) == (writes, told + 1)


async def test_leaving_ends_readiness_and_joining_begins_anew(world: World) -> None:
    await world.states.joined("web-1")
    await world.states.reported("web-1", report("10.0.0.1"), frozenset({CART}))
    await world.states.left("web-1")
    left = world.host_states()["web-1"]
    assert left.ready == frozenset()
    assert left.left_at == world.at
    await world.states.joined("web-1")
    assert world.host_states()["web-1"] == HostState(joined_at=world.at)
    assert world.changes == ["web-1"] * 4


async def test_a_forgotten_host_begins_anew(world: World) -> None:
    await world.states.reported("web-1", report("10.0.0.1"), frozenset({CART}))
    world.inner.drop_host_state("web-1")
    world.states.forget("web-1")
    await world.states.reported("web-1", report("10.0.0.1"), frozenset({CART}))
    assert world.changes == ["web-1"] * 2


async def test_many_hosts_at_once_do_not_wait_for_each_other_or_mix(world: World) -> None:
    hosts = [f"web-{number}" for number in range(40)]
    await asyncio.gather(
        *(world.states.reported(host, report(f"10.0.0.{number}"), frozenset()) for number, host in enumerate(hosts))
    )
    kept = world.host_states()
    assert {host: list(HostReport.FromString(kept[host].report).facts.addresses) for host in hosts} == {
        host: [f"10.0.0.{number}"] for number, host in enumerate(hosts)
    }


async def test_the_more_hosts_there_are_the_less_often_each_is_asked_to_report(world: World) -> None:
    intervals_s = []
    for hosts in (1, 50, 100, 400, 2000):
        world.known = {f"web-{number}": HostState() for number in range(hosts)}
        states = HostStates(world, world.changes.append, pki.now)
        await states.state("web-0")
        intervals_s.append(states.interval_s())

    assert intervals_s == [10, 25, 50, 200, 600]


async def test_hosts_that_were_removed_or_are_only_asked_about_make_nobody_report_less_often(world: World) -> None:
    for number in range(40):
        await world.states.joined(f"web-{number}")
    assert world.states.interval_s() == 20
    for number in range(40):
        world.inner.drop_host_state(f"web-{number}")
        world.states.forget(f"web-{number}")
        assert await world.states.state(f"web-{number}") == HostState()
    assert world.states.interval_s() == 10


def lease(name: str, *, ready: bool = True, not_after: int = 0) -> WorkloadLease:
    return WorkloadLease(namespace="shop", name=name, ready=ready, certificate_not_after=not_after)


def test_only_workloads_of_this_host_that_are_vouched_for_are_ready() -> None:
    now = pki.now()
    soon, past = int(now.timestamp()) + 60, int(now.timestamp()) - 60
    said = HostReport(
        leases=[
            lease("cart-1"),
            lease("cart-2", ready=False),
            lease("cart-3", not_after=soon),
            lease("cart-4", not_after=past),
            lease("stolen"),
        ]
    )
    placed = frozenset(("shop", f"cart-{number}") for number in range(1, 9))
    assert ready_workloads(said, placed, now) == {("shop", "cart-1"), ("shop", "cart-3")}


def test_a_report_is_cut_to_its_bounds_and_not_refused() -> None:
    huge = HostReport(
        facts=HostFacts(hostname="h" * 9999, addresses=[f"10.0.{n >> 8}.{n & 255}" for n in range(999)]),
        listening=[ListeningSocket(program="p" * 9999, port=80)] * 9999,
        leases=[WorkloadLease(name="n" * 9999, captured_ports=range(9999))] * 1500,
        envoy=EnvoyState(last_exit="x" * 9999),
        capture=CaptureState(
            error="e" * 9999,
            gaps=[CaptureGap(direction="d" * 9999)] * 99,
            missing=["m" * 9999] * 999,
            refused=["r" * 9999] * 999,
        ),
    )
    cut = bounded(huge)
    assert len(cut.capture.gaps) == reports.MAX_GAPS
    assert (len(cut.capture.missing), len(cut.capture.refused)) == (reports.MAX_PROBLEMS,) * 2
    said = (cut.capture.gaps[0].direction, cut.capture.missing[0], cut.capture.refused[0])
    assert {len(each) for each in said} == {reports.MAX_TEXT_CHARS}
    assert len(cut.facts.addresses) == reports.MAX_ADDRESSES
    assert len(cut.listening) == reports.MAX_SOCKETS
    assert len(cut.leases) == reports.MAX_LEASES
    assert len(cut.leases[0].captured_ports) == reports.MAX_PORTS
    texts = (cut.facts.hostname, cut.listening[0].program, cut.leases[0].name, cut.envoy.last_exit, cut.capture.error)
    assert {len(each) for each in texts} == {reports.MAX_TEXT_CHARS}
    assert len(huge.listening) == 9999


def test_what_a_host_says_of_itself_is_cut_too_and_what_is_no_address_is_left_out() -> None:
    long = "x" * 9999
    facts = HostFacts(
        os_id=long,
        cpu_model=long,
        virtualisation=long,
        disks=[Disk(mount=long, device=long)] * 999,
        interfaces=[Interface(name=long, addresses=["10.0.0.1/24", "\x1b[2J", "fd00::1/64", "10.0.0.1/x"] * 999)] * 99,
        cloud=Cloud(provider=long, region=long, instance_id=long),
        labels={f"k{index}": "v" for index in range(500)} | {"a": long, "a" * 999: "v"},
    )
    flows = ObservedFlows(flows=[Flow(program=long)])
    cut = bounded(HostReport(facts=facts, listening=[ListeningSocket(unit=long, container=long)], flows=flows))
    assert not cut.HasField("flows")
    made, one = cut.facts, cut.facts.interfaces[0]
    assert (len(made.disks), len(made.interfaces), len(made.labels)) == (64, 64, 62)
    assert set(one.addresses) == {"10.0.0.1/24", "fd00::1/64"}
    texts = (made.os_id, made.cpu_model, made.virtualisation, made.disks[0].mount, one.name, made.cloud.region)
    assert {len(each) for each in (*texts, cut.listening[0].unit, cut.listening[0].container)} == {1024}
    assert cut.ByteSize() < 300_000


@pytest.mark.parametrize(
    ("region", "zone", "place"),
    [
        ("eu-central-1", "eu-central-1b", "eu-central-1/eu-central-1b"),
        ("westeurope", "", "westeurope"),
        ("eu/x", "b", ""),
        ("*", "b", ""),
        ("eu", "b/c", "eu"),
        ("", "b", ""),
    ],
)
def test_a_cloud_tells_where_a_host_is_unless_that_would_be_a_pattern_or_another_place(
    region: str, zone: str, place: str
) -> None:
    report = HostReport(facts=HostFacts(cloud=Cloud(region=region, zone=zone)))
    state = HostState(joined_at=pki.now(), report=report.SerializeToString())
    assert reports.runtime_of(state).locality == place


def test_what_this_version_does_not_know_of_a_report_is_not_kept() -> None:
    unknown = b"\xfa\x3f\x05hello"  # field 1023
    assert HostReport.FromString(unknown).SerializeToString() == unknown
    assert b"hello" not in bounded(HostReport.FromString(unknown)).SerializeToString()


@given(st.binary(max_size=300))
def test_any_report_that_can_be_read_can_be_bounded(data: bytes) -> None:
    try:
        made = HostReport.FromString(data)
    except DecodeError:
        return
    assert bounded(bounded(made)) == bounded(made)


def test_addresses_are_compared_in_one_form_and_nonsense_is_dropped() -> None:
    cut = bounded(report("FD00:0:0::1", "10.0.0.1", "not an address", "", "fe80::1%eth0"))
    assert list(cut.facts.addresses) == ["10.0.0.1", "fd00::1", "fe80::1"]


@pytest.mark.parametrize(
    ("address", "reachable"),
    [("fd00::1", True), ("2001:db8::1", True), ("fe80::1", False), ("::1", False), ("10.0.0.1", False)],
)
def test_a_host_has_ipv6_if_others_can_reach_it_there(address: str, reachable: bool) -> None:
    assert has_ipv6(HostState(report=bounded(report(address)).SerializeToString())) is reachable


async def test_an_agent_reports_over_its_own_certificate_for_its_own_workloads_alone(tmp_path: Path) -> None:
    async with Controller(tmp_path / "controller").serving() as controller:
        state = State(tmp_path / "agent")
        await enrol.join(controller.join_string(), state, HostFacts(), pki.now)
        said = report("10.0.0.1")
        said.leases.extend([lease("cart-1"), lease("billing-1")])
        async with enrol.channel(state) as channel:
            answer = await ReportingStub(channel).Report(said, timeout=10)
        assert answer.interval_s == 10
        kept = controller.store.host_states()
        assert set(kept) == {"web-1"}
        assert kept["web-1"].ready == {("shop", "cart-1")}
        stranger = pki.svid(controller.authority, pki.HOST)
        credentials = grpc.ssl_channel_credentials(
            controller.authority.bundle_pem, stranger.key_pem, stranger.chain_pem
        )
        async with grpc.aio.secure_channel(controller.agents_endpoint, credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await ReportingStub(channel).Report(said, timeout=10)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_report_counts_though_the_controllers_disk_is_full(tmp_path: Path) -> None:
    async def listens(_host: str, _report: HostReport) -> None:
        controller.store.allocate_vips({f"s{len(controller.heard)}.default.svc.cluster.local"})

    controller = Controller(tmp_path / "controller")
    for number in range(60):
        controller.store.put_host_state(f"other-{number}", HostState())
    async with controller.serving(listens):
        state = State(tmp_path / "agent")
        await enrol.join(controller.join_string(), state, HostFacts(), pki.now)
        said = HostReport(leases=[lease("cart-1")], envoy=EnvoyState(state="down"))
        async with enrol.channel(state) as channel:
            database = tmp_path / "controller/store.sqlite"
            with refusing(database, "INSERT ON hosts"):
                await ReportingStub(channel).Report(said, timeout=10)
            assert (await controller.states.state("web-1")).ready == {("shop", "cart-1")}
            # How its Envoy is counts too, whatever else cannot be written; and what cannot is tried again soon.
            with refusing(database, "INSERT ON vips"):
                assert (await ReportingStub(channel).Report(said, timeout=10)).interval_s == reports.MIN_INTERVAL_S
        assert controller.heard == [("web-1", "down")] * 2


async def test_a_change_of_health_is_told_and_what_is_not_probed_is_healthy(world: World) -> None:
    def said(health: "WorkloadLease.Health.ValueType") -> HostReport:
        return HostReport(leases=[WorkloadLease(namespace="shop", name="cart-1", health=health)])

    seen = []
    for health in (WorkloadLease.UNHEALTHY, WorkloadLease.HEALTHY, WorkloadLease.NOT_PROBED):
        await world.states.reported("web-1", said(health), frozenset())
        seen.append(healthy_workloads(await world.states.state("web-1")))
    assert seen == [frozenset(), {CART}, {CART}]
    assert len(world.changes) == 1
    # A workload of which nothing is said yet is new: whether it is well shows when its probe has succeeded.
    assert healthy_workloads(HostState()) == frozenset()


async def test_free_cpu_is_told_by_steps_whatever_a_host_says_and_outlives_a_restart(world: World) -> None:
    def said(level: int) -> HostReport:
        made = report("10.0.0.1")
        made.load.free_eighths = level
        return made

    levels: list[int] = []
    for level in [8, *[1, 4_000_000] * 50]:
        await world.states.reported("web-1", bounded(said(level)), frozenset())
        levels.append(runtime_of(await world.states.state("web-1")).free_eighths)
        world.at += timedelta(seconds=1)
    assert all(abs(later - before) <= 1 for before, later in pairwise(levels))
    assert len(world.changes) <= 1 + 100 / 8
    again = HostStates(world, world.changes.append, lambda: world.at)
    await again.reported("web-1", bounded(said(0)), frozenset())
    assert HostReport.FromString((await again.state("web-1")).report).load.free_eighths == levels[-1]


async def test_that_a_host_is_silent_is_kept_once_until_it_is_back(world: World) -> None:
    await world.states.joined("web-1")
    world.writes.clear()
    for _ in range(2):
        await world.states.silent("web-1", silent=True)
    assert world.host_states()["web-1"].silent_at == world.at
    await world.states.reported("web-1", report("10.0.0.1"), frozenset())
    assert world.host_states()["web-1"].silent_at == world.at
    for _ in range(2):
        await world.states.silent("web-1", silent=False)
    assert world.host_states()["web-1"].silent_at is None
    assert len(world.writes) == 3
