"""Objects and their history, inside a transaction the caller has begun."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from secrets import token_hex
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, tuple_, update

from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.model.redaction import redacted
from hostmesh_controller.store import tables
from hostmesh_controller.store.records import (
    MAX_REASON_CHARS,
    Actor,
    AuditQuery,
    AuditRecord,
    Commit,
    Delete,
    Document,
    Lineage,
    Put,
    RefusedWrite,
    StoredObject,
    plain,
)

_KEYS_PER_QUERY = 300
"""Three parameters for each key stay below SQLite's oldest limit of 999."""
_KEY = (tables.objects.c.kind, tables.objects.c.namespace, tables.objects.c.name)


def read_revision(connection: Connection) -> int:
    """Return the current revision."""
    return int(connection.execute(select(tables.mesh.c.revision)).scalar_one())


def read_lineage(connection: Connection) -> Lineage:
    """Return the history that the revisions count."""
    row = connection.execute(select(tables.mesh)).one()
    found = int(connection.execute(select(func.count()).select_from(tables.objects)).scalar_one())
    return Lineage(row.lineage, row.lineage_key, row.objects, found)


def begin_lineage(connection: Connection) -> Lineage:
    """Let another history begin with the objects as they are."""
    before = read_lineage(connection)
    values = {"lineage": token_hex(4), "lineage_key": token_hex(32), "objects": before.found}
    connection.execute(update(tables.mesh).values(values))
    return read_lineage(connection)


def read_objects(
    connection: Connection, kind: str | None = None, namespace: str | None = None, name: str | None = None
) -> list[StoredObject]:
    """Return the objects that match, sorted by key."""
    query = select(tables.objects).order_by(*_KEY)
    for column, wanted in zip(_KEY, (kind, namespace, name), strict=True):
        if wanted is not None:
            query = query.where(column == wanted)
    return [_stored(row) for row in connection.execute(query)]


def _stored(row: Row[Any]) -> StoredObject:
    key = ObjectKey(row.kind, row.namespace, row.name)
    return StoredObject(key, row.uid, row.revision, row.created_at, json.loads(row.document))


def write_changes(connection: Connection, changes: Sequence[Put | Delete], *, actor: str, now: datetime) -> Commit:
    """Make the changes under one new revision, with their audit records; see Store.commit."""
    # Before the objects are read: where writers run side by side, this row is what they queue for.
    current = int(connection.execute(select(tables.mesh.c.revision).with_for_update()).scalar_one())
    wanted = {change.key: change.document if isinstance(change, Put) else None for change in changes}
    before = {found.key: found for found in _read_keys(connection, list(wanted))}
    real = [
        (key, before.get(key), document)
        for key, document in wanted.items()
        if document != (before[key].document if key in before else None)
    ]
    if not real:
        return Commit(current, ())
    revision = current + 1
    more = sum((document is not None) - (known is not None) for _, known, document in real)
    connection.execute(update(tables.mesh).values(revision=revision, objects=tables.mesh.c.objects + more))
    _write_objects(connection, real, revision, now)
    connection.execute(insert(tables.audit), [_audit_row(*change, actor, revision, now) for change in real])
    return Commit(revision, tuple(key for key, _, _ in real))


def _read_keys(connection: Connection, keys: list[ObjectKey]) -> Iterator[StoredObject]:
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        query = select(tables.objects).where(tuple_(*_KEY).in_(keys[start : start + _KEYS_PER_QUERY]))
        yield from map(_stored, connection.execute(query))


_Change = tuple[ObjectKey, StoredObject | None, Document | None]
"""Key, what was stored, what shall be stored."""


def _write_objects(connection: Connection, real: list[_Change], revision: int, now: datetime) -> None:
    gone = [key for key, _, document in real if document is None]
    for start in range(0, len(gone), _KEYS_PER_QUERY):
        connection.execute(delete(tables.objects).where(tuple_(*_KEY).in_(gone[start : start + _KEYS_PER_QUERY])))
    new = [
        {**key._asdict(), "uid": str(uuid4()), "revision": revision, "created_at": now, "document": _text(document)}
        for key, before, document in real
        if before is None and document is not None
    ]
    if new:
        connection.execute(insert(tables.objects), new)
    changed = [
        {"at_kind": key.kind, "at_namespace": key.namespace, "at_name": key.name, "document": _text(document)}
        for key, before, document in real
        if before is not None and document is not None
    ]
    if changed:
        where = [column == bindparam(f"at_{column.name}") for column in _KEY]
        statement = update(tables.objects).where(*where).values(revision=revision, document=bindparam("document"))
        connection.execute(statement, changed)


