"""Last-known-good configuration on disk: what Envoy accepted, so that a reboot needs no controller.

One SQLite file: atomic by its write-ahead log, one transaction per batch. Each row carries a checksum of its own,
since SQLite does not notice a flipped bit in a value. Only root can read it (0600 in a directory of 0700): where there
is a gateway it holds the private keys of stored credentials. What cannot be read is set aside, never in the way: the
cache can be fetched again, a host that does not start cannot.
"""

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import structlog

from hostmesh_api.delta import Resource

FORMAT: Final = 1
"""`PRAGMA user_version` of the file; another one is set aside."""

_FILE: Final = "last-known-good.sqlite"
_SCHEMA: Final = """
CREATE TABLE resource (
    type_url TEXT NOT NULL, name TEXT NOT NULL, listed INTEGER NOT NULL,
    version TEXT NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL,
    PRIMARY KEY (type_url, name)
) WITHOUT ROWID
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted resource; `listed` when it came under "*" and not by its own name."""

    type_url: str
    listed: bool
    resource: Resource


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a batch: `entry` is None where the resource is forgotten."""

    type_url: str
    name: str
    entry: Entry | None


def _checksum(type_url: str, resource: Resource) -> bytes:
    digest = blake2b(digest_size=16)
    for part in (type_url.encode(), resource.name.encode(), resource.version.encode(), resource.body):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class Cache:
    """The last-known-good store of one agent. Reads happen once, at start; writes come in batches from one thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / _FILE
        self._in_use = threading.Lock()
        self._entries: tuple[Entry, ...] = ()
        self.lost = ""
        """Why earlier content could not be used; empty when nothing was lost."""
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except (sqlite3.DatabaseError, _UnreadableError) as error:
            self.lost = f"{self._path}: {error}; it was set aside and the configuration is fetched again"
            _log.error("last-known-good configuration is not readable", path=str(self._path), reason=str(error))
            self._set_aside()
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            self._path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            # A gateway's private keys are among the resources: what is deleted is overwritten.
            connection.execute("PRAGMA secure_delete=ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA}; PRAGMA user_version={FORMAT}; COMMIT;")
            elif version != FORMAT:
                raise _UnreadableError(f"format {version} is not the one this agent writes ({FORMAT})")
            self._entries = tuple(_read(connection))
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            path = self._path.with_name(self._path.name + suffix)
            if path.exists():
                path.replace(path.with_name(path.name + ".unreadable"))

    def entries(self) -> tuple[Entry, ...]:
        """Return what was on disk when the cache was opened."""
        return self._entries

    def write(self, changes: Sequence[Change]) -> None:
        """Make a batch durable: all of it or none.

        Raises:
            sqlite3.Error: the disk is full or fails, or the cache was closed; what was there before is unharmed.
        """
        with self._in_use, closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                cursor.executemany(
                    "DELETE FROM resource WHERE type_url=? AND name=?",
                    [(each.type_url, each.name) for each in changes if each.entry is None],
                )
                cursor.executemany(
                    "INSERT OR REPLACE INTO resource VALUES (?, ?, ?, ?, ?, ?)",
                    [_row(each.entry) for each in changes if each.entry is not None],
                )
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def close(self) -> None:
        """Close the file, after a write that is under way: its thread outlives the task that waited for it."""
        with self._in_use:
            self._connection.close()


class _UnreadableError(Exception):
    pass


def _row(entry: Entry) -> tuple[str, str, int, str, bytes, bytes]:
    resource = entry.resource
    checksum = _checksum(entry.type_url, resource)
    return entry.type_url, resource.name, int(entry.listed), resource.version, resource.body, checksum


def _read(connection: sqlite3.Connection) -> Iterable[Entry]:
    rows = connection.execute("SELECT type_url, name, listed, version, body, checksum FROM resource")
    for type_url, name, listed, version, body, checksum in rows:
        resource = Resource(name, version, body)
        if checksum != _checksum(type_url, resource):
            raise _UnreadableError(f"the checksum of {type_url} {name!r} does not match")
        yield Entry(type_url, bool(listed), resource)
