"""The file of the cold copy: opened, and read where the disk refuses."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from hostmesh_agent.cache_rows import NewerError, UnreadableError, blames_disk, plain_code
from hostmesh_agent.sqlite_files import copied

FORMAT: Final = 1
"""`PRAGMA user_version` of the file; another one is set aside."""
_SCHEMA: Final = """
CREATE TABLE page (
    name TEXT PRIMARY KEY, version TEXT NOT NULL, services INTEGER NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE lead (host INTEGER NOT NULL, page TEXT NOT NULL, PRIMARY KEY (host, page)) WITHOUT ROWID;
CREATE INDEX lead_by_page ON lead (page);
"""
_CACHE_KIB: Final = 256
"""Of SQLite's own; its usual 2 MB would be there for ever after the first synchronization."""
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def is_refusal(error: Exception) -> bool:
    """Tell whether the content may be good, and a disk, a limit or another process is in the way."""
    return isinstance(error, OSError) or blames_disk(error)


def is_damage(error: Exception) -> bool:
    """Tell whether SQLite has found that the file is not as it was written."""
    return plain_code(error) in _DAMAGE


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for writing, made if missing, and look through it.

    Raises:
        OSError, sqlite3.Error: the disk refuses (`is_refusal`), or it is no database.
        UnreadableError: it is damaged, or another format's.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=1.0, check_same_thread=False, isolation_level=None)
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint=64")
        if _version(connection) == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")
        return _looked_at(connection)
    except BaseException:
        connection.close()
        raise


def as_it_is(path: Path) -> sqlite3.Connection | None:
    """Open the file where nothing can be written; None: there is none, or it cannot be read.

    SQLite wants to write even where it only reads. A file without a log is read as one that nobody changes; one with a
    log, as a power cut leaves it, is read into memory together with it.
    """
    log = path.with_name(f"{path.name}-wal")
    try:
        if log.exists() and log.stat().st_size:
            connection = _in_memory(path)
        else:
            where = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(where, uri=True, check_same_thread=False, isolation_level=None)
    except (OSError, sqlite3.Error):
        return None
    try:
        return _looked_at(connection)
    except (sqlite3.Error, UnreadableError):
        connection.close()
        return None


def _in_memory(path: Path) -> sqlite3.Connection:
    with copied(path) as copy:
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        try:
            with closing(sqlite3.connect(copy)) as source:
                source.backup(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _looked_at(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    version = _version(connection)
    if version != FORMAT:
        raise NewerError(f"format {version} is not the one this agent writes ({FORMAT})")
    # A sector that is overwritten leaves most of the rest readable, and an index that leads nowhere. 2 MB take 75 ms.
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise UnreadableError(verdict)
    return connection