def _text(document: Document | None) -> str | None:
    return None if document is None else json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _audit_row(
    key: ObjectKey, before: StoredObject | None, after: Document | None, actor: str, revision: int, now: datetime
) -> dict[str, Any]:
    action = "create" if before is None else "delete" if after is None else "update"
    return {
        **key._asdict(),
        "at": now,
        "actor": actor,
        "action": action,
        # The log is shown to people, and kept for longer than the objects: no key gets into it.
        "before": _text(redacted(before.document)) if before else None,
        "after": _text(redacted(after)) if after is not None else None,
        "revision": revision,
        **_proof(actor),
    }


def _proof(actor: str) -> dict[str, str]:
    """Return how whoever acts has proved who they are, and that they may."""
    known = actor if isinstance(actor, Actor) else Actor(actor)
    return {"way": known.way, "proof": known.proof, "address": known.address, "result": "ok"}


def write_event(
    connection: Connection,
    action: str,
    key: ObjectKey,
    *,
    actor: str,
    now: datetime,
    after: Document | None = None,
) -> None:
    """Write an audit record of something that is no object's change: a token used, a host expelled."""
    values = {**key._asdict(), "at": now, "actor": actor, "action": action, "revision": read_revision(connection)}
    connection.execute(insert(tables.audit).values({**values, **_proof(actor), "after": _text(after)}))


def write_denial(connection: Connection, denial: RefusedWrite, now: datetime) -> None:
    """Write an audit record of what was refused. All of it comes from who was refused: it is cut and made plain."""
    reason = plain(denial.reason, MAX_REASON_CHARS)
    values = {
        **{name: plain(value) for name, value in denial.key._asdict().items()},
        **{name: plain(value) for name, value in _proof(denial.actor).items()},
        "at": now,
        "actor": plain(denial.actor),
        "action": denial.action,
        "revision": read_revision(connection),
        "result": "denied",
        "reason": reason,
    }
    connection.execute(insert(tables.audit).values(values))


def read_audit(connection: Connection, limit: int, query: AuditQuery) -> list[AuditRecord]:
    """Return the newest records first; see Store.audit."""
    columns = tables.audit.c
    found = select(tables.audit).order_by(columns.id.desc()).limit(limit)
    if query.key is not None:
        found = found.where(*(columns[name] == value for name, value in query.key._asdict().items()))
    for name in ("actor", "action", "kind"):
        wanted = getattr(query, name)
        if wanted is not None:
            found = found.where(columns[name] == wanted)
    if query.before_id is not None:
        found = found.where(columns.id < query.before_id)
    if query.result is not None:
        # What was written before there were refusals is "".
        found = found.where(columns.result.in_(("ok", "") if query.result == "ok" else (query.result,)))
    if query.since is not None:
        found = found.where(columns.at >= query.since)
    if query.namespaces is not None:
        found = found.where(columns.namespace.in_(sorted(query.namespaces)))
    return [_audit(row) for row in connection.execute(found)]


def prune_audit(connection: Connection, before: datetime, keep: int) -> int:
    """Delete the records from before a moment, and the oldest beyond `keep`; return how many they were."""
    columns = tables.audit.c
    gone = connection.execute(delete(tables.audit).where(columns.at < before)).rowcount
    oldest = select(columns.id).order_by(columns.id.desc()).offset(keep).limit(1)
    last = connection.execute(oldest).scalar_one_or_none()
    if last is not None:
        gone += connection.execute(delete(tables.audit).where(columns.id <= last)).rowcount
    return gone


def _audit(row: Row[Any]) -> AuditRecord:
    before, after = (json.loads(text) if text is not None else None for text in (row.before, row.after))
    key = ObjectKey(row.kind, row.namespace, row.name)
    proof = (row.way, row.proof, row.address, row.result or "ok", row.reason)
    return AuditRecord(row.id, row.at, row.actor, row.action, key, before, after, row.revision, *proof)
