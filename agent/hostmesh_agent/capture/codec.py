"""The rules as netlink messages, and back. Pure: no socket here.

`writes` is the table as messages of one batch; the `read_*` functions turn the kernel's dumps into the same values.
What we never write comes back as `Unknown`, so that a table somebody else changed never equals a planned one.
"""

# mypy: disable-error-code="import-untyped"
# (pyroute2 ships no types)

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg

from hostmesh_agent.capture.attributes import (
    ChainMessage,
    Kind,
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

Message = Any
"""A pyroute2 message, which has no type of its own."""
Attributes = dict[str, Any]

INET: Final = 1  # NFPROTO_INET
_REGISTER: Final = 1  # NFT_REG_1; 0 is the verdict
_RETURN: Final = -5  # NFT_RETURN
_PORT_GIVEN: Final = 2  # NF_NAT_RANGE_PROTO_SPECIFIED
_INTERNET_CHECKSUM: Final = 1  # NFT_PAYLOAD_CSUM_INET
_DESTINATION_NAT: Final = 1  # NFT_NAT_DNAT
_ADDRESS_TYPE: Final = 3  # NFT_FIB_RESULT_ADDRTYPE
_OF_DESTINATION: Final = 2  # NFTA_FIB_F_DADDR
_INTERVAL_SET: Final = 4  # NFT_SET_INTERVAL
_RANGE_END: Final = 1  # NFT_SET_ELEM_INTERVAL_END: the first value that is outside
_COMMENT: Final = 0  # NFTNL_UDATA_RULE_COMMENT
_ELEMENTS_IN_MESSAGE: Final = 500  # a list's length is 16 bits; an IPv6 element takes 32 bytes


def begin() -> Message:
    return _batch_edge(0x10)  # NFNL_MSG_BATCH_BEGIN


def end() -> Message:
    return _batch_edge(0x11)  # NFNL_MSG_BATCH_END


def removes() -> Iterator[Message]:
    """Messages after which there is no table, whatever there was.

    To delete what is not there is an error and to add what is there is none, so it is added first.
    """
    yield _write(TableMessage, Kind.NEW_TABLE, {"NAME": TABLE_NAME})
    yield _write(TableMessage, Kind.DELETE_TABLE, {"NAME": TABLE_NAME}, flags=0)


def writes(table: Table) -> Iterator[Message]:
    """Messages that make the table, where there is none."""
    yield _write(TableMessage, Kind.NEW_TABLE, {"NAME": TABLE_NAME, "FLAGS": table.flags})
    for number, named_set in enumerate(table.sets, start=1):
        yield _write(SetMessage, Kind.NEW_SET, _set_attributes(named_set, number))
        elements = list(_elements(named_set))
        for start in range(0, len(elements), _ELEMENTS_IN_MESSAGE):
            yield _write(
                SetElementsMessage,
                Kind.NEW_SET_ELEMENTS,
                {
                    "TABLE": TABLE_NAME,
                    "SET": named_set.name,
                    "ELEMENTS": elements[start : start + _ELEMENTS_IN_MESSAGE],
                },
            )
    for chain in table.chains:
        yield _write(ChainMessage, Kind.NEW_CHAIN, _chain_attributes(chain))
        for rule in chain.rules:
            yield _write(RuleMessage, Kind.NEW_RULE, _rule_attributes(chain.name, rule), flags=NLM_F_APPEND)


def get(message_class: type[Message], attributes: Attributes) -> Message:
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


def _write(message_class: type[Message], kind: Kind, attributes: Attributes, *, flags: int = 0) -> Message:
    message = get(message_class, attributes)
    create = 0 if kind is Kind.DELETE_TABLE else NLM_F_CREATE
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | create | flags
    return message


def _nested(attributes: Attributes) -> dict[str, Any]:
    return {"attrs": list(attributes.items())}


def _value(data: bytes) -> dict[str, Any]:
    return _nested({"VALUE": data})


def _set_attributes(named_set: NamedSet, number: int) -> Attributes:
    return {
        "TABLE": TABLE_NAME,
        "NAME": named_set.name,
        "FLAGS": _INTERVAL_SET if named_set.intervals else 0,
        "KEY_TYPE": int(named_set.key),
        "KEY_LEN": KeyType(named_set.key).length_bytes,
        "ID": number,
    }


def _elements(named_set: NamedSet) -> Iterator[dict[str, Any]]:
    for first, last in named_set.ranges:
        yield _nested({"KEY": _value(first)})
        if not named_set.intervals:
            continue
        after = int.from_bytes(last, "big") + 1
        if after < 1 << 8 * len(last):  # a range up to the last value there is has no end
            yield _nested({"KEY": _value(after.to_bytes(len(last), "big")), "FLAGS": _RANGE_END})


def _chain_attributes(chain: Chain) -> Attributes:
    return {
        "TABLE": TABLE_NAME,
        "NAME": chain.name,
        "HOOK": _nested({"NUMBER": int(chain.hook), "PRIORITY": chain.priority}),
        "POLICY": chain.policy,
        "TYPE": chain.kind,
    }


def _rule_attributes(chain: str, rule: Rule) -> Attributes:
    expressions = []
    for expression in rule.expressions:
        name, attributes = encode(expression)
        expressions.append(_nested({"NAME": name, "DATA": _nested(attributes)}))
    attributes = {"TABLE": TABLE_NAME, "CHAIN": chain, "EXPRESSIONS": expressions}
    if rule.comment:
        text = rule.comment.encode() + b"\0"
        attributes["USERDATA"] = bytes([_COMMENT, len(text)]) + text
    return attributes


def encode(expression: Expression) -> tuple[str, Attributes]:  # noqa: C901 - one line for each kind
    """Return nf_tables' name and attributes of one expression."""
    match expression:
        case Meta(key):
            return "meta", {"KEY": int(key), "DREG": _REGISTER}
        case Payload(header, offset, length):
            return "payload", {"DREG": _REGISTER, "BASE": int(header), "OFFSET": offset, "LEN": length}
        case PayloadWrite(header, offset, length, checksum_offset):
            return "payload", {
                "SREG": _REGISTER,
                "BASE": int(header),
                "OFFSET": offset,
                "LEN": length,
                "CSUM_TYPE": _INTERNET_CHECKSUM,
                "CSUM_OFFSET": checksum_offset,
                "CSUM_FLAGS": 0,
            }
        case Mask(mask, xor):
            both = {"SREG": _REGISTER, "DREG": _REGISTER}
            return "bitwise", both | {"LEN": len(mask), "MASK": _value(mask), "XOR": _value(xor)}
        case DestinationType():
            return "fib", {"DREG": _REGISTER, "RESULT": _ADDRESS_TYPE, "FLAGS": _OF_DESTINATION}
        case Compare(value, inverted):
            return "cmp", {"SREG": _REGISTER, "OP": int(inverted), "DATA": _value(value)}
        case Lookup(set_name):
            return "lookup", {"SET": set_name, "SREG": _REGISTER}
        case Load(value):
            return "immediate", {"DREG": _REGISTER, "DATA": _value(value)}
        case Redirect():
            return "redir", {"PROTO_MIN": _REGISTER, "FLAGS": _PORT_GIVEN}
        case ChangePort():
            return "nat", {"TYPE": _DESTINATION_NAT, "FAMILY": INET, "PROTO_MIN": _REGISTER, "FLAGS": _PORT_GIVEN}
        case Return():
            return "immediate", {"DREG": 0, "DATA": _nested({"VERDICT": _nested({"CODE": _RETURN})})}
        case Unknown(name):
            raise ValueError(f"cannot write an expression that was not understood: {name}")


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
    if len(userdata) < 2 or userdata[0] != _COMMENT:
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


def read_set(attributes: Attributes, elements: Iterable[Attributes]) -> NamedSet:
    key = attributes["KEY_TYPE"]
    flags = attributes.get("FLAGS", 0)
    values = sorted((each["KEY"]["VALUE"], each.get("FLAGS", 0) & _RANGE_END) for each in elements)
    intervals = bool(flags & _INTERVAL_SET)
    return NamedSet(
        name=attributes["NAME"],
        key=KeyType(key) if key in set(KeyType) else key,
        ranges=_read_ranges(values) if intervals else tuple((value, value) for value, _ in values),
        intervals=intervals,
    )


def _read_ranges(values: list[tuple[bytes, int]]) -> tuple[tuple[bytes, bytes], ...]:
    found: list[tuple[bytes, bytes]] = []
    first: bytes | None = None
    # An end at the value where the next range starts sorts behind that start by its flag: ends first.
    for value, is_end in sorted(values, key=lambda each: (each[0], not each[1])):
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
