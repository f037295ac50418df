"""The file: its mode, its migrations, many threads and processes, and kill -9."""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from hostmesh_controller.model import ObjectKey
from hostmesh_controller.store import Put, Store, StoreError, TokenRecord
from hostmesh_controller.store.migrations.versions import v0003_enrolments
from hostmesh_controller.store.sqlite import open_store
from hostmesh_controller.store.tables import UtcTime, metadata

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SOURCES = os.pathsep.join(path for path in sys.path if path)


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    store = open_store(path)
    try:
        yield store
    finally:
        store.close()


def run_sql(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": SOURCES}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_only_the_owner_may_read_the_files_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "mesh.db") as store:
            store.allocate_vips(["a"])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"mesh.db": 0o600, "mesh.db-wal": 0o600, "mesh.db-shm": 0o600}


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    path.touch(mode=0o644)
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_database_is_durable_and_checked(tmp_path: Path) -> None:
    store = open_store(tmp_path / "mesh.db")
    with store._engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    store.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_the_migrations_lead_to_the_tables_the_code_uses(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    with opened(path):
        pass
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        options = {"compare_type": lambda _c, _i, _m, _there, ours: None if not isinstance(ours, UtcTime) else False}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    with opened(path):
        pass
    run_sql(path, "UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"written by a newer hostmesh-controller .*9999.* knows up to \d{4}"):
        open_store(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    path.write_text("this is no database, but it is long enough to look at its header" * 20)
    with pytest.raises(StoreError, match="is not a hostmesh database"):
        open_store(path)


def test_a_place_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened: No such file or directory"):
        open_store(tmp_path / "gone" / "mesh.db")


def test_a_path_with_odd_characters_works(tmp_path: Path) -> None:
    odd = tmp_path / "a %s ?x=1&é#"
    odd.mkdir()
    with opened(odd / "mesh%.db") as store:
        assert store.revision() == 0
    assert (odd / "mesh%.db").exists()


def test_many_threads_commit_without_losing_a_change(tmp_path: Path) -> None:
    with opened(tmp_path / "mesh.db") as store:

        def work(index: int) -> int:
            key = ObjectKey("Host", "", f"h{index}")
            return store.commit([Put(key, {"n": index})], actor="t", now=NOW).revision

        with ThreadPoolExecutor(32) as pool:
            revisions = list(pool.map(work, range(200)))
        assert sorted(revisions) == list(range(1, 201))
        assert len(store.objects()) == 200
        assert {item.revision for item in store.objects()} == set(revisions)


def test_a_reader_sees_whole_commits_only(tmp_path: Path) -> None:
    keys = [ObjectKey("Host", "", f"h{index}") for index in range(20)]
    done = threading.Event()
    with opened(tmp_path / "mesh.db") as store:

        def read() -> int:
            seen = 0
            while not done.is_set():
                revision, found = store.snapshot()
                assert {item.revision for item in found} <= {revision}
                seen += 1
            return seen

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            for number in range(50):
                store.commit([Put(key, {"n": number}) for key in keys], actor="t", now=NOW)
            done.set()
            assert all(reader.result(timeout=30) > 0 for reader in readers)


REDEEM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from hostmesh_controller.store.sqlite import open_store

store = open_store(Path(sys.argv[1]))
now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(64) as pool:
    for digest in (bytes([number]) * 32 for number in range(5)):
        tries = [pool.submit(store.redeem_token, digest, now, f"{sys.argv[2]}-{index}") for index in range(64)]
        print(sum(each.result(timeout=60) is not None for each in tries))
store.close()
"""


def test_of_64_threads_in_each_of_several_processes_exactly_one_redeems_a_token(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    with opened(path) as store:
        for number in range(5):
            store.add_token(TokenRecord(f"t{number}", bytes([number]) * 32, NOW, NOW + timedelta(minutes=5)))
    processes = [start(REDEEM, str(path), str(number)) for number in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate(timeout=50)
        assert process.returncode == 0
        outputs.append([int(line) for line in output.split()])
    assert [sum(wins) for wins in zip(*outputs, strict=True)] == [1] * 5
    with opened(path) as store:
        assert all(token.redeemed_by for token in store.tokens())
        assert [record.action for record in store.audit()].count("token.redeem") == 5


OPEN = "import sys; from pathlib import Path; from hostmesh_controller.store.sqlite import open_store\n"
OPEN += "print('ready', flush=True); sys.stdin.readline(); open_store(Path(sys.argv[1])).close()"


def test_processes_that_create_the_database_together_do_not_disturb_each_other(tmp_path: Path) -> None:
    processes = [start(OPEN, str(tmp_path / "mesh.db")) for _ in range(5)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=50)
    assert [process.returncode for process in processes] == [0] * 5


def test_a_database_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    # Where a writer has a lock of a file without write-ahead log, SQLite refuses at once to give it one.
    maker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    maker.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_store, path)
        with pytest.raises(TimeoutError):
            opening.result(0.3)
        maker.execute("ROLLBACK")
        maker.close()
        opening.result(20).close()


WRITE = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.store import Put
from hostmesh_controller.store.sqlite import open_store

store = open_store(Path(sys.argv[1]))
now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
number = store.revision()
while True:
    number += 1
    changes = [Put(ObjectKey("Host", "", f"h{index}"), {"n": number, "pad": "x" * 500}) for index in range(10)]
    commit = store.commit(changes, actor="w", now=now)
    print(commit.revision, flush=True)
"""


@pytest.mark.timeout(120)
def test_a_writer_killed_at_any_point_leaves_whole_commits_and_all_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(8):
        process = start(WRITE, str(path))
        assert process.stdout is not None
        # Some acknowledgements, then anywhere within the next commits.
        for _ in range(chance.randrange(1, 30)):
            acknowledged = int(process.stdout.readline())
        deadline = time.monotonic() + chance.random() * 0.004
        while time.monotonic() < deadline:
            pass
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=30)
        acknowledged = max([acknowledged, *(int(line) for line in rest.splitlines(keepends=True) if line[-1] == "\n")])
        check = sqlite3.connect(path)
        assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        check.close()
        with opened(path) as store:
            revision, found = store.snapshot()
            assert revision >= acknowledged
            assert [(item.revision, item.document["n"]) for item in found] == [(revision, revision)] * 10
            assert len(store.audit(limit=20 * revision)) == 10 * revision


def test_a_store_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    with opened(path) as store:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, other.rollback)
        release.start()
        try:
            assert store.commit([Put(ObjectKey("Host", "", "h"), {})], actor="t", now=NOW).revision == 1
        finally:
            release.join(timeout=5)
            other.close()


def test_hosts_that_had_joined_before_there_were_enrolments_get_one(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    with opened(path):
        pass
    run_sql(path, "DROP TABLE enrolments")
    run_sql(
        path,
        "INSERT INTO hosts (host, joined_at, left_at, report, ready) VALUES ('in', 5, NULL, x'', '[]'), "
        "('back', 9, 5, x'', '[]'), ('left', 5, 9, x'', '[]'), ('new', NULL, NULL, x'', '[]')",
    )
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        v0003_enrolments.upgrade()
    engine.dispose()
    with opened(path) as store:
        found = store.enrolments()
    assert {each.host for each in found} == {"in", "back"}
    assert len({each.id for each in found}) == 2
    assert all(len(each.id) == 32 and not each.denial for each in found)
