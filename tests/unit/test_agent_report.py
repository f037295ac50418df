import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from hostmesh_agent.envoy import EnvoyStatus
from hostmesh_agent.lifecycle import Phase, View
from hostmesh_agent.report import Reporter, Vouched, envoy_state, lease, presented
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ReportResponse, Workload

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
WEB = Workload(namespace="default", name="web", spiffe_id="spiffe://t/ns/default/sa/web", ports=[8080, 8081])
BOUND_S = 10


@pytest.mark.parametrize(
    ("not_after", "captured", "ready"),
    [
        (LATER, {8080, 8081, 22}, True),
        (LATER, {8080}, False),
        (LATER, set(), False),
        (NOW, {8080, 8081}, False),
        (None, {8080, 8081}, False),
    ],
)
def test_a_workload_is_ready_with_a_valid_certificate_and_all_its_ports_captured(
    not_after: datetime | None, captured: set[int], ready: bool
) -> None:
    certificates = {} if not_after is None else {WEB.spiffe_id: not_after}
    found = lease(WEB, Vouched(certificates, frozenset(captured)), NOW)
    assert found.ready is ready
    assert set(found.captured_ports) == captured & {8080, 8081}
    assert found.certificate_not_after == (0 if not_after is None else int(not_after.timestamp()))


def test_a_workload_that_gets_another_identity_is_served_under_the_old_one_until_envoy_shows_the_new_one() -> None:
    old = "spiffe://t/ns/default/sa/old"
    shown = presented([Workload(namespace="default", name="web", spiffe_id=old)], {old: LATER})
    # The new certificate is not there yet.
    found = lease(WEB, Vouched({}, frozenset({8080, 8081}), shown), NOW)
    assert (found.ready, found.presented, found.certificate_not_after) == (True, old, int(LATER.timestamp()))
    shown = presented([WEB], {WEB.spiffe_id: LATER})
    assert lease(WEB, Vouched({WEB.spiffe_id: LATER}, frozenset(), shown), NOW).presented == WEB.spiffe_id


def test_what_has_no_certificate_is_not_shown() -> None:
    assert presented([WEB], {}) == {}
    assert lease(WEB, Vouched({}, frozenset({8080, 8081}), {}), NOW).presented == ""


def test_a_crash_loop_is_told_with_the_last_exit() -> None:
    view = View(Phase.DOWN, None, adopted=False, restarts=4, crash_looping=True, last_exit="exit code 1", since=0)
    change = {"instance": "green", "stage": "steady", "put_back": "it ended", "hung": True}
    state = envoy_state(EnvoyStatus(view, "1.40.0", ""), change)
    assert (state.instance, state.stage, state.put_back, state.hung) == ("green", "steady", "it ended", True)
    assert (state.state, state.pid, state.restarts, state.last_exit) == ("down", 0, 4, "crash loop: exit code 1")


class Controller:
    """Takes reports, and fails while told to."""

    def __init__(self, interval_s: int = 0) -> None:
        self.failing = False
        self.interval_s = interval_s
        self.got: asyncio.Queue[HostReport] = asyncio.Queue()

    async def send(self, report: HostReport) -> ReportResponse:
        self.got.put_nowait(report)
        if self.failing:
            raise ConnectionError("controller away")
        return ReportResponse(interval_s=self.interval_s)


async def build() -> HostReport:
    return HostReport()


async def reporting(reporter: Reporter, controller: Controller, reports: int) -> None:
    task = asyncio.create_task(reporter.run())
    try:
        async with asyncio.timeout(BOUND_S):
            for _ in range(reports):
                await controller.got.get()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_change_is_reported_at_once_and_a_burst_of_changes_once() -> None:
    controller = Controller()
    reporter = Reporter(build, controller.send, interval_s=1000)
    task = asyncio.create_task(reporter.run())
    async with asyncio.timeout(BOUND_S):
        await controller.got.get()
        for _ in range(20):
            reporter.changed()
        await controller.got.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert controller.got.empty()


async def test_without_changes_reports_come_at_the_interval_the_controller_names() -> None:
    controller = Controller(interval_s=1)
    began = asyncio.get_running_loop().time()
    reporter = Reporter(build, controller.send, interval_s=0.01)
    await reporting(reporter, controller, 2)
    assert asyncio.get_running_loop().time() - began >= 0.8


async def test_a_report_that_is_not_delivered_is_sent_again_and_the_failure_is_known() -> None:
    controller = Controller()
    controller.failing = True
    reporter = Reporter(build, controller.send, interval_s=0.01)
    await reporting(reporter, controller, 2)
    assert reporter.failing == "ConnectionError: controller away"
    controller.failing = False
    await reporting(reporter, controller, 2)
    assert reporter.failing == ""


async def test_a_report_that_cannot_be_made_is_made_again_and_the_failure_is_known() -> None:
    controller = Controller()
    known: list[str] = []

    async def build_later() -> HostReport:
        known.append(reporter.failing)
        if len(known) == 1:
            raise OSError("too many open files")
        return HostReport()

    reporter = Reporter(build_later, controller.send, interval_s=0.01)
    await reporting(reporter, controller, 2)
    assert known[:3] == ["", "OSError: too many open files", ""]
