"""Calls as the agent sums them up and tells them: through restarts of Envoy, agent and controller, and bounded."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hostmesh_agent.admin import AdminError
from hostmesh_agent.calls import MAX_TOLD, CallMemory, Calls
from hostmesh_agent.tally import FORGET_AFTER_S, MAX_CALLERS, MAX_ROWS, NOT_TOLD_APART, Tally, Who, read
from hostmesh_api.call_stats import MAX_ADDRESSES, NAMES, CallCounter, Security, chain_of, parse_counter
from hostmesh_api.v1.hostmesh_pb2 import ObservedCalls, ReportResponse

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEB = "spiffe://cluster.local/ns/default/sa/web"
SAFE, PLAIN = "0.0.0.0_8080|mtls", "0.0.0.0_8080|plaintext"


def counter(chain: str, caller: str, method: str = "GET", denied: str = "no", at: str = "DownstreamEnd") -> str:
    return f"hostmesh.calls.chain.{chain}.caller.{caller}.method.{method}.denied.{denied}.at.{at}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (counter(SAFE, WEB), CallCounter(SAFE, WEB, "GET", denied=False, ended=True)),
        (counter(PLAIN, "fd00::1", "OTHER", "yes"), CallCounter(PLAIN, "fd00::1", "OTHER", denied=True, ended=True)),
        (counter(PLAIN, "a.method.GET.denied.no", "-", at="TcpPeriodic"),
         CallCounter(PLAIN, "a.method.GET.denied.no", "-", denied=False, ended=False)),
        (counter(PLAIN, "10.0.0.1", "BREW"), None),
        (counter("no chain", "10.0.0.1"), None),
        ("cluster.x.upstream_rq_total", None),
    ],
)  # fmt: skip
def test_a_counters_name_tells_what_it_counts(name: str, expected: CallCounter | None) -> None:
    assert parse_counter(name) == expected


def test_a_chains_name_tells_the_port_and_how_its_calls_are_secured() -> None:
    kinds = {
        "mtls": Security.MUTUAL_TLS,
        "mtls-http": Security.MUTUAL_TLS,
        "plaintext": Security.PLAINTEXT,
        "plaintext-http": Security.PLAINTEXT,
        "own-tls": Security.OWN_TLS,
        "tls": Security.OWN_TLS,
    }
    for kind, security in kinds.items():
        chain = chain_of(f"10.0.0.1_80|{kind}")
        assert chain is not None
        assert (chain.port, chain.security) == ("10.0.0.1_80", security)
    assert chain_of("virtualInbound-blackhole") is None


def counts(tally: Tally) -> dict[Who, int]:
    return {who: each.count for who, each in tally.seen.items()}


def test_only_what_is_more_is_added_also_after_envoy_began_at_zero_again() -> None:
    name, who = counter(SAFE, WEB), Who(SAFE, WEB)
    tally = Tally()
    for reading, total in [(5, 5), (5, 5), (7, 7), (3, 10), (4, 11)]:
        tally = read(tally, {name: reading}, 0)
        assert counts(tally) == {who: total}
    gone = read(tally, {}, 0)
    assert counts(read(gone, {name: 2}, 0)) == {who: 13}


def test_a_reading_that_says_nothing_new_changes_nothing() -> None:
    tally = read(Tally(), {counter(SAFE, WEB): 5}, 0)
    assert read(tally, {counter(SAFE, WEB): 5}, 100) is tally


def test_a_caller_has_its_methods_refusals_and_times_together() -> None:
    first = {counter(SAFE, WEB): 5, counter(SAFE, WEB, "POST", "yes"): 2}
    tally = read(read(Tally(), first, 10), {**first, counter(SAFE, WEB, "PUT", at="DownstreamPeriodic"): 9}, 20)
    (seen,) = tally.seen.values()
    assert seen.methods == {"GET", "POST", "PUT"}
    assert (seen.count, seen.denied) == (7, 2)
    assert (seen.first_s, seen.last_s) == (10, 20)


def test_callers_without_an_identity_have_room_for_so_many_and_the_others_are_one() -> None:
    readings = {counter(PLAIN, f"10.0.{index // 250}.{index % 250}"): 1 for index in range(MAX_CALLERS + 40)}
    tally = read(Tally(), {**readings, counter(SAFE, WEB): 1}, 0)
    assert len(tally.seen) == MAX_CALLERS + 2
    assert counts(tally)[Who(PLAIN, NOT_TOLD_APART)] == 40
    assert counts(tally)[Who(SAFE, WEB)] == 1


def test_no_more_rows_are_kept_than_may_be_whoever_they_are_of() -> None:
    readings = {counter(f"0.0.0.0_{port}|plaintext", f"10.0.0.{i}"): 1 for port in range(1, 30) for i in range(200)}
    tally = read(Tally(), readings, 0)
    assert len(tally.seen) <= MAX_ROWS + 29
    assert sum(counts(tally).values()) == len(readings)


def test_whoever_envoy_had_no_room_for_is_told_of_as_long_as_it_has_none() -> None:
    readings = {counter(PLAIN, f"10.{index // 250}.0.{index % 250}"): 1 for index in range(MAX_ADDRESSES)}
    tally = read(read(Tally(), readings, 10), readings, 20)
    assert tally.seen[Who(PLAIN, NOT_TOLD_APART)].last_s == 20
    few = dict(list(readings.items())[:5])
    assert read(read(tally, few, 30), few, 40).seen[Who(PLAIN, NOT_TOLD_APART)].last_s == 20


def test_whoever_has_not_called_for_long_makes_room() -> None:
    tally = read(Tally(), {counter(PLAIN, "10.0.0.1"): 1}, 0)
    later = read(tally, {counter(PLAIN, "10.0.0.2"): 1}, FORGET_AFTER_S)
    assert set(later.seen) == {Who(PLAIN, "10.0.0.2")}


class Envoy:
    """Has counters; does not answer while it is down."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.down = False
        self.changes = 0

    async def read(self) -> dict[str, int]:
        if self.down:
            raise AdminError("down")
        return dict(self.counters)

    def changed(self) -> None:
        self.changes += 1

    def agent(self, path: Path, boot_id: str = "boot") -> Calls:
        return Calls(self.read, CallMemory(path / "calls.json", boot_id), self.changed, lambda: NOW)


