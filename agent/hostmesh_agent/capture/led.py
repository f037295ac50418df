"""Other programs' rules that lead callers of another port to one that takes mutual TLS alone, told by name. Pure.

Such callers never reach Envoy, as nobody captures the port that they call, and are refused where they arrive
(`bypass`). Whoever wrote the rule ("80 to 8080") must hear why, and what to do.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from hostmesh_agent.capture import bypass
from hostmesh_agent.capture.foreign import Expressions, ForeignChain, Whose, place, rules_met
from hostmesh_agent.capture.rules import Header, Table

_ADDRESS, _PORT = 1, 2  # NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
WHY: Final = "which takes mutual TLS alone: they are refused"
_IP: Final = 2  # NFPROTO_IPV4


@dataclass(frozen=True, slots=True)
class Led:
    """`called` None: which port is called is not understood here; `certain` False: some other condition is not."""

    chain: str
    rule: int
    called: int | None
    port: int
    certain: bool

    def __str__(self) -> str:
        may = "" if self.certain else "perhaps "
        whom = "callers of other ports" if self.called is None else f"callers of port {self.called}"
        return (
            f"{self.chain} {may}leads {whom} to port {self.port}, {WHY} "
            f"(rule {self.rule}); let them call port {self.port} through the mesh, or let it take plaintext as well "
            "(PeerAuthentication: PERMISSIVE)"
        )


@dataclass(frozen=True, slots=True)
class _To:
    """Where a rule leads: the port, and the address, or b"" where the connection stays at the host."""

    port: int
    address: bytes


def closed(ours: Table | None) -> frozenset[int]:
    """Return the ports to which callers must not be led."""
    return frozenset() if ours is None else _numbers(ours, bypass.PORTS)


def findings(
    chains: Iterable[ForeignChain], ours: Table | None, own: frozenset[bytes] = frozenset()
) -> tuple[Led, ...]:
    """Return what others lead to ports that `ours` refuses, one for each chain and pair of ports.

    `own`: the host's addresses, packed; those of loopback need not be among them.
    """
    refused = closed(ours)
    if ours is None or not refused:
        return ()
    captured = _numbers(ours, "inbound_ports")
    known = {(each.family, each.table, each.name): each for each in chains}
    found: dict[tuple[str, int | None, int], Led] = {}
    for chain in sorted(known.values(), key=lambda each: (each.priority, each.table, each.name)):
        if not chain.translates_arrivals:
            continue
        for number, rules, certain in rules_met(chain, known, Whose(None, None)):
            to = _leads(rules[-1], chain.family)
            if to is None or to.port not in refused or not _is_here(to.address, own):
                continue
            called = next(filter(None, map(_called_port, rules)), None)
            if called in captured:  # captured it is, or told as what comes before ours
                continue
            each = Led(place(chain), number, called, to.port, certain)
            found.setdefault((each.chain, called, to.port), each)
    return tuple(found.values())


def _numbers(table: Table, name: str) -> frozenset[int]:
    return frozenset(int.from_bytes(low, "big") for each in table.sets if each.name == name for low, _ in each.ranges)


def _is_here(address: bytes, own: frozenset[bytes]) -> bool:
    return not address or address in own or ip_address(address).is_loopback


def _called_port(rule: Expressions) -> int | None:
    loaded: tuple[Any, Any] = (None, None)
    for name, data in rule:
        if name == "payload":
            loaded = data.get("BASE"), data.get("OFFSET")
        elif name == "cmp" and loaded == (Header.TRANSPORT, 2) and data.get("OP", 0) == 0:
            value: bytes = data.get("DATA", {}).get("VALUE", b"")
            return int.from_bytes(value, "big") if len(value) == 2 else None
        elif name != "cmp":
            loaded = (None, None)
    return None


def _leads(rule: Expressions, family: int) -> _To | None:
    """Return where a rule leads connections; None: nowhere, or to a port that is not told by a constant."""
    registers: dict[int, bytes] = {}
    for name, data in rule:
        if name == "immediate":
            registers[data.get("DREG", 0)] = data.get("DATA", {}).get("VALUE", b"")
        elif name == "redir" or (name == "nat" and data.get("TYPE") == 1):
            port = registers.get(data.get("PROTO_MIN", 0), b"")
            address = registers.get(data.get("ADDR_MIN", 0), b"")
            return _To(int.from_bytes(port[:2], "big"), address) if port else None
        elif name == "target" and data.get("NAME") in {"REDIRECT", "DNAT"}:
            return _of_target(data, family)
        elif name not in {"counter", "cmp", "meta", "payload", "log"}:
            registers.clear()
    return None


def _of_target(data: Mapping[str, Any], family: int) -> _To | None:
    """Read what iptables gives its targets.

    Of IPv4 at revision 0 that is an nf_nat_ipv4_multi_range_compat, else it begins as an nf_nat_range does.
    """
    info: bytes = data.get("INFO", b"")
    old = family == _IP and data.get("REVISION", 0) == 0
    flags_at, address_at, port_at = (4, 8, 16) if old else (0, 4, 36)
    if len(info) < port_at + 2:
        return None
    flags = int.from_bytes(info[flags_at : flags_at + 4], sys.byteorder)
    length = 4 if family == _IP else 16
    address = info[address_at : address_at + length] if flags & _ADDRESS else b""
    return _To(int.from_bytes(info[port_at : port_at + 2], "big"), address) if flags & _PORT else None
