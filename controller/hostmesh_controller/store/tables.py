"""The tables, as the newest code sees them; `migrations` is how a database gets there.

Nothing here is peculiar to SQLite: a PostgreSQL store uses the same tables.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UtcTime(TypeDecorator[datetime]):
    """An aware moment, kept as microseconds since the epoch: exact, sortable, the same in every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - its interface
        """Refuse a naive time: its zone would be a guess."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - its interface
        """Return UTC."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


metadata = MetaData()

mesh = Table(
    "mesh",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="one_row"), primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    Column("lineage", String(64), nullable=False, server_default=""),
    Column("lineage_key", String(64), nullable=False, server_default=""),
    Column("objects", BigInteger, nullable=False, server_default="0"),
)
"""One row: the revision. Writers take it first, which puts them in a queue where the database allows several.

`lineage` is the id of the history that the revisions count, `objects` how many there are after the last of them.
"""

objects = Table(
    "objects",
    metadata,
    Column("kind", String(63), primary_key=True),
    Column("namespace", String(63), primary_key=True),
    Column("name", String(253), primary_key=True),
    Column("uid", String(36), nullable=False, unique=True),
    Column("revision", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("document", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    # SQLite counts a primary key up by itself only if its type is INTEGER.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("kind", String(63), nullable=False),
    Column("namespace", String(63), nullable=False),
    Column("name", String(253), nullable=False),
    Column("before", Text),
    Column("after", Text),
    Column("revision", BigInteger, nullable=False),
    Column("way", Text, nullable=False, server_default=""),
    Column("proof", Text, nullable=False, server_default=""),
    Column("address", Text, nullable=False, server_default=""),
    Column("result", Text, nullable=False, server_default=""),
    Column("reason", Text, nullable=False, server_default=""),
    Index("audit_of_object", "kind", "namespace", "name", "id"),
    Index("audit_by_time", "at"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("digest", LargeBinary(64), nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("host", String(253), nullable=False),
    Column("pool", String(253), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("redeemed_at", UtcTime),
    Column("redeemed_by", Text, nullable=False),
    Column("revoked_at", UtcTime),
    Column("max_joins", Integer, server_default="1"),
    Column("joins", Integer, nullable=False, server_default="0"),
    Column("allowed", Text, nullable=False, server_default=""),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(64), primary_key=True),
    Column("spiffe_id", Text, nullable=False),
    Column("host", String(253), nullable=False, index=True),
    Column("not_after", UtcTime, nullable=False, index=True),
    Column("issued_at", UtcTime, nullable=False),
    Column("key_sha256", String(64), nullable=False, server_default=""),
)

pending = Table(
    "pending",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(253), nullable=False),
    Column("attestor", String(32), nullable=False),
    Column("key_sha256", String(64), nullable=False),
    Column("address", String(63), nullable=False),
    Column("summary", Text, nullable=False),
    Column("asked_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("decision", String(16), nullable=False),
    Column("decided_at", UtcTime),
    Column("decided_by", Text, nullable=False),
)

instances = Table(
    "instances",
    metadata,
    Column("subject", String(512), primary_key=True),
    Column("host", String(253), nullable=False, index=True),
    Column("key_sha256", String(64), nullable=False),
    Column("joined_at", UtcTime, nullable=False),
)

enrolments = Table(
    "enrolments",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("host", String(253), nullable=False, index=True),
    Column("begun_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("certificates_end", UtcTime),
    Column("used_serial", String(64), nullable=False),
    Column("used_at", UtcTime),
    Column("denial", String(32), nullable=False),
    Column("denied_at", UtcTime),
    Column("reason", Text, nullable=False),
    Column("readmitted_at", UtcTime),
)

hosts = Table(
    "hosts",
    metadata,
    Column("host", String(253), primary_key=True),
    Column("joined_at", UtcTime),
    Column("left_at", UtcTime),
    Column("last_report_at", UtcTime),
    Column("report", LargeBinary, nullable=False),
    Column("ready", Text, nullable=False),
    Column("silent_at", UtcTime),
)

vips = Table(
    "vips",
    metadata,
    Column("fqdn", String(253), primary_key=True),
    Column("position", Integer, nullable=False, unique=True),
)

jwks = Table(
    "jwks",
    metadata,
    Column("url", String(2304), primary_key=True),
    Column("document", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("etag", Text, nullable=False),
    Column("fetched_at", UtcTime, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("name", String(253), primary_key=True),
    Column("uid", String(64), nullable=False),
    Column("progress", Text, nullable=False),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", String(32), nullable=False),
    Column("digest", LargeBinary(64), nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
    Column("grants", Text, nullable=False, server_default=""),
    Column("created_by", Text, nullable=False, server_default=""),
    Column("last_used_at", UtcTime),
)

calls = Table(
    "calls",
    metadata,
    Column("namespace", String(63), primary_key=True),
    Column("workload", String(512), primary_key=True),
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(32), primary_key=True),
    Column("caller", String(640), primary_key=True),
    Column("methods", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("denied", BigInteger, nullable=False),
    Column("first_seen", UtcTime, nullable=False),
    Column("last_seen", UtcTime, nullable=False),
    Column("host", String(253), nullable=False),
    Column("epoch", String(64), nullable=False),
    Column("told", BigInteger, nullable=False),
    Column("told_denied", BigInteger, nullable=False),
)

flows = Table(
    "flows",
    metadata,
    Column("host", String(253), primary_key=True),
    Column("program", String(64), primary_key=True),
    Column("unit", String(256), primary_key=True),
    Column("inbound", Integer, primary_key=True, autoincrement=False),
    Column("peer", String(64), primary_key=True),
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
    Column("first_seen", UtcTime, nullable=False),
    Column("last_seen", UtcTime, nullable=False),
    Column("epoch", String(64), nullable=False),
    Column("told", BigInteger, nullable=False),
)

watched_ports = Table(
    "watched_ports",
    metadata,
    Column("namespace", String(63), primary_key=True),
    Column("workload", String(512), primary_key=True),
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("host", String(253), nullable=False),
    Column("since", UtcTime, nullable=False),
)
