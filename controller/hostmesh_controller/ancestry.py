"""Whether the store is what the controller's own history led to, and what hosts are told of that.

Agents believe a loss of configuration that a write of an operator explains: the lineage is the one they know, and the
revision is higher. That must not hold for a store that lost objects by other ways, or was put back to an older state
and grew again. So the lineage begins anew where the store has not as many objects as its commits left; and where an
agent was told a higher revision than there is. An agent proves by the controller's own seal that it was told: none can
make one up.
"""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

import structlog

from hostmesh_api.origin import Origin, parse_origin
from hostmesh_controller.store import Lineage, StoreError

_CURE = (
    "hosts hold back what it takes away from them until it is confirmed; see: hostmesh proxy status, and put the right "
    "store back or: hostmesh host confirm HOST"
)
_MAX_CHARS = 256

_log = structlog.stdlib.get_logger(__name__)


class LineageStore(Protocol):
    """What is needed of the store."""

    def lineage(self) -> Lineage: ...
    def begin_lineage(self, action: str, *, now: datetime, after: Mapping[str, Any]) -> Lineage: ...


def origin_of(lineage: Lineage, revision: int) -> Origin:
    """Return what hosts are told of a state of the store, sealed."""
    # Short: it goes with each response. Who guesses asks the controller each time, and gains an alarm.
    seal = hmac.digest(bytes.fromhex(lineage.key), f"{lineage.id}/{revision}".encode(), "sha256")[:8]
    return Origin(lineage.id, revision, seal.hex())


def told_by_us(lineage: Lineage, origin: Origin) -> bool:
    """Tell whether a controller of this lineage said so."""
    return hmac.compare_digest(str(origin), str(origin_of(lineage, origin.revision)))


class Ancestry:
    """Watches over the lineage. For one event loop."""

    def __init__(
        self,
        store: LineageStore,
        revision: Callable[[], int],
        say: Callable[[Callable[[int], Origin]], None],
        now: Callable[[], datetime],
    ) -> None:
        """`revision` is the store's newest; `say` is given how a revision that hosts are shown is told to them."""
        self._store = store
        self._revision = revision
        self._say = say
        self._now = now
        self._lineage: Lineage | None = None
        self._renewing = asyncio.Lock()

    async def open(self) -> None:
        """Judge the store as it was found, and let hosts be told of it.

        Raises:
            StoreError: the store cannot be used.
        """
        found = await asyncio.to_thread(self._store.lineage)
        if found.committed != found.found:
            _log.error(
                "the store does not have the objects that were written to it",
                written=found.committed,
                found=found.found,
                cure=_CURE,
            )
            found = await self._begin("store.altered", {"written": found.committed, "found": found.found})
        self._take(found)

    async def told(self, host: str, text: str) -> None:
        """Take note of the state of the store that a host's agent knows."""
        origin = parse_origin(text) if len(text) <= _MAX_CHARS else None
        if origin is None or not self._is_ahead(origin):
            return
        async with self._renewing:
            if not self._is_ahead(origin):
                return  # another host was faster
            revision = self._revision()
            _log.error("the store was put back", host=host, revision=revision, was=origin.revision, cure=_CURE)
            try:
                found = await self._begin("store.set-back", {"revision": revision, "was": origin.revision})
            except StoreError as error:
                _log.error("the lineage could not be begun anew", error=str(error))
                return
            self._take(found)

    def _is_ahead(self, origin: Origin) -> bool:
        lineage = self._lineage
        return lineage is not None and origin.revision > self._revision() and told_by_us(lineage, origin)

    async def _begin(self, action: str, after: Mapping[str, Any]) -> Lineage:
        return await asyncio.to_thread(self._store.begin_lineage, action, now=self._now(), after=after)

    def _take(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._say(lambda revision: origin_of(lineage, revision))
