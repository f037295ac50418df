"""The embedded store: one SQLite file, safe against kill -9 and power loss, shared by threads and processes."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from hostmesh_controller.store.migrate import migrate
from hostmesh_controller.store.records import StoreError
from hostmesh_controller.store.sql import WRITE, SqlStore

_BUSY_S: Final = 20
"""How long a writer waits for another process before it gives up; a commit takes milliseconds."""
_AGAIN_S: Final = 0.01
"""How soon it is tried again what SQLite does not wait for."""
_CONNECTIONS: Final = 8


def open_store(path: Path) -> SqlStore:
    """Open the store, creating the file (mode 0600) or bringing its tables up to date as needed.

    Raises:
        StoreError: the file cannot be used, is no database, is damaged, or was written by a newer version.
    """
    try:
        _make_private(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened: {error.strerror}; give a path its user can write") from error
    engine = _engine(path)
    try:
        with engine.connect() as connection:
            writer = connection.execution_options(**{WRITE: True})
            with writer.begin():
                migrate(writer, str(path))
    except SQLAlchemyError as error:
        engine.dispose()
        raise StoreError(f"{path}: {explain(error)}") from error
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine, str(path), explain)


def _make_private(path: Path) -> None:
    # SQLite gives its -wal and -shm files the mode of the database, so this is the only place that matters.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _BUSY_S, "check_same_thread": False},
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_BUSY_S,
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: Any, _record: object) -> None:
    # Transactions are begun by _begin, in the mode it chooses, and not by the driver.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA trusted_schema=OFF")
    finally:
        cursor.close()


def _use_wal(cursor: Any) -> None:
    """Have a write-ahead log. SQLite gives up at once where another process is just making the same database."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_AGAIN_S)
        else:
            return


def _begin(connection: Connection) -> None:
    # A writer takes the lock before it reads: upgrading a read transaction fails at once if another has written.
    writes = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


_CURES: Final = {
    "not a database": "this file is not a hostmesh database; restore it from a backup or give another path",
    "malformed": "the database is damaged; restore it from a backup",
    "disk is full": "the disk is full; make room",
    "readonly": "the database cannot be written; check the owner and mode of the file and its directory",
    "unable to open": "the database cannot be opened; check the owner and mode of the file and its directory",
    "locked": f"another process has held the database for more than {_BUSY_S} s",
    "disk i/o": "the disk reports an error; see the kernel's log",
}


def explain(error: SQLAlchemyError) -> str:
    """Return what an operator can do about a database error."""
    text = str(getattr(error, "orig", None) or error)
    return next((cure for part, cure in _CURES.items() if part in text.lower()), text)
