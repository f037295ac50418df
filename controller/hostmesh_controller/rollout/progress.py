"""How far a rollout is: what is kept of it, whole, so that another controller goes on where this one was."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    RUNNING = "running"
    HALTED = "halted"
    ABORTED = "aborted"
    DONE = "done"


class Mark(StrEnum):
    """ORDERED and WELL hosts are told the new version, as is a FAILED one that is not called back."""

    ORDERED = "ordered"
    WELL = "well"
    FAILED = "failed"
    RETURNING = "returning"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True)
class Touched:
    """A host that was told the new version.

    Attributes:
        attempt: of the rollout, when the host was told what it is told now.
        before: the version that it had.
        since: when it was told that.
        well_since: since when it has been well without a break; None: it is not.
        unwell_since: since when it has not been.
        reason: why it failed.
        settled: the version has proven good, and nobody looks at this host any more.
        stuck: the host says that it cannot go back; it is not asked again by itself.
        version: which it goes back from; "" for that of the rollout.
        refused: what it had refused of its configuration when it was first told, by marks that mean something to the
            caller of `plan`. A stream that begins anew brings old refusals again.
    """

    mark: Mark
    attempt: int
    before: str
    since: float
    well_since: float | None = None
    unwell_since: float = 0.0
    reason: str = ""
    settled: bool = False
    stuck: bool = False
    version: str = ""
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one rollout to one version.

    Attributes:
        wave: 0 is the canary.
        attempt: counts what hosts are told anew: a failure is of one attempt.
        paused: an operator wants nobody else to get it.
        reason: why it halted; of one that is done: why no more of the absent get it.
        component: of which this is a version.
        absent: hosts that were away (or in the hands of a later rollout) when all others had it, with the version that
            they had; "" for those in another's hands, whose version may change. They get it when they come back.
        began: when it set out for this version, or was resumed after a halt: of several the first goes first.
    """

    version: str
    stage: Stage = Stage.RUNNING
    wave: int = 0
    attempt: int = 1
    paused: bool = False
    reason: str = ""
    hosts: Mapping[str, Touched] = field(default_factory=dict)
    component: str = "envoy"
    absent: Mapping[str, str] = field(default_factory=dict)
    began: float = 0.0

    @property
    def in_hand(self) -> frozenset[str]:
        """The hosts that no other rollout may touch."""
        if self.stage in {Stage.RUNNING, Stage.HALTED}:
            return frozenset(self.hosts)
        return frozenset(
            host for host, each in self.hosts.items() if not each.settled and each.mark is not Mark.RETURNED
        )

    def marked(self, *marks: Mark) -> list[str]:
        """Return the hosts with one of the marks, by name."""
        return sorted(host for host, each in self.hosts.items() if each.mark in marks)


@dataclass(frozen=True, slots=True)
class Order:
    """What a host is told: this version, or `back` to what it had."""

    version: str
    attempt: int
    back: bool = False
    settled: bool = False


def order_for(progress: Progress, host: str) -> Order | None:
    """Return what a host is told; None: nothing."""
    touched = progress.hosts.get(host)
    if touched is None:
        return None
    back = touched.mark in {Mark.RETURNING, Mark.RETURNED}
    return Order(touched.version or progress.version, touched.attempt, back=back, settled=touched.settled and not back)
