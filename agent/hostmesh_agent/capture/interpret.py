"""What the rules do with a connection, by going through them as the kernel does. Pure.

Only the first packet of a connection meets rules of address translation; the first chain that decides ends the search.
A chain of another kind is gone through too: it may refuse the packet. What arrives at this host and may stay meets the
chains of the input hook behind those, with the port that it has by then. An expression that is
not known here ends in the verdict "unknown": never in a guess. A test holds this against the kernel.
"""

import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

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
)

Address = IPv4Address | IPv6Address
Action = Literal["redirect", "change port", "refuse", "none", "unknown"]
TCP: Final = 6
_NAME_BYTES: Final = 16  # IFNAMSIZ
LOOPBACK: Final = 1  # LOOPBACK_IFINDEX
LOCAL, UNICAST = 2, 1  # RTN_LOCAL, RTN_UNICAST
_FAMILY: Final = {4: 2, 6: 10}  # NFPROTO_IPV4, NFPROTO_IPV6
_ADDRESSES_AT: Final = {4: 12, 6: 8}
_FLAGS_AT: Final = 13
_SYN: Final = 0x02
_KNOWN: Final = frozenset(
    {
        MetaKey.MARK,
        MetaKey.INPUT_INTERFACE,
        MetaKey.OUTPUT_INTERFACE,
        MetaKey.INPUT_INTERFACE_NAME,
        MetaKey.OUTPUT_INTERFACE_NAME,
        MetaKey.SOCKET_UID,
        MetaKey.FAMILY,
        MetaKey.PROTOCOL,
    }
)
"""Facts that `Packet` has. A rule that asks for another one is not understood."""


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, with what the kernel knows of it.

    Attributes:
        hook: OUTPUT for one that a program of this host sends, PREROUTING for one that arrives.
        uid: of the program that sends it; None where it has no socket here.
        cgroups: numbers of the cgroups of its socket, from the first below the root down; none without a socket.
        input_interface: index; 0 for none. The same for output, and "" for their names.
        local: the destination is an address of this host.
        mark: that it bears.
    """

    hook: Hook
    source: Address
    destination: Address
    port: int
    source_port: int = 40000
    protocol: int = TCP
    uid: int | None = None
    input_interface: int = 0
    output_interface: int = 0
    input_interface_name: str = ""
    output_interface_name: str = ""
    cgroups: tuple[int, ...] = ()
    local: bool = False
    mark: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of it.

    Attributes:
        action: "redirect" (to this host, `port`), "change port" (same address, `port`), "refuse" (at once), "none" (it
            goes on as it is) or "unknown" (a rule says what is not understood here).
        rule: that decides, with its number in the chain, from 1; None: none does.
    """

    action: Action
    port: int | None = None
    chain: str = ""
    number: int = 0
    rule: Rule | None = None

    @property
    def touched(self) -> bool:
        """Whether the connection goes, or may go, elsewhere than it wants to."""
        return self.action != "none"


@dataclass(slots=True)
class _Run:
    """One rule under way: the registers, and whether the rule still matches."""

    packet: Packet
    sets: Mapping[str, NamedSet]
    zone: int = 0
    register: bytes = field(default=b"")
    second: bytes = field(default=b"")

    def load(self, expression: Expression) -> bool:
        """Do an expression that loads; False if the kernel finds nothing to load, which ends the rule."""
        found = self._found(expression)
        if found is None:
            return False
        self.register = found
        return True

    def _found(self, expression: Expression) -> bytes | None:
        match expression:
            case Meta(key):
                return _meta(self.packet, key)
            case Payload(header, offset, length):
                data = _header(self.packet, header)[offset : offset + length]
                return data if len(data) == length else None
            case DestinationType():
                return struct.pack("=I", LOCAL if self.packet.local else UNICAST)
            case AskedAddress():
                return self.packet.destination.packed
            case ConnectionDirection():
                return b"\0"  # the first packet is one of who calls
            case ConnectionZone():
                return struct.pack("=H", self.zone)
            case SocketCgroup(level):
                held = self.packet.cgroups
                return held[level - 1].to_bytes(8, sys.byteorder) if 0 < level <= len(held) else None
            case SocketTransparent():
                return b"\0"  # programs that stand in for others are none of those that are asked about
            case Load(value):
                return value
            case Mask(mask, xor):
                return bytes(a & m ^ x for a, m, x in zip(self.register, mask, xor, strict=False))
            case _:
                return None

    def matches(self, expression: Compare | Lookup) -> bool:
        if isinstance(expression, Lookup):
            found = self.sets.get(expression.set_name)
            return found is not None and any(first <= self.register <= last for first, last in found.ranges)
        return (self.register[: len(expression.value)] == expression.value) is not expression.inverted


