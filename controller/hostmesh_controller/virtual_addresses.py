"""The virtual addresses of services: which index of the range each of their names has, for as long as it is defined."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import structlog

from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.world import World
from hostmesh_controller.mesh.compiled import virtual_hostnames
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.store import StoreError

_log: Final = structlog.get_logger(__name__)


class VipStore(Protocol):
    """What virtual addresses need of the store."""

    def allocate_vips(self, fqdns: Iterable[str]) -> Mapping[str, int]: ...
    def release_vips(self, fqdns: Iterable[str]) -> None: ...


class VirtualAddresses:
    """The store's indexes, in memory. For one event loop."""

    def __init__(self, store: VipStore, domain: str, size: int) -> None:
        """`size` is the number of addresses in the range, with its first and last, which nobody gets."""
        self._store = store
        self._domain = domain
        self._size = size
        self._indexes: Mapping[str, int] = {}
        self._dropped: set[str] = set()
        """Names that are to be given back to the store."""

    @property
    def indexes(self) -> Mapping[str, int]:
        """Index by name. Replaced, never changed: the mesh takes the same mapping as "nothing changed"."""
        return self._indexes

    async def allocate(self, objects: Iterable[ApiObject]) -> Mapping[str, int]:
        """Keep indexes for the names of objects that have none yet, and return those; `add` makes them known.

        Raises:
            StoreError: the range is used up, or the store fails; nothing was changed.
        """
        new = {name for name in self._names(objects) if name not in self._indexes}
        return await asyncio.to_thread(self._store.allocate_vips, new) if new else {}

    def add(self, allocated: Mapping[str, int]) -> None:
        """Let allocated indexes hold."""
        if allocated:
            self._indexes = {**self._indexes, **allocated}
            self._dropped -= allocated.keys()

    def drop(self, before: Iterable[ApiObject], world: World) -> None:
        """Forget what nothing in `world` needs any more, now that the objects of before are different."""
        gone = {name for name in self._names(before) if name in self._indexes and not self._needed(name, world)}
        if gone:
            self._indexes = {name: index for name, index in self._indexes.items() if name not in gone}
            self._dropped |= gone

    async def release(self) -> None:
        """Give back to the store what was dropped. Where it fails nobody gets these indexes until the next time."""
        gone = frozenset(self._dropped)
        if not gone:
            return
        try:
            await asyncio.to_thread(self._store.release_vips, gone)
        except StoreError as error:
            _log.error("virtual_addresses_not_released", names=len(gone), error=str(error))
        else:
            self._dropped -= gone

    def guessed(self, objects: Iterable[ApiObject], known: Mapping[str, int]) -> Mapping[str, int]:
        """Return what is known, with free indexes for the names of objects that have none; nothing is kept."""
        new = [name for name in self._names(objects) if name not in known]
        if not new:
            return known
        taken = set(known.values())
        free = (index for index in range(self._size - 2, 0, -1) if index not in taken)
        return {**known, **dict(zip(new, free, strict=False))}

    def _needed(self, name: str, world: World) -> bool:
        return name in self._names(world.bucket(Relation.SERVICE, name).values())

    def _names(self, objects: Iterable[ApiObject]) -> set[str]:
        return {name for item in objects for name in virtual_hostnames(item, self._domain)}
