"""The rules as netlink messages: from whatever the kernel has to the wanted table, in one batch. Pure: no socket here.

What stays is left where it is. The kernel switches from old rules to new ones in one step, but each chain, and each
set that a rule looks into, finds out by itself which generation is the current one. So a packet that is under way at
that moment can meet a new chain that is not yet in force and then an old one that no longer is, or a new rule and a
set that it does not see yet (measured: 12 of 33,000 connections under 283 changes slipped through, none in this way).
Hence a chain is emptied and filled, not replaced, and a set gets and loses what differs.
"""

# mypy: disable-error-code="import-untyped"
# (pyroute2 ships no types)

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, TypeVar

from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg

from hostmesh_agent.capture.attributes import (
    ADDRESS_TYPE,
    DESTINATION_NAT,
    INET,
    INTERNET_CHECKSUM,
    INTERVAL_SET,
    LIST_ELEMENT,
    OF_DESTINATION,
    PORT_GIVEN,
    RANGE_END,
    REGISTER,
    RETURN_VERDICT,
    RULE_COMMENT,
    Attributes,
    ChainMessage,
    Kind,
    Message,
    RuleMessage,
    SetElementsMessage,
    SetMessage,
    TableMessage,
)
from hostmesh_agent.capture.rules import (
    TABLE_NAME,
    Chain,
    ChangePort,
    Compare,
    DestinationType,
    Expression,
    KeyType,
    Load,
    Lookup,
    Mask,
    Meta,
    NamedSet,
    Payload,
    PayloadWrite,
    Redirect,
    Return,
    Rule,
    Table,
    Unknown,
)

_RANGES_IN_MESSAGE: Final = 500  # a list's length is 16 bits; an IPv6 range takes 64 bytes
_KEY, _FLAGS, _VALUE = 1, 3, 1  # NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_FLAGS, NFTA_DATA_VALUE
_NESTED: Final = 0x8000  # NLA_F_NESTED


def begin() -> Message:
    return _batch_edge(0x10)  # NFNL_MSG_BATCH_BEGIN


def end() -> Message:
    return _batch_edge(0x11)  # NFNL_MSG_BATCH_END


def removal() -> Iterator[Message]:
    """Messages after which there is no table, whatever there was.

    To delete what is not there is an error and to add what is there is none, so it is added first.
    """
    yield _create(TableMessage, Kind.NEW_TABLE, {"NAME": TABLE_NAME})
    yield _delete(TableMessage, Kind.DELETE_TABLE, {"NAME": TABLE_NAME})


def replacement(table: Table) -> Iterator[Message]:
    """Messages after which there is `table`, whatever there was; for a moment a packet may meet neither."""
    yield from removal()
    yield from change(None, table)


def change(now: Table | None, table: Table) -> Iterator[Message]:
    """Messages that make `table` from `now` (None: there is none); nothing, if they are equal.

    The flags of a table cannot be changed: both must have the same.
    """
    if now is None:
        yield _create(TableMessage, Kind.NEW_TABLE, {"NAME": TABLE_NAME, "FLAGS": table.flags})
        now = Table(sets=(), chains=())
    chains = [chain for chain in table.chains if chain not in now.chains]
    sets_now = {_shape(each): each for each in now.sets}
    yield from _removed(now, table)
    for number, named_set in enumerate(table.sets, start=1):
        yield from _set_change(sets_now.get(_shape(named_set)), named_set, number)
    for chain in chains:
        if _shape(chain) not in {_shape(each) for each in now.chains}:
            yield _create(ChainMessage, Kind.NEW_CHAIN, _chain_attributes(chain))
        for rule in chain.rules:
            yield _create(RuleMessage, Kind.NEW_RULE, _rule_attributes(chain.name, rule), NLM_F_APPEND)


def _removed(now: Table, table: Table) -> Iterator[Message]:
    """Remove rules, then sets, then chains that do not stay: each is free only after the one before."""
    shapes: set[Chain | NamedSet] = {_shape(each) for each in table.chains} | {_shape(each) for each in table.sets}
    for chain in now.chains:
        if chain not in table.chains:
            yield _delete(RuleMessage, Kind.DELETE_RULE, {"TABLE": TABLE_NAME, "CHAIN": chain.name})
    for named_set in now.sets:
        if _shape(named_set) not in shapes:
            yield _delete(SetMessage, Kind.DELETE_SET, {"TABLE": TABLE_NAME, "NAME": named_set.name})
    for chain in now.chains:
        if _shape(chain) not in shapes:
            yield _delete(ChainMessage, Kind.DELETE_CHAIN, {"TABLE": TABLE_NAME, "NAME": chain.name})


_Part = TypeVar("_Part", Chain, NamedSet)


def _shape(part: _Part) -> _Part:
    """Return the chain or set without what is in it: what must be the same for it to stay."""
    if isinstance(part, Chain):
        return replace(part, rules=())
    return replace(part, ranges=())


def request(message_class: type[Message], attributes: Attributes) -> Message:
    message = message_class()
    message["nfgen_family"] = INET
    message["attrs"] = list(attributes.items())
    return message


def _batch_edge(kind: int) -> Message:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    return message


def _create(message_class: type[Message], kind: Kind, attributes: Attributes, flags: int = 0) -> Message:
    return _change(message_class, kind, attributes, NLM_F_CREATE | flags)


def _delete(message_class: type[Message], kind: Kind, attributes: Attributes) -> Message:
    return _change(message_class, kind, attributes, 0)


