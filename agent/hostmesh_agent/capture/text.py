"""The rules for human eyes, close to nft's own words. Pure."""

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, summarize_address_range
from typing import Final

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

_META: Final[dict[int, str]] = {
    MetaKey.MARK: "meta mark",
    MetaKey.INPUT_INTERFACE: "iif",
    MetaKey.OUTPUT_INTERFACE: "oif",
    MetaKey.INPUT_INTERFACE_NAME: "iifname",
    MetaKey.OUTPUT_INTERFACE_NAME: "oifname",
    MetaKey.SOCKET_UID: "meta skuid",
    MetaKey.FAMILY: "meta nfproto",
    MetaKey.PROTOCOL: "meta l4proto",
}
_FIELDS: Final = {
    (Header.NETWORK, 12, 4): "ip saddr",
    (Header.NETWORK, 16, 4): "ip daddr",
    (Header.NETWORK, 16, 1): "ip daddr",  # the first byte: a prefix of 8 bits
    (Header.NETWORK, 8, 16): "ip6 saddr",
    (Header.NETWORK, 24, 16): "ip6 daddr",
    (Header.TRANSPORT, 0, 2): "sport",
    (Header.TRANSPORT, 2, 2): "dport",
    (Header.TRANSPORT, 13, 1): "tcp flags",
}
_FLAGS: Final = "tcp flags"
_FLAG_NAMES: Final = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")
_FAMILY: Final = {2: "ipv4", 10: "ipv6"}
_IPV4: Final = 2
_PROTOCOL: Final = {6: "tcp", 17: "udp"}
_ADDRESS_TYPE: Final = {1: "unicast", 2: "local", 3: "broadcast"}
_KEY: Final[dict[int, str]] = {
    KeyType.IPV4: "ipv4_addr",
    KeyType.IPV6: "ipv6_addr",
    KeyType.PORT: "inet_service",
    KeyType.UID: "uid",
    KeyType.INTERFACE: "ifname",
    KeyType.CGROUP: "cgroupsv2",
}
_HOOK: Final[dict[int, str]] = {Hook.PREROUTING: "prerouting", Hook.INPUT: "input", Hook.OUTPUT: "output"}
_IMPLIED: Final = (("meta nfproto ipv4", "ip "), ("meta nfproto ipv6", "ip6 "))
_POLICY: Final = {0: "drop", 1: "accept"}


def table_text(table: Table) -> str:
    """Return the table as `nft list table` would, but for small differences of words."""
    return "\n".join(["table inet hostmesh {", *_body(table), "}"]) + "\n"


def _body(table: Table) -> Iterator[str]:
    if table.flags:
        yield f"\tflags {table.flags:#x}"
    for named_set in table.sets:
        yield from _set_lines(named_set)
    for chain in table.chains:
        yield from _chain_lines(chain)


def _set_lines(named_set: NamedSet) -> Iterator[str]:
    yield f"\tset {named_set.name} {{"
    yield f"\t\ttype {_KEY.get(named_set.key, f'{named_set.key:d}')}"
    if named_set.intervals:
        yield "\t\tflags interval"
    if named_set.ranges:
        yield f"\t\telements = {{ {', '.join(members(named_set))} }}"
    yield "\t}"


def members(named_set: NamedSet) -> Iterator[str]:
    """Return what the set holds, each member in nft's words."""
    for first, last in named_set.ranges:
        match named_set.key:
            case KeyType.INTERFACE:
                yield f'"{first.rstrip(bytes(1)).decode(errors="replace")}"'
            case KeyType.UID | KeyType.CGROUP:
                yield str(int.from_bytes(first, sys.byteorder))
            case _:
                yield range_text(first, last)


def range_text(first: bytes, last: bytes) -> str:
    if first == last:
        return _number(first)
    if len(first) in {4, 16}:
        prefixes = list(summarize_address_range(ip_address(first), ip_address(last)))
        if len(prefixes) == 1:
            return str(prefixes[0])
    return f"{_number(first)}-{_number(last)}"


def _number(value: bytes) -> str:
    if len(value) in {4, 16}:
        return str(ip_address(value))
    return str(int.from_bytes(value, "big"))


def _chain_lines(chain: Chain) -> Iterator[str]:
    hook = _HOOK.get(chain.hook, f"{chain.hook:d}")
    policy = _POLICY.get(chain.policy, str(chain.policy))
    yield f"\tchain {chain.name} {{"
    yield f"\t\ttype {chain.kind} hook {hook} priority {chain.priority}; policy {policy};"
    for rule in chain.rules:
        yield f"\t\t{rule_text(rule)}"
    yield "\t}"


