"""What is done when one identity is used by two machines: both are refused, until the operator has looked."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, Protocol

import structlog

from hostmesh_controller.clones import Sighting, Sightings, observe
from hostmesh_controller.config import CloneAction
from hostmesh_controller.enrolments import Denial, Enrolments
from hostmesh_controller.store import StoreError

ACTOR: Final = "controller"

_log: Final = structlog.get_logger(__name__)


class Deny(Protocol):
    """See Expulsion.deny."""

    def __call__(self, host: str, denial: Denial, reason: str, *, actor: str) -> Awaitable[object]: ...


class Quarantine:
    """Watches who speaks under each enrolment. For one event loop; what was seen is in memory, and begins anew."""

    def __init__(self, enrolments: Enrolments, deny: Deny, action: CloneAction, now: Callable[[], datetime]) -> None:
        self._enrolments = enrolments
        self._deny = deny
        self._action = action
        self._now = now
        self._seen: dict[str, tuple[str, Sightings]] = {}
        """By host; with the enrolment that it is about."""

    async def seen(self, host: str, sighting: Sighting) -> None:
        """Take note that an agent speaks as the host."""
        record = self._enrolments.current(host)
        if record is None:
            return
        enrolment, before = self._seen.get(host, ("", Sightings()))
        known, clone = observe(before if enrolment == record.id else Sightings(), sighting, self._now())
        self._seen[host] = record.id, known
        if clone is not None:
            del self._seen[host]
            await self._found(host, str(clone))

    async def superseded(self, host: str, serial: str) -> None:
        """Take note that a certificate was used which the host itself has replaced."""
        await self._found(host, f"its certificate {serial} was used long after a newer one: a copy of its state")

    async def _found(self, host: str, reason: str) -> None:
        _log.warning("clone_found", host=host, reason=reason, action=self._action)
        if self._action != "quarantine":
            return
        try:
            await self._deny(host, Denial.QUARANTINED, reason, actor=ACTOR)
        except StoreError as error:
            # Found again when the clone goes on.
            _log.error("clone_not_quarantined", host=host, error=str(error))
