"""What the planner makes of includes and excludes: the order of the rules, their sets, and what is refused by name."""

import random
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest

from hostmesh_agent.capture import CaptureRequest, HostFloor, PlanError, Scope, plan
from hostmesh_agent.capture.difference import widens
from hostmesh_agent.capture.interpret import Packet, verdict
from hostmesh_agent.capture.rules import Backend, Hook, Ruleset
from hostmesh_agent.capture.text import rule_text, table_text
from hostmesh_agent.capture.who import Cgroup, Match, Narrowing, Present
from hostmesh_agent.terms import narrowing
from hostmesh_api.v1.hostmesh_pb2 import CaptureDirection, CaptureRule

VIRTUAL = frozenset({"240.240.0.0/16"})
SHOP = Match(units=frozenset({"shop.service"}))
ALICE = Match(users=frozenset({"alice", "7"}), ports=frozenset({443}))
LAN = Match(cidrs=frozenset({"10.0.0.0/8"}))
STRICT = frozenset({81, 90})
PRESENT = Present(frozenset({("alice", 1001)}), frozenset({Cgroup("shop.service", 3, 77)}))


def ruleset(floor: Mapping[str, object] | None = None, **request: object) -> Ruleset:
    asked = CaptureRequest(
        inbound_ports=frozenset({80, 81}), mesh_prefixes=VIRTUAL, virtual_prefixes=VIRTUAL, dns=False
    )
    fields = {name: getattr(asked, name) for name in asked.__dataclass_fields__} | request
    return plan(CaptureRequest(**fields), HostFloor(envoy_uid=900, ipv6=False, present=PRESENT, **(floor or {})))  # type: ignore[arg-type]


def lines(made: Ruleset, name: str) -> list[str]:
    (chain,) = [each for each in made.table.chains if each.name == name]
    return [rule_text(rule).partition(" comment ")[0] for rule in chain.rules]


def test_excluded_programs_come_before_virtual_addresses_and_what_else_is_excluded_behind() -> None:
    made = ruleset(outbound=Narrowing(exclude=(LAN, ALICE, SHOP)))
    assert lines(made, "outbound")[3:] == [
        "tcp dport @outbound_exclude1_ports meta skuid @outbound_exclude1_uids return",
        "socket cgroupv2 level 2 @outbound_exclude2_units2 return",
        "socket cgroupv2 level 3 @outbound_exclude2_units3 return",
        "ip daddr @virtual4 meta l4proto tcp redirect to :15001",
        "fib daddr type local return",
        "ip daddr @outbound_exclude0_cidrs4 return",
        "ip daddr @mesh4 meta l4proto tcp redirect to :15001",
    ]
    assert lines(made, "nowhere") == ["ip daddr @virtual4 meta l4proto tcp reject with tcp reset"]
    text = table_text(made.table)
    assert "elements = { 7, 1001 }" in text.replace("1001, 7", "7, 1001")
    assert "elements = { 77 }" in text


def test_what_is_included_is_a_condition_of_each_redirect_and_at_virtual_addresses_only_who_counts() -> None:
    made = ruleset(scope=Scope.ALL, outbound=Narrowing(include=(ALICE, SHOP)))
    assert lines(made, "outbound")[3:] == [
        "ip daddr @virtual4 meta skuid @outbound_include0_uids meta l4proto tcp redirect to :15001",
        "ip daddr @virtual4 socket cgroupv2 level 2 @outbound_include1_units2 meta l4proto tcp redirect to :15001",
        "ip daddr @virtual4 socket cgroupv2 level 3 @outbound_include1_units3 meta l4proto tcp redirect to :15001",
        "fib daddr type local return",
        "ip daddr @mesh4 tcp dport @outbound_include0_ports meta skuid @outbound_include0_uids meta l4proto tcp"
        " redirect to :15001",
        "ip daddr @mesh4 socket cgroupv2 level 2 @outbound_include1_units2 meta l4proto tcp redirect to :15001",
        "ip daddr @mesh4 socket cgroupv2 level 3 @outbound_include1_units3 meta l4proto tcp redirect to :15001",
        "tcp dport 53 return",
        "tcp dport 853 return",
        "meta nfproto ipv4 tcp dport @outbound_include0_ports meta skuid @outbound_include0_uids meta l4proto tcp"
        " redirect to :15001",
        "meta nfproto ipv4 socket cgroupv2 level 2 @outbound_include1_units2 meta l4proto tcp redirect to :15001",
        "meta nfproto ipv4 socket cgroupv2 level 3 @outbound_include1_units3 meta l4proto tcp redirect to :15001",
    ]


