"""How a host does with what it was told: well, failed, on its way back. Pure."""

from dataclasses import dataclass, field, replace
from typing import Final

from hostmesh_controller.model.rollout import RolloutHealth, RolloutSpec
from hostmesh_controller.rollout.progress import Mark, Touched

LATENCY_NOISE_MS: Final = 5.0
"""A mean time of a call that grows by less says nothing: a collector of garbage does as much."""
LATENCY_CALLS: Final = 5
"""So many times `minCalls` are needed to judge times: the first calls of a new Envoy open its connections."""


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
        refused: marks of what it had refused before.
        before, after: calls.
        absent_s: for how long it has not been heard of.
        joined_anew: it has joined since it was told: it may be another machine.
        selected: it has the labels that the rollout is for. One that has lost them is here because it was touched.
    """

    alive: bool
    version: str
    fits: bool = True
    serves: bool = True
    state: str = ""
    reason: str = ""
    restarts: int = 0
    refuses: str = ""
    refused: tuple[str, ...] = ()
    before: Figures = field(default_factory=Figures)
    after: Figures = field(default_factory=Figures)
    absent_s: float = 0.0
    selected: bool = True
    joined_anew: bool = False

    def is_absent(self, spec: RolloutSpec) -> bool:
        """Tell whether it is away for so long that nobody waits for it."""
        return not self.alive and self.absent_s >= spec.absent_after.total_seconds()


def judged(spec: RolloutSpec, seen: Seen, touched: Touched, now: float) -> Touched:
    if touched.settled:
        return touched
    if touched.mark is Mark.RETURNING:
        # One that refused the version refuses the way back, too. It runs what it ran before: no more is asked.
        stayed = seen.state == "refused" and seen.version == touched.before
        if seen.alive and (seen.state == "done" or stayed):
            return replace(touched, mark=Mark.RETURNED)
        stuck = seen.state in {"failed", "refused"}
        return replace(touched, stuck=stuck, reason=seen.reason or touched.reason)
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
