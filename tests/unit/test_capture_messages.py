"""What is written to the kernel is what is understood when it is read: without a kernel, by the bytes."""

from collections import defaultdict

import pytest

from hostmesh_agent.capture import CaptureRequest, HostFloor, decode, encode, plan
from hostmesh_agent.capture.attributes import CHAIN, RULE, SET, SET_ELEMENTS, TABLE, Kind
from hostmesh_agent.capture.codec import Attributes, Layout
from hostmesh_agent.capture.rules import Chain, Hook, KeyType, NamedSet, Return, Rule, Table, Unknown
from hostmesh_agent.capture.text import rule_text

WHOLE = plan(
    CaptureRequest(
        inbound_ports=frozenset({80, 8080}),
        mesh_prefixes=frozenset({"10.1.0.0/16", "240.0.0.0/4", "ff00::/8", "2001:db8::/32"}),
        virtual_prefixes=frozenset({"240.240.0.0/16"}),
    ),
    HostFloor(envoy_uid=900),
).table


LAYOUTS: dict[Kind, Layout] = {
    Kind.NEW_TABLE: TABLE,
    Kind.NEW_CHAIN: CHAIN,
    Kind.DELETE_CHAIN: CHAIN,
    Kind.NEW_RULE: RULE,
    Kind.DELETE_RULE: RULE,
    Kind.NEW_SET: SET,
    Kind.DELETE_SET: SET,
    Kind.NEW_SET_ELEMENTS: SET_ELEMENTS,
    Kind.DELETE_SET_ELEMENTS: SET_ELEMENTS,
}


def told(now: Table | None, table: Table) -> list[tuple[Kind, Attributes]]:
    """What the messages say, read from their bytes."""
    kinds = [(Kind(message.kind & 0xFF), message.attributes) for message in encode.change(now, table)]
    return [(kind, LAYOUTS[kind].unpack(packed)) for kind, packed in kinds]


def test_a_table_survives_the_way_through_bytes() -> None:
    found: dict[Kind, list[Attributes]] = defaultdict(list)
    for kind, attributes in told(None, WHOLE):
        found[kind].append(attributes)
    elements = found[Kind.NEW_SET_ELEMENTS]
    sets = [
        decode.read_set(each, [part["ELEMENTS"] for part in elements if part["SET"] == each["NAME"]])
        for each in found[Kind.NEW_SET]
    ]
    rules = found[Kind.NEW_RULE]
    chains = [
        decode.read_chain(each, [decode.read_rule(rule) for rule in rules if rule["CHAIN"] == each["NAME"]])
        for each in found[Kind.NEW_CHAIN]
    ]
    assert decode.read_table(found[Kind.NEW_TABLE][0], sets, chains) == WHOLE


def test_a_long_set_is_written_in_messages_that_netlink_can_hold() -> None:
    ranges = tuple((n.to_bytes(16, "big"), n.to_bytes(16, "big")) for n in range(0, 6000, 2))
    table = Table(sets=(NamedSet("mesh6", KeyType.IPV6, ranges, intervals=True),), chains=())
    sizes = [len(message.pack(0)) for message in encode.change(None, table)]
    assert len(sizes) == 8  # the table, the set, and 3,000 ranges by 500
    assert max(sizes) < 65536


def kinds(now: Table | None, table: Table) -> list[tuple[Kind, str]]:
    return [(kind, says.get("CHAIN") or says.get("SET") or says["NAME"]) for kind, says in told(now, table)]


def chain(name: str, priority: int = 0, *rules: Rule) -> Chain:
    return Chain(name, "filter", Hook.OUTPUT, priority, rules)


def ports(name: str, *numbers: int) -> NamedSet:
    ranges = tuple((number.to_bytes(2, "big"), number.to_bytes(2, "big")) for number in numbers)
    return NamedSet(name, KeyType.PORT, ranges, intervals=False)


def test_what_stays_is_left_where_it_is_and_only_the_rest_is_changed() -> None:
    """Between an old and a new chain, or an old and a new set, a packet could slip through at the moment of change."""
    rule = Rule((Return(),))
    now = Table(
        sets=(ports("gone", 1), ports("grown", 1, 2), ports("same", 1)),
        chains=(chain("changed"), chain("gone"), chain("moved"), chain("same", 0, rule)),
    )
    wanted = Table(
        sets=(ports("grown", 2, 3), ports("new", 7), ports("same", 1)),
        chains=(chain("changed", 0, rule), chain("moved", 5), chain("same", 0, rule)),
    )
    assert kinds(now, wanted) == [
        (Kind.DELETE_RULE, "changed"),
        (Kind.DELETE_RULE, "gone"),
        (Kind.DELETE_RULE, "moved"),
        (Kind.DELETE_SET, "gone"),
        (Kind.DELETE_CHAIN, "gone"),
        (Kind.DELETE_CHAIN, "moved"),
        (Kind.DELETE_SET_ELEMENTS, "grown"),
        (Kind.NEW_SET_ELEMENTS, "grown"),
        (Kind.NEW_SET, "new"),
        (Kind.NEW_SET_ELEMENTS, "new"),
        (Kind.NEW_RULE, "changed"),
        (Kind.NEW_CHAIN, "moved"),
    ]
    assert kinds(now, now) == []


def test_where_there_is_no_table_all_of_it_is_made() -> None:
    assert kinds(None, Table(sets=(), chains=(chain("a"),))) == [
        (Kind.NEW_TABLE, "hostmesh"),
        (Kind.NEW_CHAIN, "a"),
    ]


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("counter", {"BYTES": 1}),
        ("cmp", {"SREG": 2, "OP": 0, "DATA": {"VALUE": b"\1"}}),
        ("cmp", {"SREG": 1, "OP": 4, "DATA": {"VALUE": b"\1"}}),
        ("meta", {"DREG": 1, "KEY": 3}),
        ("immediate", {"DREG": 0, "DATA": {"VERDICT": {"CODE": 1}}}),
        ("lookup", {"SET": "mesh4", "SREG": 1, "FLAGS": 1}),
        ("redir", {"PROTO_MIN": 1, "PROTO_MAX": 2, "FLAGS": 2}),
        ("nat", None),
    ],
)
def test_an_expression_that_we_never_write_is_unknown_and_shown_as_it_is(name: str, attributes: object) -> None:
    found = decode.decode(name, attributes)
    assert found == Unknown(name, repr(attributes))
    assert name in rule_text(Rule((found,)))
    with pytest.raises(ValueError, match=name):
        encode.encode(found)


def test_what_the_kernel_adds_by_itself_makes_no_difference() -> None:
    assert decode.decode("redir", {"PROTO_MIN": 1, "PROTO_MAX": 1, "FLAGS": 2}) == decode.decode(
        "redir", {"PROTO_MIN": 1, "FLAGS": 2}
    )
    assert decode.decode("lookup", {"SET": "a", "SREG": 1, "FLAGS": 0}) == decode.decode(
        "lookup", {"SET": "a", "SREG": 1}
    )
