"""The cold copy on disk: pages of all that this host may call, for the time when the controller is away.

One SQLite file beside the last-known-good configuration. Nothing of it is in memory: a page is read when a name of it
is asked for. `lead` finds the page of a name that programs say; cluster names tell their bucket themselves. Each page
has a checksum. A page that does not match is left out, a file that cannot be read is set aside: both come again from
the controller. Commits are not flushed one by one: what a power cut takes is the newest pages, never the file.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Final

import structlog

from hostmesh_api.cold import CONFIG, ENDPOINTS, bucket_of, decode_page, page_name
from hostmesh_api.delta import Resource
from hostmesh_api.v1.hostmesh_pb2 import ColdContent, ColdResource, ColdService

FORMAT: Final = 1
"""`PRAGMA user_version` of the file; another one is set aside."""
FILE: Final = "cold-copy.sqlite"
_SCHEMA: Final = """
CREATE TABLE page (
    name TEXT PRIMARY KEY, version TEXT NOT NULL, services INTEGER NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE lead (host INTEGER NOT NULL, page TEXT NOT NULL, PRIMARY KEY (host, page)) WITHOUT ROWID;
CREATE INDEX lead_by_page ON lead (page);
"""
_CACHE_KIB: Final = 256
"""Of SQLite's own; its usual 2 MB would be there for ever after the first synchronization."""

_log = structlog.get_logger(__name__)


class ColdCopyError(Exception):
    """The copy could not be written; what was there is unharmed."""


class ColdCopy:
    """The pages of one host. Reads come from the event loop, writes from one thread at a time."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / FILE
        self._max_bytes = max_bytes
        self._in_use = threading.Lock()
        self.left_out = frozenset[str]()
        """Pages that came and for which there was no room."""
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            _log.error("the cold copy is not readable and was set aside", path=str(self._path), reason=str(error))
            self._set_aside()
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=1.0, check_same_thread=False, isolation_level=None)
        try:
            self._path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            connection.execute("PRAGMA wal_autocheckpoint=64")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")
            elif version != FORMAT:
                raise sqlite3.DatabaseError(f"format {version} is not the one this agent writes ({FORMAT})")
            connection.execute("SELECT count(*) FROM page").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            path = self._path.with_name(self._path.name + suffix)
            if path.exists():
                path.replace(path.with_name(path.name + ".unreadable"))

    def versions(self) -> Mapping[str, str]:
        """Return name to version of the pages that are whole; others are forgotten, so that they come again."""
        found: dict[str, str] = {}
        broken: list[str] = []
        with self._in_use:
            try:
                for name, version, body, checksum in self._connection.execute(
                    "SELECT name, version, body, checksum FROM page"
                ):
                    if checksum == _checksum(name, version, body):
                        found[name] = version
                    else:
                        broken.append(name)
                for name in broken:
                    _log.error("a page of the cold copy is damaged and comes again", page=name)
                    self._connection.execute("DELETE FROM page WHERE name=?", (name,))
            except sqlite3.DatabaseError as error:
                _log.error("the cold copy is not readable and was set aside", path=str(self._path), reason=str(error))
                self._connection.close()
                self._set_aside()
                self._connection = self._connect()
                return {}
        return found

    def size(self) -> tuple[int, int]:
        """Return how many services are in the copy, and the bytes of its pages."""
        with self._in_use, closing(self._connection.cursor()) as cursor:
            (services, size) = cursor.execute("SELECT sum(services), sum(length(body)) FROM page").fetchone()
        return services or 0, size or 0

    def write(self, pages: Iterable[Resource], removed: Iterable[str]) -> None:
        """Take pages: all of them or none.

        What would make the copy larger than it may be is left out, and is in `left_out`.

        Raises:
            ColdCopyError: the disk is full or fails.
        """
        gone, came = tuple(removed), tuple(pages)
        try:
            with self._in_use, closing(self._connection.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    left_out = self._write(cursor, came, gone)
                except BaseException:
                    cursor.execute("ROLLBACK")
                    raise
                cursor.execute("COMMIT")
        except sqlite3.Error as error:
            raise ColdCopyError(str(error)) from error
        self.left_out = (self.left_out - {each.name for each in came} - set(gone)) | left_out

    def _write(self, cursor: sqlite3.Cursor, pages: Iterable[Resource], removed: Iterable[str]) -> frozenset[str]:
        left_out: set[str] = set()
        for name in removed:
            _forget(cursor, name)
        for page in pages:
            _forget(cursor, page.name)
            try:
                content = decode_page(page.body)
            except ValueError as error:
                _log.error("a page of the cold copy is none", page=page.name, reason=str(error))
                continue
            (size,) = cursor.execute("SELECT coalesce(sum(length(body)), 0) FROM page").fetchone()
            if size + len(page.body) > self._max_bytes:
                left_out.add(page.name)
                continue
            checksum = _checksum(page.name, page.version, page.body)
            row = (page.name, page.version, len(content.services), page.body, checksum)
            cursor.execute("INSERT INTO page VALUES (?, ?, ?, ?, ?)", row)
            hosts = {host for service in content.services for host in service.hosts}
            hosts |= {name for service in content.services for each in service.clusters for name in each.names}
            leads = [(_key(host), page.name) for host in hosts if not host.startswith("outbound|")]
            cursor.executemany("INSERT OR IGNORE INTO lead VALUES (?, ?)", leads)
        return frozenset(left_out)

    def services(self, host: str) -> Iterator[ColdService]:
        """Yield the services that programs may mean by a name or an address."""
        for content in self._led_to(host):
            yield from (each for each in content.services if host in each.hosts)

    def cluster(self, name: str, hostname: str) -> ColdResource | None:
        """Return a cluster; `hostname` is that of its service, "" where the name does not tell."""
        contents = [self._page(page_name(CONFIG, bucket_of(hostname)))] if hostname else self._led_to(name)
        clusters = (each for page in contents if page for service in page.services for each in service.clusters)
        return next((each for each in clusters if name in each.names), None)

    def endpoints(self, name: str, hostname: str) -> ColdResource | None:
        """Return the endpoints of a cluster, as `cluster` does."""
        names = [page_name(ENDPOINTS, bucket_of(hostname))] if hostname else self._endpoint_pages(name)
        contents = (self._page(each) for each in names)
        found = (each for page in contents if page for each in page.endpoints)
        return next((each for each in found if name in each.names), None)

    def _endpoint_pages(self, name: str) -> list[str]:
        return [each.replace(CONFIG, ENDPOINTS, 1) for each in self._pages_of(name)]

    def _led_to(self, host: str) -> list[ColdContent]:
        pages = map(self._page, self._pages_of(host))
        return [page for page in pages if page is not None]

    def _pages_of(self, host: str) -> list[str]:
        try:
            with self._in_use, closing(self._connection.cursor()) as cursor:
                return [page for (page,) in cursor.execute("SELECT page FROM lead WHERE host=?", (_key(host),))]
        except sqlite3.Error as error:
            _log.error("the cold copy could not be read", reason=str(error))
            return []

    def _page(self, name: str) -> ColdContent | None:
        try:
            with self._in_use, closing(self._connection.cursor()) as cursor:
                row = cursor.execute("SELECT version, body, checksum FROM page WHERE name=?", (name,)).fetchone()
            if row is None:
                return None
            version, body, checksum = row
            if checksum != _checksum(name, version, body):
                raise ValueError("its checksum does not match")
            return decode_page(body)
        except (sqlite3.Error, ValueError) as error:
            _log.error("a page of the cold copy could not be read", page=name, reason=str(error))
            return None

    def close(self) -> None:
        with self._in_use:
            self._connection.close()


def _forget(cursor: sqlite3.Cursor, name: str) -> None:
    cursor.execute("DELETE FROM page WHERE name=?", (name,))
    cursor.execute("DELETE FROM lead WHERE page=?", (name,))


def _key(host: str) -> int:
    """Return a number that stands for a name: an index of numbers is a quarter of one of names."""
    return int.from_bytes(blake2b(host.encode(), digest_size=8).digest(), "big", signed=True)


def _checksum(name: str, version: str, body: bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for part in (name.encode(), version.encode(), body):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
