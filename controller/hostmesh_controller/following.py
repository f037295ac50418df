"""Addresses that follow their hosts: when one changes, and why it stays otherwise. Pure.

A host that joined a group at the address it called from has that address in an annotation. While it is the only one
that its Host names it is the controller's word, not an operator's, and follows the host:

    seen by the controller, and the host's own, and nobody else's ─▶ Host.spec.addresses ─▶ WorkloadEntry ─▶ callers

What a host says is never enough: the address is the one that its authenticated connection comes from. What the
controller sees is not enough either: behind a translation it is another machine's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Any, Final

from hostmesh_api.wire import VIP4, VIP6
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.world import World
from hostmesh_controller.groups import SEEN_AT, WITHIN, entry_key, group_of
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.names import canonical_address, is_within

AT_ONCE: Final = 4
WINDOW: Final = timedelta(minutes=10)
"""So many changes in so long are followed at once; the address of a host that changes more often must stay first."""
STEADY: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a host is: `seen` by the controller, canonical; `own` are the addresses that it says it has.

    `had` are those that it said before: one that it never had itself, because it is translated on the way, cannot have
    gone. `astray`: it was told that its address does not follow.
    """

    host: str
    seen: str
    own: frozenset[str]
    had: frozenset[str] = frozenset()
    astray: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """A host's address is to be `new`, and not `old` any more."""

    host: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Stays:
    """A host's address stays though the host is elsewhere; `why` is for people.

    `blocked` is the move that would be made if another host left the wanted address.
    """

    why: str
    blocked: Move | None = None


def judge(where: Whereabouts, world: World, connected: Callable[[str], bool]) -> Move | Stays | None:
    """Return what follows from where a host is; None: nothing does, it is where it should be.

    `connected` tells whether a host has a stream.
    """
    item = world.objects.get(ObjectKey("Host", "", where.host))
    if item is None or not isinstance(item.spec, HostSpec):
        return None
    named = [canonical_address(each) or each for each in item.spec.addresses]
    if not named or where.seen in named or where.seen not in where.own or where.own.intersection(named):
        return None
    follows = named == [canonical_address(item.metadata.annotations.get(SEEN_AT, ""))]
    if not (follows or where.astray or where.had.intersection(named)) or not _usable(where.seen):
        return None
    move, at = Move(where.host, named[0], where.seen), ", ".join(named)
    said = f"{item.key} is at {where.seen} and not at {at} any more, and callers do not reach it"
    reason = "" if follows else f"an operator wrote spec.addresses: write {where.seen} there, or give it {at} back"
    reason = reason or _fixed(move, item, world) or _not_its_own(move, item, world)
    if reason:
        return Stays(f"{said}: {reason}")
    holder = next(iter(world.others_at(Relation.HOST_ADDRESS, move.new, item)), None)
    if holder is None:
        return move
    lives = "is connected too: two hosts have one address, and one of them must have another"
    gone = f"is away: if it is gone for ever, remove it (hostmesh host remove {holder.key.name})"
    return Stays(
        f"{said}: {move.new} is the address of {holder.key}, which {lives if connected(holder.key.name) else gone}",
        move,
    )


def _usable(address: str) -> bool:
    """Tell whether others can call an address."""
    found = ip_address(address)
    special = found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified
    return not special and found not in VIP4 and found not in VIP6


def _fixed(move: Move, host: ApiObject, world: World) -> str:
    """Return who has written the old address beside the Host; "" if nobody has."""
    named = ", ".join(str(each.key) for each in _at(move.old, host, world))
    return (
        f"{named} has {move.old} from an operator: write {move.new} there and in {host.key} (spec.addresses)"
        if named
        else ""
    )


