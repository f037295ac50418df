"""The last-known-good store survives what disks do."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import pytest

from hostmesh_agent.cache import SPARE, Cache, Change, Entry
from hostmesh_api.delta import Resource
from hostmesh_api.origin import Origin

ENTRY = Entry("type", True, Resource("name", "1", b"body"))
FILE = "last-known-good.sqlite"
ORIGIN = Origin("aa", 7, "00")


def put(entry: Entry) -> Change:
    return Change(entry.type_url, entry.resource.name, entry)


def written(directory: Path) -> None:
    cache = Cache(directory)
    cache.write([put(ENTRY)])
    cache.close()


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    written(tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    assert cache.entries() == (ENTRY,)
    cache.write([Change("type", "name", None)])
    cache.close()
    cache = Cache(tmp_path / "cache")
    assert cache.entries() == ()
    cache.close()


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    written(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache" / FILE).stat().st_mode & 0o777 == 0o600


def test_a_batch_is_all_or_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    broken = Entry("type", True, Resource("other", "1", None))  # type: ignore[arg-type] # what must not half-succeed
    with pytest.raises((sqlite3.Error, TypeError)):
        cache.write([put(ENTRY), put(broken)])
    cache.close()
    cache = Cache(tmp_path)
    assert cache.entries() == ()
    cache.close()


def test_closing_waits_for_a_write_in_another_thread_and_refuses_later_ones(tmp_path: Path) -> None:
    many = [put(Entry("type", True, Resource(f"name-{number}", "1", b"body" * 1000))) for number in range(5000)]
    cache = Cache(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        writes = [threads.submit(cache.write, many) for _ in range(8)]
        wait(writes[:1])
        cache.close()
    assert {type(each.exception()) for each in writes} <= {type(None), sqlite3.ProgrammingError}
    cache = Cache(tmp_path)
    assert len(cache.entries()) == 5000
    cache.close()


@pytest.mark.parametrize("damage", ["garbage", "flipped", "newer"])
def test_what_cannot_be_read_is_set_aside_and_said(tmp_path: Path, damage: str) -> None:
    written(tmp_path)
    (tmp_path / SPARE).unlink()
    if damage == "garbage":
        (tmp_path / FILE).write_bytes(b"not a database, by far not one" * 100)
    else:
        connection = sqlite3.connect(tmp_path / FILE)
        connection.execute("UPDATE resource SET body=x'00'" if damage == "flipped" else "PRAGMA user_version=99")
        connection.commit()
        connection.close()
    cache = Cache(tmp_path)
    assert cache.entries() == ()
    assert FILE in cache.lost
    assert (tmp_path / f"{FILE}.unreadable").exists()
    cache.write([put(ENTRY)])
    cache.close()
    cache = Cache(tmp_path)
    assert (cache.entries(), cache.lost) == ((ENTRY,), "")
    cache.close()


def test_a_file_that_somebody_else_has_locked_is_read_as_it_is_and_not_set_aside(tmp_path: Path) -> None:
    written(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as looks:
        looks.execute("PRAGMA locking_mode = EXCLUSIVE")
        looks.execute("BEGIN EXCLUSIVE")
        cache = Cache(tmp_path)
        assert cache.entries() == (ENTRY,)
        assert not cache.lost
        cache.close()
    assert not list(tmp_path.glob("*.unreadable"))


def origin_in(directory: Path) -> Origin | None:
    cache = Cache(directory)
    cache.close()
    return cache.origin()


def test_the_origin_is_kept_with_what_it_is_of(tmp_path: Path) -> None:
    assert origin_in(tmp_path) is None
    cache = Cache(tmp_path)
    cache.write([put(ENTRY)], ORIGIN)
    cache.close()
    assert origin_in(tmp_path) == ORIGIN
    cache = Cache(tmp_path)
    cache.write([])
    cache.close()
    assert origin_in(tmp_path) is None


@pytest.mark.parametrize(
    "damage", ["UPDATE origin SET text = 'aa/1/00'", "UPDATE origin SET text = x'00'", "DROP TABLE origin"]
)
def test_an_origin_that_is_damaged_or_missing_is_not_known_and_the_rest_is_used(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    cache.write([put(ENTRY)], ORIGIN)
    cache.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as database, database:
        database.execute(damage)
    cache = Cache(tmp_path)
    assert (cache.origin(), cache.entries()) == (None, (ENTRY,))
    cache.write([], ORIGIN)
    cache.close()
    assert origin_in(tmp_path) == ORIGIN


def test_the_spare_copy_is_older_than_what_was_heard_so_its_origin_is_not_known(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write([put(ENTRY)], ORIGIN)
    cache.close()
    (tmp_path / FILE).write_bytes(b"damage" * 1000)
    cache = Cache(tmp_path)
    assert (cache.origin(), cache.entries()) == (None, (ENTRY,))
    cache.close()
