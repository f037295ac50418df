"""The words that rules are made of: each function returns the expressions of one condition or one action.

Conditions are put one after another (`*tcp_port_in("ports"), *redirect(15001)`), as in nft's own language. A field of
a family's header must come behind `family(...)`: in an `inet` table the kernel reads offsets blindly.
"""

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from hostmesh_agent.capture.rules import (
    AskedAddress,
    ChangeDestination,
    ChangePort,
    Compare,
    ConnectionDirection,
    ConnectionZone,
    DestinationType,
    Drop,
    Expression,
    Header,
    Load,
    LoadSecond,
    Lookup,
    Mask,
    Meta,
    MetaKey,
    Payload,
    PayloadWrite,
    Redirect,
    Reset,
    Return,
    SetConnectionZone,
    SetMark,
    SocketCgroup,
    SocketTransparent,
)

Words = tuple[Expression, ...]

TCP: Final = 6
UDP: Final = 17
_FAMILY_NUMBER: Final = {4: 2, 6: 10}  # NFPROTO_IPV4, NFPROTO_IPV6
_SOURCE: Final = {4: (12, 4), 6: (8, 16)}  # offset and length in the network header
_DESTINATION: Final = {4: (16, 4), 6: (24, 16)}
_LOOPBACK_INTERFACE: Final = 1  # LOOPBACK_IFINDEX: the kernel gives lo this index in every network namespace
_LOCAL: Final = 2  # RTN_LOCAL

_DNS_FLAGS_OFFSET: Final = 10  # of the UDP header (8 bytes) and the DNS identifier (2 bytes)
_UDP_CHECKSUM_OFFSET: Final = 6
_NO_ERROR: Final = 0
_NXDOMAIN: Final = 3
_NOT_IMPLEMENTED: Final = 4
_REFUSED: Final = 5

_TCP_FLAGS_OFFSET: Final = 13
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10

RETURN: Final[Words] = (Return(),)
RESET: Final[Words] = (Reset(),)
DROP: Final[Words] = (Drop(),)


def _native(number: int) -> bytes:
    return struct.pack("=I", number)


def _native_short(number: int) -> bytes:
    return struct.pack("=H", number)


def _port(number: int) -> bytes:
    return struct.pack(">H", number)


def family(version: int) -> Words:
    return (Meta(MetaKey.FAMILY), Compare(bytes([_FAMILY_NUMBER[version]])))


def protocol(number: int) -> Words:
    return (Meta(MetaKey.PROTOCOL), Compare(bytes([number])))


def socket_uid(uid: int) -> Words:
    return (Meta(MetaKey.SOCKET_UID), Compare(_native(uid)))


def socket_uid_in(set_name: str) -> Words:
    return (Meta(MetaKey.SOCKET_UID), Lookup(set_name))


def socket_cgroup(level: int, identifier: int) -> Words:
    """A socket that was made by a process of the cgroup `identifier`, which is `level` deep, or of one below it."""
    return (SocketCgroup(level), Compare(struct.pack("=Q", identifier)))


def cgroup_in(level: int, set_name: str) -> Words:
    return (SocketCgroup(level), Lookup(set_name))


def interface_in(set_name: str, *, outbound: bool) -> Words:
    """By name: an interface may come and go, and its number with it."""
    return (Meta(MetaKey.OUTPUT_INTERFACE_NAME if outbound else MetaKey.INPUT_INTERFACE_NAME), Lookup(set_name))


def from_loopback() -> Words:
    return (Meta(MetaKey.INPUT_INTERFACE), Compare(_native(_LOOPBACK_INTERFACE)))


def over_loopback() -> Words:
    return (Meta(MetaKey.OUTPUT_INTERFACE), Compare(_native(_LOOPBACK_INTERFACE)))


def to_local_address() -> Words:
    """An address of this host, of whatever interface (also all of 127.0.0.0/8)."""
    return (DestinationType(), Compare(_native(_LOCAL)))


def to_others() -> Words:
    """An address that is not this host's, though its packets stay here: routing by policy says so."""
    return (DestinationType(), Compare(_native(_LOCAL), inverted=True))


def socket_in_place_of_others() -> Words:
    return (SocketTransparent(), Compare(b"\1"))


def from_address(address: IPv4Address | IPv6Address, *, inverted: bool = False) -> Words:
    offset, length = _SOURCE[address.version]
    return (Payload(Header.NETWORK, offset, length), Compare(address.packed, inverted))


def to_address(address: IPv4Address | IPv6Address) -> Words:
    offset, length = _DESTINATION[address.version]
    return (Payload(Header.NETWORK, offset, length), Compare(address.packed))


