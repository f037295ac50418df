"""Whom a rollout waits for, as operators read it. Pure."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from hostmesh_controller.model.rollout import RolloutSpec
from hostmesh_controller.rollout.health import Seen
from hostmesh_controller.rollout.progress import Mark, Progress, Stage
from hostmesh_controller.rollout.turns import Held

_NAMED: Final = 3
"""So many hosts are named; of more their number is told."""


def problems(
    spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, others: Mapping[str, Held] = MappingProxyType({})
) -> list[str]:
    """Say what holds it up beside the hosts that have it and must prove it."""
    returning = [host for host in progress.marked(Mark.RETURNING) if host in seen]
    stuck = [host for host in returning if progress.hosts[host].stuck]
    gone = [host for host in returning if host not in stuck and seen[host].is_absent(spec)]
    soon = [host for host in returning if host not in stuck and host not in gone]
    found = _for_others(spec, seen, progress, others) if progress.stage is Stage.RUNNING else []
    if soon and progress.stage is Stage.RUNNING:
        found.append(f"{_names(soon)} go back to what they had before anybody else gets the version")
    if stuck:
        why = progress.hosts[stuck[0]].reason or "it does not say why"
        found.append(f"{_names(stuck)} cannot go back ({why}): resume or abort lets them try again")
    if gone:
        found.append(f"{_names(gone)} go back once they are heard of; nobody else waits for that")
    return found


def _for_others(
    spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, others: Mapping[str, Held]
) -> list[str]:
    waits: dict[Held, list[str]] = {}
    for host, each in sorted(seen.items()):
        if each.selected and host not in progress.hosts and each.version != spec.version and host in others:
            waits.setdefault(others[host], []).append(host)
    return [
        f"Rollout {each.rollout} {'goes first on' if each.first else 'has in hand'} {_names(hosts)}"
        f"{': it has halted; resume it, or abort it' if each.halted else ''}"
        for each, hosts in sorted(waits.items(), key=lambda found: found[0].rollout)
    ]


def _names(hosts: Sequence[str]) -> str:
    named = ", ".join(hosts[:_NAMED])
    return named if len(hosts) <= _NAMED else f"{len(hosts)} hosts ({named}, …)"
