"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_objects()
    _create_secrets()
    _create_runtime()


def _create_objects() -> None:
    mesh = op.create_table(
        "mesh",
        sa.Column(
            "id", sa.Integer, sa.CheckConstraint("id = 1", name="one_row"), primary_key=True, autoincrement=False
        ),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(mesh, [{"id": 1, "revision": 0}])
    op.create_table(
        "objects",
        sa.Column("kind", sa.String(63), primary_key=True),
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("uid", sa.String(36), nullable=False, unique=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(63), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("audit_of_object", "audit", ["kind", "namespace", "name", "id"])


def _create_secrets() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("digest", sa.LargeBinary(64), nullable=False, unique=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("pool", sa.String(253), nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("redeemed_at", sa.BigInteger),
        sa.Column("redeemed_by", sa.Text, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(64), primary_key=True),
        sa.Column("spiffe_id", sa.Text, nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("issued_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_certificates_host", "certificates", ["host"])
    op.create_index("ix_certificates_not_after", "certificates", ["not_after"])
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("digest", sa.LargeBinary(64), nullable=False, unique=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
    )


def _create_runtime() -> None:
    op.create_table(
        "hosts",
        sa.Column("host", sa.String(253), primary_key=True),
        sa.Column("joined_at", sa.BigInteger),
        sa.Column("left_at", sa.BigInteger),
        sa.Column("last_report_at", sa.BigInteger),
        sa.Column("report", sa.LargeBinary, nullable=False),
        sa.Column("ready", sa.Text, nullable=False),
    )
    op.create_table(
        "vips",
        sa.Column("fqdn", sa.String(253), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False, unique=True),
    )
