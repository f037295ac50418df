"""Rules that tell programs apart: Envoy from all others, and those that call under an identity of their own. Pure.

Whoever wants to pass for another must be in his cgroup or have his user: neither takes a port, an address or a mark
for it.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Final

from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.rules import Compare, Rule, SocketCgroup, Table
from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_api.callers import caller_addresses


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


ENVOY: Final = "Envoy"
"""The comment of the rule by which what is Envoy's passes."""


def envoy_in(table: Table | None) -> ByCgroup | None:
    """Return by which cgroup a table knows Envoy; None if by none."""
    chains = () if table is None else table.chains
    for rule in (rule for chain in chains for rule in chain.rules if rule.comment == ENVOY):
        for load, test in pairwise(rule.expressions):
            if isinstance(load, SocketCgroup) and isinstance(test, Compare):
                return ByCgroup(load.level, int.from_bytes(test.value, sys.byteorder))
    return None


def rules(callers: Sequence[Caller], version: int, where: words.Words, port: int) -> Iterator[Rule]:
    """Yield the rules by which connections that `where` matches go to Envoy's `port` at their caller's address.

    A unit says more than a user: units are asked first.
    """
    by_cgroup = [
        (words.socket_cgroup(group.level, group.identifier), each) for each in callers for group in sorted(each.cgroups)
    ]
    by_user = [(words.socket_uid(uid), each) for each in callers for uid in sorted(each.uids)]
    for who, each in (*by_cgroup, *by_user):
        to = words.change_destination(each.addresses[version], port)
        yield Rule((*who, *where, *to), each.spiffe_id)
