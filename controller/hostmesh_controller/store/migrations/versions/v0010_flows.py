"""Who has connections with whom, as agents observed them on their hosts."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "flows",
        sa.Column("host", sa.String(253), primary_key=True),
        sa.Column("program", sa.String(64), primary_key=True),
        sa.Column("unit", sa.String(256), primary_key=True),
        sa.Column("inbound", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("peer", sa.String(64), primary_key=True),
        sa.Column("port", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("first_seen", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.String(64), nullable=False),
        sa.Column("told", sa.BigInteger, nullable=False),
    )
