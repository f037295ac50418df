"""What iptables is told, and how what it says is read: words and tables, without a kernel."""

import errno
import random
import re
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from hostmesh_agent.capture import CaptureRequest, HostFloor, PlanError, Scope, plan
from hostmesh_agent.capture.callers import Caller, envoy_in
from hostmesh_agent.capture.interpret import Packet, verdict
from hostmesh_agent.capture.kernel import lacks_nf_tables
from hostmesh_agent.capture.rules import Backend, Hook, NamedSet, PayloadWrite, Table
from hostmesh_agent.capture.who import Cgroup, Match, Narrowing, Present
from hostmesh_agent.capture.xt_text import (
    chains_of,
    restore_text,
    saved,
    set_of,
    sets_text,
    table_of,
    unneeded_text,
)
from hostmesh_agent.capture.xt_words import line, name_of_set, rule_of, set_name, words_in, words_of
from hostmesh_agent.cgroup_id import ByCgroup

VIRTUAL = frozenset({"240.240.0.0/16", "fd00:f0f0::/112"})
PATHS = {41: "hostmesh.slice", 42: "system.slice/shop.service"}
FLOOR = HostFloor(
    envoy_uid=900,
    backend=Backend.IPTABLES,
    envoy_cgroup=ByCgroup(1, 41),
    controller=frozenset({("192.0.2.7", 7443), ("2001:db8::7", 7443)}),
    never_interfaces=frozenset({"lo", "eth1"}),
    present=Present(users=frozenset({("shop", 1001)}), cgroups=frozenset({Cgroup("shop.service", 2, 42)})),
)
REQUEST = CaptureRequest(
    Scope.ALL,
    frozenset({8080, 8443}),
    VIRTUAL | {"10.20.0.0/15", "2001:db8:1::/48"},
    VIRTUAL,
    inbound=Narrowing(exclude=(Match(cidrs=frozenset({"192.0.2.0/24"})),)),
    outbound=Narrowing(
        exclude=(
            Match(users=frozenset({"shop", "1002"}), interfaces=frozenset({"eth0", "eth2"})),
            Match(units=frozenset({"shop.service"})),
            Match(ports=frozenset({5432})),
        )
    ),
    strict_ports=frozenset({8443}),
    callers=(Caller('spiffe://mesh.test/it\'s "mine"', uids=frozenset({77})),),
)


def made(floor: HostFloor = FLOOR, request: CaptureRequest = REQUEST) -> Table:
    return plan(request, floor).table


def in_kernel(table: Table) -> tuple[dict[int, str], dict[str, str]]:
    """Return what iptables-save and `ipset save` print when the text for `table` has been given to empty ones."""
    rules = {version: _save(restore_text(saved(""), table, version, PATHS)) for version in (4, 6)}
    sets: dict[str, str] = {}
    for each in sets_text((), table).splitlines():
        sets[each.split()[1]] = sets.get(each.split()[1], "") + each + "\n"
    return rules, sets


def _save(text: str) -> str:
    """Only the jumps are inserted; all else is printed as it was given."""
    return re.sub(r"^-I (\w+) 1 ", r"-A \1 ", text, flags=re.MULTILINE)


def read_back(table: Table) -> Table | None:
    rules, sets = in_kernel(table)
    found = [each for each in map(set_of, sets.values()) if each is not None]
    return table_of({version: saved(text) for version, text in rules.items()}, found, PATHS)


def test_what_is_written_is_read_back_as_the_same_table() -> None:
    table = made()
    assert table.backend is Backend.IPTABLES
    assert read_back(table) == table
    assert envoy_in(table) == ByCgroup(1, 41)


def test_what_is_in_force_already_is_not_written_again() -> None:
    table = made()
    rules, sets = in_kernel(table)
    found = [each for each in map(set_of, sets.values()) if each is not None]
    assert [restore_text(saved(rules[version]), table, version, PATHS) for version in (4, 6)] == ["", ""]
    assert sets_text(found, table) == unneeded_text(found, table) == ""


def test_users_units_and_interfaces_are_one_rule_each() -> None:
    rules = [line(each) for each in chains_of(made(), 4, PATHS)["nat", "HOSTMESH_OUTBOUND"]]
    assert sum("--uid-owner 1001" in each for each in rules) == 2  # at either of two interfaces
    assert any("-o eth0 -m comment" in each and "--uid-owner 1002 -j RETURN" in each for each in rules)
    assert any("--path system.slice/shop.service" in each and "cgroup 42@2" in each for each in rules)
    assert any("-o lo" in each and each.endswith("RETURN") for each in rules)
    assert not any("uids" in each or "units" in each or "interfaces" in each for each in rules)


