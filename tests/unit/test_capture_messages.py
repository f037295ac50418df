"""What is written to the kernel is what is understood when it is read: without a kernel, by the bytes."""

import pytest

from hostmesh_agent.capture import CaptureRequest, HostFloor, codec, plan
from hostmesh_agent.capture.attributes import ChainMessage, RuleMessage, SetElementsMessage, SetMessage, TableMessage
from hostmesh_agent.capture.rules import KeyType, NamedSet, Rule, Unknown
from hostmesh_agent.capture.text import rule_text

TABLE = plan(
    CaptureRequest(
        inbound_ports=frozenset({80, 8080}),
        mesh_prefixes=frozenset({"10.1.0.0/16", "240.0.0.0/4", "ff00::/8", "2001:db8::/32"}),
        virtual_prefixes=frozenset({"240.240.0.0/16"}),
    ),
    HostFloor(envoy_uid=900),
).table


def test_a_table_survives_the_way_through_bytes() -> None:
    table: codec.Attributes = {}
    chains, rules, sets, elements = [], [], [], []
    for message in codec.writes(TABLE):
        message.encode()
        read = type(message)(message.data)
        read.decode()
        attributes = codec.flat(read)
        if isinstance(message, TableMessage):
            table = attributes
        elif isinstance(message, ChainMessage):
            chains.append(attributes)
        elif isinstance(message, RuleMessage):
            rules.append(attributes)
        elif isinstance(message, SetMessage):
            sets.append(attributes)
        elif isinstance(message, SetElementsMessage):
            elements.append(attributes)
    assert (
        codec.read_table(
            table,
            [
                codec.read_set(each, [e for part in elements if part["SET"] == each["NAME"] for e in part["ELEMENTS"]])
                for each in sets
            ],
            [
                codec.read_chain(each, [codec.read_rule(rule) for rule in rules if rule["CHAIN"] == each["NAME"]])
                for each in chains
            ],
        )
        == TABLE
    )


def test_a_long_set_is_written_in_messages_that_netlink_can_hold() -> None:
    ranges = tuple((n.to_bytes(16, "big"), n.to_bytes(16, "big")) for n in range(0, 6000, 2))
    table = type(TABLE)(sets=(NamedSet("mesh6", KeyType.IPV6, ranges, intervals=True),), chains=())
    sizes = []
    for message in codec.writes(table):
        message.encode()
        sizes.append(len(message.data))
    assert len(sizes) == 14  # the table, the set, and 6,000 elements by 500
    assert max(sizes) < 65536


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("counter", {"BYTES": 1}),
        ("cmp", {"SREG": 2, "OP": 0, "DATA": {"VALUE": b"\1"}}),
        ("cmp", {"SREG": 1, "OP": 4, "DATA": {"VALUE": b"\1"}}),
        ("meta", {"DREG": 1, "KEY": 3}),
        ("immediate", {"DREG": 0, "DATA": {"VERDICT": {"CODE": 0}}}),
        ("lookup", {"SET": "mesh4", "SREG": 1, "FLAGS": 1}),
        ("redir", {"PROTO_MIN": 1, "PROTO_MAX": 2, "FLAGS": 2}),
        ("nat", None),
    ],
)
def test_an_expression_that_we_never_write_is_unknown_and_shown_as_it_is(name: str, attributes: object) -> None:
    found = codec.decode(name, attributes)
    assert found == Unknown(name, repr(attributes))
    assert name in rule_text(Rule((found,)))
    with pytest.raises(ValueError, match=name):
        codec.encode(found)


def test_what_the_kernel_adds_by_itself_makes_no_difference() -> None:
    assert codec.decode("redir", {"PROTO_MIN": 1, "PROTO_MAX": 1, "FLAGS": 2}) == codec.decode(
        "redir", {"PROTO_MIN": 1, "FLAGS": 2}
    )
    assert codec.decode("lookup", {"SET": "a", "SREG": 1, "FLAGS": 0}) == codec.decode(
        "lookup", {"SET": "a", "SREG": 1}
    )
