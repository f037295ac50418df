"""Whether a new agent comes up: it says it is ready, stays for a while, answers, and reaches the controller again.

What decides is sans-IO (`Witness`): what is seen and the time in, a verdict out.
"""

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hostmesh_agent.upgrader.packages import PackageError, run

UNIT: Final = "hostmesh-agent.service"
READY_WITHIN_S: Final = 150.0
"""A busy machine starts it within seconds; one that is out of memory, or restores a backup, within minutes."""
STEADY_S: Final = 40.0
"""Longer than the unit's WatchdogSec: an agent that hangs after it said READY is ended within that."""
ENDS: Final = 3
"""After so many ends it is not waited any longer."""
CONNECTED_WITHIN_S: Final = 180.0
"""An agent that reached the controller before must do so again, if the controller can be reached at all."""
_LOOK_S: Final = 1.0
_ANSWERS_WITHIN_S: Final = 5.0


Reachable = Callable[[tuple[str, ...]], bool]


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of the agent.

    Attributes:
        active: it has said READY, and runs.
        invocation: another one for each start.
        version: what it says of itself on its socket; "": it does not answer.
        connected: it says that it reaches a controller.
        endpoints: where controllers are, by its word.
    """

    active: bool = False
    invocation: str = ""
    version: str = ""
    connected: bool = False
    endpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Witness:
    """How far it is.

    Attributes:
        version: what the agent is to be.
        connected: the one before reached a controller.
        began: when the one before was told to end.
        before: its invocation.
    """

    version: str
    connected: bool
    began: float
    before: str = ""
    invocation: str = ""
    since: float | None = None
    ends: int = 0

    def step(
        self, seen: Look, now: float, reachable: Callable[[tuple[str, ...]], bool]
    ) -> "tuple[Witness, str | None]":
        """Return what follows, and the verdict: None, not yet; "": it is well; else what is wrong."""
        after = self._seen(seen, now)
        if after.ends >= ENDS:
            return after, f"it ended {after.ends} times"
        if after.since is None:
            if now - self.began >= READY_WITHIN_S:
                return after, f"it was not ready within {READY_WITHIN_S:.0f} s"
            return after, None
        if now - after.since < STEADY_S:
            return after, None
        if seen.version != self.version:
            late = now - self.began >= READY_WITHIN_S
            why = f"it says that it is {seen.version}" if seen.version else "it does not answer"
            return after, why if late else None
        if seen.connected or not self.connected:
            return after, ""
        if now - self.began < CONNECTED_WITHIN_S:
            return after, None
        if reachable(seen.endpoints):
            return after, f"it did not reach the controller within {CONNECTED_WITHIN_S:.0f} s, which answers"
        return after, ""

    def _seen(self, seen: Look, now: float) -> "Witness":
        if seen.invocation in {"", self.before}:
            return self
        if seen.active and seen.invocation == self.invocation and self.since is not None:
            return self
        ended = seen.invocation != self.invocation and self.invocation != ""
        since = now if seen.active else None
        return replace(self, invocation=seen.invocation, since=since, ends=self.ends + ended)


def look(control: Path) -> Look:
    """Look at the agent's unit, and ask the agent."""
    said: dict[str, str] = {}
    with suppress(PackageError):
        asked = run(["systemctl", "show", "--property=ActiveState,InvocationID", UNIT])
        said = dict(line.split("=", 1) for line in asked.splitlines() if "=" in line)
    seen = Look(said.get("ActiveState") == "active", said.get("InvocationID", ""))
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        status = _ask(control)
        return replace(
            seen,
            version=str(status["agent"]["version"]),
            connected=status["controller"]["connected"] is True,
            endpoints=tuple(str(each) for each in status["host"]["controllers"]),
        )
    return seen


def _ask(control: Path) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWERS_WITHIN_S)
        client.connect(str(control))
        client.sendall(b'{"verb": "status"}\n')
        with client.makefile("rb") as file:
            return json.loads(file.readline(1 << 24))


def reachable(endpoints: tuple[str, ...]) -> bool:
    """Tell whether one of them takes a connection."""
    for each in endpoints:
        host, _, port = each.rpartition(":")
        with suppress(OSError, ValueError), socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_WITHIN_S):
            return True
    return False


def restart() -> None:
    """Have systemd start the agent anew; do not wait for it. Raises PackageError."""
    run(["systemctl", "--no-block", "restart", UNIT])


def watch(version: str, control: Path, *, connected: bool, before: str = "") -> str:
    """Wait until the agent has come up, or has not; return what is wrong, "" if nothing is."""
    state = Witness(version, connected, time.monotonic(), before)
    while True:
        state, verdict = state.step(look(control), time.monotonic(), reachable)
        if verdict is not None:
            return verdict
        time.sleep(_LOOK_S)