def rule_text(rule: Rule) -> str:
    words: list[str] = []
    loaded: Expression | None = None
    shown = native = among = ""
    for expression in rule.expressions:
        match expression:
            case Meta() | SocketCgroup() | SocketTransparent() | Payload() | DestinationType() | AskedAddress():
                loaded, shown = expression, _source(expression)
            case ConnectionZone() | ConnectionDirection():
                loaded, shown = expression, _source(expression)
            case Mask(mask, _) if shown == _FLAGS:
                among = ",".join(_flags(mask))
            case Mask(mask, xor):
                shown += f" & 0x{mask.hex()}" + (f" | 0x{xor.hex()}" if any(xor) else "")
            case Load(value):
                loaded, shown = expression, _number(value)
                native = str(int.from_bytes(value, sys.byteorder))
            case LoadSecond(value):
                shown = f"[{shown}]:{_number(value)}" if ":" in shown else f"{shown}:{_number(value)}"
            case Compare(value) if among:
                words.append(f"{shown} {','.join(_flags(value))} / {among}")
                among = ""
            case SetMark():
                words.append(f"meta mark set {native}")
            case SetConnectionZone():
                words.append(f"ct original zone set {native}")
            case _:
                words.append(_effect(expression, loaded, shown))
    text = _joined(words)
    return f'{text} comment "{rule.comment}"' if rule.comment else text


def _source(
    expression: Meta
    | SocketCgroup
    | SocketTransparent
    | Payload
    | DestinationType
    | AskedAddress
    | ConnectionZone
    | ConnectionDirection,
) -> str:
    match expression:
        case ConnectionZone():
            return "ct original zone"
        case ConnectionDirection():
            return "ct direction"
        case SocketCgroup(level):
            return f"socket cgroupv2 level {level}"
        case SocketTransparent():
            return "socket transparent"
        case Meta(key):
            return _META.get(key, f"meta {key}")
        case DestinationType():
            return "fib daddr type"
        case AskedAddress():
            return "ct original ip daddr"
        case Payload(header, offset, length):
            return _FIELDS.get((header, offset, length)) or _raw(header, offset, length)


def _raw(header: Header, offset: int, length_bytes: int) -> str:
    base = "nh" if header is Header.NETWORK else "th"
    return f"@{base},{offset * 8},{length_bytes * 8}"


def _effect(expression: Expression, loaded: Expression | None, shown: str) -> str:
    match expression:
        case Compare(value, inverted):
            return f"{shown} {'!= ' if inverted else ''}{_value(value, loaded)}"
        case Lookup(set_name):
            return f"{shown} @{set_name}"
        case Redirect():
            return f"redirect to :{shown}"
        case ChangeDestination(family):
            return f"dnat {'ip' if family == _IPV4 else 'ip6'} to {shown}"
        case ChangePort():
            return f"dnat to :{shown}"
        case PayloadWrite(header, offset, length):
            return f"{_raw(header, offset, length)} set {shown}"
        case Return():
            return "return"
        case Drop():
            return "drop"
        case Reset():
            return "reject with tcp reset"
        case Unknown(name, detail):
            return f"<{name} {detail}>"
        case _:
            return repr(expression)


def _value(value: bytes, loaded: Expression | None) -> str:
    native = int.from_bytes(value, sys.byteorder)
    match loaded:
        case Meta(MetaKey.INPUT_INTERFACE | MetaKey.OUTPUT_INTERFACE):
            return '"lo"' if native == 1 else str(native)
        case Meta(MetaKey.FAMILY):
            return _FAMILY.get(native, str(native))
        case Meta(MetaKey.PROTOCOL):
            return _PROTOCOL.get(native, str(native))
        case Meta() | SocketCgroup() | ConnectionZone():
            return str(native)
        case ConnectionDirection():
            return "reply" if native else "original"
        case DestinationType():
            return _ADDRESS_TYPE.get(native, str(native))
        case Payload(Header.NETWORK, _, length):
            return _prefix(value, length)
        case AskedAddress():
            return str(IPv4Address(value))
        case _:
            return str(int.from_bytes(value, "big"))


def _flags(value: bytes) -> list[str]:
    return [name for bit, name in enumerate(_FLAG_NAMES) if value[0] >> bit & 1]


def _prefix(value: bytes, length_bytes: int) -> str:
    if length_bytes in {4, 16}:
        return str(IPv4Address(value) if length_bytes == 4 else IPv6Address(value))
    return f"{IPv4Address(value.ljust(4, bytes(1)))}/{length_bytes * 8}"


def _joined(words: list[str]) -> str:
    """Put the words of one rule together as nft does: what a later word implies is not said ("tcp dport 22")."""
    text = " ".join(words)
    for implied, by in _IMPLIED:
        text = text.replace(f"{implied} {by}", by)
    for name in _PROTOCOL.values():
        text = text.replace(f"meta l4proto {name} dport", f"{name} dport")
        text = text.replace(f"meta l4proto {name} sport", f"{name} sport")
    return text