def verdict(table: Table | None, packet: Packet) -> Verdict:
    """Return what the table does with the packet; None: there is no table."""
    if table is None:
        return Verdict("none")
    found = _at_hook(table, packet)
    if packet.hook != Hook.PREROUTING or not packet.local or found.action not in {"none", "change port"}:
        return found
    arrived = packet if found.port is None else replace(packet, port=found.port)
    kept = _at_hook(table, replace(arrived, hook=Hook.INPUT))
    return kept if kept.touched else found


def _at_hook(table: Table, packet: Packet) -> Verdict:
    sets = {each.name: each for each in table.sets}
    left = Verdict("none")
    for chain in sorted((each for each in table.chains if each.hook == packet.hook), key=lambda each: each.priority):
        found = _chain_verdict(chain, packet, sets)
        if found.touched:
            return found
        if found.rule is not None and chain.kind == "nat":
            left = found
    return left


def _chain_verdict(chain: Chain, packet: Packet, sets: Mapping[str, NamedSet]) -> Verdict:
    for number, rule in enumerate(chain.rules, start=1):
        run = _Run(packet, sets)
        found = _rule_verdict(rule, run)
        if found is not None:
            action, port = found
            return Verdict(action, port, chain.name, number, rule)
    if chain.policy != 1:
        return Verdict("unknown", None, chain.name)
    return Verdict("none")


def _rule_verdict(rule: Rule, run: _Run) -> tuple[Action, int | None] | None:  # noqa: C901 - one line for each kind
    """Return what the rule decides; None: the next rule is asked."""
    for expression in rule.expressions:
        match expression:
            case Meta(key) if key not in _KNOWN:
                return "unknown", None
            case Meta() | Payload() | DestinationType() | AskedAddress() | Load() | Mask():
                if not run.load(expression):
                    return None
            case SocketCgroup() | SocketTransparent():
                if not run.load(expression):
                    return None
            case ConnectionZone() | ConnectionDirection():
                run.load(expression)
            case SetMark() | SetConnectionZone():
                # Of those that we write none is for the first packet of a program's connection.
                return "unknown", None
            case LoadSecond(value):
                run.second = value
            case Compare() | Lookup():
                if not run.matches(expression):
                    return None
            case PayloadWrite():
                pass
            case _:
                return _end(expression, run)
    return None


def _end(expression: Expression, run: _Run) -> tuple[Action, int | None]:
    match expression:
        case Redirect():
            return "redirect", int.from_bytes(run.register, "big")
        case ChangeDestination():
            return "redirect", int.from_bytes(run.second, "big")
        case ChangePort():
            return "change port", int.from_bytes(run.register, "big")
        case Reset() | Drop():
            return "refuse", None
        case Return():
            return "none", None
        case _:
            return "unknown", None


def _meta(packet: Packet, key: int) -> bytes | None:
    match key:
        case MetaKey.MARK:
            return struct.pack("=I", packet.mark)
        case MetaKey.INPUT_INTERFACE:
            return struct.pack("=I", packet.input_interface)
        case MetaKey.OUTPUT_INTERFACE:
            return struct.pack("=I", packet.output_interface)
        case MetaKey.INPUT_INTERFACE_NAME:
            return _name(packet.input_interface_name)
        case MetaKey.OUTPUT_INTERFACE_NAME:
            return _name(packet.output_interface_name)
        case MetaKey.SOCKET_UID:
            return None if packet.uid is None else struct.pack("=I", packet.uid)
        case MetaKey.FAMILY:
            return _FAMILY[packet.destination.version].to_bytes(1, sys.byteorder)
        case MetaKey.PROTOCOL:
            return bytes([packet.protocol])
        case _:
            return None


def _name(interface: str) -> bytes:
    return interface.encode().ljust(_NAME_BYTES, b"\0")


def _header(packet: Packet, header: Header) -> bytes:
    if header is Header.TRANSPORT:
        # The first packet of a connection: what of TCP's header is asked for is as it is there.
        ports = struct.pack(">HH", packet.source_port, packet.port)
        return ports.ljust(_FLAGS_AT, b"\0") + bytes([_SYN]) if packet.protocol == TCP else ports
    start = bytes(_ADDRESSES_AT[packet.destination.version])
    return start + packet.source.packed + packet.destination.packed
