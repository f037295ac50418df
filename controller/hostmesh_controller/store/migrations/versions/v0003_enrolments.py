"""Enrolments: each joining of a host has an id that its certificates carry, and can be denied."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    made = op.create_table(
        "enrolments",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("begun_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("certificates_end", sa.BigInteger),
        sa.Column("used_serial", sa.String(64), nullable=False),
        sa.Column("used_at", sa.BigInteger),
        sa.Column("denial", sa.String(32), nullable=False),
        sa.Column("denied_at", sa.BigInteger),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("readmitted_at", sa.BigInteger),
    )
    op.create_index("ix_enrolments_host", "enrolments", ["host"])
    # Hosts that have joined go on under an enrolment of their own; their next certificates carry it.
    connection = op.get_bind()
    joined = connection.execute(
        sa.text(
            "SELECT host, joined_at FROM hosts WHERE joined_at IS NOT NULL AND (left_at IS NULL OR left_at < joined_at)"
        )
    )
    rows = [
        {"id": secrets.token_hex(16), "host": host, "begun_at": at, "used_serial": "", "denial": "", "reason": ""}
        for host, at in joined
    ]
    if rows:
        op.bulk_insert(made, rows)
