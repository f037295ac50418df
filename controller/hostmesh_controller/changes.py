"""What a write does, or would do, to each object; and objects with the facts that only the store knows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.review import Review
from hostmesh_controller.store import StoredObject

Action = Literal["created", "configured", "unchanged", "deleted", "missing"]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened, or would happen, to one object; `before` and `after` are None where there is none."""

    key: ObjectKey
    action: Action
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


def change(item: ApiObject, existing: Mapping[ObjectKey, ApiObject]) -> Change:
    """Return what storing an object changes."""
    after = item.to_dict()
    known = existing.get(item.key)
    before = None if known is None else known.to_dict()
    action: Action = "created" if before is None else "unchanged" if before == after else "configured"
    return Change(item.key, action, before, after)


def deletion(key: ObjectKey, existing: Mapping[ObjectKey, ApiObject]) -> Change:
    """Return what deleting an object changes."""
    known = existing.get(key)
    return Change(key, "missing", None, None) if known is None else Change(key, "deleted", known.to_dict(), None)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a write would do, and the verdict on it."""

    objects: tuple[ApiObject, ...]
    deletes: tuple[ObjectKey, ...]
    review: Review

    def changes(self, existing: Mapping[ObjectKey, ApiObject]) -> tuple[Change, ...]:
        """Return what it does to each object."""
        return (*(change(item, existing) for item in self.objects), *(deletion(key, existing) for key in self.deletes))


def with_facts(item: ApiObject, record: StoredObject) -> ApiObject:
    """Return the object with the store's uid and creation time, which decide between conflicting objects."""
    metadata = replace(item.metadata, uid=record.uid, creation_timestamp=record.created_at)
    return replace(item, metadata=metadata)


def as_if_stored(item: ApiObject, existing: Mapping[ObjectKey, ApiObject], now: datetime) -> ApiObject:
    """Return an object with the facts that the store would give it now."""
    known = existing.get(item.key)
    created = now if known is None else known.metadata.creation_timestamp
    uid = None if known is None else known.metadata.uid
    return replace(item, metadata=replace(item.metadata, uid=uid, creation_timestamp=created))
