"""Whose history the objects are, the key by which its controller knows its own word, and how many they are."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("mesh", sa.Column("lineage", sa.String(64), nullable=False, server_default=""))
    op.add_column("mesh", sa.Column("lineage_key", sa.String(64), nullable=False, server_default=""))
    op.add_column("mesh", sa.Column("objects", sa.BigInteger, nullable=False, server_default="0"))
    connection = op.get_bind()
    count = connection.execute(sa.text("SELECT count(*) FROM objects")).scalar_one()
    connection.execute(
        sa.text("UPDATE mesh SET lineage = :lineage, lineage_key = :key, objects = :objects"),
        {"lineage": secrets.token_hex(4), "key": secrets.token_hex(32), "objects": count},
    )
