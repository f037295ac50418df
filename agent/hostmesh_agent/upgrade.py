"""When one Envoy takes another's place, and when it is put back. Sans-IO: what is seen and the time in, a state out.

    STEADY ──▶ WARMING ──▶ PROBATION ──▶ DRAINING ──▶ STEADY      the new one serves
                  │            │
                  ▼            ▼
               STEADY       DRAINING ──▶ STEADY                   the old one serves (again)

`active` is where the rules lead. In WARMING the other one is new and serves nobody; from PROBATION on it is the old
one, whole until probation is over, so that going back loses nothing. The state is on disk before anything is done about
it, and what is to be done follows from it alone (`runs`, `drains`): after an agent that is killed the next one goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from hostmesh_agent.places import BLUE, Instance

READY_WITHIN_S: Final = 60.0
FLIP_WITHIN_S: Final = 15.0
MAX_REFUSED: Final = 8
REPLACED_AFTER: Final = 2.5
"""How many times longer than what counts as hung an Envoy is silent before another one takes its place."""


@dataclass(frozen=True, slots=True)
class Times:
    """How patient the host's owner is, in seconds.

    Attributes:
        rehearsal_s: for so long a new Envoy answers the agent's own calls before a program's.
        probation_s: for so long the old one is kept whole after it.
        hung_after_s: an Envoy that has not answered for so long is called hung, and callers go elsewhere. Its main
            thread has been seen busy for four seconds with 5,000 clusters.
    """

    rehearsal_s: float = 5.0
    probation_s: float = 20.0
    hung_after_s: float = 10.0


class Stage(StrEnum):
    STEADY = "steady"
    WARMING = "warming"
    PROBATION = "probation"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Refused:
    """What was tried and put back: `fingerprint` of binary, bootstrap and arguments, and why."""

    fingerprint: str
    why: str


@dataclass(frozen=True, slots=True)
class Life:
    """What is on disk.

    Attributes:
        stage, active: see the module.
        trying: fingerprint of what is new; "" in STEADY.
        hung: the old one does not answer: there is no going back to it, and nothing to drain.
        refused: newest last.
        asked: a person wants what would be started now; if that becomes another one, it is begun anew.
    """

    stage: Stage = Stage.STEADY
    active: Instance = BLUE
    trying: str = ""
    hung: bool = False
    refused: tuple[Refused, ...] = ()
    asked: bool = False

    @property
    def other(self) -> Instance:
        return self.active.other

    def refuses(self, fingerprint: str) -> bool:
        return any(each.fingerprint == fingerprint for each in self.refused)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two, as it is seen.

    Attributes:
        runs: there is such a process.
        ended: how it ended, if it did so since it was begun or found missing; "" if it did not.
        silent_s: for how long its admin interface has not answered; 0 if it does.
        connections: that are open; None: not known.
        lacks: what it does not have of the configuration, and what else is in the way of serving.
        failed: what went wrong with it that will not pass by itself; "" if nothing.
    """

    runs: bool = False
    ended: str = ""
    silent_s: float = 0.0
    connections: int | None = None
    lacks: Sequence[str] = ()
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is true now.

    Attributes:
        wanted: fingerprint of what would be started now.
        differs: the active one is not that.
        again: fingerprint of another one like the active one; known while that hangs.
        asked: a person wants an upgrade, from now on.
        automatic: upgrades begin by themselves, and may now.
        back: a person wants the old one back.
        active, other: the two.
        flipped: the rules lead to the active one.
        drain_s: for how long connections may stay with an old one.
        times: how patient the host's owner is.
    """

    wanted: str
    differs: bool
    active: Side
    other: Side
    again: str = ""
    asked: bool = False
    automatic: bool = False
    back: bool = False
    flipped: bool = True
    drain_s: float = 45.0
    times: Times = field(default_factory=Times)


def runs(life: Life) -> frozenset[Instance]:
    """Return which of the two are to run."""
    return frozenset({life.active} if life.stage is Stage.STEADY else {life.active, life.other})


def drains(life: Life) -> Instance | None:
    """Return which of the two is to let go of its connections."""
    return life.other if life.stage is Stage.DRAINING else None


def step(life: Life, seen: Seen, since_s: float) -> Life:
    """Return the state that follows; `since_s` is for how long (in this agent) the present stage has lasted."""
    match life.stage:
        case Stage.STEADY:
            return _steady(life, seen)
        case Stage.WARMING:
            return _warming(life, seen, since_s)
        case Stage.PROBATION:
            return _probation(life, seen, since_s)
        case Stage.DRAINING:
            return _draining(life, seen, since_s)


def _steady(life: Life, seen: Seen) -> Life:
    if seen.asked:
        # A person may try again what was not good once.
        others = tuple(each for each in life.refused if each.fingerprint != seen.wanted)
        life = replace(life, asked=True, refused=others)
    if seen.active.runs and seen.active.silent_s >= REPLACED_AFTER * seen.times.hung_after_s:
        return replace(life, stage=Stage.WARMING, trying=_stands_in(life, seen), hung=True)
    well = seen.active.runs and seen.active.silent_s < seen.times.hung_after_s
    due = seen.differs and not life.refuses(seen.wanted)
    life = replace(life, asked=life.asked and due and not seen.back)
    if due and well and (life.asked or seen.automatic):
        return replace(life, stage=Stage.WARMING, trying=seen.wanted)
    return life


def _stands_in(life: Life, seen: Seen) -> str:
    """Return what takes the place of one that hangs: what is wanted, or what served until then if that was put back."""
    return seen.again if life.refuses(seen.wanted) else seen.wanted


def _warming(life: Life, seen: Seen, since_s: float) -> Life:
    new = seen.other
    life = replace(life, asked=life.asked or seen.asked)
    if life.hung and seen.active.runs and not seen.active.silent_s:
        # It answers again: nothing is the matter.
        return replace(life, stage=Stage.STEADY, trying="", hung=False)
    called_back = seen.back and not life.hung
    if life.trying != (_stands_in(life, seen) if life.hung else seen.wanted) and not called_back:
        # Something else is wanted by now: begun anew, if it still is.
        return replace(life, stage=Stage.STEADY, trying="", hung=False)
    why = "it was called back" if called_back else _does_not_start(new, since_s)
    served = life.hung and life.trying == seen.again
    if why:
        # What served until it hung is not to blame: it is tried again.
        refused = life.refused if served else _refused(life, why)
        asked = life.asked and served
        return replace(life, stage=Stage.STEADY, trying="", hung=False, refused=refused, asked=asked)
    if new.runs and not new.lacks and (since_s >= seen.times.rehearsal_s or served):
        return replace(life, stage=Stage.PROBATION, active=life.other, asked=life.asked and served)
    return life


def _does_not_start(new: Side, since_s: float) -> str:
    if new.ended:
        return f"it ended before it served: {new.ended}"
    if new.failed:
        return new.failed
    if since_s >= READY_WITHIN_S:
        return f"it was not ready within {READY_WITHIN_S:.0f} s: {'; '.join(new.lacks) or 'it does not run'}"
    return ""


def _probation(life: Life, seen: Seen, since_s: float) -> Life:
    new, old = seen.active, seen.other
    why = _is_bad(new, seen, since_s)
    if why and old.runs and not life.hung:
        return replace(life, stage=Stage.DRAINING, active=life.other, trying="", refused=_refused(life, why))
    if not seen.flipped:
        return life
    if since_s >= seen.times.probation_s or life.hung or not old.runs:
        # It has shown what it can: what was refused before is history, unless it stands in for that or that is next.
        kept = tuple(each for each in life.refused if life.hung or each.fingerprint == seen.wanted)
        return replace(life, stage=Stage.DRAINING, trying="", refused=kept)
    return life


def _is_bad(new: Side, seen: Seen, since_s: float) -> str:
    if seen.back:
        return "it was called back"
    if new.ended:
        return f"it ended while it served: {new.ended}"
    if new.silent_s >= seen.times.hung_after_s:
        return f"it has not answered for {new.silent_s:.0f} s"
    if new.failed:
        return new.failed
    if not seen.flipped and since_s >= FLIP_WITHIN_S:
        return f"the rules could not be made to lead to it within {FLIP_WITHIN_S:.0f} s"
    return ""


def _draining(life: Life, seen: Seen, since_s: float) -> Life:
    old = seen.other
    if not seen.flipped:
        # What still leads to it must not be cut off.
        return life
    if not old.runs or life.hung or old.connections == 0 or since_s >= seen.drain_s:
        return replace(life, stage=Stage.STEADY, trying="", hung=False)
    return life


def _refused(life: Life, why: str) -> tuple[Refused, ...]:
    others = [each for each in life.refused if each.fingerprint != life.trying]
    return (*others, Refused(life.trying, why))[-MAX_REFUSED:]
