"""Who gets the new version now. Pure: the rollout, its hosts as they are seen and the time in, the progress out.

    canary ──▶ wave ──▶ … ──▶ all ──▶ done ──▶ the absent       each once all that have it were well for `watch`
       └──────────┴─ one fails ──▶ halted ─▶ all that have it go back     resume: from the canary on

A host is well that is heard of, runs the new version, serves, and is not worse than it was before. One that is silent
is not well, and after `deadline` it has failed. A host that was removed from the mesh is nobody's.

Of another version the hosts that have the former one, and have not proven it, go back first: their way back is known to
them from the version that they had before, and no other.

A host that was not heard of for `absentAfter` keeps no wave open. It gets the version when it comes back, with as many
others at a time as have proven it before; if it fails then it alone goes back, and no more of the absent get it.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from hostmesh_controller.model.rollout import RolloutSpec
from hostmesh_controller.rollout.health import Seen, judged
from hostmesh_controller.rollout.progress import Mark, Progress, Stage, Touched
from hostmesh_controller.rollout.turns import Held

HAVE_IT: Final = (Mark.ORDERED, Mark.WELL, Mark.FAILED)


def step(
    spec: RolloutSpec,
    seen: Mapping[str, Seen],
    progress: Progress,
    now: float,
    others: Mapping[str, Held] = MappingProxyType({}),
) -> Progress:
    """Return the progress that follows.

    Args:
        spec: what is wanted.
        seen: the hosts that the rollout is for, and those that it has touched.
        progress: how far it was.
        now: seconds since the epoch.
        others: hosts that are another rollout's to tell: see `turns`.
    """
    if (progress.component, progress.version) != (spec.component, spec.version):
        progress = _anew(spec, seen, progress, now)
        if progress.hosts:
            # What is seen is of what they were told before.
            return progress
    hosts = {
        host: judged(spec, seen[host], each, now)
        for host, each in progress.hosts.items()
        if host in seen and not _is_nobodys(seen[host], each)
    }
    progress = replace(progress, hosts=hosts)
    if progress.stage is Stage.DONE:
        return _late(spec, seen, progress, now, others)
    if progress.stage is not Stage.RUNNING:
        return progress
    failed = progress.marked(Mark.FAILED)
    if failed:
        return _halted(spec, progress, now, f"{failed[0]}: {hosts[failed[0]].reason}")
    progress = replace(progress, hosts={host: each for host, each in hosts.items() if each.mark is not Mark.RETURNED})
    if progress.paused or spec.paused or not seen:
        # Of no hosts nothing is shown: a label may be missing, and a rollout that is done takes up none.
        return progress
    return _onwards(spec, seen, progress, now, others)


def wants(spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress) -> frozenset[str]:
    """Return the hosts that will be told in their turn, if nothing goes wrong."""
    if progress.stage is not Stage.RUNNING or (progress.component, progress.version) != (spec.component, spec.version):
        return frozenset()
    pending = _pending(spec, seen, progress)
    return frozenset(host for host in pending if seen[host].fits and not seen[host].is_absent(spec))


def _is_nobodys(seen: Seen, touched: Touched) -> bool:
    """Tell whether a host that was told is as any other by now: a machine that came for it has not been told."""
    return seen.joined_anew and (touched.settled or touched.mark is Mark.FAILED)


def _anew(spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, now: float) -> Progress:
    """Begin with another version, and with the way back of those that have the former one and have not proven it.

    Once they are back, or proven it had, a host is as any other. What they would return to from the new version is
    what they had before both.
    """
    attempt, version = progress.attempt + 1, progress.version
    hosts: Mapping[str, Touched] = {}
    if progress.component == spec.component:
        unproven = [
            host
            for host in progress.marked(*HAVE_IT)
            if spec.rollback == "all" and not progress.hosts[host].settled
            if not _well_for_long(spec, progress.hosts[host], now)
        ]
        known = replace(progress, hosts={host: each for host, each in progress.hosts.items() if host in seen})
        returning = _back(known, [host for host in unproven if host in seen], now)
        hosts = {
            host: replace(each, version=each.version or version)
            for host, each in returning.hosts.items()
            if each.mark is Mark.RETURNING
        }
    return Progress(
        spec.version, attempt=attempt, paused=progress.paused, component=spec.component, hosts=hosts, began=now
    )


def _onwards(
    spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, now: float, others: Mapping[str, Held]
) -> Progress:
    pending = _pending(spec, seen, progress)
    total = len(progress.hosts) + len(pending)
    awaited = [
        host for host in pending if not seen[host].is_absent(spec) and (host not in others or others[host].first)
    ]
    if _proven(spec, seen, progress, now, total, awaited, pending):
        if not awaited and progress.wave >= len(spec.waves):
            return _done(seen, progress, pending, others)
        progress = replace(progress, wave=min(progress.wave + 1, len(spec.waves) + 1))
    if any(seen[host].alive for host in progress.marked(Mark.RETURNING)):
        return progress
    room = quota(spec, progress.wave, total) - len(progress.marked(*HAVE_IT))
    ready = [host for host in pending if host not in others and seen[host].alive and seen[host].fits]
    return _told(seen, progress, ready[: max(room, 0)], now)


def _told(seen: Mapping[str, Seen], progress: Progress, hosts: Sequence[str], now: float) -> Progress:
    if not hosts:
        return progress
    told = {
        host: Touched(Mark.ORDERED, progress.attempt, each.version, now, None, now, refused=each.refused)
        for host in hosts
        for each in [seen[host]]
    }
    return replace(progress, hosts={**progress.hosts, **told})


def _done(seen: Mapping[str, Seen], progress: Progress, pending: Sequence[str], others: Mapping[str, Held]) -> Progress:
    hosts = {host: replace(each, settled=each.mark is Mark.WELL) for host, each in progress.hosts.items()}
    absent = {host: "" if host in others else seen[host].version for host in pending}
    return replace(progress, stage=Stage.DONE, hosts=hosts, absent=absent)


def _late(
    spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, now: float, others: Mapping[str, Held]
) -> Progress:
    """Let those that were absent have it, too, and judge them alone."""
    failed = progress.marked(Mark.FAILED)
    if failed and not progress.reason:
        why = f"{failed[0]}, which was absent: {progress.hosts[failed[0]].reason}"
        progress = replace(progress, reason=why)
    if failed and spec.rollback == "all":
        progress = _back(progress, failed, now)
    watch_s = spec.watch.total_seconds()
    # One that was away on its way back when all others had it is another of the absent.
    back = {host: progress.hosts[host].before for host in progress.marked(Mark.RETURNED) if not progress.reason}
    in_hand = progress.in_hand
    hosts = {
        host: replace(each, settled=each.mark is Mark.WELL and now - (each.well_since or now) >= watch_s)
        if not each.settled
        else each
        for host, each in progress.hosts.items()
        if host not in back and (seen[host].selected or host in in_hand)
    }
    # One that has another version by now got it from somebody who knows better.
    absent = {
        host: version
        for host, version in {**progress.absent, **back}.items()
        if host in seen and seen[host].selected and host not in hosts and seen[host].version != spec.version
        if not version or seen[host].version == version
    }
    progress = replace(progress, hosts=hosts, absent=absent)
    if progress.reason or progress.paused or spec.paused:
        return progress
    proven = sum(each.settled for each in hosts.values())
    room = max(spec.canary, proven) - len([host for host in progress.marked(*HAVE_IT) if not hosts[host].settled])
    ready = [host for host in _shuffled(spec, absent) if host not in others and seen[host].alive and seen[host].fits]
    told = _told(seen, progress, ready[: max(room, 0)], now)
    return replace(told, absent={host: each for host, each in absent.items() if host not in told.hosts})


def quota(spec: RolloutSpec, wave: int, total: int) -> int:
    """Return how many of `total` hosts may have the new version in a wave."""
    if wave > len(spec.waves):
        return total
    allowed = min(spec.canary, total)
    for each in spec.waves[:wave]:
        wanted = each if isinstance(each, int) else math.ceil(total * int(each.rstrip("%")) / 100)
        allowed = max(allowed, min(wanted, total))
    return allowed


def _pending(spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress) -> Sequence[str]:
    """Return who does not have it yet, in an order that is always the same."""
    found = [
        host
        for host, each in seen.items()
        if each.selected and host not in progress.hosts and each.version != spec.version
    ]
    return _shuffled(spec, found)


def _shuffled(spec: RolloutSpec, hosts: Collection[str]) -> Sequence[str]:
    """Put hosts in an order that is not that of names: those named alike serve the same, and would be in one wave."""
    return sorted(hosts, key=lambda host: hashlib.sha256(f"{spec.version} {host}".encode()).digest())


def _proven(
    spec: RolloutSpec,
    seen: Mapping[str, Seen],
    progress: Progress,
    now: float,
    total: int,
    awaited: Sequence[str],
    pending: Sequence[str],
) -> bool:
    """Tell whether the wave is whole, or nobody else is there, and all that have it were well for long enough."""
    have_it = [progress.hosts[host] for host in progress.marked(*HAVE_IT)]
    if any(not seen[host].is_absent(spec) for host in progress.marked(Mark.RETURNING)):
        return False
    if not have_it and (pending or progress.hosts):
        return False
    if awaited and len(have_it) < quota(spec, progress.wave, total):
        return False
    return all(_well_for_long(spec, each, now) for each in have_it)


def _well_for_long(spec: RolloutSpec, touched: Touched, now: float) -> bool:
    return touched.well_since is not None and now - touched.well_since >= spec.watch.total_seconds()


def _halted(spec: RolloutSpec, progress: Progress, now: float, reason: str) -> Progress:
    halted = replace(progress, stage=Stage.HALTED, reason=reason)
    return all_back(halted, now) if spec.rollback == "all" else halted


def all_back(progress: Progress, now: float) -> Progress:
    return _back(progress, progress.marked(*HAVE_IT), now)


def back_again(progress: Progress, now: float) -> Progress:
    """Let those try again that could not go back."""
    stuck = [host for host in progress.marked(Mark.RETURNING) if progress.hosts[host].stuck]
    return _back(progress, stuck, now) if stuck else progress


def _back(progress: Progress, which: Collection[str], now: float) -> Progress:
    attempt = progress.attempt + 1
    back = {
        host: replace(
            progress.hosts[host],
            mark=Mark.RETURNING,
            attempt=attempt,
            since=now,
            well_since=None,
            settled=False,
            stuck=False,
        )
        for host in which
    }
    return replace(progress, attempt=attempt, hosts={**progress.hosts, **back})
