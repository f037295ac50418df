"""Who gets the new version now. Pure: the rollout, its hosts as they are seen and the time in, the progress out.

    canary ──▶ wave ──▶ … ──▶ all ──▶ done ──▶ the absent       each once all that have it were well for `watch`
       └──────────┴─ one fails ──▶ halted ─▶ all that have it go back     resume: from the canary on

A host is well that is heard of, runs the new version, serves, and is not worse than it was before. One that is silent
is not well, and after `deadline` it has failed. A host that was removed from the mesh is nobody's.

A host that was not heard of for `absentAfter` keeps no wave open. It gets the version when it comes back, with as many
others at a time as have proven it before; if it fails then it alone goes back, and no more of the absent get it.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from hostmesh_controller.model.rollout import RolloutHealth, RolloutSpec
from hostmesh_controller.rollout.progress import Mark, Progress, Stage, Touched

LATENCY_NOISE_MS: Final = 5.0
"""A mean time of a call that grows by less says nothing: a collector of garbage does as much."""
LATENCY_CALLS: Final = 5
"""So many times `minCalls` are needed to judge times: the first calls of a new Envoy open its connections."""
_HAVE_IT: Final = (Mark.ORDERED, Mark.WELL, Mark.FAILED)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the calls that an Envoy answered."""

    calls: int = 0
    failed: int = 0
    timed: int = 0
    time_ms: float = 0.0

    @property
    def errors_percent(self) -> float:
        return 100.0 * self.failed / self.calls if self.calls else 0.0

    @property
    def mean_ms(self) -> float:
        return self.time_ms / self.timed if self.timed else 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A host of the rollout, as it is known now.

    Attributes:
        alive: it is connected, and has reported since it was told.
        version: of what is rolled out.
        fits: there is an artifact for it.
        serves: its Envoy is live and does not change.
        state, reason: how far it says it is with what it is told: see UpdateState.
        restarts: of what is rolled out.
        refuses: what it refused since that it did not refuse before; "" for nothing.
        before, after: calls.
        absent_s: for how long it has not been heard of.
    """

    alive: bool
    version: str
    fits: bool = True
    serves: bool = True
    state: str = ""
    reason: str = ""
    restarts: int = 0
    refuses: str = ""
    before: Figures = field(default_factory=Figures)
    after: Figures = field(default_factory=Figures)
    absent_s: float = 0.0


def step(
    spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, now: float, others: Collection[str] = ()
) -> Progress:
    """Return the progress that follows.

    Args:
        spec: what is wanted.
        seen: the hosts that the rollout is for, and those that it has touched.
        progress: how far it was.
        now: seconds since the epoch.
        others: hosts that another rollout has in hand.
    """
    if (progress.component, progress.version) != (spec.component, spec.version):
        # What was touched for another version is as any other host.
        progress = Progress(
            spec.version, attempt=progress.attempt + 1, paused=progress.paused, component=spec.component
        )
    hosts = {host: _judged(spec, seen[host], each, now) for host, each in progress.hosts.items() if host in seen}
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


def _onwards(
    spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, now: float, others: Collection[str]
) -> Progress:
    pending = _pending(spec, seen, progress, others)
    total = len(progress.hosts) + len(pending)
    absent_s = spec.absent_after.total_seconds()
    awaited = [host for host in pending if seen[host].alive or seen[host].absent_s < absent_s]
    if _proven(spec, progress, now, total, awaited, pending):
        if not awaited and progress.wave >= len(spec.waves):
            return _done(seen, progress, [*pending, *_pending(spec, seen, progress, (), others)])
        progress = replace(progress, wave=min(progress.wave + 1, len(spec.waves) + 1))
    if any(seen[host].alive for host in progress.marked(Mark.RETURNING)):
        return progress
    room = quota(spec, progress.wave, total) - len(progress.marked(*_HAVE_IT))
    ready = [host for host in pending if seen[host].alive and seen[host].fits]
    return _told(seen, progress, ready[: max(room, 0)], now)


def _told(seen: Mapping[str, Seen], progress: Progress, hosts: Sequence[str], now: float) -> Progress:
    if not hosts:
        return progress
    told = {host: Touched(Mark.ORDERED, progress.attempt, seen[host].version, now, None, now) for host in hosts}
    return replace(progress, hosts={**progress.hosts, **told})


def _done(seen: Mapping[str, Seen], progress: Progress, absent: Sequence[str]) -> Progress:
    hosts = {host: replace(each, settled=each.mark is Mark.WELL) for host, each in progress.hosts.items()}
    return replace(progress, stage=Stage.DONE, hosts=hosts, absent={host: seen[host].version for host in absent})


def _late(
    spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, now: float, others: Collection[str]
) -> Progress:
    """Let those that were absent have it, too, and judge them alone."""
    failed = progress.marked(Mark.FAILED)
    if failed and not progress.reason:
        why = f"{failed[0]}, which was absent: {progress.hosts[failed[0]].reason}"
        progress = replace(progress, reason=why)
    if failed and spec.rollback == "all":
        progress = _back(progress, failed, now)
    watch_s = spec.watch.total_seconds()
    hosts = {
        host: replace(each, settled=each.mark is Mark.WELL and now - (each.well_since or now) >= watch_s)
        if not each.settled
        else each
        for host, each in progress.hosts.items()
    }
    # One that has another version by now got it from somebody who knows better.
    absent = {
        host: version
        for host, version in progress.absent.items()
        if host in seen and host not in hosts and seen[host].version != spec.version
        if not version or seen[host].version == version
    }
    progress = replace(progress, hosts=hosts, absent=absent)
    if progress.reason or progress.paused or spec.paused:
        return progress
    proven = sum(each.settled for each in hosts.values())
    room = max(spec.canary, proven) - len([host for host in progress.marked(*_HAVE_IT) if not hosts[host].settled])
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


def _pending(
    spec: RolloutSpec,
    seen: Mapping[str, Seen],
    progress: Progress,
    others: Collection[str],
    among: Collection[str] | None = None,
) -> Sequence[str]:
    """Return who does not have it yet (of `among`, or all) but `others`, in an order that is always the same."""
    found = [
        host
        for host, each in seen.items()
        if host not in progress.hosts and host not in others and each.version != spec.version
        if among is None or host in among
    ]
    return _shuffled(spec, found)


def _shuffled(spec: RolloutSpec, hosts: Collection[str]) -> Sequence[str]:
    """Put hosts in an order that is not that of names: those named alike serve the same, and would be in one wave."""
    return sorted(hosts, key=lambda host: hashlib.sha256(f"{spec.version} {host}".encode()).digest())


def _proven(
    spec: RolloutSpec, progress: Progress, now: float, total: int, awaited: Sequence[str], pending: Sequence[str]
) -> bool:
    """Tell whether the wave is whole, or nobody else is there, and all that have it were well for long enough."""
    have_it = [progress.hosts[host] for host in progress.marked(*_HAVE_IT)]
    if len(have_it) < len(progress.hosts) or (pending and not have_it):
        return False
    if awaited and len(have_it) < quota(spec, progress.wave, total):
        return False
    watch_s = spec.watch.total_seconds()
    return all(each.well_since is not None and now - each.well_since >= watch_s for each in have_it)


def _judged(spec: RolloutSpec, seen: Seen, touched: Touched, now: float) -> Touched:
    if touched.settled:
        return touched
    if touched.mark is Mark.RETURNING:
        # One that refused the version refuses the way back, too. It runs what it ran before: no more is asked.
        stayed = seen.state == "refused" and seen.version == touched.before
        if seen.alive and (seen.state == "done" or stayed):
            return replace(touched, mark=Mark.RETURNED)
        return replace(touched, reason=seen.reason or touched.reason)
    if touched.mark not in {Mark.ORDERED, Mark.WELL}:
        return touched
    why = _failed(spec, seen)
    if why:
        return replace(touched, mark=Mark.FAILED, well_since=None, reason=why)
    if seen.alive and seen.serves and seen.version == spec.version and seen.state == "done":
        since = now if touched.well_since is None else touched.well_since
        return replace(touched, mark=Mark.WELL, well_since=since)
    unwell_since = touched.unwell_since if touched.well_since is None else now
    if now - unwell_since >= spec.deadline.total_seconds():
        return replace(touched, mark=Mark.FAILED, well_since=None, reason=_lacks(spec, seen))
    return replace(touched, mark=Mark.ORDERED, well_since=None, unwell_since=unwell_since)


def _failed(spec: RolloutSpec, seen: Seen) -> str:
    """Say what cannot get better by waiting; "" for nothing."""
    if seen.state in {"failed", "refused"}:
        return f"{seen.state}: {seen.reason or 'it does not say why'}"
    if seen.refuses:
        return f"it refuses its configuration: {seen.refuses}"
    if seen.state != "done" or seen.version != spec.version:
        return ""
    if seen.restarts > spec.health.max_restarts:
        what = "the agent" if spec.component == "agent" else "Envoy"
        return f"{what} has ended {seen.restarts} times with the new version"
    return worse(spec.health, seen.before, seen.after)


def _lacks(spec: RolloutSpec, seen: Seen) -> str:
    within = f"within {spec.deadline}"
    if not seen.alive:
        return f"it was not heard of {within}"
    if seen.state != "done":
        return f"it was not done {within}: {seen.state or 'it has not begun'}"
    if seen.version != spec.version:
        return f"it runs {seen.version or 'nothing'}, and not {spec.version}"
    return f"its Envoy did not serve {within}"


def worse(health: RolloutHealth, before: Figures, after: Figures) -> str:
    """Say in what calls go worse than before; "" if in nothing that counts."""
    if after.calls >= max(health.min_calls, 1):
        bound = before.errors_percent + health.max_error_increase
        if after.errors_percent > bound:
            return (
                f"{after.failed} of {after.calls} calls failed ({after.errors_percent:.1f} %), "
                f"before {before.errors_percent:.1f} %"
            )
    if min(after.timed, before.timed) >= LATENCY_CALLS * max(health.min_calls, 1):
        bound = max(before.mean_ms * (1 + health.max_latency_increase / 100), before.mean_ms + LATENCY_NOISE_MS)
        if after.mean_ms > bound:
            return f"a call takes {after.mean_ms:.1f} ms, before {before.mean_ms:.1f} ms"
    return ""


def _halted(spec: RolloutSpec, progress: Progress, now: float, reason: str) -> Progress:
    halted = replace(progress, stage=Stage.HALTED, reason=reason)
    return _all_back(halted, now) if spec.rollback == "all" else halted


def _all_back(progress: Progress, now: float) -> Progress:
    return _back(progress, progress.marked(*_HAVE_IT), now)


def _back(progress: Progress, which: Collection[str], now: float) -> Progress:
    attempt = progress.attempt + 1
    back = {
        host: replace(
            progress.hosts[host], mark=Mark.RETURNING, attempt=attempt, since=now, well_since=None, settled=False
        )
        for host in which
    }
    return replace(progress, attempt=attempt, hosts={**progress.hosts, **back})


def taken_up(progress: Progress, now: float) -> Progress:
    """Go on with what another process kept: while nobody looked no host's deadline has passed."""
    hosts = {
        host: replace(each, unwell_since=now) if each.mark is Mark.ORDERED else each
        for host, each in progress.hosts.items()
    }
    return replace(progress, hosts=hosts)


