"""Our bytes of nf_tables' attributes are those that pyroute2 makes, and bytes of others do no harm."""

# mypy: disable-error-code="misc,import-untyped"
# (pyroute2 ships no types: its base classes are Any)

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.nfnetlink import nfgen_msg, nftsocket

from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, decode, encode, plan
from hostmesh_agent.capture.attributes import CHAIN, DATA_LAYOUTS, RULE, SET, SET_ELEMENTS, TABLE
from hostmesh_agent.capture.codec import Attributes, Form, Layout, Number, Text, attribute, split
from hostmesh_agent.capture.rules import (
    Expression,
    Header,
    Mask,
    Meta,
    MetaKey,
    Payload,
    PayloadWrite,
    Unknown,
)

WHOLE = plan(
    CaptureRequest(Scope.MESH, frozenset({80}), frozenset({"10.1.0.0/16", "2001:db8::/32"})), HostFloor(envoy_uid=900)
).table
EXPRESSIONS = sorted(
    {each for chain in WHOLE.chains for rule in chain.rules for each in rule.expressions}
    | {PayloadWrite(Header.TRANSPORT, 10, 2, 6), Mask(b"\xff\xf0\0", b"\0\5\0")},
    key=repr,
)
PYROUTE2_FORMS = {
    Number(): "be32",
    Number(signed=True): "sbe32",
    Number(8): "be64",
    Number(1): "uint8",
    Text(): "asciiz",
}


def class_of(layout: Layout, base: type = nla) -> type:
    """The same layout as a class of pyroute2."""
    names: list[tuple[int, str, str]] = []
    nested: dict[str, Any] = {}
    for name, (number, form) in layout.forms.items():
        names.append((number, name, form_of(name, form)))
        if isinstance(form, Layout):
            nested[f"nested_{name}"] = class_of(form)
    return type("Oracle", (base,), {"nla_map": tuple(names), "nla_flags": NLA_F_NESTED, **nested})


def form_of(name: str, form: Form) -> str:
    return f"nested_{name}" if isinstance(form, Layout) else PYROUTE2_FORMS.get(form, "cdata")


def nested(attributes: Attributes) -> dict[str, Any]:
    pairs = [(name, nested(value) if isinstance(value, dict) else value) for name, value in attributes.items()]
    return {"attrs": pairs}


def by_pyroute2(layout: Layout, attributes: Attributes) -> bytes:
    message = class_of(layout, nfgen_msg)()
    message["attrs"] = nested(attributes)["attrs"]
    message.encode()
    return bytes(message.data[encode.HEADER.size :])


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=repr)
def test_an_expression_has_the_bytes_that_pyroute2_gives_it(expression: Expression) -> None:
    name, attributes = encode.encode(expression)
    assert DATA_LAYOUTS[name].pack(attributes) == by_pyroute2(DATA_LAYOUTS[name], attributes)


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=repr)
def test_an_expression_survives_the_way_through_bytes(expression: Expression) -> None:
    ((_, packed),) = split(encode.packed(expression))
    assert decode.expression(packed) == expression


@pytest.mark.parametrize(
    ("layout", "attributes"),
    [
        (TABLE, {"NAME": "hostmesh", "FLAGS": 6}),
        (
            CHAIN,
            {"TABLE": "t", "NAME": "inbound", "HOOK": {"NUMBER": 3, "PRIORITY": -110}, "POLICY": 1, "TYPE": "nat"},
        ),
        (RULE, {"TABLE": "hostmesh", "CHAIN": "a", "HANDLE": 1 << 40, "USERDATA": b"\0\4abc\0"}),
        (SET, {"TABLE": "hostmesh", "NAME": "mesh4", "FLAGS": 4, "KEY_TYPE": 7, "KEY_LEN": 4, "ID": 1}),
    ],
    ids=["table", "chain", "rule", "set"],
)
def test_a_message_has_the_attributes_that_pyroute2_gives_it(layout: Layout, attributes: Attributes) -> None:
    packed = layout.pack(attributes)
    assert packed == by_pyroute2(layout, attributes)
    assert layout.unpack(packed) == attributes


def test_a_message_has_the_header_that_pyroute2_gives_it() -> None:
    ours = encode.Message(0xA06, 0x405, b"")
    theirs = nfgen_msg()
    theirs.update(nfgen_family=1, res_id=10)
    theirs["header"].update(type=0xA06, flags=0x405, sequence_number=77)
    theirs.encode()
    assert ours.pack(77) == bytes(theirs.data)


@pytest.mark.parametrize(
    ("layout", "theirs", "prefix"),
    [
        (TABLE, nftsocket.nft_table_msg, "NFTA_TABLE"),
        (CHAIN, nftsocket.nft_chain_msg, "NFTA_CHAIN"),
        (RULE, nftsocket.nft_rule_msg, "NFTA_RULE"),
        (SET, nftsocket.nft_set_msg, "NFTA_SET"),
        (SET_ELEMENTS, nftsocket.nft_set_elem_list_msg, "NFTA_SET_ELEM_LIST"),
    ],
    ids=["table", "chain", "rule", "set", "elements"],
)
def test_attributes_have_the_numbers_that_pyroute2_knows(layout: Layout, theirs: Any, prefix: str) -> None:
    known = [entry[0] for entry in theirs.nla_map]
    assert {name: known[number] for name, (number, _) in layout.forms.items()} == {
        name: f"{prefix}_{name}" for name in layout.forms
    }


@given(st.binary(max_size=80))
def test_no_bytes_of_others_break_the_reading(data: bytes) -> None:
    for _, value in split(data):
        assert len(value) <= len(data)
    for name, layout in DATA_LAYOUTS.items():
        decode.decode(name, layout.unpack(data))
    decode.expression.__wrapped__(data)
    decode.read_set({"NAME": "x", "KEY_TYPE": 7, "FLAGS": 4}, [data])


def test_what_a_layout_does_not_know_is_kept_as_bytes_and_makes_an_expression_unknown() -> None:
    name, attributes = encode.encode(Meta(MetaKey.PROTOCOL))
    data = DATA_LAYOUTS[name].pack(attributes) + attribute(99, b"more")
    found = DATA_LAYOUTS[name].unpack(data)
    assert found == {**attributes, "#99": b"more"}
    assert isinstance(decode.decode(name, found), Unknown)


def test_a_transaction_asks_for_one_answer_at_its_end() -> None:
    batch = encode.batch([*encode.change(None, WHOLE)])
    assert [message.kind for message in (batch[0], batch[-1])] == [0x10, 0x11]
    assert [message.flags & 4 for message in batch] == [0] * (len(batch) - 2) + [4, 0]


def test_equal_expressions_are_packed_once() -> None:
    assert encode.packed(Payload(Header.NETWORK, 16, 4)) is encode.packed(Payload(Header.NETWORK, 16, 4))
