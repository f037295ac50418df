"""A store that is not what its own history led to begins another one, and hosts are told so."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hostmesh_api.origin import Origin
from hostmesh_controller.ancestry import Ancestry
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.store import Delete, Put, Store
from hostmesh_controller.store.sqlite import open_store

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def key(number: int) -> ObjectKey:
    return ObjectKey("Service", "default", f"s{number}")


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    store = open_store(path / "store.sqlite")
    try:
        yield store
    finally:
        store.close()


def put_back(path: Path, kept: bytes) -> None:
    for each in path.glob("store.sqlite*"):
        each.unlink()
    (path / "store.sqlite").write_bytes(kept)


class Told:
    """A controller's word to its hosts."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ancestry = Ancestry(store, store.revision, self._say, lambda: NOW)
        self.renewed = -1

    def _say(self, origin_of: object) -> None:
        assert callable(origin_of)
        self._origin_of = origin_of
        self.renewed += 1

    def origin(self) -> Origin:
        found = self._origin_of(self.store.revision())
        assert isinstance(found, Origin)
        return found

    def write(self, number: int) -> Origin:
        self.store.commit([Put(key(number), {"n": number})], actor="ann", now=NOW)
        return self.origin()


async def of(store: Store) -> Told:
    told = Told(store)
    await told.ancestry.open()
    return told


def actions(store: Store) -> list[str]:
    return [each.action for each in store.audit() if each.key.kind == "Store"]


async def test_a_store_that_only_commits_have_changed_keeps_its_lineage(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        told = await of(store)
        for number in range(3):
            told.write(number)
        store.commit([Delete(key(0)), Put(key(1), {"n": 9})], actor="ann", now=NOW)
        before = told.origin()
    with opened(tmp_path) as store:
        assert (await of(store)).origin() == before
        assert actions(store) == []


async def test_two_stores_have_two_lineages(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with opened(tmp_path) as one, opened(tmp_path / "other") as other:
        assert (await of(one)).origin().lineage != (await of(other)).origin().lineage


async def test_a_store_that_has_lost_objects_by_another_way_begins_a_lineage_and_says_so(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        told = await of(store)
        before = [told.write(number) for number in range(3)][-1]
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as database, database:
        database.execute("DELETE FROM objects WHERE name = 's1'")
    with opened(tmp_path) as store:
        after = (await of(store)).origin()
        assert after.lineage != before.lineage
        assert after.revision == before.revision
        (said,) = [each for each in store.audit() if each.key.kind == "Store"]
        assert (said.action, said.after) == ("store.altered", {"written": 3, "found": 2})
    with opened(tmp_path) as store:
        assert (await of(store)).origin() == after, "it is said once"


async def test_a_host_that_was_told_more_than_there_is_shows_that_the_store_was_put_back(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        told = await of(store)
        backup = told.write(0)
    kept = (tmp_path / "store.sqlite").read_bytes()
    with opened(tmp_path) as store:
        told = await of(store)
        newest = [told.write(number) for number in range(1, 5)][-1]
    put_back(tmp_path, kept)
    with opened(tmp_path) as store:
        told = await of(store)
        await told.ancestry.told("h0", str(backup))
        assert told.renewed == 0, "a host that was away has heard what this store led to"
        await told.ancestry.told("h1", str(newest))
        assert told.renewed == 1
        assert told.origin().lineage != newest.lineage
        await told.ancestry.told("h2", str(newest))
        assert actions(store) == ["store.set-back"], "it is told once"


@pytest.mark.parametrize(
    "claim", ["", "x" * 10_000, "{0.lineage}/99/{0.proof}", "{0.lineage}/99/00", "aa/99/{0.proof}"]
)
async def test_no_host_can_make_up_that_it_was_told_more(tmp_path: Path, claim: str) -> None:
    with opened(tmp_path) as store:
        told = await of(store)
        newest = told.write(0)
        await told.ancestry.told("thief", claim.format(newest))
        await told.ancestry.told("thief", str(newest))
        assert told.renewed == 0
        assert actions(store) == []
