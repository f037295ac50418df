"""What a rule of a capture policy is about (programs, ports, addresses, interfaces), and how the kernel is told. Pure.

A match holds where everything holds that it gives; of one list, one entry is enough. Whatever comes and goes is in a
set: the cgroup of a unit that restarts is another one, and then a set loses a number and gets one, and no rule changes.
"""

import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.expressions import Words
from hostmesh_agent.capture.rules import KeyType, NamedSet
from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_api.wire import MAX_INTERFACE_BYTES

Prefix = IPv4Network | IPv6Network
_ADDRESS_KEY: Final = {4: KeyType.IPV4, 6: KeyType.IPV6}
USUAL_LEVEL: Final = 2
"""Of `system.slice/NAME.service`: there is a rule for this level also while no such unit runs."""
MAX_LEVEL: Final = 255


class Direction(StrEnum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True)
class Match:
    """Connections of some kind. What is empty holds for all.

    Attributes:
        ports: outbound those that are called, inbound the host's own.
        cidrs: outbound of who is called, inbound of the caller.
        users: names, or numbers as text; of the program that calls.
        units: systemd's names, of the program that calls.
        interfaces: outbound where connections leave, inbound where they come in.
    """

    ports: frozenset[int] = frozenset()
    cidrs: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    units: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()

    @property
    def names_who(self) -> bool:
        """Whether it is about some of the host's programs."""
        return bool(self.users or self.units)

    @property
    def whose(self) -> "Match":
        """The same programs, whatever they call."""
        return Match(users=self.users, units=self.units)


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What of one direction is captured: what an `include` matches (none: everything) and no `exclude` does."""

    include: tuple[Match, ...] = ()
    exclude: tuple[Match, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    @property
    def names_who(self) -> bool:
        return any(each.names_who for each in (*self.include, *self.exclude))


ALL_OF_IT: Final = Narrowing()


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The cgroup of a running unit: how deep below the root it is, and the kernel's number of it."""

    unit: str
    level: int
    id: int

    @property
    def place(self) -> ByCgroup:
        """The same without the unit's name."""
        return ByCgroup(self.level, self.id)


@dataclass(frozen=True, slots=True)
class Present:
    """Which of the users and units that are named there are now."""

    users: frozenset[tuple[str, int]] = frozenset()
    cgroups: frozenset[Cgroup] = frozenset()

    def uids(self, names: Iterable[str]) -> frozenset[int]:
        known = dict(self.users)
        return frozenset(int(name) if name.isdecimal() else known[name] for name in names if _known(name, known))

    def places(self, units: Collection[str]) -> frozenset[ByCgroup]:
        """Return where the processes of those units are that run."""
        return frozenset(each.place for each in self.cgroups if each.unit in units)

    def missing(self, match: Match) -> Iterator[str]:
        """Yield what a match names and there is not."""
        known, units = dict(self.users), {each.unit for each in self.cgroups}
        yield from (f"user {name}" for name in sorted(match.users) if not _known(name, known))
        yield from (f"unit {name}" for name in sorted(match.units - units))


NOBODY: Final = Present()


def _known(name: str, known: dict[str, int]) -> bool:
    return name.isdecimal() or name in known


def problem(match: Match, direction: Direction) -> str:
    """Return why a match cannot be told to the kernel, "" if it can."""
    if match == Match():
        return "it says nothing: it would be about everything"
    if direction is Direction.INBOUND and match.names_who:
        return "inbound connections are told by ports, addresses and interfaces, not by users or units"
    for port in sorted(match.ports):
        if not 0 < port <= 65535:
            return f"{port} is not a TCP port"
    for cidr in sorted(match.cidrs):
        try:
            ip_network(cidr)
        except ValueError as error:
            return f"not an address prefix: {error}"
    for name in sorted(match.users):
        if not name or (name.isdecimal() and int(name) >= 2**32 - 1):
            return f"{name!r} is not a user"
    for name in sorted(match.interfaces):
        if not 0 < len(name.encode()) <= MAX_INTERFACE_BYTES:
            return f"{name!r} is not the name of an interface"
    return next((f"{name!r} is not a unit" for name in sorted(match.units) if not name or "/" in name), "")


