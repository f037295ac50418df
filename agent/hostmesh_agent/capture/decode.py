"""What the kernel tells about our table, as the values it was written from. Pure: no socket here.

What we never write comes back as `Unknown`, so that a table somebody else changed never equals a planned one.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

from hostmesh_agent.capture.attributes import (
    ASKED_ADDRESS,
    CONNECTION_DIRECTION,
    DATA_LAYOUTS,
    DROP_VERDICT,
    ELEMENT,
    EXPRESSION,
    FOREIGN_LAYOUTS,
    INTERVAL_SET,
    RANGE_END,
    RULE_COMMENT,
    SECOND_REGISTER,
    ZONE,
)
from hostmesh_agent.capture.codec import Attributes, split
from hostmesh_agent.capture.encode import encode
from hostmesh_agent.capture.foreign import ForeignChain
from hostmesh_agent.capture.rules import (
    AskedAddress,
    Chain,
    ChangeDestination,
    ChangePort,
    Compare,
    ConnectionDirection,
    ConnectionZone,
    DestinationType,
    Drop,
    Expression,
    Header,
    Hook,
    KeyType,
    Load,
    LoadSecond,
    Lookup,
    Mask,
    Meta,
    MetaKey,
    NamedSet,
    Payload,
    PayloadWrite,
    Redirect,
    Reset,
    Return,
    Rule,
    SetConnectionZone,
    SetMark,
    SocketCgroup,
    SocketTransparent,
    Table,
    Unknown,
)

_XT_CT_NOTRACK: Final = 1


@lru_cache(maxsize=256)
def expression(packed: bytes) -> Expression:
    """Return the expression that is packed in one element of a rule's list."""
    parts = EXPRESSION.unpack(packed)
    name, data = parts.get("NAME", ""), parts.get("DATA")
    layout = DATA_LAYOUTS.get(name)
    return decode(name, data if data is None or layout is None else layout.unpack(data))


def decode(name: str, attributes: Any) -> Expression:
    """Return the expression that `encode` makes these attributes from, else `Unknown`."""
    try:
        found = _guess(name, attributes) if isinstance(attributes, dict) else None
        if found is not None and _without_defaults(attributes) == _without_defaults(encode(found)[1]):
            return found
    except (KeyError, TypeError, ValueError):
        pass  # attributes that we never write, told below as what they are
    return Unknown(name, repr(attributes))


_DEFAULTS: Final[Attributes] = {"OP": 0, "FLAGS": 0, "CSUM_FLAGS": 0, "ICMP_CODE": 0}
"""The kernel tells these also where they were not given."""


def _without_defaults(attributes: Attributes) -> Attributes:
    kept = {name: value for name, value in attributes.items() if _DEFAULTS.get(name) != value}
    for most, least in (("PROTO_MAX", "PROTO_MIN"), ("ADDR_MAX", "ADDR_MIN")):
        if kept.get(most) == kept.get(least):
            kept.pop(most, None)
    return kept


_WITHOUT_VALUES: Final[dict[str, Expression]] = {
    "fib": DestinationType(),
    "redir": Redirect(),
    "nat": ChangePort(),
    "reject": Reset(),
}
"""Expressions that say everything by their kind."""
_OF_CONNECTION: Final[dict[tuple[int, bool], Expression]] = {
    (ASKED_ADDRESS, False): AskedAddress(),
    (ZONE, False): ConnectionZone(),
    (ZONE, True): SetConnectionZone(),
    (CONNECTION_DIRECTION, False): ConnectionDirection(),
}
"""By what is told of the connection, and whether it is set."""


def _guess(name: str, attributes: Attributes) -> Expression | None:  # noqa: C901 - one line for each kind
    """Return the expression these attributes look like; the caller compares."""
    match name:
        case "ct":
            return _OF_CONNECTION.get((attributes["KEY"], "SREG" in attributes))
        case "meta" if "SREG" in attributes:
            return SetMark()
        case "meta":
            return Meta(MetaKey(attributes["KEY"]))
        case "payload":
            place = (Header(attributes["BASE"]), attributes["OFFSET"], attributes["LEN"])
            if "SREG" in attributes:
                return PayloadWrite(*place, attributes["CSUM_OFFSET"])
            return Payload(*place)
        case "bitwise":
            return Mask(attributes["MASK"]["VALUE"], attributes["XOR"]["VALUE"])
        case "socket":
            return SocketCgroup(attributes["LEVEL"]) if "LEVEL" in attributes else SocketTransparent()
        case "cmp":
            return Compare(attributes["DATA"]["VALUE"], inverted=attributes["OP"] == 1)
        case "lookup":
            return Lookup(attributes["SET"])
        case "immediate" if "VERDICT" in attributes["DATA"]:
            return Drop() if attributes["DATA"]["VERDICT"]["CODE"] == DROP_VERDICT else Return()
        case "immediate" if attributes["DREG"] == SECOND_REGISTER:
            return LoadSecond(attributes["DATA"]["VALUE"])
        case "immediate":
            return Load(attributes["DATA"]["VALUE"])
        case "nat" if "ADDR_MIN" in attributes:
            return ChangeDestination(attributes["FAMILY"])
        case _:
            return _WITHOUT_VALUES.get(name)


def read_rule(attributes: Attributes) -> Rule:
    expressions = tuple(expression(packed) for _, packed in split(attributes.get("EXPRESSIONS", b"")))
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
    for _, element in split(packed):
        parts = ELEMENT.unpack(element)
        yield parts.get("KEY", {}).get("VALUE", b""), bool(parts.get("FLAGS", 0) & RANGE_END)


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


def foreign_chain(family: int, attributes: Attributes) -> ForeignChain:
    """Return another program's chain, without its rules."""
    hook = attributes.get("HOOK", {})
    return ForeignChain(
        family,
        attributes["TABLE"],
        attributes["NAME"],
        attributes.get("TYPE", ""),
        hook.get("NUMBER"),
        hook.get("PRIORITY", 0),
    )


def foreign_rule(attributes: Attributes) -> tuple[tuple[str, Attributes], ...]:
    """Return the expressions of another program's rule by their names, with what of them has a layout here."""
    found = []
    for _, packed in split(attributes.get("EXPRESSIONS", b"")):
        parts = EXPRESSION.unpack(packed)
        name, data = parts.get("NAME", ""), parts.get("DATA", b"")
        layout = FOREIGN_LAYOUTS.get(name) or DATA_LAYOUTS.get(name)
        known = layout.unpack(data) if layout is not None and isinstance(data, bytes) else {}
        if name == "target" and known.get("NAME") in {"CT", "NOTRACK"}:
            # struct xt_ct_target_info begins with its flags.
            known["NOTRACK"] = known["NAME"] == "NOTRACK" or bool(
                int.from_bytes(known.get("INFO", b"")[:2], sys.byteorder) & _XT_CT_NOTRACK
            )
        found.append((name, known))
    return tuple(found)
