"""Attestation: a certificate's key; who waits to be approved; who was attested."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("certificates", sa.Column("key_sha256", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "pending",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("attestor", sa.String(32), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("address", sa.String(63), nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("asked_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("decided_at", sa.BigInteger),
        sa.Column("decided_by", sa.Text, nullable=False),
    )
    op.create_table(
        "instances",
        sa.Column("subject", sa.String(512), primary_key=True),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("joined_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_instances_host", "instances", ["host"])
