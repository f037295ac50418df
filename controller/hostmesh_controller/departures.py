"""What goes with objects that are deleted, and with hosts that leave: tokens made for them, and all that a host had."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final, Protocol

import structlog

from hostmesh_controller.enrolments import Enrolments
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.reports import HostStates
from hostmesh_controller.store import StoreError
from hostmesh_controller.tokens import RevokingStore, revoke_made_for

_log: Final = structlog.get_logger(__name__)


class DepartureStore(RevokingStore, Protocol):
    """What departures need of the store."""

    def forget_host(self, host: str) -> None: ...
    def drop_host_state(self, host: str) -> None: ...
    def forget_instances(self, host: str) -> None: ...


class Departures:
    """Forgets, in the store and in memory. For one event loop."""

    def __init__(
        self,
        store: DepartureStore,
        states: HostStates,
        enrolments: Enrolments,
        on_change: Callable[[str], None],
        now: Callable[[], datetime],
    ) -> None:
        """`on_change(host)` is called when nothing is known of a deleted host any more."""
        self._store = store
        self._on_change = on_change
        self._states = states
        self._enrolments = enrolments
        self._now = now

    async def deleted(self, keys: Iterable[ObjectKey], actor: str) -> None:
        """Forget what was made for objects that are not there any more.

        Raises:
            StoreError: not all was forgotten; what could be was, and memory has nothing of a host any more.
        """
        failed: StoreError | None = None
        for key in keys:
            try:
                await self._deleted(key, actor)
            except StoreError as error:
                _log.error("not_forgotten", key=str(key), error=str(error))
                failed = failed or error
        if failed is not None:
            raise failed

    async def _deleted(self, key: ObjectKey, actor: str) -> None:
        if key.kind == "Host":
            try:
                # A join string that was made for the host must not let anybody be the next one of its name.
                await asyncio.to_thread(revoke_made_for, self._store, self._now(), actor, host=key.name)
                await self._forget(key.name)
            finally:
                self._states.forget(key.name)
                self._on_change(key.name)
        elif key.kind == "WorkloadGroup":
            pool = f"{key.namespace}/{key.name}"
            await asyncio.to_thread(revoke_made_for, self._store, self._now(), actor, pool=pool)

    async def left(self, host: str) -> None:
        """Take note that a host left that stays registered.

        Raises:
            StoreError: not all was forgotten.
        """
        await asyncio.to_thread(self._store.forget_host, host)
        await self._enrolments.end(host)
        await self._states.left(host)

    async def _forget(self, host: str) -> None:
        await asyncio.to_thread(self._store.forget_host, host)
        await self._enrolments.end(host)
        await asyncio.to_thread(self._store.drop_host_state, host)
        await asyncio.to_thread(self._store.forget_instances, host)