def told(report: ObservedCalls) -> dict[tuple[str, str], int]:
    return {(each.chain, each.caller): each.count for each in report.calls}


def taken(memory: str = "one") -> ReportResponse:
    return ReportResponse(calls_memory=memory)


async def test_a_call_is_told_until_the_controller_has_taken_it(tmp_path: Path) -> None:
    envoy = Envoy()
    calls = envoy.agent(tmp_path)
    calls.taken(taken())
    envoy.counters[counter(SAFE, WEB)] = 3
    await calls.look()
    assert envoy.changes == 1
    assert told(calls.tell()) == told(calls.tell()) == {(SAFE, WEB): 3}
    calls.taken(taken())
    assert told(calls.tell()) == {}
    calls.tell()
    envoy.counters[counter(SAFE, WEB)] = 4
    await calls.look()
    assert envoy.changes == 1, "a caller that is known is no reason to report at once"
    assert told(calls.tell()) == {(SAFE, WEB): 4}


async def test_a_call_that_came_while_the_report_was_under_way_is_told_in_the_next(tmp_path: Path) -> None:
    envoy = Envoy()
    calls = envoy.agent(tmp_path)
    calls.taken(taken())
    for value in (3, 4):
        envoy.counters[counter(SAFE, WEB)] = value
        await calls.look()
        if value == 3:
            calls.tell()
    calls.taken(taken())
    assert told(calls.tell()) == {(SAFE, WEB): 4}


async def test_another_memory_of_the_controllers_is_told_all(tmp_path: Path) -> None:
    envoy = Envoy()
    calls = envoy.agent(tmp_path)
    envoy.counters[counter(SAFE, WEB)] = 3
    await calls.look()
    for memory in ("one", "one"):
        calls.tell()
        calls.taken(taken(memory))
    assert told(calls.tell()) == {}
    calls.taken(taken("another"))
    assert told(calls.tell()) == {(SAFE, WEB): 3}


async def test_sums_go_on_when_the_agent_restarts_and_begin_anew_when_the_host_does(tmp_path: Path) -> None:
    envoy = Envoy()
    envoy.counters[counter(SAFE, WEB)] = 3
    first = envoy.agent(tmp_path)
    await first.look()
    envoy.counters[counter(SAFE, WEB)] = 5
    second = envoy.agent(tmp_path)
    await second.look()
    assert told(second.tell()) == {(SAFE, WEB): 5}
    assert second.tell().epoch == first.tell().epoch
    rebooted = envoy.agent(tmp_path, "another boot")
    assert told(rebooted.tell()) == {}
    assert rebooted.tell().epoch != first.tell().epoch


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"boot_id": "boot"}', b'{"boot_id": "boot", "epoch": 1, "seen": [[1]]}']
)
async def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calls.json").write_bytes(content)
    envoy = Envoy()
    calls = envoy.agent(tmp_path)
    envoy.counters[counter(SAFE, WEB)] = 1
    await calls.look()
    assert told(calls.tell()) == {(SAFE, WEB): 1}


async def test_an_envoy_that_does_not_answer_changes_nothing(tmp_path: Path) -> None:
    envoy = Envoy()
    calls = envoy.agent(tmp_path)
    envoy.counters[counter(SAFE, WEB)] = 1
    await calls.look()
    envoy.down = True
    await calls.look()
    assert told(calls.tell()) == {(SAFE, WEB): 1}


async def test_many_callers_are_told_in_several_reports(tmp_path: Path) -> None:
    envoy = Envoy()
    calls = envoy.agent(tmp_path)
    calls.taken(taken())
    envoy.counters = {counter(SAFE, f"{WEB}{index}"): 1 for index in range(MAX_TOLD + 5)}
    await calls.look()
    assert len(calls.tell().calls) == MAX_TOLD
    calls.taken(taken())
    assert len(calls.tell().calls) == 5
    calls.taken(taken())
    assert len(calls.tell().calls) == 0


async def test_how_long_ago_is_told_and_not_when_since_clocks_differ(tmp_path: Path) -> None:
    envoy = Envoy()
    calls = envoy.agent(tmp_path)
    envoy.counters[counter(SAFE, WEB)] = 1
    await calls.look()
    calls._now = lambda: NOW + timedelta(seconds=90)
    (call,) = calls.tell().calls
    assert (call.first_seen_s, call.last_seen_s) == (90, 90)


def test_the_names_that_are_asked_for_need_no_quoting_in_a_url() -> None:
    assert not set(NAMES) & set(" &+%#?\\")
    assert replace(Tally(), readings={}) == Tally()
