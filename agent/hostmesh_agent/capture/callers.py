"""Rules that tell programs apart: Envoy from all others, and those that call under an identity of their own. Pure.

Whoever wants to pass for another must be in his cgroup or have his user: neither takes a port, an address or a mark
for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.rules import Rule
from hostmesh_api.callers import caller_addresses


@dataclass(frozen=True, slots=True)
class ByCgroup:
    """Processes of a cgroup of version 2 and of those below it; `level` 1 is below the root."""

    level: int
    identifier: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Programs that call others as `spiffe_id`: those in any of the cgroups, or else of any of the users."""

    spiffe_id: str
    uids: frozenset[int] = frozenset()
    cgroups: frozenset[ByCgroup] = field(default=frozenset())

    @property
    def addresses(self) -> Mapping[int, IPv4Address | IPv6Address]:
        """Where Envoy gets their connections, by IP version."""
        v4, v6 = caller_addresses(self.spiffe_id)
        return {4: v4, 6: v6}


def envoy(cgroup: ByCgroup | None, uid: int) -> words.Words:
    """What is Envoy's: by the cgroup where there is one. Any root can take its user."""
    return words.socket_cgroup(cgroup.level, cgroup.identifier) if cgroup is not None else words.socket_uid(uid)


def rules(callers: Sequence[Caller], version: int, where: words.Words, port: int) -> Iterator[Rule]:
    """Yield the rules by which connections that `where` matches go to Envoy's `port` at their caller's address.

    A unit says more than a user: units are asked first.
    """
    by_cgroup = [
        (words.socket_cgroup(group.level, group.identifier), each)
        for each in callers
        for group in sorted(each.cgroups, key=lambda group: (group.level, group.identifier))
    ]
    by_user = [(words.socket_uid(uid), each) for each in callers for uid in sorted(each.uids)]
    for who, each in (*by_cgroup, *by_user):
        to = words.change_destination(each.addresses[version], port)
        yield Rule((*who, *where, *to), each.spiffe_id)
