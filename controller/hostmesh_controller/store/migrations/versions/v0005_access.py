"""API tokens say what they may do and when they were used; the audit says how callers proved who they are."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_tokens", sa.Column("grants", sa.Text, nullable=False, server_default=""))
    op.add_column("api_tokens", sa.Column("created_by", sa.Text, nullable=False, server_default=""))
    op.add_column("api_tokens", sa.Column("last_used_at", sa.BigInteger))
    # A grant without namespaces is one for all, which is what a role was until now.
    op.execute("UPDATE api_tokens SET grants = role")
    for column in ("way", "proof", "address", "result", "reason"):
        op.add_column("audit", sa.Column(column, sa.Text, nullable=False, server_default=""))
    op.create_index("audit_by_time", "audit", ["at"])
