"""Who gets the new version now. Pure: the rollout, its hosts as they are seen and the time in, the progress out.

    canary ──▶ wave ──▶ … ──▶ all ──▶ done        each once all that have it were well for `watch`
       └──────────┴─ one fails ──▶ halted ─▶ all that have it go back     resume: from the canary on

A host is well that is heard of, runs the new version, serves, and is not worse than it was before. One that is silent
is not well, and after `deadline` it has failed. A host that was removed from the mesh is nobody's.
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
        version: that serves on it.
        fits: there is an artifact for it.
        serves: its Envoy is live and does not change.
        state, reason: how far it says it is with what it is told: see UpdateState.
        restarts: of its Envoy.
        refuses: what it refused since that it did not refuse before; "" for nothing.
        before, after: calls.
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
    if progress.version != spec.version:
        # What was touched for another version is as any other host.
        progress = Progress(spec.version, attempt=progress.attempt + 1, paused=progress.paused)
    hosts = {host: _judged(spec, seen[host], each, now) for host, each in progress.hosts.items() if host in seen}
    progress = replace(progress, hosts=hosts)
    if progress.stage is not Stage.RUNNING:
        return progress
    failed = progress.marked(Mark.FAILED)
    if failed:
        return _halted(spec, progress, now, f"{failed[0]}: {hosts[failed[0]].reason}")
    progress = replace(progress, hosts={host: each for host, each in hosts.items() if each.mark is not Mark.RETURNED})
    if progress.paused or spec.paused:
        return progress
    return _onwards(spec, seen, progress, now, others)


def _onwards(
    spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, now: float, others: Collection[str]
) -> Progress:
    pending = _pending(spec, seen, progress, others)
    total = len(progress.hosts) + len(pending)
    if _proven(spec, progress, now, total):
        if not pending and progress.wave >= len(spec.waves):
            return replace(progress, stage=Stage.DONE)
        progress = replace(progress, wave=min(progress.wave + 1, len(spec.waves) + 1))
    if any(seen[host].alive for host in progress.marked(Mark.RETURNING)):
        return progress
    room = quota(spec, progress.wave, total) - len(progress.marked(*_HAVE_IT))
    ready = [host for host in pending if seen[host].alive and seen[host].fits]
    told = {
        host: Touched(Mark.ORDERED, progress.attempt, seen[host].version, now, None, now)
        for host in ready[: max(room, 0)]
    }
    return replace(progress, hosts={**progress.hosts, **told}) if told else progress


def quota(spec: RolloutSpec, wave: int, total: int) -> int:
    """Return how many of `total` hosts may have the new version in a wave."""
    if wave > len(spec.waves):
        return total
    allowed = min(spec.canary, total)
    for each in spec.waves[:wave]:
        wanted = each if isinstance(each, int) else math.ceil(total * int(each.rstrip("%")) / 100)
        allowed = max(allowed, min(wanted, total))
    return allowed


def _pending(spec: RolloutSpec, seen: Mapping[str, Seen], progress: Progress, others: Collection[str]) -> Sequence[str]:
    """Return who does not have it yet, in an order that is the same each time.

    It is not that of names: hosts that are named alike serve the same, and would all be in one wave.
    """
    found = [
        host
        for host, each in seen.items()
        if host not in progress.hosts and host not in others and each.version != spec.version
    ]
    return sorted(found, key=lambda host: hashlib.sha256(f"{spec.version} {host}".encode()).digest())


def _proven(spec: RolloutSpec, progress: Progress, now: float, total: int) -> bool:
    """Tell whether the wave is whole, and all that have it were well for long enough."""
    have_it = [progress.hosts[host] for host in progress.marked(*_HAVE_IT)]
    if len(have_it) < quota(spec, progress.wave, total) or len(have_it) < len(progress.hosts):
        return False
    watch_s = spec.watch.total_seconds()
    return all(each.well_since is not None and now - each.well_since >= watch_s for each in have_it)


def _judged(spec: RolloutSpec, seen: Seen, touched: Touched, now: float) -> Touched:
    if touched.mark is Mark.RETURNING:
        if seen.alive and seen.state == "done":
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
        return f"Envoy has ended {seen.restarts} times with the new version"
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
    attempt = progress.attempt + 1
    hosts = {
        host: replace(each, mark=Mark.RETURNING, attempt=attempt, since=now, well_since=None)
        if each.mark in _HAVE_IT
        else each
        for host, each in progress.hosts.items()
    }
    return replace(progress, attempt=attempt, hosts=hosts)


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
    if progress.stage is not Stage.RUNNING:
        raise NotNowError(f"it is {progress.stage}: nobody gets the version now")
    return replace(progress, paused=True)


def resumed(progress: Progress, now: float) -> Progress:
    """Go on. What was called back is told the version anew, the canary first; what was not is tried again."""
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


def aborted(progress: Progress, now: float) -> Progress:
    """Return all that have the new version to what they had, for good."""
    if progress.stage is Stage.ABORTED:
        return progress
    return _all_back(replace(progress, stage=Stage.ABORTED, reason=progress.reason or "an operator ended it"), now)
