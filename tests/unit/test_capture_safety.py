"""What decides about changes of capture: differences, what widens, harm, holds, repairs, and whose change it was."""

import random
import struct
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from hostmesh_agent import arming, capture_explain, generation, hold, holding
from hostmesh_agent.capture import Caller, CaptureRequest, HostFloor, Scope, plan
from hostmesh_agent.capture.difference import difference, widens
from hostmesh_agent.capture.interpret import Packet, verdict
from hostmesh_agent.capture.rules import Compare, Hook, Meta, Return, Rule, Table, Unknown
from hostmesh_agent.capture.who import Cgroup, Present
from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.converge import full_request
from hostmesh_agent.repairs import LAST_PAUSE_S, LIMIT, WINDOW_S, Repairs
from hostmesh_agent.sound import CONTROLLER_LOST, SSH_DIVERTED, SSH_LOST, Sound, doubts, harm
from hostmesh_agent.status import capture_alarms, capture_wanted
from hostmesh_api.v1.hostmesh_pb2 import Capture, CaptureDirection, CaptureRule, HostConfig

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


def test_who_is_told_to_ask_others_about_names_meets_no_more() -> None:
    asked = replace(SMALL, dns=True)
    live, dead = (plan(asked, replace(FLOOR, names_answered=answered)).table for answered in (True, False))
    assert difference(live, dead) == ("+ set unanswered_ports: 53",)
    assert not widens(live, dead)
    assert not widens(dead, live)


FINE = Sound(ssh=frozenset({("10.0.0.1", 22)}), controller=True, past_rules=True)


def test_a_change_after_which_all_answers_did_no_harm() -> None:
    assert harm(FINE, FINE) == ()
    assert doubts(FINE, FINE, frozenset({22})) == ()


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
    assert [each.alarm for each in doubts(FINE, bad, frozenset({22}))] == [SSH_LOST, CONTROLLER_LOST]


def test_a_trial_can_be_confirmed_where_no_ssh_server_ran_before_it() -> None:
    without = Sound(ssh_silent=frozenset({22}), controller=True)
    assert doubts(without, without, frozenset({22})) == ()


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


def test_while_held_a_policy_that_has_become_narrower_holds_at_once() -> None:
    def direction(include: list[CaptureRule], *exclude: CaptureRule, passes: bool = False) -> CaptureDirection:
        return CaptureDirection(include=include, exclude=exclude, open=passes)

    ports, users = CaptureRule(ports=[443, 444]), CaptureRule(users=["shop"])
    before = Capture(
        outbound_prefixes=["10.0.0.0/8"], outbound=direction([ports], users), open_prefixes=["10.9.0.0/16"]
    )
    wanted = Capture(
        outbound_prefixes=["10.1.0.0/16"],
        outbound=direction([CaptureRule(ports=[444, 445], cidrs=["10.1.0.0/24"])], ports, passes=True),
        policy="default/p",
    )
    found = holding.within(HostConfig(capture=wanted), before.SerializeToString()).capture
    assert found == Capture(
        outbound_prefixes=["10.1.0.0/16"],
        outbound=direction([CaptureRule(ports=[444], cidrs=["10.1.0.0/24"])], users, ports, passes=True),
        policy="default/p",
    )
    # What may pass without Envoy is what is wanted now, and two that have nothing in common capture nothing.
    wanted = Capture(outbound_prefixes=["10.0.0.0/8"], outbound=direction([CaptureRule(ports=[1])]), dns=True)
    found = holding.within(HostConfig(capture=wanted), before.SerializeToString()).capture
    assert (list(found.outbound_prefixes), found.scope, list(found.open_prefixes)) == ([], Capture.MESH, [])


def test_while_held_a_port_of_mutual_tls_is_captured_though_two_policies_have_nothing_in_common() -> None:
    before, wanted = (
        Capture(inbound_ports=[80, 443], inbound=CaptureDirection(include=[CaptureRule(interfaces=[each])]))
        for each in ("eth0", "eth1")
    )
    config = HostConfig(capture=wanted, strict_ports=[443])
    assert list(holding.within(config, before.SerializeToString()).capture.inbound_ports) == [443]