def not_to_prefix(prefix: IPv4Network | IPv6Network) -> Words:
    """Any destination outside `prefix`, whose length must be whole bytes (nft's shortest form for those)."""
    whole_bytes, rest_bits = divmod(prefix.prefixlen, 8)
    if rest_bits:
        raise ValueError(f"prefix length of {prefix} is not a multiple of 8")
    offset, _ = _DESTINATION[prefix.version]
    return (
        Payload(Header.NETWORK, offset, whole_bytes),
        Compare(prefix.network_address.packed[:whole_bytes], inverted=True),
    )


def to_set(version: int, set_name: str) -> Words:
    offset, length = _DESTINATION[version]
    return (Payload(Header.NETWORK, offset, length), Lookup(set_name))


def from_set(version: int, set_name: str) -> Words:
    offset, length = _SOURCE[version]
    return (Payload(Header.NETWORK, offset, length), Lookup(set_name))


def tcp_port(number: int) -> Words:
    return (*protocol(TCP), Payload(Header.TRANSPORT, 2, 2), Compare(_port(number)))


def tcp_port_in(set_name: str) -> Words:
    return (*protocol(TCP), Payload(Header.TRANSPORT, 2, 2), Lookup(set_name))


def opening() -> Words:
    """Of TCP: the packet that opens a connection, and no other; whether or not the kernel tracks it."""
    mask = Mask(mask=bytes([_FIN | _SYN | _RST | _ACK]), xor=b"\0")
    return (Payload(Header.TRANSPORT, _TCP_FLAGS_OFFSET, 1), mask, Compare(bytes([_SYN])))


def udp_port(number: int) -> Words:
    return (*protocol(UDP), Payload(Header.TRANSPORT, 2, 2), Compare(_port(number)))


def udp_port_in(set_name: str) -> Words:
    return (*protocol(UDP), Payload(Header.TRANSPORT, 2, 2), Lookup(set_name))


def udp_source_port(number: int) -> Words:
    return (*protocol(UDP), Payload(Header.TRANSPORT, 0, 2), Compare(_port(number)))


def asked_of(address: IPv4Address) -> Words:
    """The connection's first packet went to `address`, wherever it was redirected to. Behind conntrack alone."""
    return (AskedAddress(), Compare(address.packed))


def marked(mark: int) -> Words:
    return (Meta(MetaKey.MARK), Compare(_native(mark)))


def set_mark(mark: int) -> Words:
    return (Load(_native(mark)), SetMark())


def in_zone(zone: int) -> Words:
    """Of a connection that was put into a zone by `set_zone`. Behind conntrack alone."""
    return (ConnectionZone(), Compare(_native_short(zone)))


def set_zone(zone: int) -> Words:
    """Before conntrack alone."""
    return (Load(_native_short(zone)), SetConnectionZone())


def answers() -> Words:
    """A packet of who was called. Behind conntrack alone."""
    return (ConnectionDirection(), Compare(b"\x01"))


def redirect(port: int) -> Words:
    return (Load(_port(port)), Redirect())


def change_destination(address: IPv4Address | IPv6Address, port: int) -> Words:
    """To an address of this host."""
    return (Load(address.packed), LoadSecond(_port(port)), ChangeDestination(_FAMILY_NUMBER[address.version]))


def change_port(port: int) -> Words:
    """Like `redirect`, but the address stays: works also where the packet came in by an interface without one."""
    return (Load(_port(port)), ChangePort())


def no_such_name_becomes_refused() -> Words:
    """Of a DNS answer in UDP: turn NXDOMAIN into REFUSED and keep every other flag."""
    return _answer_code(_NXDOMAIN, _REFUSED)


def unknown_type_becomes_no_data() -> Words:
    """Of a DNS answer in UDP: turn NOTIMP into an answer without data, which is what it means to who asks no other."""
    return _answer_code(_NOT_IMPLEMENTED, _NO_ERROR)


def _answer_code(old: int, new: int) -> Words:
    """Of a DNS answer in UDP: change the code.

    Both bytes of flags are rewritten, not only the one that holds the code: the kernel mends a checksum by 16-bit
    words, and over an interface without checksum offload there is a real checksum to mend.
    """
    flags = Payload(Header.TRANSPORT, _DNS_FLAGS_OFFSET, 2)
    return (
        flags,
        Mask(mask=b"\x00\x0f", xor=b"\x00\x00"),
        Compare(_port(old)),
        flags,
        Mask(mask=b"\xff\xf0", xor=_port(new)),
        PayloadWrite(Header.TRANSPORT, _DNS_FLAGS_OFFSET, 2, _UDP_CHECKSUM_OFFSET),
    )