def inside(match: Match, families: tuple[int, ...]) -> tuple[int, ...]:
    """Return the address families that a match can be about."""
    if not match.cidrs:
        return families
    return tuple(each for each in families if _prefixes(match, each))


def alternatives(
    name: str, match: Match, direction: Direction, version: int | None, present: Present
) -> Iterator[Words]:
    """Yield the conditions of a match: one after another, one of them has to hold.

    Args:
        name: of the sets that `sets` makes.
        match: what is matched.
        direction: of the connections.
        version: the address family that is asked for beforehand; None: neither, for a match without addresses.
        present: who is there.
    """
    common: Words = ()
    if match.cidrs and version is not None:
        in_set = words.to_set if direction is Direction.OUTBOUND else words.from_set
        common += in_set(version, f"{name}_cidrs{version}")
    if match.ports:
        common += words.tcp_port_in(f"{name}_ports")
    if match.interfaces:
        common += words.interface_in(f"{name}_interfaces", outbound=direction is Direction.OUTBOUND)
    if match.users:
        common += words.socket_uid_in(f"{name}_uids")
    if not match.units:
        yield common
    for level in _levels(match, present):
        yield (*common, *words.cgroup_in(level, f"{name}_units{level}"))


def sets(name: str, match: Match, families: tuple[int, ...], present: Present) -> Iterator[NamedSet]:
    """Yield the sets into which the conditions of a match look."""
    if match.cidrs:
        for version in inside(match, families):
            prefixes = _prefixes(match, version)
            yield NamedSet(f"{name}_cidrs{version}", _ADDRESS_KEY[version], ranges(prefixes), intervals=True)
    if match.ports:
        yield _values(f"{name}_ports", KeyType.PORT, (port.to_bytes(2, "big") for port in match.ports))
    if match.interfaces:
        packed = (each.encode().ljust(16, b"\0") for each in match.interfaces)
        yield _values(f"{name}_interfaces", KeyType.INTERFACE, packed)
    if match.users:
        yield _values(f"{name}_uids", KeyType.UID, (struct.pack("=I", uid) for uid in present.uids(match.users)))
    for level in _levels(match, present):
        ids = (each.id for each in present.cgroups if each.level == level and each.unit in match.units)
        yield _values(f"{name}_units{level}", KeyType.CGROUP, (struct.pack("=Q", each) for each in ids))


def _levels(match: Match, present: Present) -> list[int]:
    if not match.units:
        return []
    return sorted({USUAL_LEVEL} | {each.level for each in present.cgroups if each.unit in match.units})


def _values(name: str, key: KeyType, values: Iterable[bytes]) -> NamedSet:
    return NamedSet(name, key, tuple((value, value) for value in sorted(set(values))), intervals=False)


def _prefixes(match: Match, version: int) -> list[Prefix]:
    found = (ip_network(each) for each in match.cidrs)
    return [each for each in found if each.version == version]


def ranges(prefixes: Iterable[Prefix]) -> tuple[tuple[bytes, bytes], ...]:
    """Return (first, last) ranges that hold what `prefixes` of one family hold, sorted.

    The kernel refuses ranges that overlap: a prefix inside another goes. Neighbours stay apart, so that one that
    comes or goes does not touch the other, through which traffic flows.
    """
    outer: list[Prefix] = []
    for prefix in sorted(prefixes, key=lambda each: (int(each[0]), each.prefixlen)):
        if not outer or int(prefix[0]) > int(outer[-1][-1]):
            outer.append(prefix)
    return tuple((prefix[0].packed, prefix[-1].packed) for prefix in outer)