def test_each_family_has_its_own_words_and_its_own_addresses() -> None:
    v4, v6 = ("\n".join(map(line, chains_of(made(), version, PATHS)["nat", "HOSTMESH_OUTBOUND"])) for version in (4, 6))
    assert "-d 192.0.2.7/32" in v4
    assert "2001:db8::7" not in v4
    assert "-d 2001:db8::7/128" in v6
    assert "HOSTMESH_mesh6 dst -j DNAT --to-destination [fd00:f0f1:0:1::1]:15001" in v6
    assert "HOSTMESH_mesh4 dst -j REDIRECT --to-ports 15001" in v4


def test_without_ipv6_nothing_is_said_of_it() -> None:
    table = made(HostFloor(envoy_uid=900, ipv6=False, backend=Backend.IPTABLES), CaptureRequest(Scope.ALL))
    assert restore_text(saved(""), table, 6, {}) == ""
    assert read_back(table) == table


@pytest.mark.parametrize("seed", range(40))
def test_a_connection_meets_the_same_as_with_nftables(seed: int) -> None:
    """Both tables are gone through as the kernel does it: the same packet, the same end."""
    draw = random.Random(seed)
    floor = HostFloor(envoy_uid=900, backend=Backend.IPTABLES, mtls_only=draw.random() < 0.5)
    ports = frozenset(draw.sample([80, 8080, 8443], 2))
    mesh = VIRTUAL | {"10.0.0.0/8", "::/0"}
    strict = frozenset(draw.sample(sorted(ports), draw.randint(0, 1)))
    request = CaptureRequest(draw.choice(list(Scope)), ports, mesh, VIRTUAL, dns=False, strict_ports=strict)
    on_iptables = made(floor, request)
    on_nftables = plan(request, HostFloor(envoy_uid=900, mtls_only=floor.mtls_only)).table
    for _ in range(200):
        version = draw.choice([4, 6])
        source, destination = (ip_address(draw.choice(_ADDRESSES[version])) for _ in range(2))
        packet = Packet(
            draw.choice(list(Hook)), source, destination,
            draw.choice([22, 53, 80, 443, 8080, 8443, 15001, 15012]),
            uid=draw.choice([0, 900, 1001]), input_interface=draw.choice([0, 1, 2]),
            output_interface=draw.choice([1, 2]), local=draw.random() < 0.5,
        )  # fmt: skip
        one, other = verdict(on_iptables, packet), verdict(on_nftables, packet)
        assert (one.action, one.port) == (other.action, other.port), packet


_ADDRESSES = {
    4: ["127.0.0.1", "127.0.0.6", "10.1.2.3", "192.0.2.1", "240.240.0.9"],
    6: ["::1", "::6", "2001:db8::1", "fd00:f0f0::9"],
}


@pytest.mark.parametrize(
    "changed",
    [
        "-p tcp -j RETURN",
        "-p tcp -m tcp --dport 22 -m limit --limit 3/min -j RETURN",
        "-p tcp -m tcp ! --dport 22 -m owner --uid-owner 5 -j LOG",
        '-m cgroup --path system.slice/shop.service -j RETURN',
        '-m comment --comment "cgroup 43@2: x" -m cgroup --path system.slice/shop.service -j RETURN',
        "-j",
        "",
    ],
)  # fmt: skip
def test_words_that_are_not_ours_are_an_unknown_expression(changed: str) -> None:
    rule = rule_of(words_in(changed), 4, PATHS)
    if changed == "-p tcp -j RETURN":
        assert words_of(rule, 4, PATHS) == words_in(changed)
    else:
        assert "Unknown" in repr(rule)


def test_a_cgroup_that_was_made_anew_at_the_same_path_is_another_one() -> None:
    """The kernel's rule still means the old one: it must not be taken for right."""
    rules, sets = in_kernel(made())
    found = [each for each in map(set_of, sets.values()) if each is not None]
    later = {41: "hostmesh.slice", 99: "system.slice/shop.service"}
    table = table_of({version: saved(text) for version, text in rules.items()}, found, later)
    assert "cgroup 42@2" in repr(table)
    assert "Unknown" in repr(table)


def test_a_chain_that_is_not_called_first_is_not_as_it_was_written() -> None:
    rules, sets = in_kernel(made())
    found = [each for each in map(set_of, sets.values()) if each is not None]
    behind = rules[4].replace(
        "-A PREROUTING -j HOSTMESH_INBOUND", "-A PREROUTING -j DOCKER\n-A PREROUTING -j HOSTMESH_INBOUND"
    )
    table = table_of({4: saved(behind), 6: saved(rules[6])}, found, PATHS)
    assert "PREROUTING does not call this chain before all others" in repr(table)
    mended = restore_text(saved(behind), made(), 4, PATHS)
    assert "-D PREROUTING -j HOSTMESH_INBOUND\n-I PREROUTING 1 -j HOSTMESH_INBOUND\n" in mended
    assert "DOCKER" not in mended


