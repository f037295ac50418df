"""What decides about changes of capture: differences, what widens, harm, holds, repairs, and whose change it was."""

import struct
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from hostmesh_agent import arming, capture_explain, generation, hold, holding
from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, plan
from hostmesh_agent.capture.difference import difference, widens
from hostmesh_agent.capture.interpret import Packet, verdict
from hostmesh_agent.capture.rules import Compare, Hook, Meta, Return, Rule, Table, Unknown
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.repairs import LAST_PAUSE_S, LIMIT, WINDOW_S, Repairs
from hostmesh_agent.sound import CONTROLLER_LOST, SSH_DIVERTED, SSH_LOST, Sound, doubts, harm
from hostmesh_agent.status import capture_alarms, capture_wanted
from hostmesh_api.v1.hostmesh_pb2 import Capture, HostConfig

FLOOR = HostFloor(envoy_uid=900)
SMALL = CaptureRequest(inbound_ports=frozenset({80}), mesh_prefixes=frozenset({"10.0.0.0/8"}), dns=False)
TABLE = plan(SMALL, FLOOR).table


def table(**more: object) -> Table:
    return plan(replace(SMALL, **more), FLOOR).table  # type: ignore[arg-type]


def test_equal_tables_have_no_difference_and_others_name_each_part() -> None:
    assert difference(TABLE, TABLE) == ()
    assert difference(TABLE, table(inbound_ports=frozenset({443}), mesh_prefixes=frozenset({"10.1.0.0/16"}))) == (
        "- set inbound_ports: 80",
        "+ set inbound_ports: 443",
        "- set mesh4: 10.0.0.0/8",
        "+ set mesh4: 10.1.0.0/16",
    )
    assert difference(TABLE, None)[0] == "- table inet hostmesh"
    assert "+ chain outbound: tcp dport @untouched_ports return" in " ".join(difference(None, TABLE))


def test_a_rule_that_somebody_added_is_named() -> None:
    inbound, outbound = TABLE.chains
    changed = replace(TABLE, chains=(replace(inbound, rules=(Rule((Return(),), "mine"), *inbound.rules)), outbound))
    assert difference(TABLE, changed) == ('+ chain inbound: return comment "mine"',)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (None, False),
        (TABLE, False),
        (table(inbound_ports=frozenset()), False),
        (table(mesh_prefixes=frozenset()), False),
        (table(inbound_ports=frozenset({80, 443})), True),
        (table(scope=Scope.ALL), True),
        (plan(SMALL, replace(FLOOR, ssh_ports=frozenset({2222}))).table, False),
        (plan(SMALL, replace(FLOOR, outbound_port=15101)).table, True),
    ],
)
def test_only_what_may_meet_more_connections_widens(after: Table | None, expected: bool) -> None:
    assert widens(TABLE, after) is expected


def test_fewer_ports_that_are_left_alone_widen() -> None:
    assert widens(plan(SMALL, replace(FLOOR, ssh_ports=frozenset({2222}))).table, TABLE)
    assert widens(None, TABLE)


FINE = Sound(ssh=frozenset({("10.0.0.1", 22)}), controller=True, past_rules=True)


def test_a_change_after_which_all_answers_did_no_harm() -> None:
    assert harm(FINE, FINE) == ()
    assert doubts(FINE, frozenset({22})) == ()


def test_what_answered_before_and_does_not_after_is_harm() -> None:
    assert [each.alarm for each in harm(FINE, replace(FINE, ssh=frozenset()))] == [SSH_LOST]
    assert [each.alarm for each in harm(FINE, replace(FINE, controller=False))] == [CONTROLLER_LOST]
    assert [each.alarm for each in harm(FINE, replace(FINE, diverted=("rule 1",)))] == [SSH_DIVERTED]


def test_what_did_not_answer_before_is_no_harm() -> None:
    silent = Sound()
    assert harm(silent, silent) == ()


def test_a_controller_that_is_away_for_everybody_is_no_harm_and_one_that_cannot_be_compared_is() -> None:
    assert harm(FINE, replace(FINE, controller=False, past_rules=False)) == ()
    assert [each.alarm for each in harm(FINE, replace(FINE, controller=False, past_rules=None))] == [CONTROLLER_LOST]


def test_a_person_confirms_nothing_that_is_not_proven() -> None:
    bad = Sound(ssh_silent=frozenset({22, 23}), controller=False, why="refused")
    assert [each.alarm for each in doubts(bad, frozenset({22}))] == [SSH_LOST, CONTROLLER_LOST]


