"""Enrolments of hosts, inside a transaction the caller has begun."""

from collections.abc import Collection
from dataclasses import asdict, replace
from datetime import datetime

from sqlalchemy import Connection, delete, insert, or_, select, update

from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.store import tables
from hostmesh_controller.store.objects import write_event
from hostmesh_controller.store.records import Denial, EnrolmentRecord


def write_enrolment(connection: Connection, record: EnrolmentRecord) -> EnrolmentRecord:
    """Keep an enrolment, in the place of an earlier record of it; see Store.put_enrolment."""
    table, values = tables.enrolments, asdict(record)
    own = table.c.id == record.id
    # Certificates may have been given out since the record was read.
    end = connection.execute(select(table.c.certificates_end).where(own)).scalar_one_or_none()
    values["certificates_end"] = end or record.certificates_end
    connection.execute(delete(table).where(own))
    connection.execute(insert(table).values(values))
    return replace(record, certificates_end=values["certificates_end"])


def write_enrolment_event(
    connection: Connection, record: EnrolmentRecord, action: str, actor: str, at: datetime
) -> None:
    """Write the audit record of what was done to a host's enrolment."""
    after = {"enrolment": record.id, "reason": record.reason}
    write_event(connection, action, ObjectKey("Host", "", record.host), actor=actor, now=at, after=after)


def read_enrolments(connection: Connection) -> list[EnrolmentRecord]:
    """Return all enrolments, oldest first."""
    table = tables.enrolments
    rows = connection.execute(select(table).order_by(table.c.begun_at, table.c.id)).mappings()
    return [EnrolmentRecord(**{**row, "denial": Denial(row["denial"])}) for row in rows]


def extend_enrolment(connection: Connection, enrolment: str, not_after: datetime) -> bool:
    """Take note of a certificate's end; see Store.extend_enrolment."""
    table = tables.enrolments
    alive = (table.c.id == enrolment, table.c.denial == Denial.NONE, table.c.ended_at.is_(None))
    longer = or_(table.c.certificates_end.is_(None), table.c.certificates_end < not_after)
    if connection.execute(update(table).where(*alive, longer).values(certificates_end=not_after)).rowcount:
        return True
    return connection.execute(select(table.c.id).where(*alive)).first() is not None


def drop_enrolments(connection: Connection, ids: Collection[str]) -> None:
    """Forget enrolments."""
    for enrolment in ids:
        connection.execute(delete(tables.enrolments).where(tables.enrolments.c.id == enrolment))
