"""What the kernel tells about our table, as the values it was written from. Pure: no socket here.

What we never write comes back as `Unknown`, so that a table somebody else changed never equals a planned one.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from hostmesh_agent.capture.attributes import (
    INTERVAL_SET,
    RANGE_END,
    RULE_COMMENT,
    Attributes,
    Message,
)
from hostmesh_agent.capture.encode import encode
from hostmesh_agent.capture.rules import (
    Chain,
    ChangePort,
    Compare,
    DestinationType,
    Expression,
    Header,
    Hook,
    KeyType,
    Load,
    Lookup,
    Mask,
    Meta,
    MetaKey,
    NamedSet,
    Payload,
    PayloadWrite,
    Redirect,
    Return,
    Rule,
    Table,
    Unknown,
)

_TYPE_BITS: Final = 0x3FFF  # NLA_TYPE_MASK
_ELEMENT_KEY, _ELEMENT_FLAGS, _DATA_VALUE = 1, 3, 1


def flat(message: Message) -> Attributes:
    """Return a message's attributes as plain data, nested ones as nested dictionaries."""
    return {name: _flat_value(value) for name, value in message["attrs"]}


def _flat_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_flat_value(each) for each in value]
    if isinstance(value, Mapping) and "attrs" in value:
        return flat(value)
    return value


def decode(name: str, attributes: Any) -> Expression:
    """Return the expression that `encode` makes these attributes from, else `Unknown`."""
    try:
        found = _guess(name, attributes) if isinstance(attributes, dict) else None
        if found is not None and _without_defaults(attributes) == _without_defaults(_flat_of(found)):
            return found
    except (KeyError, TypeError, ValueError):
        pass  # attributes that we never write, told below as what they are
    return Unknown(name, repr(attributes))


def _flat_of(expression: Expression) -> Attributes:
    _, attributes = encode(expression)
    return {name: _flat_value(value) for name, value in attributes.items()}


_DEFAULTS: Final[Attributes] = {"OP": 0, "FLAGS": 0, "CSUM_FLAGS": 0}
"""The kernel tells these also where they were not given."""


def _without_defaults(attributes: Attributes) -> Attributes:
    kept = {name: value for name, value in attributes.items() if _DEFAULTS.get(name) != value}
    if kept.get("PROTO_MAX") == kept.get("PROTO_MIN"):
        kept.pop("PROTO_MAX", None)
    return kept


def _guess(name: str, attributes: Attributes) -> Expression | None:
    """Return the expression these attributes look like; the caller compares."""
    match name:
        case "meta":
            return Meta(MetaKey(attributes["KEY"]))
        case "payload":
            place = (Header(attributes["BASE"]), attributes["OFFSET"], attributes["LEN"])
            if "SREG" in attributes:
                return PayloadWrite(*place, attributes["CSUM_OFFSET"])
            return Payload(*place)
        case "bitwise":
            return Mask(attributes["MASK"]["VALUE"], attributes["XOR"]["VALUE"])
        case "fib":
            return DestinationType()
        case "cmp":
            return Compare(attributes["DATA"]["VALUE"], inverted=attributes["OP"] == 1)
        case "lookup":
            return Lookup(attributes["SET"])
        case "immediate" if "VERDICT" in attributes["DATA"]:
            return Return()
        case "immediate":
            return Load(attributes["DATA"]["VALUE"])
        case "redir":
            return Redirect()
        case "nat":
            return ChangePort()
        case _:
            return None


def read_rule(attributes: Attributes) -> Rule:
    expressions = tuple(decode(each["NAME"], each.get("DATA")) for each in attributes.get("EXPRESSIONS", ()))
    return Rule(expressions, _read_comment(attributes.get("USERDATA", b"")))


def _read_comment(userdata: bytes) -> str:
    if len(userdata) < 2 or userdata[0] != RULE_COMMENT:
        return ""
    return userdata[2 : 2 + userdata[1]].rstrip(b"\0").decode(errors="replace")


def read_chain(attributes: Attributes, rules: Iterable[Rule]) -> Chain:
    """A chain without a hook (somebody else's: we make none) has number and priority 0 and the kind ""."""
    hook = attributes.get("HOOK", {})
    number = hook.get("NUMBER", 0)
    return Chain(
        name=attributes["NAME"],
        kind=attributes.get("TYPE", ""),
        hook=Hook(number) if number in set(Hook) else number,
        priority=hook.get("PRIORITY", 0),
        rules=tuple(rules),
        policy=attributes.get("POLICY", 1),
    )


def read_set(attributes: Attributes, element_lists: Iterable[bytes]) -> NamedSet:
    key = attributes["KEY_TYPE"]
    flags = attributes.get("FLAGS", 0)
    elements = sorted(each for packed in element_lists for each in _elements(packed))
    intervals = bool(flags & INTERVAL_SET)
    return NamedSet(
        name=attributes["NAME"],
        key=KeyType(key) if key in set(KeyType) else key,
        ranges=_read_ranges(elements) if intervals else tuple((value, value) for value, _ in elements),
        intervals=intervals,
        other_flags=flags & ~INTERVAL_SET,
    )


def _elements(packed: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield each element's value and whether a range ends before it."""
    for _, element in _attributes(packed):
        parts = dict(_attributes(element))
        value = dict(_attributes(parts.get(_ELEMENT_KEY, b""))).get(_DATA_VALUE, b"")
        (flags,) = struct.unpack(">I", parts.get(_ELEMENT_FLAGS, bytes(4)))
        yield value, bool(flags & RANGE_END)


def _attributes(packed: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(packed):
        length, kind = struct.unpack_from("=HH", packed, offset)
        yield kind & _TYPE_BITS, packed[offset + 4 : offset + length]
        offset += max(4, length + 3 & ~3)


def _read_ranges(elements: list[tuple[bytes, bool]]) -> tuple[tuple[bytes, bytes], ...]:
    found: list[tuple[bytes, bytes]] = []
    first: bytes | None = None
    # An end at the value where the next range starts sorts behind that start by its flag: ends first.
    for value, is_end in sorted(elements, key=lambda each: (each[0], not each[1])):
        if not is_end:
            first = value
        elif first is not None:
            found.append((first, (int.from_bytes(value, "big") - 1).to_bytes(len(value), "big")))
            first = None
    if first is not None:
        found.append((first, b"\xff" * len(first)))
    return tuple(found)


def read_table(attributes: Attributes, sets: Iterable[NamedSet], chains: Iterable[Chain]) -> Table:
    return Table(
        sets=tuple(sorted(sets, key=lambda each: each.name)),
        chains=tuple(sorted(chains, key=lambda each: each.name)),
        flags=attributes.get("FLAGS", 0),
    )