class NotNowError(Exception):
    """The operator asks for what this rollout cannot do; the text says what to do instead."""


def paused(progress: Progress) -> Progress:
    """Let nobody else have the new version. Those that have it are watched on."""
    if progress.stage is not Stage.RUNNING and not (progress.stage is Stage.DONE and progress.absent):
        raise NotNowError(f"it is {progress.stage}: nobody gets the version now")
    return replace(progress, paused=True)


def resumed(progress: Progress, now: float) -> Progress:
    """Go on. What was called back is told the version anew, the canary first; what was not is tried again."""
    if progress.stage is Stage.DONE and (progress.reason or progress.paused):
        return _late_again(progress, now)
    if progress.stage in {Stage.ABORTED, Stage.DONE}:
        raise NotNowError(f"it is {progress.stage}; delete the Rollout and apply it again to begin anew")
    if progress.stage is Stage.RUNNING:
        return replace(progress, paused=False)
    attempt = progress.attempt + 1
    hosts = {
        host: Touched(Mark.ORDERED, attempt, each.before, now, None, now) if each.mark is Mark.FAILED else each
        for host, each in progress.hosts.items()
    }
    wave = progress.wave if progress.marked(*_HAVE_IT) else 0
    return replace(progress, stage=Stage.RUNNING, paused=False, wave=wave, attempt=attempt, reason="", hosts=hosts)


def _late_again(progress: Progress, now: float) -> Progress:
    """Try again those of the absent that failed: those that went back as any other that is absent."""
    attempt = progress.attempt + 1
    hosts = {
        host: Touched(Mark.ORDERED, attempt, each.before, now, None, now) if each.mark is Mark.FAILED else each
        for host, each in progress.hosts.items()
        if each.mark is not Mark.RETURNED
    }
    again = {host: each.before for host, each in progress.hosts.items() if each.mark is Mark.RETURNED}
    absent = {**progress.absent, **again}
    return replace(progress, paused=False, attempt=attempt, reason="", hosts=hosts, absent=absent)


def aborted(progress: Progress, now: float) -> Progress:
    """Return all that have the new version to what they had, for good."""
    if progress.stage is Stage.ABORTED:
        return progress
    # The pause ends with it: another version is another rollout.
    reason = progress.reason or "an operator ended it"
    ended = replace(progress, stage=Stage.ABORTED, paused=False, absent={}, reason=reason)
    return _all_back(ended, now)
