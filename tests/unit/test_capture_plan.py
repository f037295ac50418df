"""What the planner decides: the rules as text, and what it refuses."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_agent.capture import CaptureRequest, HostFloor, PlanError, Scope, plan
from hostmesh_agent.capture.rules import Chain, Ruleset
from hostmesh_agent.capture.text import rule_text, table_text
from hostmesh_agent.capture.who import ranges

VIRTUAL = frozenset({"240.240.0.0/16", "fd00:f0f0::/112"})
REQUEST = CaptureRequest(
    inbound_ports=frozenset({80, 8080}),
    mesh_prefixes=VIRTUAL | {"10.1.0.0/16"},
    virtual_prefixes=VIRTUAL,
)
FLOOR = HostFloor(envoy_uid=900, controller=frozenset({("10.0.0.1", 15012), ("2001:db8::1", 15012)}))


def chain(ruleset: Ruleset, name: str) -> Chain:
    (found,) = [each for each in ruleset.table.chains if each.name == name]
    return found


def lines(ruleset: Ruleset, name: str) -> list[str]:
    return [rule_text(rule).partition(" comment ")[0] for rule in chain(ruleset, name).rules]


def members(ruleset: Ruleset, name: str) -> list[int]:
    (found,) = [each for each in ruleset.table.sets if each.name == name]
    return [int.from_bytes(first, "big") for first, _ in found.ranges]


def test_outbound_traffic_is_decided_in_the_order_of_the_policy() -> None:
    assert lines(plan(REQUEST, FLOOR), "outbound") == [
        'meta skuid 900 oif "lo" ip daddr != 127.0.0.0/8 ip saddr != 127.0.0.6 tcp dport @inbound_ports'
        " redirect to :15006",
        'meta skuid 900 oif "lo" ip6 daddr != ::1 ip6 saddr != ::6 tcp dport @inbound_ports redirect to :15006',
        "meta skuid 900 return",
        "tcp dport @untouched_ports return",
        "ip daddr 10.0.0.1 tcp dport 15012 return",
        "ip6 daddr 2001:db8::1 tcp dport 15012 return",
        "ip daddr 127.240.240.53 udp dport 53 redirect to :15053",
        "ip daddr 127.240.240.53 tcp dport 53 redirect to :15055",
        "ip daddr 127.240.240.54 udp dport 53 redirect to :15053",
        "ip daddr 127.240.240.54 tcp dport 53 redirect to :15055",
        "ip daddr @virtual4 meta l4proto tcp redirect to :15001",
        "ip6 daddr @virtual6 meta l4proto tcp dnat ip6 to [fd00:f0f1:0:1::1]:15001",
        "fib daddr type local return",
        "ip daddr @mesh4 meta l4proto tcp redirect to :15001",
        "ip6 daddr @mesh6 meta l4proto tcp dnat ip6 to [fd00:f0f1:0:1::1]:15001",
    ]


def test_inbound_traffic_is_captured_only_on_asked_ports_of_the_host_itself() -> None:
    assert lines(plan(REQUEST, FLOOR), "inbound") == [
        'iif "lo" return',
        "meta nfproto ipv4 fib daddr type local tcp dport @inbound_ports dnat to :15006",
        "meta nfproto ipv6 fib daddr type local tcp dport @inbound_ports dnat to :15006",
    ]


def test_scope_all_captures_every_outbound_connection_behind_the_same_exceptions() -> None:
    everything = plan(CaptureRequest(scope=Scope.ALL), FLOOR)
    assert lines(everything, "outbound")[-7:] == [
        "fib daddr type local return",
        "ip daddr @mesh4 meta l4proto tcp redirect to :15001",
        "ip6 daddr @mesh6 meta l4proto tcp dnat ip6 to [fd00:f0f1:0:1::1]:15001",
        # Names are looked up over TCP too, whatever may be called.
        "tcp dport 53 return",
        "tcp dport 853 return",
        "meta nfproto ipv4 meta l4proto tcp redirect to :15001",
        "meta nfproto ipv6 meta l4proto tcp dnat ip6 to [fd00:f0f1:0:1::1]:15001",
    ]


def test_chains_come_before_everybody_elses_destination_nat() -> None:
    ruleset = plan(REQUEST, FLOOR)
    assert {each.name: (each.kind, each.priority) for each in ruleset.table.chains} == {
        "answers": ("filter", -150),
        "inbound": ("nat", -110),
        "outbound": ("nat", -110),
    }


def test_without_dns_nothing_of_dns_is_there() -> None:
    ruleset = plan(CaptureRequest(dns=False), FLOOR)
    assert [each.name for each in ruleset.table.chains] == ["inbound", "outbound"]
    assert "53" not in " ".join(lines(ruleset, "outbound"))


def test_without_ipv6_no_rule_set_or_address_of_it_is_there() -> None:
    ruleset = plan(REQUEST, HostFloor(envoy_uid=900, ipv6=False, controller=frozenset({("2001:db8::1", 15012)})))
    text = table_text(ruleset.table)
    assert "ip6" not in text
    assert "ipv6" not in text
    assert ruleset.loopback_addresses == ()
    assert ruleset.virtual_prefixes == ("240.240.0.0/16",)


def test_with_ipv6_envoys_own_source_and_both_virtual_ranges_are_needed() -> None:
    ruleset = plan(REQUEST, FLOOR)
    assert ruleset.loopback_addresses == ("::6", "fd00:f0f1:0:1::1")
    assert ruleset.virtual_prefixes == ("240.240.0.0/16", "fd00:f0f0::/112")


@pytest.mark.parametrize(
    ("port", "why"),
    [
        (22, "SSH"),
        (2222, "SSH"),
        (9000, "exclude_inbound_ports"),
        (15001, "hostmesh's own"),
        (15006, "hostmesh's own"),
        (15012, "hostmesh's own"),
        (15013, "hostmesh's own"),
        (15014, "hostmesh's own"),
        (15053, "hostmesh's own"),
        (7443, "hostmesh's own"),
        (16001, "hostmesh's own"),
        (15090, "hostmesh's own"),
    ],
)
def test_a_port_of_the_floor_is_left_out_and_the_refusal_says_why(port: int, why: str) -> None:
    floor = HostFloor(
        envoy_uid=900,
        ssh_ports=frozenset({2222}),
        never_inbound_ports=frozenset({9000}),
        controller=frozenset({("10.0.0.1", 7443)}),
        envoy_ports=frozenset({15090}),
        outbound_port=16001,
    )
    ruleset = plan(CaptureRequest(inbound_ports=frozenset({80, port})), floor)
    assert members(ruleset, "inbound_ports") == [80]
    (refusal,) = ruleset.refused
    assert refusal.what == f"inbound port {port}"
    assert why in str(refusal)


def test_ssh_servers_and_controllers_are_never_reached_through_envoy() -> None:
    ruleset = plan(CaptureRequest(scope=Scope.ALL), HostFloor(envoy_uid=900, ssh_ports=frozenset({2222})))
    assert members(ruleset, "untouched_ports") == [22, 2222, 15012, 15013, 15014]


@pytest.mark.parametrize(
    ("request_", "floor", "says"),
    [
        (CaptureRequest(inbound_ports=frozenset({0})), FLOOR, "0 is not a TCP port"),
        (CaptureRequest(inbound_ports=frozenset({70000})), FLOOR, "70000 is not a TCP port"),
        (CaptureRequest(mesh_prefixes=frozenset({"10.0.0.1/8"})), FLOOR, "10.0.0.1/8"),
        (CaptureRequest(virtual_prefixes=frozenset({"example.org"})), FLOOR, "example.org"),
        (REQUEST, HostFloor(envoy_uid=0), "Envoy must have a user of its own"),
        (REQUEST, HostFloor(envoy_uid=900, controller=frozenset({("mesh.example", 15012)})), "mesh.example"),
    ],
)
def test_nonsense_is_an_error_that_names_it(request_: CaptureRequest, floor: HostFloor, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        plan(request_, floor)


def test_the_same_request_gives_the_same_digest_and_another_another() -> None:
    again = CaptureRequest(
        inbound_ports=frozenset({8080, 80}), mesh_prefixes=REQUEST.mesh_prefixes, virtual_prefixes=VIRTUAL
    )
    assert plan(again, FLOOR).table.digest == plan(REQUEST, FLOOR).table.digest
    assert plan(CaptureRequest(), FLOOR).table.digest != plan(REQUEST, FLOOR).table.digest


def prefixes(bits: int) -> st.SearchStrategy[str]:
    return st.tuples(st.integers(0, 2**bits - 1), st.integers(bits - 6, bits)).map(
        lambda each: f"{ip_address((each[0] >> bits - each[1] << bits - each[1]).to_bytes(bits // 8, 'big'))}/{each[1]}"
    )


@given(st.one_of(st.lists(prefixes(32)), st.lists(prefixes(128))))
def test_ranges_hold_just_what_the_prefixes_hold_and_never_overlap(texts: list[str]) -> None:
    networks = [ip_network(text) for text in texts]
    found = [(int.from_bytes(first, "big"), int.from_bytes(last, "big")) for first, last in ranges(networks)]
    assert all(first <= last for first, last in found)
    assert all(earlier[1] < later[0] for earlier, later in pairwise(found))
    held = {address for first, last in found for address in range(first, last + 1)}
    assert held == {int(address) for network in networks for address in network}


def test_the_questions_of_either_address_follow_envoy_to_another_port() -> None:
    moved = replace(FLOOR, dns_port=25053)
    assert [line for line in lines(plan(REQUEST, moved), "outbound") if "25053" in line] == [
        "ip daddr 127.240.240.53 udp dport 53 redirect to :25053",
        "ip daddr 127.240.240.54 udp dport 53 redirect to :25053",
    ]
    assert [line for line in lines(plan(REQUEST, moved), "answers") if "25053" in line] == [
        "ip saddr 127.0.0.1 udp sport 25053 ct original ip daddr 127.240.240.53 @th,80,16 & 0x000f 3"
        " @th,80,16 set @th,80,16 & 0xfff0 | 0x0005",
        "ip saddr 127.0.0.1 udp sport 25053 ct original ip daddr 127.240.240.54 @th,80,16 & 0x000f 4"
        " @th,80,16 set @th,80,16 & 0xfff0",
    ]
