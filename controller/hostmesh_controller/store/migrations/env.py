"""Alembic runs this for each command; the connection comes from `hostmesh_controller.store.migrate`."""

from alembic import context
from sqlalchemy import Connection

from hostmesh_controller.store.tables import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
# The caller's transaction spans all steps: a database is at the old form or at the new one.
context.run_migrations()
