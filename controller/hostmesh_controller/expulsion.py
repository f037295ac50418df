"""Expulsion: a host is put out of the mesh at once with all that it has, and may be let in again."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from hostmesh_controller.enrolments import Denial, Enrolments
from hostmesh_controller.hub import Hub
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.registrar import MissingError
from hostmesh_controller.store import EnrolmentRecord
from hostmesh_controller.tokens import RevokingStore, revoke_made_for


class Expulsion:
    """Denies hosts, and readmits them. For one event loop."""

    def __init__(
        self,
        store: RevokingStore,
        hub: Hub,
        enrolments: Enrolments,
        registered: Callable[[str], bool],
        now: Callable[[], datetime],
    ) -> None:
        """`registered` tells whether there is a Host object of a name."""
        self._store = store
        self._hub = hub
        self._enrolments = enrolments
        self._registered = registered
        self._now = now

    async def deny(self, host: str, denial: Denial, reason: str, *, actor: str) -> EnrolmentRecord:
        """Put a host out of the mesh at once, with all that was issued to it: it stays registered, and may not join.

        Its stream is cut, its calls are refused, its join tokens are revoked; that its workloads are not called any
        more and that proxies deny its certificates is published.

        Raises:
            MissingError: it is not registered.
            StoreError: it is not denied; or, where a token was not revoked, it is denied all the same.
        """
        self._require(host)
        record = await self._enrolments.deny(host, denial, reason, actor)
        self._hub.close(host)
        await asyncio.to_thread(revoke_made_for, self._store, self._now(), actor, host=host)
        return record

    async def readmit(self, host: str, *, actor: str) -> bool:
        """Let a host that was denied join again; False if it is not denied. What it had stays refused.

        Raises:
            MissingError: it is not registered.
            StoreError: it is as before.
        """
        self._require(host)
        return await self._enrolments.readmit(host, actor)

    def _require(self, host: str) -> None:
        if not self._registered(host):
            raise MissingError([ObjectKey("Host", "", host)])
