"""The controller's database as on a full disk: SQLite itself refuses what is written to it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def refusing(database: Path, write: str) -> Iterator[None]:
    """Refuse one kind of write, such as "INSERT ON hosts", to everybody for as long as it lasts."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=10.0)) as connection:
        connection.execute(
            f"CREATE TRIGGER full BEFORE {write} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
        try:
            yield
        finally:
            connection.execute("DROP TRIGGER full")
