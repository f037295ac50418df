"""Since when a host is withdrawn because it is silent: that outlives a restart of the controller."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hosts", sa.Column("silent_at", sa.BigInteger, nullable=True))
