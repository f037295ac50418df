"""Attestation: a certificate's key and first use; who waits to be approved; who was attested."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("certificates", sa.Column("key_sha256", sa.String(64), nullable=False, server_default=""))
    op.add_column("certificates", sa.Column("used_at", sa.BigInteger))
