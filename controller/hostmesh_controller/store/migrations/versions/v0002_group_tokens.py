"""Join tokens of groups: how many hosts may join, how many did, and from which addresses."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tokens", sa.Column("max_joins", sa.Integer, server_default="1"))
    op.add_column("tokens", sa.Column("joins", sa.Integer, nullable=False, server_default="0"))
    op.add_column("tokens", sa.Column("allowed", sa.Text, nullable=False, server_default=""))
    # Until now a token was used up by being used.
    op.execute("UPDATE tokens SET joins = 1 WHERE redeemed_at IS NOT NULL")
