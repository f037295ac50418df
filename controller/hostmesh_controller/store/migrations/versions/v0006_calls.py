"""Who calls whom: calls as agents observed them, and since when each port is watched."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "calls",
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("workload", sa.String(512), primary_key=True),
        sa.Column("port", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("caller", sa.String(640), primary_key=True),
        sa.Column("methods", sa.Text, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("denied", sa.BigInteger, nullable=False),
        sa.Column("first_seen", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("epoch", sa.String(64), nullable=False),
        sa.Column("told", sa.BigInteger, nullable=False),
        sa.Column("told_denied", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "watched_ports",
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("workload", sa.String(512), primary_key=True),
        sa.Column("port", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
    )
