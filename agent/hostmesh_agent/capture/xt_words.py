"""One rule in iptables' own words, as iptables-save prints them, and such words as a rule. Pure.

Words that no rule of ours is written in come back as an unknown expression: somebody else's.
"""

import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Final

from hostmesh_agent.capture.rules import (
    ChangeDestination,
    ChangePort,
    Compare,
    DestinationType,
    Drop,
    Expression,
    Header,
    Load,
    LoadSecond,
    Lookup,
    Meta,
    MetaKey,
    Payload,
    Redirect,
    Reset,
    Return,
    Rule,
    SocketCgroup,
    Unknown,
)
from hostmesh_agent.capture.xtables import FAMILIES, OPENING, Condition, UntranslatableError, ordered, split

PREFIX: Final = "HOSTMESH_"
Paths = Mapping[int, str]
"""Of cgroups, below the root of cgroup v2, by their numbers."""

_SOURCE: Final = {4: 12, 6: 8}
_DESTINATION: Final = {4: 16, 6: 24}
_BYTES: Final = {4: 4, 6: 16}
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
_LOCAL: Final = struct.pack("=I", 2)
_LOOPBACK: Final = struct.pack("=I", 1)
_CGROUP: Final = re.compile(r"cgroup (\d+)@(\d+)(?:: (.*))?")
"""How the comment begins of a rule about a cgroup: its number, since a path may be another cgroup's later."""
_SYN: Final = ("-m", "tcp", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN")
_WORD: Final = re.compile(r'"((?:\\.|[^"\\])*)"|(\S+)')


def set_name(name: str) -> str:
    """Return what ipset calls the plan's set: it takes 31 characters at most."""
    return PREFIX + re.sub("^(.)(?:n|ut)bound_(?=never|exclude|include)", r"\1-", name)


def name_of_set(kernels: str) -> str:
    """Return what the plan calls ipset's set."""
    name = kernels.removeprefix(PREFIX)
    return {"i-": "inbound_", "o-": "outbound_"}[name[:2]] + name[2:] if name[:2] in {"i-", "o-"} else name


def words_of(rule: Rule, version: int, paths: Paths) -> tuple[str, ...]:
    """Return what follows `-A CHAIN`.

    Raises:
        UntranslatableError: iptables has no words for it, or a cgroup has no path.
    """
    conditions, action = split(rule.expressions)
    head: list[str] = []
    matches: list[str] = []
    said = rule.comment
    protocol = ""
    for condition in conditions:
        load, *_, test = condition
        if load == Meta(MetaKey.PROTOCOL) and isinstance(test, Compare):
            protocol = _PROTOCOLS[test.value[0]]
        if isinstance(load, SocketCgroup) and isinstance(test, Compare):
            mark = f"cgroup {int.from_bytes(test.value, sys.byteorder)}@{load.level}"
            said = f"{mark}: {said}" if said else mark
        opening = condition == OPENING
        found = _SYN if opening else tuple(_condition(load, test, version, protocol, paths))
        (matches if "-m" in found else head).extend(found)
    if said:
        matches = ["-m", "comment", "--comment", said, *matches]
    return (*head, *matches, "-j", *_action(action, version))


def _condition(
    load: Expression, test: Compare | Lookup, version: int, protocol: str, paths: Paths
) -> Iterator[str]:  # one line for each kind
    no = ("!",) if isinstance(test, Compare) and test.inverted else ()
    match load, test:
        case Meta(MetaKey.FAMILY), Compare():
            return
        case Meta(MetaKey.PROTOCOL), Compare():
            yield from ("-p", protocol)
        case Meta(key), Compare(value) if key in _INTERFACES:
            yield from (*no, _INTERFACES[key], _interface(key, value))
        case Meta(MetaKey.SOCKET_UID), Compare(value):
            yield from ("-m", "owner", *no, "--uid-owner", str(int.from_bytes(value, sys.byteorder)))
        case SocketCgroup(), Compare(value):
            yield from ("-m", "cgroup", *no, "--path", _path(int.from_bytes(value, sys.byteorder), paths))
        case DestinationType(), Compare(value) if value == _LOCAL:
            yield from ("-m", "addrtype", *no, "--dst-type", "LOCAL")
        case Payload(Header.TRANSPORT, 2, 2), Compare(value) if protocol:
            yield from ("-m", protocol, *no, "--dport", str(int.from_bytes(value, "big")))
        case Payload(Header.NETWORK, offset, length), Compare(value):
            packed = value.ljust(_BYTES[version], b"\0")
            yield from (*no, "-s" if offset == _SOURCE[version] else "-d", f"{ip_address(packed)}/{length * 8}")
        case Payload(header, offset, _), Lookup(name):
            source = header is Header.NETWORK and offset == _SOURCE[version]
            yield from ("-m", "set", "--match-set", set_name(name), "src" if source else "dst")
        case _:
            raise UntranslatableError(f"iptables has no words for {load} {test}")


_INTERFACES: Final[dict[int, str]] = {
    MetaKey.INPUT_INTERFACE: "-i",
    MetaKey.INPUT_INTERFACE_NAME: "-i",
    MetaKey.OUTPUT_INTERFACE: "-o",
    MetaKey.OUTPUT_INTERFACE_NAME: "-o",
}


def _interface(key: int, value: bytes) -> str:
    if key in {MetaKey.INPUT_INTERFACE, MetaKey.OUTPUT_INTERFACE}:
        if value != _LOOPBACK:
            raise UntranslatableError("iptables knows interfaces by their names")
        return "lo"
    return value.rstrip(b"\0").decode(errors="replace")


def _path(number: int, paths: Paths) -> str:
    try:
        return paths[number]
    except KeyError:
        raise UntranslatableError(f"cgroup {number} is gone, and iptables knows cgroups by their paths") from None


def _action(action: tuple[Expression, ...], version: int) -> tuple[str, ...]:
    match action:
        case (Return(),):
            return ("RETURN",)
        case (Drop(),):
            return ("DROP",)
        case (Reset(),):
            return ("REJECT", "--reject-with", "tcp-reset")
        case (Load(port), Redirect()):
            return ("REDIRECT", "--to-ports", str(int.from_bytes(port, "big")))
        case (Load(port), ChangePort()):
            return ("DNAT", "--to-destination", f":{int.from_bytes(port, 'big')}")
        case (Load(address), LoadSecond(port), ChangeDestination(family)) if family == FAMILIES[version][0]:
            host = ip_address(address)
            shown = f"[{host}]" if version == 6 else str(host)
            return ("DNAT", "--to-destination", f"{shown}:{int.from_bytes(port, 'big')}")
        case _:
            raise UntranslatableError(f"iptables has no words for {action}")


def line(words: tuple[str, ...]) -> str:
    """Return words as a line that iptables-restore reads."""
    return " ".join(each if not re.search(r"[^\w./:@,!+%\[\]-]", each) and each else _quoted(each) for each in words)


def _quoted(word: str) -> str:
    return '"' + re.sub(r"([\"'\\])", r"\\\1", word) + '"'


def words_in(text: str) -> tuple[str, ...]:
    """Return the words of a line that iptables-save printed."""
    return tuple(re.sub(r"\\(.)", r"\1", found[1]) if found[2] is None else found[2] for found in _WORD.finditer(text))


def rule_of(words: tuple[str, ...], version: int, paths: Paths) -> Rule:
    """Return the rule that the words say; one with an unknown expression where no rule of ours says it so."""
    try:
        rule = _guess(list(words), version)
        if words_of(rule, version, paths) == words:
            return rule
    except (ValueError, IndexError, KeyError, struct.error):
        pass
    return Rule((Meta(MetaKey.FAMILY), Compare(FAMILIES[version]), Unknown("iptables", line(words))))


def _guess(words: list[str], version: int) -> Rule:
    """Return the rule that these words look like; the caller compares."""
    conditions: list[Condition] = [(Meta(MetaKey.FAMILY), Compare(FAMILIES[version]))]
    said, inverted = "", False
    while words[0] != "-j":
        option = words.pop(0)
        if option == "!":
            inverted = True
            continue
        value = words.pop(0)
        if option == "--comment":
            said = value
        elif option == "--path":
            mark = _CGROUP.fullmatch(said)
            if mark is None:
                raise ValueError("a path alone does not say which cgroup")
            conditions.append((SocketCgroup(int(mark[2])), Compare(struct.pack("=Q", int(mark[1])), inverted)))
            said = mark[3] or ""
        elif option == "--match-set":
            conditions.append(_in_set(name_of_set(value), words.pop(0), version))
        elif option == "--tcp-flags":
            words.pop(0)  # the caller compares
            conditions.append(OPENING)
        elif option != "-m":
            load, test = _KNOWN[option](value, version)
            conditions.append((load, Compare(test, inverted)))
        inverted = inverted and option == "-m"
    return ordered(conditions, _ACTIONS[words[1]](words[2:]), said)


def _in_set(name: str, side: str, version: int) -> Condition:
    if name.endswith("_ports"):
        return Payload(Header.TRANSPORT, 2, 2), Lookup(name)
    offset = (_SOURCE if side == "src" else _DESTINATION)[version]
    return Payload(Header.NETWORK, offset, _BYTES[version]), Lookup(name)


def _address(offsets: Mapping[int, int]) -> Callable[[str, int], tuple[Expression, bytes]]:
    def known(value: str, version: int) -> tuple[Expression, bytes]:
        network = ip_network(value)
        length = network.prefixlen // 8
        return Payload(Header.NETWORK, offsets[version], length), network.network_address.packed[:length]

    return known


def _device(index: MetaKey, name: MetaKey) -> Callable[[str, int], tuple[Expression, bytes]]:
    def known(value: str, _: int) -> tuple[Expression, bytes]:
        return (Meta(index), _LOOPBACK) if value == "lo" else (Meta(name), value.encode().ljust(16, b"\0"))

    return known


_KNOWN: Final[Mapping[str, Callable[[str, int], tuple[Expression, bytes]]]] = {
    "-s": _address(_SOURCE),
    "-d": _address(_DESTINATION),
    "-i": _device(MetaKey.INPUT_INTERFACE, MetaKey.INPUT_INTERFACE_NAME),
    "-o": _device(MetaKey.OUTPUT_INTERFACE, MetaKey.OUTPUT_INTERFACE_NAME),
    "-p": lambda value, _: (Meta(MetaKey.PROTOCOL), bytes([{"tcp": 6, "udp": 17}[value]])),
    "--dport": lambda value, _: (Payload(Header.TRANSPORT, 2, 2), int(value).to_bytes(2, "big")),
    "--uid-owner": lambda value, _: (Meta(MetaKey.SOCKET_UID), struct.pack("=I", int(value))),
    "--dst-type": lambda _, __: (DestinationType(), _LOCAL),
}
_ACTIONS: Final[Mapping[str, Callable[[list[str]], tuple[Expression, ...]]]] = {
    "RETURN": lambda _: (Return(),),
    "DROP": lambda _: (Drop(),),
    "REJECT": lambda _: (Reset(),),
    "REDIRECT": lambda words: (Load(int(words[1]).to_bytes(2, "big")), Redirect()),
    "DNAT": lambda words: _destination(words[1]),
}


def _destination(text: str) -> tuple[Expression, ...]:
    host, _, number = text.rpartition(":")
    port = int(number).to_bytes(2, "big")
    if not host:
        return (Load(port), ChangePort())
    address = ip_address(host.strip("[]"))
    return (Load(address.packed), LoadSecond(port), ChangeDestination(FAMILIES[address.version][0]))