def test_an_include_that_names_no_program_takes_all_virtual_addresses() -> None:
    made = ruleset(outbound=Narrowing(include=(SHOP, LAN)))
    assert "ip daddr @virtual4 meta l4proto tcp redirect to :15001" in lines(made, "outbound")


def test_inbound_the_owner_comes_first_then_mutual_tls_then_the_policy() -> None:
    made = ruleset(
        {"never_interfaces": frozenset({"eth7"})},
        inbound=Narrowing(include=(LAN,), exclude=(Match(interfaces=frozenset({"eth8"})),)),
        strict_ports=frozenset({81, 90}),
    )
    assert lines(made, "inbound") == [
        'iif "lo" return',
        "iifname @inbound_never0_interfaces return",
        "meta nfproto ipv4 fib daddr type local tcp dport @strict_ports dnat to :15006",
        "iifname @inbound_exclude0_interfaces return",
        "ip saddr @inbound_include0_cidrs4 fib daddr type local tcp dport @inbound_ports dnat to :15006",
    ]
    (strict,) = [each for each in made.table.sets if each.name == "strict_ports"]
    assert strict.ranges == ((b"\x00\x51", b"\x00\x51"),), "only what is captured at all"


def test_what_came_past_envoy_to_a_strict_port_is_refused_but_for_what_the_owner_excludes() -> None:
    made = ruleset({"never_interfaces": frozenset({"eth7"})}, inbound=Narrowing(include=(LAN,)), strict_ports=STRICT)
    assert lines(made, "bypassed") == [
        'iif "lo" return',
        "iifname @inbound_never0_interfaces return",
        "tcp dport @strict_ports tcp flags syn / fin,syn,rst,ack reject with tcp reset",
    ]
    (chain,) = [each for each in made.table.chains if each.name == "bypassed"]
    assert (chain.kind, chain.hook, chain.priority) == ("filter", Hook.INPUT, 150)


@pytest.mark.parametrize("strict", [frozenset(), frozenset({90, 22}), None], ids=["permissive", "not captured", "none"])
def test_where_nothing_that_is_captured_is_strict_nothing_that_arrives_is_looked_at(
    strict: frozenset[int] | None,
) -> None:
    made = ruleset(strict_ports=strict) if strict is not None else ruleset()
    assert "bypassed" not in {each.name for each in made.table.chains}
    assert "strict_ports" not in {each.name for each in made.table.sets}


@pytest.mark.parametrize("backend", list(Backend))
def test_going_over_the_rules_finds_what_is_refused_behind_capture(backend: Backend) -> None:
    """As if a chain of somebody else had left the destination as it was, or made it that of the program."""
    made = ruleset({"backend": backend}, strict_ports=STRICT, dns=False)
    arrived = Packet(Hook.INPUT, ip_address("192.0.2.1"), ip_address("192.0.2.9"), 81, input_interface=2, local=True)
    found = verdict(made.table, arrived)
    assert (found.action, found.chain) == ("refuse", "bypassed")
    assert verdict(made.table, replace(arrived, input_interface=1)).action == "none"
    assert verdict(made.table, replace(arrived, port=82)).action == "none"
    assert verdict(made.table, replace(arrived, hook=Hook.PREROUTING)).action == "change port"
    assert verdict(made.table, replace(arrived, hook=Hook.PREROUTING, local=False)).action == "none"


