"""A fault, as it is declared: what is done, what is promised meanwhile, and what the oracles may see."""

from collections.abc import Callable
from dataclasses import dataclass, field

from faults.scene import Scene
from faults.seen import Bounds


class PromiseBrokenError(Exception):
    """A promise that no oracle looks at did not hold; says which, and what was found."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table.

    Attributes:
        name: what `ONLY=` calls it.
        fault: what is done, and how long it lasts.
        promise: what holds meanwhile and afterwards, as an operator would say it.
        play: does it, waits until it is over, and returns what it found beside the oracles ("" : nothing).
        bounds: what the oracles may see.
        prepare: what must be there before the oracles look on.
        mend: puts right what the fault leaves behind, also after a failure.
        last: the lab is of no use afterwards; the next fault gets one of its own.
    """

    name: str
    fault: str
    promise: str
    play: Callable[[Scene], str]
    bounds: Bounds = field(default_factory=Bounds)
    prepare: Callable[[Scene], None] | None = None
    mend: Callable[[Scene], None] | None = None
    last: bool = False
