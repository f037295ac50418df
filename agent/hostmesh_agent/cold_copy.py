"""The cold copy on disk: pages of all that this host may call, for the time when the controller is away.

One SQLite file beside the last-known-good configuration. Nothing of it is in memory: a page is read when a name of it
is asked for. `lead` finds the page of a name that programs say; cluster names tell their bucket themselves. Each page
has a checksum. A page that does not match is left out, a file that cannot be read is set aside: both come again from
the controller. Commits are not flushed one by one: what a power cut takes is the newest pages, never the file. A disk
that is full, read-only or fails harms nothing that is there: it is read, and writing is tried again.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import cold_file, sqlite_files
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.cache_rows import UnreadableError
from hostmesh_api.cold import CONFIG, ENDPOINTS, bucket_of, decode_page, page_name
from hostmesh_api.delta import Resource
from hostmesh_api.v1.hostmesh_pb2 import ColdContent, ColdResource, ColdService

FILE: Final = "cold-copy.sqlite"

_log = structlog.get_logger(__name__)


class ColdCopyError(Exception):
    """The copy could not be written; what was there is unharmed."""


class ColdCopy:
    """The pages of one host. Reads come from the event loop, writes from one thread at a time."""

    def __init__(self, directory: Path, max_bytes: int, alarms: Alarms | None = None) -> None:
        """Open the copy in `directory`, made if missing; its pages have `max_bytes` at most. It raises nothing."""
        self._path = directory / FILE
        self._max_bytes = max_bytes
        self._alarms = Alarms() if alarms is None else alarms
        self._in_use = threading.Lock()
        self._closed = False
        self._damage: Exception | None = None
        """Why the file is to be set aside before the controller is told of it again."""
        self.left_out = frozenset[str]()
        """Pages that came and for which there was no room."""
        self.is_writable = False
        """Whether the file is open for writing; what the disk says of a write is another matter."""
        self._connection: sqlite3.Connection | None = None
        self._open()

    def _open(self) -> None:
        """Open the file, or what can be read of it where the disk refuses."""
        try:
            self._open_to_write()
        except (sqlite3.Error, UnreadableError, OSError) as error:
            self._not_written(error)
            if self._connection is None:
                self._connection = cold_file.as_it_is(self._path)
        else:
            self._alarms.down("cold.not-written")

    def _open_to_write(self) -> None:
        """Open the file for writing; a damaged one is set aside, and a new one begun.

        Raises:
            sqlite3.Error, UnreadableError, OSError: the disk refuses.
        """
        try:
            if self._damage is not None:
                raise self._damage
            connection = cold_file.connect(self._path)
        except (sqlite3.Error, UnreadableError, OSError) as error:
            if cold_file.is_refusal(error):
                raise
            # It stays so until it is out of the way.
            self._damage = error
            self._drop()
            text = f"{self._path}: {error}; it is set aside and comes again from the controller"
            self._alarms.up("cold.lost", text)
            sqlite_files.set_aside(self._path)
            self._damage = None
            connection = cold_file.connect(self._path)
        self._drop()
        self._connection, self.is_writable = connection, True

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self.is_writable = None, False

    def _not_written(self, error: Exception) -> None:
        text = f"{self._path}: {error}: while the controller is away new services may be unknown here"
        self._alarms.up("cold.not-written", text)

    def _reading(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("it is not open")
        return self._connection

    def versions(self) -> Mapping[str, str]:
        """Return name to version of the pages that are whole; others are forgotten, so that they come again.

        There are none where nothing can be read. A file that is damaged is set aside.
        """
        with self._in_use:
            if self._closed:
                return {}
            if self._damage is not None or not self.is_writable:
                self._open()
            if self._connection is None:
                return {}
            found: dict[str, str] = {}
            broken: list[object] = []
            try:
                for name, version, body, checksum in self._connection.execute(
                    "SELECT name, version, body, checksum FROM page"
                ):
                    if _is_whole(name, version, body, checksum):
                        found[name] = version
                    else:
                        broken.append(name)
            except sqlite3.Error as error:
                if cold_file.is_refusal(error):
                    self._not_written(error)
                else:
                    self._damage = error
                    self._open()
                return {}
            self._forget_broken(broken)
        return found

    def _forget_broken(self, names: Iterable[object]) -> None:
        """Forget pages that are damaged. Where it fails they are not used, and come again, all the same."""
        for name in names:
            _log.error("a page of the cold copy is damaged and comes again", page=str(name))
            try:
                self._reading().execute("DELETE FROM page WHERE name=?", (name,))
            except sqlite3.Error as error:
                _log.error("a damaged page of the cold copy could not be removed", page=str(name), reason=str(error))

    def size(self) -> tuple[int, int]:
        """Return how many services are in the copy, and the bytes of its pages; nothing, where it cannot be read."""
        try:
            with self._in_use, closing(self._reading().cursor()) as cursor:
                (services, size) = cursor.execute(
                    # What is damaged may be no number.
                    "SELECT CAST(sum(services) AS INTEGER), sum(length(body)) FROM page"
                ).fetchone()
        except sqlite3.Error as error:
            _log.error("the size of the cold copy is not known", reason=str(error))
            return 0, 0
        return services or 0, size or 0

    def write(self, pages: Iterable[Resource], removed: Iterable[str]) -> None:
        """Take pages: all of them or none.

        What would make the copy larger than it may be is left out, and is in `left_out`.

        Raises:
            ColdCopyError: the disk is full or fails.
        """
        gone, came = tuple(removed), tuple(pages)
        try:
            with self._in_use:
                left_out = self._write_all(came, gone)
        except (sqlite3.Error, UnreadableError, OSError) as error:
            if cold_file.is_damage(error):
                self._damage = error
            if not self._closed:
                self._not_written(error)
            raise ColdCopyError(str(error)) from error
        self._alarms.down("cold.not-written")
        if came:
            self._alarms.down("cold.lost")
        self.left_out = (self.left_out - {each.name for each in came} - set(gone)) | left_out

    def _write_all(self, came: Iterable[Resource], gone: Iterable[str]) -> frozenset[str]:
        if self._closed:
            raise sqlite3.ProgrammingError("the cold copy was closed")
        if not self.is_writable:
            self._open_to_write()
        connection = self._reading()
        with closing(connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                left_out = self._write(cursor, came, gone)
                cursor.execute("COMMIT")
            except BaseException:
                # SQLite has ended it by itself where the disk is full.
                if connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise
        return left_out

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
            with self._in_use, closing(self._reading().cursor()) as cursor:
                pages = cursor.execute("SELECT page FROM lead WHERE host=?", (_key(host),))
                return [page for (page,) in pages if isinstance(page, str)]
        except sqlite3.Error as error:
            _log.error("the cold copy could not be read", reason=str(error))
            return []

    def _page(self, name: str) -> ColdContent | None:
        try:
            with self._in_use, closing(self._reading().cursor()) as cursor:
                row = cursor.execute("SELECT version, body, checksum FROM page WHERE name=?", (name,)).fetchone()
            if row is None:
                return None
            version, body, checksum = row
            if not _is_whole(name, version, body, checksum):
                raise ValueError("its checksum does not match")
            return decode_page(body)
        except (sqlite3.Error, ValueError) as error:
            _log.error("a page of the cold copy could not be read", page=name, reason=str(error))
            return None

    def close(self) -> None:
        """Close the file, after a write that is under way: its thread outlives the task that waited for it."""
        with self._in_use:
            self._closed = True
            self._drop()


def _forget(cursor: sqlite3.Cursor, name: str) -> None:
    cursor.execute("DELETE FROM page WHERE name=?", (name,))
    cursor.execute("DELETE FROM lead WHERE page=?", (name,))


def _key(host: str) -> int:
    """Return a number that stands for a name: an index of numbers is a quarter of one of names."""
    return int.from_bytes(blake2b(host.encode(), digest_size=8).digest(), "big", signed=True)


def _is_whole(name: object, version: object, body: object, checksum: object) -> bool:
    """Tell whether a row is as it was written; what is damaged may be of other types."""
    if not isinstance(name, str) or not isinstance(version, str) or not isinstance(body, bytes):
        return False
    return checksum == _checksum(name, version, body)


def _checksum(name: str, version: str, body: bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for part in (name.encode(), version.encode(), body):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