def test_a_port_that_becomes_strict_meets_more_and_one_that_is_so_no_longer_less() -> None:
    open_, strict = ruleset().table, ruleset(strict_ports=STRICT).table
    assert widens(open_, strict)
    assert not widens(strict, open_)
    narrowed = [ruleset(inbound=Narrowing(include=(LAN,)), strict_ports=each).table for each in (STRICT, frozenset())]
    assert not widens(*narrowed)
    assert widens(*reversed(narrowed))


def test_users_and_units_that_are_not_there_are_told_and_match_nobody() -> None:
    gone = Match(users=frozenset({"bob"}), units=frozenset({"shop.service", "away.service"}))
    made = ruleset(outbound=Narrowing(exclude=(gone,)))
    assert made.missing == ("unit away.service", "user bob")
    (uids,) = [each for each in made.table.sets if each.name == "outbound_exclude0_uids"]
    assert uids.ranges == ()


def test_the_owner_s_greatest_scope_is_kept_and_what_was_asked_for_is_refused_by_name() -> None:
    made = ruleset({"max_scope": Scope.MESH}, scope=Scope.ALL)
    assert lines(made, "outbound") == lines(ruleset(), "outbound")
    assert [str(each) for each in made.refused] == [
        "scope all is not captured: the host's own configuration captures what is known to the mesh at most "
        "(capture.max_scope)"
    ]


def test_a_host_without_a_policy_has_the_rules_that_it_had() -> None:
    made = ruleset()
    assert not any("exclude" in each.name or "include" in each.name for each in made.table.sets)
    assert [each.name for each in made.table.chains] == ["inbound", "outbound"]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (CaptureRule(), "rule 1 of outbound.exclude: it says nothing: it would be about everything"),
        (CaptureRule(ports=[0]), "0 is not a TCP port"),
        (CaptureRule(ports=[70000]), "70000 is not a TCP port"),
        (CaptureRule(cidrs=["10.0.0.1/8"]), "10.0.0.1/8 has host bits set"),
        (CaptureRule(cidrs=["nowhere"]), "not an address prefix"),
        (CaptureRule(users=["4294967295"]), "'4294967295' is not a user"),
        (CaptureRule(users=[""]), "'' is not a user"),
        (CaptureRule(units=["../../init.scope"]), "'../../init.scope' is not a unit"),
        (CaptureRule(interfaces=["a" * 16]), "is not the name of an interface"),
    ],
)
def test_a_rule_that_cannot_be_told_to_the_kernel_is_refused_by_its_place(rule: CaptureRule, says: str) -> None:
    with pytest.raises(PlanError, match=r"rule 1 of outbound\.exclude: ") as refused:
        ruleset(outbound=narrowing(CaptureDirection(exclude=[rule])))
    assert says in str(refused.value)


def test_inbound_rules_do_not_tell_programs_apart() -> None:
    with pytest.raises(PlanError, match="not by users or units"):
        ruleset(inbound=narrowing(CaptureDirection(include=[CaptureRule(users=["alice"])])))


def test_the_order_in_which_things_are_named_makes_no_other_rules() -> None:
    names = [f"u{number}.service" for number in range(20)]
    cgroups = frozenset(Cgroup(name, 2, 1000 - number) for number, name in enumerate(names))
    digests = set()
    for seed in range(5):
        random.Random(seed).shuffle(names)
        rule = CaptureRule(
            units=names, ports=random.Random(seed).sample(range(1, 99), 98), cidrs=["10.0.0.0/8", "::/0"]
        )
        request = CaptureRequest(outbound=narrowing(CaptureDirection(exclude=[rule])))
        floor = HostFloor(envoy_uid=900, present=Present(cgroups=cgroups))
        digests.add(plan(request, floor).table.digest)
    assert len(digests) == 1