RULES = [
    CaptureRule(ports=[80]),
    CaptureRule(ports=[80, 443], cidrs=["10.1.0.0/16"]),
    CaptureRule(cidrs=["10.0.0.0/8"]),
    CaptureRule(cidrs=["10.1.2.0/24", "0.0.0.0/1"]),
    CaptureRule(interfaces=["eth0"]),
    CaptureRule(ports=[443], interfaces=["eth1"]),
]
OF_WHOM = [CaptureRule(users=["7"]), CaptureRule(users=["7", "8"], ports=[80]), CaptureRule(units=["a.service"])]
HERE = Present(cgroups=frozenset({Cgroup("a.service", 2, 5)}))
CALLERS = (Caller("spiffe://td/ns/shop/sa/a", frozenset({8}), frozenset({ByCgroup(2, 5)})),)


def some_capture(draw: random.Random) -> Capture:
    def direction(rules: list[CaptureRule]) -> CaptureDirection:
        include, exclude = (draw.sample(rules, draw.choice((0, 0, 1, 2))) for _ in range(2))
        return CaptureDirection(include=include, exclude=exclude, open=draw.random() < 0.5)

    prefixes = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24"]
    return Capture(
        scope=draw.choice((Capture.MESH, Capture.ALL)),
        inbound_ports=draw.sample([80, 443, 8080], draw.randint(1, 3)),
        outbound_prefixes=draw.sample(prefixes, draw.randint(0, 3)),
        virtual_prefixes=["240.240.0.0/16"],
        inbound=direction(RULES),
        outbound=direction([*RULES, *OF_WHOM]),
    )


def some_packet(draw: random.Random) -> Packet:
    hook = draw.choice((Hook.PREROUTING, Hook.OUTPUT))
    calls = hook is Hook.OUTPUT
    targets = ("10.1.2.3", "10.1.9.9", "10.9.0.1", "192.0.2.9", "198.51.100.1", "240.240.0.7")
    return Packet(
        hook,
        ip_address("192.0.2.200" if calls else draw.choice(targets)),
        ip_address(draw.choice(targets) if calls else "192.0.2.200"),
        draw.choice((22, 80, 443, 8080)),
        uid=draw.choice((0, 7, 8)) if calls else None,
        cgroups=draw.choice(((9, 5), (9, 6))) if calls else (),
        input_interface=0 if calls else 2,
        output_interface=2 if calls else 0,
        input_interface_name="" if calls else draw.choice(("eth0", "eth1")),
        output_interface_name=draw.choice(("eth0", "eth1")) if calls else "",
        local=not calls,
    )


def test_a_hold_never_captures_more_than_before_or_than_is_wanted_nor_opens_ports_of_mutual_tls() -> None:
    draw = random.Random(7)
    floor = replace(FLOOR, present=HERE)
    taken, closed = 0, 0
    for _ in range(150):
        limit, wanted, strict = some_capture(draw), some_capture(draw), draw.sample([80, 443, 8080], 2)
        held = holding.within(HostConfig(capture=wanted, strict_ports=strict), limit.SerializeToString()).capture
        before, after, now = (
            plan(replace(full_request(each), strict_ports=frozenset(strict), callers=CALLERS), floor).table
            for each in (limit, wanted, held)
        )
        for packet in (some_packet(draw) for _ in range(60)):
            found = verdict(now, packet).action
            assert found != "unknown"
            if found in {"redirect", "change port"}:
                taken += 1
                assert verdict(before, packet).touched, (packet, limit, wanted)
                assert verdict(after, packet).touched, (packet, limit, wanted)
            elif packet.hook is Hook.PREROUTING and packet.port in strict:
                closed += 1
                assert packet.port not in set(limit.inbound_ports) & set(wanted.inbound_ports)
    assert taken > 300
    assert closed > 300


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
