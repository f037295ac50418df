"""Steps, why one failed, and what undoes those that were done."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

CONNECT: Final = "connect"
CHECK: Final = "check"
INSTALL: Final = "install"
REGISTER: Final = "register"
JOIN: Final = "join"
START: Final = "start"
WAIT: Final = "wait"
VERIFY: Final = "verify"
LEAVE: Final = "leave"
PURGE: Final = "purge"
FORGET: Final = "forget"


class StepError(Exception):
    """A step failed: what is wrong, and the cure."""

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.cure = cure


@dataclass(frozen=True, slots=True)
class HostResult:
    """How it went with one host; `step` is the one that failed, "" when none did.

    `request` is what the host called to show that it can, and what was answered; or that nothing was called. `lacks`
    says that none was made or answered; "" where one was, or where the host was to make none.
    """

    host: str
    outcome: str
    step: str = ""
    message: str = ""
    cure: str = ""
    left_behind: tuple[str, ...] = ()
    request: str = ""
    lacks: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.step)


@dataclass(slots=True)
class Undo:
    """What was done, newest last, with what takes it back. Each is tried, whatever the others do."""

    _done: list[tuple[str, Callable[[], None]]] = field(default_factory=list)

    def add(self, what: str, back: Callable[[], None]) -> None:
        self._done.append((what, back))

    def all(self, tell: Callable[[str], None]) -> tuple[str, ...]:
        """Take everything back and return what could not be."""
        left: list[str] = []
        while self._done:
            what, back = self._done.pop()
            try:
                back()
            except Exception as error:  # whatever one says, the others are still to be taken back
                left.append(f"{what}: {error}")
            else:
                tell(f"taken back: {what}")
        return tuple(left)