def _change(message_class: type[Message], kind: Kind, attributes: Attributes, flags: int) -> Message:
    message = request(message_class, attributes)
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
    return message


def _nested(attributes: Attributes) -> dict[str, Any]:
    return {"attrs": list(attributes.items())}


def _value(data: bytes) -> dict[str, Any]:
    return _nested({"VALUE": data})


def _set_change(now: NamedSet | None, named_set: NamedSet, number: int) -> Iterator[Message]:
    key = KeyType(named_set.key)
    if now is None:
        names = {"TABLE": TABLE_NAME, "NAME": named_set.name, "FLAGS": INTERVAL_SET if named_set.intervals else 0}
        shape = {"KEY_TYPE": int(key), "KEY_LEN": key.length_bytes, "ID": number}
        yield _create(SetMessage, Kind.NEW_SET, names | shape)
        now = replace(named_set, ranges=())
    before, after = set(now.ranges), set(named_set.ranges)
    for part in _element_lists(named_set, sorted(before - after)):
        yield _delete(SetElementsMessage, Kind.DELETE_SET_ELEMENTS, part)
    for part in _element_lists(named_set, sorted(after - before)):
        yield _create(SetElementsMessage, Kind.NEW_SET_ELEMENTS, part)


def _element_lists(named_set: NamedSet, ranges: list[tuple[bytes, bytes]]) -> Iterator[Attributes]:
    for start in range(0, len(ranges), _RANGES_IN_MESSAGE):
        some = ranges[start : start + _RANGES_IN_MESSAGE]
        packed = b"".join(element for each in some for element in _elements(*each, intervals=named_set.intervals))
        yield {"TABLE": TABLE_NAME, "SET": named_set.name, "ELEMENTS": packed}


def _elements(first: bytes, last: bytes, *, intervals: bool) -> Iterator[bytes]:
    yield _element(first)
    after = int.from_bytes(last, "big") + 1
    if intervals and after < 1 << 8 * len(last):  # a range up to the last value there is has no end
        yield _element(after.to_bytes(len(last), "big"), RANGE_END)


def _element(value: bytes, flags: int = 0) -> bytes:
    """Return one element, packed by hand: there are thousands, and pyroute2 takes a third of a millisecond for each."""
    key = _attribute(_KEY | _NESTED, _attribute(_VALUE, value))
    return _attribute(LIST_ELEMENT | _NESTED, key + (_attribute(_FLAGS, struct.pack(">I", flags)) if flags else b""))


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _chain_attributes(chain: Chain) -> Attributes:
    return {
        "TABLE": TABLE_NAME,
        "NAME": chain.name,
        "HOOK": _nested({"NUMBER": int(chain.hook), "PRIORITY": chain.priority}),
        "POLICY": chain.policy,
        "TYPE": chain.kind,
    }


def _rule_attributes(chain: str, rule: Rule) -> Attributes:
    attributes: Attributes = {"TABLE": TABLE_NAME, "CHAIN": chain, "EXPRESSIONS": _expressions(rule.expressions)}
    if rule.comment:
        text = rule.comment.encode() + b"\0"
        attributes["USERDATA"] = bytes([RULE_COMMENT, len(text)]) + text
    return attributes


def _expressions(expressions: Iterable[Expression]) -> list[dict[str, Any]]:
    encoded = map(encode, expressions)
    return [_nested({"NAME": name, "DATA": _nested(attributes)}) for name, attributes in encoded]


def encode(expression: Expression) -> tuple[str, Attributes]:  # noqa: C901 - one line for each kind
    """Return nf_tables' name and attributes of one expression."""
    match expression:
        case Meta(key):
            return "meta", {"KEY": int(key), "DREG": REGISTER}
        case Payload(header, offset, length):
            return "payload", {"DREG": REGISTER, "BASE": int(header), "OFFSET": offset, "LEN": length}
        case PayloadWrite(header, offset, length, checksum_offset):
            return "payload", {
                "SREG": REGISTER,
                "BASE": int(header),
                "OFFSET": offset,
                "LEN": length,
                "CSUM_TYPE": INTERNET_CHECKSUM,
                "CSUM_OFFSET": checksum_offset,
                "CSUM_FLAGS": 0,
            }
        case Mask(mask, xor):
            both = {"SREG": REGISTER, "DREG": REGISTER}
            return "bitwise", both | {"LEN": len(mask), "MASK": _value(mask), "XOR": _value(xor)}
        case DestinationType():
            return "fib", {"DREG": REGISTER, "RESULT": ADDRESS_TYPE, "FLAGS": OF_DESTINATION}
        case Compare(value, inverted):
            return "cmp", {"SREG": REGISTER, "OP": int(inverted), "DATA": _value(value)}
        case Lookup(set_name):
            return "lookup", {"SET": set_name, "SREG": REGISTER}
        case Load(value):
            return "immediate", {"DREG": REGISTER, "DATA": _value(value)}
        case Redirect():
            return "redir", {"PROTO_MIN": REGISTER, "FLAGS": PORT_GIVEN}
        case ChangePort():
            return "nat", {"TYPE": DESTINATION_NAT, "FAMILY": INET, "PROTO_MIN": REGISTER, "FLAGS": PORT_GIVEN}
        case Return():
            return "immediate", {"DREG": 0, "DATA": _nested({"VERDICT": _nested({"CODE": RETURN_VERDICT})})}
        case Unknown(name):
            raise ValueError(f"cannot write an expression that was not understood: {name}")
