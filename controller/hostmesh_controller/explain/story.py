"""The answer: what a connection meets, in order, each with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One thing on the way.

    Attributes:
        stage: `name`, `capture`, `listener`, `filter chain`, `virtual host`, `route`, `cluster`, `endpoint`, `inbound`,
            `authorization`.
        what: what it is, by the name under which Envoy or the kernel has it.
        why: the reason, with the configuration objects that made it so.
        details: more, for programs and for the curious.
    """

    stage: str
    what: str
    why: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Story:
    """All of it. `verdict` is one sentence; `reached` tells whether the call gets to a program."""

    steps: tuple[Step, ...]
    verdict: str
    reached: bool

    def body(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "verdict": self.verdict,
            "reached": self.reached,
            "steps": [
                {"stage": each.stage, "what": each.what, "why": each.why, "details": dict(each.details)}
                for each in self.steps
            ],
        }
