"""Hosts that wait for approval, and machines that joined by a word that is not theirs alone; inside a transaction."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.store import tables
from hostmesh_controller.store.objects import write_event
from hostmesh_controller.store.records import InstanceRecord, PendingRecord


def read_pending(connection: Connection) -> list[PendingRecord]:
    """Return all that wait or were decided about, oldest first."""
    table = tables.pending
    rows = connection.execute(select(table).order_by(table.c.asked_at, table.c.id))
    return [PendingRecord(**row) for row in rows.mappings()]


def write_pending(connection: Connection, entry: PendingRecord) -> None:
    """Keep an entry, in place of one with its id."""
    table = tables.pending
    if not connection.execute(update(table).where(table.c.id == entry.id).values(asdict(entry))).rowcount:
        connection.execute(insert(table).values(asdict(entry)))
        write_event(connection, "host.pending", _host(entry.host), actor=f"attest:{entry.attestor}", now=entry.asked_at)


def decide(connection: Connection, entry_id: str, decision: str, actor: str, now: datetime) -> PendingRecord | None:
    """Decide about an entry; see Store.decide_pending."""
    table = tables.pending
    open_ = (table.c.id == entry_id, table.c.decision == "")
    values = {"decision": decision, "decided_at": now, "decided_by": actor}
    row = connection.execute(update(table).where(*open_).values(values).returning(*table.c)).mappings().one_or_none()
    if row is None:
        return None
    action = "host.approve" if decision == "approved" else "host.deny"
    write_event(connection, action, _host(row["host"]), actor=actor, now=now)
    return PendingRecord(**row)


def drop_pending(connection: Connection, ids: Sequence[str]) -> None:
    """Forget entries."""
    connection.execute(delete(tables.pending).where(tables.pending.c.id.in_(ids)))


def claim(connection: Connection, instance: InstanceRecord) -> InstanceRecord:
    """Return whose a machine is; see Store.claim_instance."""
    table = tables.instances
    row = connection.execute(select(table).where(table.c.subject == instance.subject)).mappings().one_or_none()
    if row is not None:
        return InstanceRecord(**row)
    connection.execute(insert(table).values(asdict(instance)))
    return instance


def forget_instances(connection: Connection, host: str) -> None:
    """Let the machines of a host join anew."""
    connection.execute(delete(tables.instances).where(tables.instances.c.host == host))


def _host(name: str) -> ObjectKey:
    return ObjectKey("Host", "", name)