def _not_its_own(move: Move, host: ApiObject, world: World) -> str:
    """Return why a host may not have an address that no other host has; "" if it may."""
    taken = (*_at(move.new, host, world), *world.at(Relation.SERVICE_ADDRESS, move.new))
    if taken:
        named = ", ".join(str(each.key) for each in taken)
        return (
            f"{named} is at {move.new}, and a host there would be taken for it: that is for an operator to say, "
            f"in {host.key} (spec.addresses)"
        )
    blocks = [each for each in host.metadata.annotations.get(WITHIN, "").split(",") if each]
    if blocks and not is_within(move.new, blocks):
        return f"what it joined by allows {', '.join(blocks)} alone: write {move.new} into spec.addresses, if it may"
    return ""


def _at(address: str, host: ApiObject, world: World) -> Iterator[ApiObject]:
    """Yield who names the address of a workload, but for the entries of members, which are derived from their Hosts."""
    members = (host, *world.at(Relation.HOST_ADDRESS, address))
    derived = {entry_key(group, each.key.name) for each in members if (group := group_of(each)) is not None}
    yield from (each for each in world.at(Relation.WORKLOAD_ADDRESS, address) if each.key not in derived)
    yield from world.at(Relation.INLINE_ADDRESS, address)


def together(wanted: Mapping[str, Move], world: World) -> tuple[Move, ...]:
    """Return which moves can be made at once: into addresses that nobody has, or that are left by another of them.

    `wanted` is by host, the oldest first: of two that want one address the first gets it.
    """
    targets: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for host, move in wanted.items():
        targets.setdefault(move.new, host)
        for each in world.at(Relation.HOST_ADDRESS, move.new):
            needs.setdefault(each.key.name, []).append(host)
    going = set(targets.values())
    # Who stays keeps an address, and who needs that stays too.
    staying = [each for each in {*needs, *wanted} if each not in going]
    while staying:
        for host in needs.pop(staying.pop(), ()):
            if host in going:
                going.discard(host)
                staying.append(host)
    return tuple(move for host, move in wanted.items() if host in going)


def row_of(host: str, seen: Mapping[str, str], world: World) -> frozenset[str]:
    """Return who has to move for a host to move, and who else wants what they want; none if one of them stays.

    It costs as much as the row is long, however many wait for somebody else.

    Args:
        host: that waits.
        seen: where each host is that waits.
        world: what is configured.
    """
    wanting: dict[str, list[str]] = {}
    for name, address in seen.items():
        wanting.setdefault(address, []).append(name)
    row: set[str] = set()
    ahead = [host]
    while ahead:
        name = ahead.pop()
        if name in row:
            continue
        row.add(name)
        holders = [each.key.name for each in world.at(Relation.HOST_ADDRESS, seen[name])]
        if not all(each in seen for each in holders):
            return frozenset()
        ahead += holders
    return frozenset(row).union(*(wanting[seen[name]] for name in row))


def moved(host: ApiObject, move: Move) -> dict[str, Any]:
    """Return the document of a Host that has moved."""
    document = host.to_dict()
    document["spec"] = {**document["spec"], "addresses": [move.new]}
    metadata = document["metadata"]
    document["metadata"] = {**metadata, "annotations": {**metadata.get("annotations", {}), SEEN_AT: move.new}}
    return document


@dataclass(frozen=True, slots=True)
class Advice:
    """What an agent is told: why its host's address stays, "" if it is right; when to report again, 0: as ever."""

    problem: str = ""
    again_s: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a host's address has changed, and since when it wants the present one."""

    at: tuple[datetime, ...] = field(default=())
    target: str = ""
    since: datetime | None = None

    def wants(self, target: str, now: datetime) -> "Pace":
        """Return the pace of a host that wants an address now."""
        at = tuple(each for each in self.at if now - WINDOW <= each <= now)
        known = self.target == target and self.since is not None and self.since <= now
        return Pace(at, target, self.since if known else now)

    def wait(self, now: datetime) -> timedelta:
        """Return how long the wanted address must stay before it is followed; none: it is followed now."""
        if len(self.at) < AT_ONCE or self.since is None:
            return timedelta()
        return max(self.since + STEADY - now, timedelta())

    def followed(self, now: datetime) -> "Pace":
        """Return the pace after the address was followed."""
        return replace(self, at=(*self.at, now)[-AT_ONCE:], target="", since=None)