def test_while_held_nothing_is_captured_that_was_not_before() -> None:
    before = Capture(inbound_ports=[80, 81], outbound_prefixes=["10.0.0.0/8"], dns=False)
    wanted = Capture(
        scope=Capture.ALL, inbound_ports=[80, 443], outbound_prefixes=["10.0.0.0/8", "0.0.0.0/1"], dns=True
    )
    found = holding.within(HostConfig(host="h", capture=wanted), before.SerializeToString())
    assert found.host == "h"
    assert found.capture == Capture(inbound_ports=[80], outbound_prefixes=["10.0.0.0/8"])
    with pytest.raises(ValueError, match="not a configuration"):
        holding.within(HostConfig(), b"\xff\xff")


def test_a_hold_is_read_back_and_one_that_is_damaged_holds_everything(tmp_path: Path) -> None:
    config = AgentConfig(state_dir=tmp_path, run_dir=tmp_path)
    assert hold.read(tmp_path) is None
    held = hold.Hold(SSH_LOST, "because", 7, b"\x01")
    hold.write(tmp_path, held)
    assert hold.read(tmp_path) == held
    assert capture_wanted(config) == ""
    assert "SSH_LOST" in capture_alarms(config)[0]
    (tmp_path / hold.FILE).write_text("{")
    assert "HOLD_UNREADABLE" in capture_wanted(config)
    hold.release(tmp_path)
    assert hold.read(tmp_path) is None


def test_a_trial_whose_timer_was_killed_counts_no_longer(tmp_path: Path) -> None:
    import subprocess

    config = AgentConfig(state_dir=tmp_path, run_dir=tmp_path)
    (tmp_path / hold.OFF).touch()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as timer:
        hold.note_trial(tmp_path, timer.pid, 5)
        assert hold.trial(tmp_path) is not None
        assert capture_wanted(config) == ""
        timer.kill()
    assert hold.trial(tmp_path) is None
    assert "capture clear" in capture_wanted(config)


def test_repairs_come_at_once_then_slower_and_never_stop() -> None:
    repairs, now = Repairs(), 0.0
    for _ in range(LIMIT):
        assert repairs.wait_s(now) == 0
        repairs.made(now)
    pauses = []
    for _ in range(10):
        pauses.append(repairs.wait_s(now))
        now += pauses[-1]
        assert repairs.wait_s(now) == 0
        repairs.made(now)
    assert pauses[0] == 1
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_S
    assert repairs.wait_s(now + WINDOW_S * 10) == 0
    assert repairs.count(now + WINDOW_S * 10) == 0


def test_the_kernels_word_names_who_made_a_change() -> None:
    def attribute(kind: int, value: bytes) -> bytes:
        return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((4 + len(value) + 3) & ~3, b"\0")

    def message(kind: int, body: bytes) -> bytes:
        return struct.pack("=IHHIIBBH", 20 + len(body), kind, 0, 0, 0, 0, 0, 0) + body

    new = message(2575, attribute(1, b"\0\0\0\7") + attribute(2, struct.pack(">I", 812)) + attribute(3, b"firewalld\0"))
    assert list(generation.authors(message(2560, b"") + new)) == [generation.Author(812, "firewalld")]
    assert list(generation.authors(b"\1\2")) == []
    assert str(generation.Author(812, "firewalld")) == "firewalld (pid 812)"


def test_with_systemd_the_timer_is_a_scope_of_its_own() -> None:
    alone, scoped = arming.command({}, scope=""), arming.command({}, scope="hostmesh-deadman-1-1")
    assert scoped[:2] == ["systemd-run", "--scope"]
    assert scoped[-len(alone) :] == alone


def test_a_rule_that_is_not_understood_ends_in_no_guess() -> None:
    packet = Packet(Hook.PREROUTING, ip_address("192.0.2.1"), ip_address("10.0.0.1"), 22, input_interface=2, local=True)
    inbound, outbound = TABLE.chains
    for strange in (Unknown("socket", "{}"), Meta(99)):
        rules = (Rule((strange, Compare(b"\0"))), *inbound.rules)
        changed = replace(TABLE, chains=(replace(inbound, rules=rules), outbound))
        assert verdict(changed, packet).action == "unknown"
    assert verdict(TABLE, packet).action == "none"
    assert verdict(TABLE, replace(packet, port=80)).action == "change port"


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:0", "name:80", "10.0.0.1:http", ":80"])
def test_what_is_no_address_and_port_is_refused(text: str) -> None:
    with pytest.raises(capture_explain.QuestionError):
        capture_explain.destination(text)
    assert capture_explain.destination("[2001:db8::1]:443") == (ip_address("2001:db8::1"), 443)
