"""Several rollouts over the same hosts: who comes first, and which hosts are another's by now. Pure.

The one that began first gets the hosts that both are for, and the others wait for it. It waits for none of them: two
that waited for each other would wait for ever.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from hostmesh_controller.rollout.progress import Progress, Stage


@dataclass(frozen=True, slots=True)
class Held:
    """A host that another rollout has in hand, or will have.

    `first`: that one comes first, and is waited for. `halted`: it waits for an operator.
    """

    rollout: str
    first: bool
    halted: bool = False


def held(name: str, all_of_them: Mapping[str, Progress], wants: Mapping[str, Collection[str]]) -> dict[str, Held]:
    """Return the hosts that a rollout may not touch; `wants`: whom each will tell its version."""
    mine = all_of_them[name]
    found: dict[str, Held] = {}
    for other, progress in sorted(all_of_them.items()):
        if other == name:
            continue
        first = (progress.began, other) < (mine.began, name)
        hosts = {*progress.in_hand, *(wants.get(other, ()) if first else ())}
        halted = progress.stage is Stage.HALTED
        found |= {host: Held(other, first, halted) for host in hosts if host not in found or first}
    return found


def left(name: str, all_of_them: Mapping[str, Progress]) -> Progress:
    """Return a rollout without the hosts that another one of its component was for since."""
    mine = all_of_them[name]
    others = [each for other, each in all_of_them.items() if other != name and each.component == mine.component]
    in_hand = mine.in_hand
    hosts = {
        host: touched
        for host, touched in mine.hosts.items()
        if host in in_hand or not any(_since(each, host) > touched.since for each in others)
    }
    absent = {
        host: version
        for host, version in mine.absent.items()
        if not any(host in each.hosts and each.began > mine.began for each in others)
    }
    return replace(mine, hosts=hosts, absent=absent)


def _since(progress: Progress, host: str) -> float:
    touched = progress.hosts.get(host)
    return 0.0 if touched is None else touched.since
