"""The rows of the last-known-good store, and what an error of SQLite means. Reads a connection; opens none."""

import errno
import sqlite3
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from hostmesh_api.delta import Resource
from hostmesh_api.origin import Origin, parse_origin

FORMAT: Final = 1
"""`PRAGMA user_version` of the file; another one is set aside."""

SCHEMA: Final = """
CREATE TABLE resource (
    type_url TEXT NOT NULL, name TEXT NOT NULL, listed INTEGER NOT NULL,
    version TEXT NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL,
    PRIMARY KEY (type_url, name)
) WITHOUT ROWID
"""

ORIGIN: Final = """
CREATE TABLE IF NOT EXISTS origin (
    id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL, checksum BLOB NOT NULL
)
"""
"""From which state of the controller's store the resources are. An earlier agent of this format did not write it, and
does not mind it."""

_OF_THE_DISK: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
        # Another process has it open: somebody who looks.
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    }
)
_OF_THE_SYSTEM: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE}
)


class UnreadableError(Exception):
    """The content is not what an agent of this format wrote."""


class NewerError(UnreadableError):
    """It is another format's."""


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


def plain_code(error: Exception) -> int:
    """Return SQLite's code of an error, 0 for none. Extended codes hold the plain one in their low byte."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def blames_disk(error: Exception) -> bool:
    """Tell whether the content may be good, and the disk, a limit of this process or another one is in the way."""
    if isinstance(error, sqlite3.Error):
        return plain_code(error) in _OF_THE_DISK
    return isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM


def row(entry: Entry) -> tuple[str, str, int, str, bytes, bytes]:
    resource = entry.resource
    checksum = _checksum(entry.type_url, resource)
    return entry.type_url, resource.name, int(entry.listed), resource.version, resource.body, checksum


def read(connection: sqlite3.Connection) -> tuple[Entry, ...]:
    """Return all rows.

    Raises:
        UnreadableError: one is damaged, or the format is another.
        sqlite3.Error: SQLite cannot make sense of the file.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != FORMAT:
        raise NewerError(f"format {version} is not the one this agent writes ({FORMAT})")
    rows = connection.execute("SELECT type_url, name, listed, version, body, checksum FROM resource")
    return tuple(_entry(*each) for each in rows)


def read_origin(connection: sqlite3.Connection) -> Origin | None:
    """Return the origin of the rows; None: it is not known, or damaged."""
    try:
        found = connection.execute("SELECT text, checksum FROM origin").fetchone()
    except sqlite3.OperationalError:
        return None  # the file is of an agent that did not write it
    if found is None or not isinstance(found[0], str) or found[1] != _sum(found[0].encode()):
        return None
    return parse_origin(found[0])


def write_origin(cursor: sqlite3.Cursor, origin: Origin | None) -> None:
    """Replace the origin of the rows, in the caller's transaction."""
    text = "" if origin is None else str(origin)
    cursor.execute("INSERT OR REPLACE INTO origin VALUES (1, ?, ?)", (text, _sum(text.encode())))


def _entry(type_url: object, name: object, listed: object, version: object, body: object, checksum: object) -> Entry:
    kinds = [isinstance(each, str) for each in (type_url, name, version)] + [isinstance(body, bytes)]
    if not all(kinds):
        raise UnreadableError(f"a row has values of other types ({name!r})")
    resource = Resource(str(name), str(version), bytes(body))  # type: ignore[call-overload] # looked at above
    if checksum != _checksum(str(type_url), resource):
        raise UnreadableError(f"the checksum of {type_url} {name!r} does not match")
    return Entry(str(type_url), bool(listed), resource)


def _checksum(type_url: str, resource: Resource) -> bytes:
    return _sum(type_url.encode(), resource.name.encode(), resource.version.encode(), resource.body)


def _sum(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
