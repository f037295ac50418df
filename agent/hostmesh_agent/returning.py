"""Coming back after a long absence: when the host's certificate has ended, or its issuer is not trusted any more.

Mutual TLS cannot tell why it fails: a refused certificate looks like a broken connection. So who has a certificate
that has ended asks at once, and who has a good one asks once the controller has been away for a while. Asking costs
nothing where the controller is really away, and little where it is not.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from hostmesh_agent import enrol
from hostmesh_agent.enrol import EnrolError, RefusedError
from hostmesh_agent.keyroom import validity
from hostmesh_agent.rotation import BACKOFF_LAST, Failure, backoff
from hostmesh_agent.state import State, StateError
from hostmesh_agent.svid import Svid, SvidError

LOOK_S: Final = 5.0
AWAY: Final = timedelta(minutes=1)
"""How long the controller must be away before a certificate that has not ended is doubted."""

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plight:
    """What makes a host ask to come back.

    `ends` is the end of its certificate; `away_since` when the controller was last lost, None while it is there.
    """

    ends: datetime
    away_since: datetime | None
    failure: Failure | None = None
    refused: bool = False


def is_due(plight: Plight, now: datetime) -> bool:
    """Tell whether to ask now."""
    if plight.away_since is None:
        return False
    if plight.failure is not None and plight.failure.at <= now:
        pause = BACKOFF_LAST if plight.refused else backoff(plight.failure.count)
        if now < plight.failure.at + pause:
            return False
    return plight.ends <= now or now - plight.away_since >= AWAY


class Returning:
    """The loop.

    Args:
        state: of this host.
        connected: whether the controller is reached by mutual TLS.
        now: aware time.
        returned: called with the new certificate, which is on disk by then.
        look_s: how often to look whether it is due.
    """

    def __init__(
        self,
        state: State,
        connected: Callable[[], bool],
        now: Callable[[], datetime],
        returned: Callable[[Svid], None],
        look_s: float = LOOK_S,
    ) -> None:
        self._state = state
        self._connected = connected
        self._now = now
        self._returned = returned
        self._look_s = look_s
        self._away_since: datetime | None = now()
        self._failure: Failure | None = None
        self._refused = False
        self.problem = ""

    async def run(self) -> None:
        """Come back whenever it is due, until cancelled."""
        while True:
            self._look()
            if self._away_since is not None:
                await self._ask_if_due()
            # Hosts that were cut off together do not all ask at once.
            await asyncio.sleep(self._look_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret

    def _look(self) -> None:
        if self._connected():
            self._away_since, self._failure, self._refused, self.problem = None, None, False, ""
        else:
            # A clock that was set back since then: the loss cannot be later than now.
            now = self._now()
            self._away_since = now if self._away_since is None else min(self._away_since, now)

    async def _ask_if_due(self) -> None:
        try:
            _, _, ends = await asyncio.to_thread(lambda: validity(self._state.files().chain_pem))
            plight = Plight(ends, self._away_since, self._failure, self._refused)
            if is_due(plight, self._now()):
                await self._ask(ends)
        except (StateError, SvidError) as error:
            self.problem = str(error)

    async def _ask(self, ends: datetime) -> None:
        try:
            svid = await enrol.reattest(self._state, self._now)
        except EnrolError as error:
            count = 1 if self._failure is None else self._failure.count + 1
            self._failure = Failure(count, self._now())
            self._refused = isinstance(error, RefusedError)
            if ends <= self._now() or self._refused:
                self.problem = f"this host cannot come back: {error}"
            _log.warning("reattestation_failed", attempt=count, refused=self._refused, reason=str(error))
            return
        # It is in use only once it was used: until then the time since the loss counts anew.
        self._away_since, self._failure, self._refused, self.problem = self._now(), None, False, ""
        self._returned(svid)
