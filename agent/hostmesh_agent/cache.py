"""Last-known-good configuration on disk: what Envoy accepted, so that a reboot needs no controller.

One SQLite file: atomic by its write-ahead log, one transaction per batch. Each row carries a checksum of its own,
since SQLite does not notice a flipped bit in a value. Only root can read it (0600 in a directory of 0700): where there
is a gateway it holds the private keys of stored credentials. What cannot be read is set aside, never in the way: its
spare copy is used, which is a minute old at most, else the configuration is fetched again. A disk that is full or
read-only harms nothing that is there: it is read, and writing is tried again with each batch.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent.alarms import Alarms
from hostmesh_agent.cache_rows import (
    FORMAT,
    ORIGIN,
    SCHEMA,
    Change,
    Entry,
    NewerError,
    UnreadableError,
    blames_disk,
    read,
    read_origin,
    row,
    write_origin,
)
from hostmesh_agent.sqlite_files import copied, set_aside
from hostmesh_api.origin import Origin

__all__ = ["FORMAT", "Cache", "Change", "Entry"]

FILE: Final = "last-known-good.sqlite"
SPARE: Final = "spare.sqlite"
SPARE_AFTER_S: Final = 5.0
"""A configuration comes in many batches: a copy of the first alone would be of no use to a host."""
SPARE_EVERY_S: Final = 60.0

_log = structlog.get_logger(__name__)


class Cache:
    """The last-known-good store of one agent. Reads happen once, at start; writes come in batches from one thread."""

    def __init__(self, directory: Path, alarms: Alarms | None = None) -> None:
        self._directory = directory
        self._path = directory / FILE
        self._spare = directory / SPARE
        self._alarms = Alarms() if alarms is None else alarms
        self._in_use = threading.Lock()
        self._closed = False
        self._spared_at_s = -SPARE_EVERY_S
        self._sparing: threading.Timer | None = None
        self._entries: tuple[Entry, ...] = ()
        self._origin: Origin | None = None
        self.lost = ""
        """Why earlier content could not be used; empty when nothing was lost."""
        self._connection = self._open()
        self.is_copied = not self._is_spare_older()
        """Whether the spare copy has all that is in the file."""
        if not self.is_copied:
            # The agent before this one was killed before it could copy: what does not change is not written again.
            self._spare_soon()

    def _open(self) -> sqlite3.Connection | None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection, self._entries = _connect(self._path)
            self._origin = read_origin(connection)
        except (sqlite3.Error, UnreadableError, OSError) as error:
            if blames_disk(error):
                self._without_disk(error)
                return None
            return self._without_file(error)
        return connection

    def _without_disk(self, error: Exception) -> None:
        """Read what is there without writing, in memory: SQLite wants to write even where it only reads."""
        self._not_written(error)
        try:
            self._entries = _read_in_memory(self._path)
        except (sqlite3.Error, UnreadableError, OSError) as damage:
            self.lost = f"{self._path}: {damage}; and the disk refuses: {error}"
            _log.error("last-known-good configuration is not readable", path=str(self._path), reason=self.lost)

    def _without_file(self, error: Exception) -> sqlite3.Connection | None:
        _log.error("last-known-good configuration is not readable", path=str(self._path), reason=str(error))
        code = "cache.newer" if isinstance(error, NewerError) else "cache.lost"
        try:
            set_aside(self._path)
            with suppress(sqlite3.Error, UnreadableError, OSError):
                self._entries = _read_in_memory(self._spare)
            connection, _ = _connect(self._path)
        except (sqlite3.Error, UnreadableError, OSError) as refusal:
            self._not_written(refusal)
            connection = None
        if self._entries:
            self._alarms.up("cache.spare-used", f"{self._path}: {error}; it was set aside, {self._spare} is used")
            if connection is not None:
                with suppress(sqlite3.Error):
                    _write(connection, [Change(each.type_url, each.resource.name, each) for each in self._entries])
        else:
            self.lost = f"{self._path}: {error}; it was set aside and the configuration is fetched again"
            self._alarms.up(code, self.lost)
        return connection

    def entries(self) -> tuple[Entry, ...]:
        """Return what was on disk when the cache was opened."""
        return self._entries

    def origin(self) -> Origin | None:
        """Return from which state of the controller's store the entries are.

        None: it is not known. So it is of the spare copy: it is older, and what came since is no news.
        """
        return self._origin

    def write(self, changes: Sequence[Change], origin: Origin | None = None) -> None:
        """Make a batch durable, with the origin of all that is there then: all of it or none.

        Raises:
            sqlite3.Error: the disk is full or fails, or the cache was closed; what was there before is unharmed.
        """
        with self._in_use:
            try:
                _write(self._connected(), changes, origin)
            except sqlite3.ProgrammingError:
                raise
            except sqlite3.Error as error:
                self._not_written(error)
                raise
            self.is_copied = False
            for code in ("cache.not-written", "cache.lost", "cache.newer", "cache.spare-used"):
                self._alarms.down(code)
            self._spare_soon()

    def _connected(self) -> sqlite3.Connection:
        if self._closed:
            raise sqlite3.ProgrammingError("the cache was closed")
        if self._connection is None:
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._connection, _ = _connect(self._path)
            except (OSError, UnreadableError) as error:
                raise sqlite3.OperationalError(f"{self._path}: {error}") from error
        return self._connection

    def _is_spare_older(self) -> bool:
        """Whether the spare copy lacks what is in the file, and there is something to copy."""
        if not self._entries:
            return False
        try:
            copied_ns = self._spare.stat().st_mtime_ns
        except OSError:
            return True
        files = (self._path.with_name(self._path.name + each) for each in ("", "-wal"))
        return any(each.stat().st_mtime_ns > copied_ns for each in files if _size(each))

    def _spare_soon(self) -> None:
        """Copy the file when no batch is to be expected any more, and not all the time."""
        if self._sparing is None:
            wait_s = max(SPARE_AFTER_S, self._spared_at_s + SPARE_EVERY_S - time.monotonic())
            self._sparing = threading.Timer(wait_s, self._spare_now)
            self._sparing.daemon = True
            self._sparing.start()

    def _spare_now(self) -> None:
        with self._in_use:
            if self._sparing is not None and not self._closed:
                self._sparing = None
                self._keep_spare()

    def _keep_spare(self) -> None:
        """Copy the file. It may fail: then the old copy stays."""
        if self._connection is None:
            return
        self._spared_at_s = time.monotonic()
        draft = self._spare.with_name(f".{SPARE}.new")
        try:
            draft.unlink(missing_ok=True)
            draft.touch(mode=0o600)
            with closing(sqlite3.connect(draft)) as target:
                self._connection.backup(target)
                # One file alone: a copy has no write-ahead log.
                target.execute("PRAGMA journal_mode=DELETE")
            draft.replace(self._spare)
            self.is_copied = True
        except (sqlite3.Error, OSError) as error:
            _log.warning("spare copy of the configuration is not written", reason=str(error))
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _not_written(self, error: Exception) -> None:
        text = f"{self._path}: {error}: what runs goes on; a reboot now would bring back an older configuration"
        self._alarms.up("cache.not-written", text)

    def close(self) -> None:
        """Close the file, after a write that is under way: its thread outlives the task that waited for it."""
        with self._in_use:
            self._closed = True
            if self._sparing is not None:
                self._sparing.cancel()
                self._sparing = None
                self._keep_spare()
            if self._connection is not None:
                self._connection.close()
                if self.is_copied:
                    # Closing brings the log into the file, which is not newer for that.
                    with suppress(OSError):
                        os.utime(self._spare)


def _connect(path: Path) -> tuple[sqlite3.Connection, tuple[Entry, ...]]:
    """Open the file, made if missing, and read it.

    Raises:
        sqlite3.Error, OSError: the disk refuses, or it is no database.
        UnreadableError: it is another format's, or damaged.
    """
    # A new database is empty for as long as all of it is in its log.
    if path.exists() and not any(_size(path.with_name(path.name + each)) for each in ("", "-wal")):
        raise UnreadableError("it is empty")
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        # A gateway's private keys are among the resources: what is deleted is overwritten.
        connection.execute("PRAGMA secure_delete=ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(f"BEGIN; {SCHEMA}; PRAGMA user_version={FORMAT}; COMMIT;")
        if version in (0, FORMAT):
            connection.execute(ORIGIN)
        entries = read(connection)
    except BaseException:
        connection.close()
        raise
    return connection, entries


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_in_memory(path: Path) -> tuple[Entry, ...]:
    """Read a copy of the file, with the log that belongs to it; the file itself is not touched.

    Raises:
        sqlite3.Error, OSError, UnreadableError: as `_connect`.
    """
    if not path.exists():
        return ()
    with copied(path) as copy, closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        return read(connection)


def _write(connection: sqlite3.Connection, changes: Sequence[Change], origin: Origin | None = None) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        try:
            cursor.executemany(
                "DELETE FROM resource WHERE type_url=? AND name=?",
                [(each.type_url, each.name) for each in changes if each.entry is None],
            )
            cursor.executemany(
                "INSERT OR REPLACE INTO resource VALUES (?, ?, ?, ?, ?, ?)",
                [row(each.entry) for each in changes if each.entry is not None],
            )
            write_origin(cursor, origin)
            cursor.execute("COMMIT")
        except BaseException:
            # SQLite has ended it by itself where the disk is full.
            if connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
