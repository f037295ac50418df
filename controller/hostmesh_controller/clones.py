"""Whether one enrolment is used by two machines: told by which agents are seen to speak under it, and when. Pure.

An agent draws an id when it starts and keeps it in memory alone, so no copy of a disk has it. One machine runs one
agent: once another has begun to speak, the one before it has ended and is never heard again. Two that are both heard
after both have begun are two. Reboots, restarts of agent or controller, new addresses and live migrations never look
like that; nor does a machine that is put back to a snapshot of its memory, whose old agent returns and the newer one
does not.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

OVERLAP: Final = timedelta(seconds=30)
"""How long after a new agent's first word the one before it may still be heard: calls that were under way then. No
call of an agent takes as long."""
MAX_AGENTS: Final = 8
"""Of one enrolment that are remembered: whoever holds its key may make up any number."""
_MAX_TEXT_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Sighting:
    """An agent speaks: its id, what it says of its machine, and the address it is seen at."""

    agent: str
    boot_id: str = ""
    machine: str = ""
    address: str = ""

    def __str__(self) -> str:
        """Tell it to people."""
        parts = (("at", self.address), ("boot", self.boot_id[:8]), ("machine", self.machine[:8]))
        return " ".join(f"{name} {value}" for name, value in parts if value) or "an unknown place"


def sighting(agent: str, boot_id: str, machine: str, address: str) -> Sighting:
    """Return a sighting of what a peer says: cut to what is kept of it."""
    return Sighting(*(text[:_MAX_TEXT_CHARS] for text in (agent, boot_id, machine, address)))


@dataclass(frozen=True, slots=True)
class _Agent:
    """`outlived`: agents that began later, after whose beginning it was still heard."""

    last: Sighting
    first_at: datetime
    last_at: datetime
    outlived: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sightings:
    """The agents that were seen to speak under one enrolment, in the order in which they began."""

    agents: tuple[_Agent, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Clone:
    """Two agents that both live."""

    one: Sighting
    other: Sighting

    def __str__(self) -> str:
        """Tell it to people."""
        return f"two agents speak with one identity, {self.one} and {self.other}"


def observe(before: Sightings, seen: Sighting, now: datetime) -> tuple[Sightings, Clone | None]:
    """Return what is known after an agent was seen, and the clone if that proves one."""
    agents = {each.last.agent: each for each in before.agents}
    known = agents.get(seen.agent)
    own = _Agent(seen, now, now) if known is None else replace(known, last=seen, last_at=now)
    others = [each for each in before.agents if each.last.agent != seen.agent]
    living = next((each for each in others if seen.agent in each.outlived), None)
    younger = (each for each in others if each.first_at > own.first_at and now - each.first_at >= OVERLAP)
    own = replace(own, outlived=own.outlived | {each.last.agent for each in younger})
    kept = sorted(sorted((*others, own), key=lambda each: each.last_at)[-MAX_AGENTS:], key=lambda each: each.first_at)
    return Sightings(tuple(kept)), None if living is None else Clone(living.last, seen)
