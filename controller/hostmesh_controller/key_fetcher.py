"""Fetches the keys that RequestAuthentications name, keeps the last good ones in the store, and tells of changes."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from hostmesh_controller.key_sets import (
    REFRESH,
    Answered,
    KeysError,
    KeySet,
    KeySets,
    Want,
    address_in,
    failed,
    is_discovery,
    missing,
    record_of,
    restored,
    succeeded,
    wanted,
)
from hostmesh_controller.load import Problem
from hostmesh_controller.model import ApiObject
from hostmesh_controller.model.jwks import MAX_BYTES
from hostmesh_controller.outbound_http import FetchError, OutboundHttp
from hostmesh_controller.store import JwksRecord, StoreError

AT_ONCE: Final = 8
"""URLs that are asked at the same time."""
PREFETCH_S: Final = 5.0
"""How long an apply waits for keys."""
MAX_CANDIDATES: Final = 1000
"""Sets that are kept for objects that may be refused yet."""
IDLE_S: Final = 3600.0

_log = structlog.stdlib.get_logger(__name__)


class JwksStore(Protocol):
    """What the fetcher needs of the store."""

    def jwks(self) -> list[JwksRecord]: ...
    def put_jwks(self, record: JwksRecord) -> None: ...
    def drop_jwks(self, urls: Iterable[str]) -> None: ...


class KeyFetcher:
    """Keeps the keys of all wanted URLs fresh. For one event loop.

    Args:
        http: asks.
        store: keeps.
        now: the time.
        refresh: how long what was fetched is not asked for again.
    """

    def __init__(
        self, http: OutboundHttp, store: JwksStore, now: Callable[[], datetime], refresh: timedelta = REFRESH
    ) -> None:
        self._http = http
        self._store = store
        self._now = now
        self._refresh = refresh
        self._sets = KeySets()
        self._busy: set[str] = set()
        self._unsaved: set[str] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._wake = asyncio.Event()
        self._changed: Callable[[Mapping[str, str]], None] = lambda _: None
        self._told: Mapping[str, str] = {}

    def follow(self, changed: Callable[[Mapping[str, str]], None]) -> None:
        """Have all sets told, by URL, whenever one is another."""
        self._changed = changed

    async def open(self, objects: Iterable[ApiObject]) -> Mapping[str, str]:
        """Return the keys that the store has for objects.

        Raises:
            StoreError: it cannot be read.
        """
        records = await asyncio.to_thread(self._store.jwks)
        wants, now = wanted(objects), self._now()
        self._sets.known = {each.url: restored(each, now) for each in records}
        gone = self._sets.want(wants)
        if gone:
            await asyncio.to_thread(self._store.drop_jwks, gone)
        self._told = self._sets.texts()
        return self._told

    def want(self, objects: Iterable[ApiObject]) -> None:
        """Take note of what all objects need now."""
        before = set(self._sets.known)
        self._unsaved |= self._sets.want(wanted(objects)) | (self._sets.known.keys() - before)
        self._tell()
        self._wake.set()

    def states(self) -> Sequence[tuple[KeySet, Want]]:
        """Return what is known of each wanted URL, in their order."""
        return [(each, self._sets.wants[url]) for url, each in sorted(self._sets.known.items())]

    async def prefetch(self, objects: Iterable[ApiObject]) -> list[Problem]:
        """Fetch what objects need that may be applied in a moment, so that they begin with keys; return what fails."""
        objects = tuple(objects)
        wants = wanted(objects)
        errors = {url: f"not within {PREFETCH_S:g} s" for url in wants if not self._known(url).text}

        async def fetch(url: str) -> None:
            found = await self._asked(wants[url], self._known(url))
            errors[url] = found.error
            if len(self._sets.candidates) < MAX_CANDIDATES:
                self._sets.candidates[url] = found
            self._take(found)

        try:
            async with asyncio.timeout(PREFETCH_S), asyncio.TaskGroup() as group:
                for url in errors:
                    group.create_task(fetch(url))
        except TimeoutError:
            pass
        return missing(objects, {url: error for url, error in errors.items() if error})

    async def run(self) -> None:
        """Ask for what is due, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for url in self._sets.due(self._now()):
                    if url not in self._busy:
                        self._busy.add(url)
                        group.create_task(self._one(url))
                await self._save()
                await self._pause()

    async def _save(self) -> None:
        """Bring into the store what is not there as it is here."""
        urls, self._unsaved = self._unsaved, set()
        for url in sorted(urls):
            found = self._sets.known.get(url)
            record = None if found is None else record_of(found)
            try:
                if record is None:
                    await asyncio.to_thread(self._store.drop_jwks, [url])
                else:
                    await asyncio.to_thread(self._store.put_jwks, record)
            except StoreError as error:
                # The keys count all the same; a controller that starts anew would have to fetch them.
                _log.error("keys were not stored", url=_shown(url), reason=str(error))

    async def _pause(self) -> None:
        waiting = [each.next_at for url, each in self._sets.known.items() if url not in self._busy and each.next_at]
        pause_s = min(((each - self._now()).total_seconds() for each in waiting), default=IDLE_S)
        try:
            async with asyncio.timeout(max(pause_s, 0)):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _one(self, url: str) -> None:
        try:
            want = self._sets.wants.get(url)
            if want is not None:
                self._take(await self._asked(want, self._known(url)))
        finally:
            self._busy.discard(url)
            self._wake.set()

    def _known(self, url: str) -> KeySet:
        return self._sets.known.get(url) or KeySet(url)

    async def _asked(self, want: Want, was: KeySet) -> KeySet:
        """Return what is known after one attempt."""
        try:
            async with self._turns:
                answer = await self._answer(want, was)
            return succeeded(was, answer, self._now(), self._refresh)
        except (FetchError, KeysError) as error:
            return failed(was, str(error), self._now(), self._refresh)
        except Exception:
            # Whatever a server says, it must not end the controller.
            _log.exception("keys could not be fetched", url=_shown(want.url))
            return failed(was, "the controller failed; its log says how", self._now(), self._refresh)

    async def _answer(self, want: Want, was: KeySet) -> Answered:
        url = want.url
        if is_discovery(url):
            told = await self._http.get(url, timeout_s=want.timeout_s, max_bytes=MAX_BYTES)
            url = address_in(told.body or b"")
        etag = was.etag if was.text and was.source == url else ""
        found = await self._http.get(url, timeout_s=want.timeout_s, max_bytes=MAX_BYTES, etag=etag)
        return Answered(url, found.body, found.etag)

    def _take(self, found: KeySet) -> None:
        was = self._sets.known.get(found.url)
        if was is None:
            return  # nobody wants it any more
        self._sets.known[found.url] = found
        self._log(was, found)
        self._tell()
        if record_of(found) != record_of(was):
            self._unsaved.add(found.url)
            self._wake.set()

    def _tell(self) -> None:
        texts = self._sets.texts()
        if texts != self._told:
            self._told = texts
            self._changed(texts)

    def _log(self, was: KeySet, found: KeySet) -> None:
        if found.error and (found.error != was.error or found.state != was.state):
            _log.warning("keys cannot be fetched", url=_shown(found.url), state=found.state, reason=found.error)
        elif not found.error and (was.error or found.text != was.text):
            _log.info("keys", url=_shown(found.url), keys=list(found.keys))


def _shown(url: str) -> str:
    """Return a URL without its query, which may be a secret of somebody."""
    return url.partition("?")[0]
