"""The kernel's rules as data: what a table holds, as equal values for equal rules.

One vocabulary for both directions: the planner builds a `Table`, the netlink edge writes it, reads the kernel's own
back as a `Table`, and equality says whether the kernel holds what was planned. Expressions work on one register
(nf_tables' register 1) unless their name says that it is the second, so none is named. Bytes are as the kernel compares
them: packet fields in network order, the kernel's own numbers (uid, interface, address type, cgroup) in the machine's
order.
"""

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

TABLE_NAME: Final = "hostmesh"


class Backend(StrEnum):
    """What of the kernel holds the rules."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"


class MetaKey(IntEnum):
    """Facts about a packet that are not in it (linux/netfilter/nf_tables.h, enum nft_meta_keys)."""

    MARK = 3
    INPUT_INTERFACE = 4
    OUTPUT_INTERFACE = 5
    INPUT_INTERFACE_NAME = 6
    OUTPUT_INTERFACE_NAME = 7
    SOCKET_UID = 10
    FAMILY = 15
    PROTOCOL = 16


class Header(IntEnum):
    """Where a payload offset counts from (enum nft_payload_bases)."""

    NETWORK = 1
    TRANSPORT = 2


class KeyType(IntEnum):
    """What a set holds (nftables' datatype numbers, which `nft list` reads)."""

    IPV4 = 7
    IPV6 = 8
    PORT = 13
    UID = 24
    INTERFACE = 41
    CGROUP = 46

    @property
    def length_bytes(self) -> int:
        return _LENGTHS_BYTES[self]

    @property
    def native(self) -> bool:
        """Whether values are as the machine has its numbers, and not as they are in packets."""
        return self in {KeyType.UID, KeyType.INTERFACE, KeyType.CGROUP}


_LENGTHS_BYTES: Final = {
    KeyType.IPV4: 4,
    KeyType.IPV6: 16,
    KeyType.PORT: 2,
    KeyType.UID: 4,
    KeyType.INTERFACE: 16,
    KeyType.CGROUP: 8,
}


class Hook(IntEnum):
    """Where a chain is called (enum nf_inet_hooks)."""

    PREROUTING = 0
    INPUT = 1
    OUTPUT = 3


@dataclass(frozen=True, slots=True)
class Meta:
    """Load a fact about the packet."""

    key: MetaKey | int


@dataclass(frozen=True, slots=True)
class SocketCgroup:
    """Load the number of the cgroup (version 2) of the packet's socket: of its ancestor so deep below the root.

    Without a socket, or where its cgroup is not so deep, the rule does not hold.
    """

    level: int


@dataclass(frozen=True, slots=True)
class SocketTransparent:
    """Load whether the packet's socket takes what is for addresses that are not the host's (IP_TRANSPARENT): 1 or 0.

    Without a socket the rule does not hold.
    """


@dataclass(frozen=True, slots=True)
class Payload:
    """Load bytes of the packet."""

    header: Header
    offset: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class PayloadWrite:
    """Write the register into the packet and mend the Internet checksum at `checksum_offset` of the same header."""

    header: Header
    offset: int
    length_bytes: int
    checksum_offset: int


@dataclass(frozen=True, slots=True)
class Mask:
    """Replace the register by `(register & mask) ^ xor`."""

    mask: bytes
    xor: bytes


@dataclass(frozen=True, slots=True)
class DestinationType:
    """Load the routing table's type of the destination address (local, unicast, ...)."""


@dataclass(frozen=True, slots=True)
class AskedAddress:
    """Load the IPv4 address to which the connection's first packet went, before anything was redirected."""


@dataclass(frozen=True, slots=True)
class SetMark:
    """Mark the packet with the register: which routing table is asked may depend on it."""


@dataclass(frozen=True, slots=True)
class ConnectionZone:
    """Load in which zone of connection tracking the connection's own direction is."""


@dataclass(frozen=True, slots=True)
class SetConnectionZone:
    """Have connection tracking look for the connection in the zone in the register, and for its answers in none."""


@dataclass(frozen=True, slots=True)
class ConnectionDirection:
    """Load whether the packet is one of who called (0) or one of who answers (1)."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Go on only if the register equals (or, inverted, does not equal) the value."""

    value: bytes
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Lookup:
    """Go on only if the register is in the named set."""

    set_name: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load a constant."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the connection to this host, to the port in the register."""


@dataclass(frozen=True, slots=True)
class ChangePort:
    """Keep the destination address and change the port to the one in the register."""


@dataclass(frozen=True, slots=True)
class LoadSecond:
    """Load a constant into the second register."""

    value: bytes


@dataclass(frozen=True, slots=True)
class ChangeDestination:
    """Send the connection to the address in the register and the port in the second. `family` is NFPROTO's number."""

    family: int


@dataclass(frozen=True, slots=True)
class Return:
    """Leave the chain: the packet goes on untouched."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Refuse the connection at once, with TCP's reset."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Take the packet away. In a chain of the output hook whoever sends it hears it at once, with each packet."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """An expression that we never write: somebody else changed the table."""

    name: str
    detail: str


Expression = (
    Meta
    | SocketCgroup
    | SocketTransparent
    | Payload
    | PayloadWrite
    | Mask
    | DestinationType
    | AskedAddress
    | SetMark
    | ConnectionZone
    | SetConnectionZone
    | ConnectionDirection
    | Compare
    | Lookup
    | Load
    | Redirect
    | ChangePort
    | LoadSecond
    | ChangeDestination
    | Return
    | Reset
    | Drop
    | Unknown
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; the comment is kept in the kernel, for the human who lists the rules."""

    expressions: tuple[Expression, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that the kernel calls; its policy is always accept."""

    name: str
    kind: str
    hook: Hook | int
    priority: int
    rules: tuple[Rule, ...]
    policy: int = 1


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set of values or, with `intervals`, of ranges: both ends inside, sorted, not overlapping.

    `other_flags` are those of a set that is not ours: a map, one with timeouts, and so on.
    """

    name: str
    key: KeyType | int
    ranges: tuple[tuple[bytes, bytes], ...]
    intervals: bool
    other_flags: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """The whole table `inet hostmesh`; sets and chains are sorted by name. `backend` is what it is made for."""

    sets: tuple[NamedSet, ...]
    chains: tuple[Chain, ...]
    flags: int = 0
    backend: Backend = field(default=Backend.NFTABLES, repr=False)

    @property
    def digest(self) -> str:
        """Return 16 hex digits that are the same for the same rules, on every host."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was asked for and is never done, and why."""

    what: str
    why: str
    is_not: str = "captured"

    def __str__(self) -> str:
        return f"{self.what} is not {self.is_not}: {self.why}"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything that capture puts into the kernel, and what it was asked for and refuses to.

    `virtual_prefixes` must be routable and `loopback_addresses` must be there for the table to have its effect.
    `missing` are users and units that it is about and that are not there now. `marked_home` are the IP versions of
    which marked packets must be routed to this host itself.
    """

    table: Table
    virtual_prefixes: tuple[str, ...] = ()
    loopback_addresses: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = field(default=())
    missing: tuple[str, ...] = ()
    marked_home: frozenset[int] = frozenset()
