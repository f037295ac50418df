"""What is wrong with this host by a name that does not change: for people, monitoring and the controller.

An alarm is up from the moment at which it was raised until what is wrong has ended. The sentence behind its code may
say more each time; the code is what rules of monitoring are written for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from hostmesh_api.wire import ADDRESS_STAYS

CODES: Final = {
    "state.repaired": "A file of the host's identity was damaged, and made anew from its spare copy.",
    "state.not-written": "The spare copy of the host's identity cannot be written.",
    "cache.lost": "The last-known-good configuration could not be read; it was set aside.",
    "cache.spare-used": "The last-known-good configuration could not be read; its spare copy is used.",
    "cache.newer": "The last-known-good configuration is a newer agent's; it was set aside.",
    "cache.not-written": "What Envoy accepted cannot be written: a reboot now would bring back something older.",
    "cold.lost": "The cold copy could not be read; it was set aside, and comes again from the controller.",
    "cold.not-written": "The cold copy cannot be written: without the controller new services may be unknown.",
    "guard.lost": "The ports that take mutual TLS alone could not be read.",
    "guard.not-written": "The ports that take mutual TLS alone cannot be written to disk.",
    "guard.not-closed": "The ports that take mutual TLS alone cannot be closed before Envoy serves them.",
    "hold.not-written": "A change of capture did harm, and that cannot be written: the next agent would try it again.",
    "memory.not-written": "What the next agent should know of calls or health cannot be written.",
    "envoy.record-lost": "The record of the running Envoy was damaged or gone; it was found among the processes.",
    "disk.full": "There is next to no room where the agent writes.",
    "disk.read-only": "Nothing can be written where the agent writes.",
    "limits.files": "The agent is near the limit of its open files.",
    "limits.memory": "The agent is near the limit of its memory.",
    "clock.jumped": "The host's clock was set by more than a minute.",
    "clock.behind": "The host's clock is before the beginning of its own certificate.",
    "clock.certificate-ended": "By the host's clock its own certificate has ended.",
    "address.changed": "An address of a workload of this host is not an address of the host any more.",
    ADDRESS_STAYS: "The host has another address than the controller, and it is for an operator to change that.",
}
"""Every code there is, and what it means."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Alarm:
    """`text` says what is wrong here, what goes on meanwhile and what to do."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class Alarms:
    """Those that are up. For any thread. `part` tells apart who raised the same code."""

    def __init__(self) -> None:
        self._up: dict[tuple[str, str], Alarm] = {}

    def up(self, code: str, text: str, part: str = "") -> None:
        """Raise an alarm; it is logged once for as long as it is up.

        Raises:
            KeyError: there is no such code.
        """
        CODES[code]
        if (code, part) not in self._up:
            log.error("alarm", code=code, reason=text)
        self._up[code, part] = Alarm(code, text)

    def down(self, code: str, part: str = "") -> None:
        """Take note that what was wrong has ended."""
        CODES[code]
        if self._up.pop((code, part), None) is not None:
            log.info("alarm is over", code=code)

    def __iter__(self) -> Iterator[Alarm]:
        return iter([alarm for _, alarm in sorted(self._up.items())])
