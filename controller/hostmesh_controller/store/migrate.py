"""Brings the tables of a database to the newest form; the steps are the modules in `migrations/versions`."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from hostmesh_controller.store.records import StoreError

_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def migrate(connection: Connection, name: str) -> None:
    """Run the steps the database has not seen, inside the caller's transaction.

    Args:
        connection: in a transaction that no other writer shares.
        name: what errors call the database.

    Raises:
        StoreError: the database was written by a newer version.
    """
    # A database at the newest form is the usual case, and costs no run of Alembic's environment.
    config = _config(connection)
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current == newest:
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError(
            f"{name}: written by a newer hostmesh-controller (its tables are at {current}, this version knows up to "
            f"{newest}): install that version again, or restore a backup from before it"
        )
    command.upgrade(config, "head")


def _config(connection: Connection) -> Config:
    config = Config()
    # configparser would read a '%' in the path as a variable.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