def test_sets_are_filled_beside_and_swapped_in_and_what_is_left_alone_comes_first() -> None:
    table = made()
    now = [NamedSet(each.name, each.key, (), each.intervals) for each in table.sets]
    text = sets_text(now, table)
    swaps = [each.split()[1:] for each in text.splitlines() if each.startswith("swap ")]
    assert swaps[0] == ["HOSTMESH_T_untouched_ports", "HOSTMESH_untouched_ports"]
    assert ["HOSTMESH_T_inbound_ports", "HOSTMESH_inbound_ports"] in swaps
    assert "add HOSTMESH_inbound_ports" not in text


@pytest.mark.parametrize("kept", [frozenset(), frozenset({8443})])
def test_nobody_is_sent_away_while_a_port_leaves_the_mesh(kept: frozenset[int]) -> None:
    """What is refused shrinks before what is captured does; and grows behind it."""
    more = CaptureRequest(inbound_ports=frozenset({8080, 8443}), strict_ports=frozenset({8080, 8443}), dns=False)
    fewer = replace(more, inbound_ports=kept, strict_ports=kept)
    plain = replace(FLOOR, never_interfaces=frozenset())

    def order(now: CaptureRequest, wanted: CaptureRequest) -> list[str]:
        text = sets_text(made(plain, now).sets, made(plain, wanted))
        filled = [line.split() for line in text.splitlines()]
        return [each[2 if each[0] == "swap" else 1] for each in filled if each[0] == "swap" or "_T_" not in each[1]]

    assert order(more, fewer) == ["HOSTMESH_strict_ports", "HOSTMESH_inbound_ports"]
    grown = [each for each in order(fewer, more) if each.endswith(("strict_ports", "inbound_ports"))]
    assert list(dict.fromkeys(grown)) == ["HOSTMESH_inbound_ports", "HOSTMESH_strict_ports"]


@pytest.mark.parametrize("prefixes", [{"0.0.0.0/0", "::/0"}, {"0.0.0.0/1", "128.0.0.0/1"}, {"224.0.0.0/3"}])
def test_everything_is_told_from_its_halves(prefixes: set[str]) -> None:
    table = made(FLOOR, CaptureRequest(mesh_prefixes=frozenset(prefixes)))
    assert read_back(table) == table
    assert "/0 " not in sets_text((), table).replace("\n", " ")


@pytest.mark.parametrize("name", ["inbound_ports", "mesh4", "outbound_exclude12_cidrs4", "inbound_never0_ports", "T_x"])
def test_names_of_sets_are_short_enough_and_come_back(name: str) -> None:
    assert len(f"HOSTMESH_T_{set_name(name).removeprefix('HOSTMESH_')}") <= 31
    assert name_of_set(set_name(name)) == name


@pytest.mark.parametrize("text", ['it\'s "quoted" \\ here', "plain", "", "a b"])
def test_words_survive_quoting(text: str) -> None:
    assert words_in(line(("-m", text, "x"))) == ("-m", text, "x")


def test_what_iptables_cannot_do_is_told_by_name() -> None:
    ruleset = plan(CaptureRequest(), HostFloor(envoy_uid=900, backend=Backend.IPTABLES))
    assert any("mesh names need a kernel with nf_tables" in str(each) for each in ruleset.refused)
    rules = [rule for chain in ruleset.table.chains for rule in chain.rules]
    assert not any(isinstance(each, PayloadWrite) for rule in rules for each in rule.expressions)
    wild = HostFloor(envoy_uid=900, backend=Backend.IPTABLES, never_interfaces=frozenset({"eth+"}))
    with pytest.raises(PlanError, match="without nf_tables this cannot be captured: to iptables an interface 'eth\\+'"):
        plan(CaptureRequest(), wild)


@pytest.mark.parametrize(
    ("kind", "code", "lacks"),
    [(2, -errno.EINVAL, True), (2, -errno.EOPNOTSUPP, True), (2, -errno.EPERM, False), ((10 << 8) | 15, 0, False)],
)
def test_a_kernel_without_nf_tables_is_known_by_its_answer(kind: int, code: int, lacks: bool) -> None:
    answer = struct.pack("=IHHIIi", 36, kind, 0, 1, 0, code) + bytes(16)
    assert lacks_nf_tables(answer) is lacks
    assert not lacks_nf_tables(b"")
