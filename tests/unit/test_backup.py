"""A backup is whole and of one moment, and is put back whole or not at all."""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hostmesh_controller.authority import Authority
from hostmesh_controller.backup import BackupError, make, restore
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.state_dir import RESTORING, StateDirError, claimed
from hostmesh_controller.store import Put
from hostmesh_controller.store.sqlite import open_store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TD = "mesh.example"


def write(state_dir: Path, number: int) -> None:
    store = open_store(state_dir / "store.sqlite")
    try:
        store.commit([Put(ObjectKey("Service", "default", f"s{number}"), {"n": number})], actor="ann", now=NOW)
    finally:
        store.close()


def objects(state_dir: Path) -> set[str]:
    store = open_store(state_dir / "store.sqlite")
    try:
        return {each.key.name for each in store.objects()}
    finally:
        store.close()


def root(state_dir: Path) -> bytes:
    return Authority.load_or_create(state_dir, TD, NOW).root_der


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    Authority.load_or_create(made, TD, NOW)
    write(made, 1)
    return made


def backed_up(state: Path) -> io.BytesIO:
    out = io.BytesIO()
    make(state, TD, "1.2.3", NOW, out)
    out.seek(0)
    return out


def members(data: io.BytesIO) -> dict[str, bytes]:
    data.seek(0)
    with tarfile.open(fileobj=data) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]  # all are files


def packed(parts: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda _: None) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            change(member)
            tar.addfile(member, io.BytesIO(data))
    out.seek(0)
    return out


def content(state_dir: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(state_dir)): each.read_bytes()
        for each in sorted(state_dir.rglob("*"))
        if each.is_file() and each.name != "lock"
    }


def test_a_controller_is_made_again_on_another_machine(state: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    told, kept = restore(there, TD, backed_up(state), NOW, replace=False)
    assert (told.made_at, told.version, told.trust_domain, kept) == (NOW, "1.2.3", TD, None)
    assert objects(there) == {"s1"}
    assert root(there) == root(state)
    assert {each.stat().st_mode & 0o077 for each in there.rglob("*")} == {0}


def test_what_is_written_while_it_is_made_is_in_it_whole_or_not(state: Path) -> None:
    ended = threading.Event()

    def writes() -> None:
        number = 2
        while not ended.is_set():
            write(state, number)
            number += 1

    thread = threading.Thread(target=writes)
    thread.start()
    try:
        made = [backed_up(state) for _ in range(5)]
    finally:
        ended.set()
        thread.join()
    seen = []
    for number, each in enumerate(made):
        there = state.parent / f"there-{number}"
        restore(there, TD, each, NOW, replace=False)
        names = objects(there)
        # A prefix of what was written: nothing is missing in between.
        assert names == {f"s{n}" for n in range(1, len(names) + 1)}
        seen.append(len(names))
    assert seen == sorted(seen)


def test_a_running_controller_is_backed_up_and_never_replaced(state: Path) -> None:
    with claimed(state):
        made = backed_up(state)
        before = content(state)
        with pytest.raises(StateDirError, match="in use by another hostmesh-controller"):
            restore(state, TD, made, NOW, replace=True)
        assert content(state) == before


def test_what_is_there_is_replaced_only_when_asked_and_is_kept(state: Path) -> None:
    made = backed_up(state)
    write(state, 2)
    with pytest.raises(BackupError, match=r"has a controller's state already .*store\.sqlite.*--replace"):
        restore(state, TD, made, NOW, replace=False)
    made.seek(0)
    assert objects(state) == {"s1", "s2"}
    _, kept = restore(state, TD, made, NOW, replace=True)
    assert objects(state) == {"s1"}
    assert kept is not None
    assert objects(kept) == {"s1", "s2"}
    assert root(kept) == root(state)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda parts: parts | {"store.sqlite": parts["store.sqlite"][:-1] + b"x"},
            r"store\.sqlite is not what it was",
        ),
        (lambda parts: parts | {"ca/root.pem": parts["ca/root.pem"] + b"\n"}, r"ca/root\.pem is not what it was"),
        (lambda parts: {k: v for k, v in parts.items() if k != "store.sqlite"}, r"cut off: store\.sqlite"),
        (lambda parts: {k: v for k, v in parts.items() if k != "manifest.json"}, "does not begin with manifest"),
        (lambda parts: parts | {"../outside": b"x"}, "which no backup has"),
        (lambda parts: parts | {"/etc/passwd": b"x"}, "which no backup has"),
        (lambda parts: parts | {"ca/extra.pem": b"x"}, "which no backup has"),
        (lambda parts: parts | {"manifest.json": parts["manifest.json"].replace(b'"form": 1', b'"form": 2')}, "form 2"),
        (lambda parts: parts | {"manifest.json": b"[]"}, "is damaged, or no backup"),
        (
            lambda parts: parts | {"manifest.json": parts["manifest.json"].replace(b"mesh.example", b"other.one")},
            "is of trust domain",
        ),
        (lambda _: {}, "empty"),
    ],
)
def test_what_is_no_whole_backup_changes_nothing(
    state: Path, tmp_path: Path, spoil: Callable[[dict[str, bytes]], dict[str, bytes]], said: str
) -> None:
    spoiled = packed(spoil(members(backed_up(state))))
    before = content(state)
    with pytest.raises(BackupError, match=said):
        restore(state, TD, spoiled, NOW, replace=True)
    assert content(state) == before
    assert not (tmp_path / "outside").exists()
    with claimed(state):
        pass


def test_a_member_that_is_a_link_is_refused(state: Path) -> None:
    def as_link(member: tarfile.TarInfo) -> None:
        if member.name == "ca/root.pem":
            member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/shadow", 0

    with pytest.raises(BackupError, match="no plain file"):
        restore(state, TD, packed(members(backed_up(state)), as_link), NOW, replace=True)


def test_a_file_that_is_no_tar_and_one_that_is_cut_off_are_refused(state: Path) -> None:
    whole = backed_up(state).getvalue()
    for data in (b"not a tar", whole[: len(whole) // 2]):
        with pytest.raises(BackupError, match=r"cannot be read|cut off|damaged|empty"):
            restore(state, TD, io.BytesIO(data), NOW, replace=True)
    assert objects(state) == {"s1"}


def with_sum(parts: dict[str, bytes], name: str, data: bytes) -> dict[str, bytes]:
    manifest = json.loads(parts["manifest.json"])
    manifest["sha256"][name] = hashlib.sha256(data).hexdigest()
    return parts | {"manifest.json": json.dumps(manifest).encode(), name: data}


def test_a_store_of_a_newer_version_and_a_damaged_key_are_refused_though_their_sums_are_right(
    state: Path, tmp_path: Path
) -> None:
    parts = members(backed_up(state))
    newer = tmp_path / "newer.sqlite"
    newer.write_bytes(parts["store.sqlite"])
    with closing(sqlite3.connect(newer)) as store, store:
        store.execute("UPDATE alembic_version SET version_num = '9999'")
    for name, data, said in (
        ("store.sqlite", newer.read_bytes(), "newer hostmesh-controller"),
        (
            "store.sqlite",
            parts["store.sqlite"][:4096] + b"\xff" * (len(parts["store.sqlite"]) - 4096),
            "damaged|malformed",
        ),
        ("ca/root.pem", b"nothing", "damaged"),
    ):
        with pytest.raises(BackupError, match=said):
            restore(state, TD, packed(with_sum(parts, name, data)), NOW, replace=True)
        assert objects(state) == {"s1"}


def test_a_restore_that_was_ended_half_way_lets_no_controller_start_until_it_is_done_again(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backed_up(state)
    write(state, 2)
    real = Path.rename
    calls = 0

    def at(step: int) -> Callable[[Path, Path], Path]:
        def rename(self: Path, target: Path) -> Path:
            nonlocal calls
            calls += 1
            if calls == step:
                raise KeyboardInterrupt
            return real(self, target)

        return rename

    step = begun = 0
    while True:
        step, calls = step + 1, 0
        made.seek(0)
        monkeypatch.setattr(Path, "rename", at(step))
        try:
            restore(state, TD, made, NOW, replace=True)
        except KeyboardInterrupt:
            monkeypatch.setattr(Path, "rename", real)
            if not (state / RESTORING).exists():
                assert objects(state) == {"s1", "s2"}
                continue
            begun += 1
            with pytest.raises(StateDirError, match="restore FILE` again"), claimed(state):
                pass
            made.seek(0)
            restore(state, TD, made, NOW, replace=False)
            assert objects(state) == {"s1"}
            # All that was there is together, wherever the first try ended.
            (kept,) = state.glob("replaced-*")
            assert objects(kept) == {"s1", "s2"}
            assert root(kept) == root(state)
            shutil.rmtree(kept)
            write(state, 2)
        else:
            break
    assert begun >= 4
    with claimed(state):
        pass


def test_a_state_that_is_none_is_not_backed_up(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackupError, match="holds no controller's state: name"):
        backed_up(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_nothing_of_a_backup_stays_beside_the_state(state: Path) -> None:
    (state / ".backup-left").mkdir()
    before = {each for each in content(state) if not each.startswith(".")}
    backed_up(state)
    assert set(content(state)) == before
    assert not list(state.glob(".backup-*"))


def controller(config: Path, *argv: str, **kwargs: object) -> subprocess.CompletedProcess[bytes]:
    whole = [sys.executable, "-c", "from hostmesh_controller.serve import main; main()", *argv, "--config", str(config)]
    return subprocess.run(whole, capture_output=True, check=False, timeout=60, **kwargs)  # type: ignore[call-overload,no-any-return]  # keyword arguments of one call


@pytest.fixture
def config(state: Path, tmp_path: Path) -> Path:
    path = tmp_path / "controller.toml"
    path.write_text(f'state_dir = "{state}"\ntrust_domain = "{TD}"\naddresses = ["localhost"]\n')
    return path


def test_the_commands_write_a_private_file_overwrite_none_and_speak_through_pipes(
    state: Path, config: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mesh.tar"
    assert controller(config, "backup", str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    again = controller(config, "backup", str(file))
    assert (again.returncode, b"overwrites nothing" in again.stderr) == (1, True)
    piped = controller(config, "backup", "-")
    assert members(io.BytesIO(piped.stdout)).keys() == members(io.BytesIO(file.read_bytes())).keys()
    write(state, 2)
    done = controller(config, "restore", "-", "--replace", input=piped.stdout)
    assert done.returncode == 0, done.stderr
    assert b"must be done again" in done.stdout
    assert objects(state) == {"s1"}
    missing = controller(config, "restore", str(tmp_path / "none.tar"))
    assert (missing.returncode, missing.stderr.count(b"\n")) == (1, 1)


def test_a_backup_that_fails_leaves_no_file(config: Path, state: Path, tmp_path: Path) -> None:
    (state / "store.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    failed = controller(config, "backup", str(tmp_path / "mesh.tar"))
    assert failed.returncode == 1
    assert not (tmp_path / "mesh.tar").exists()


def test_a_controller_that_has_lost_its_store_asks_for_a_backup_and_begins_no_other_mesh(
    config: Path, state: Path
) -> None:
    store = state / "store.sqlite"
    for lose in (lambda: store.write_bytes(b""), store.unlink):
        lose()
        ended = controller(config, "run")
        assert ended.returncode == 1
        assert b"restore --replace FILE" in ended.stderr
    assert not store.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_root_makes_and_restores_as_the_controllers_user(state: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hm-backup-") as made:
        base = Path(made)
        base.chmod(0o711)
        there = base / "state"
        shutil.move(state, there)
        for each in (there, *there.rglob("*")):
            os.chown(each, 65534, 65534)
        config = base / "controller.toml"
        config.write_text(f'state_dir = "{there}"\ntrust_domain = "{TD}"\naddresses = ["localhost"]\n')
        file = base / "mesh.tar"
        backed = controller(config, "backup", str(file))
        assert backed.returncode == 0, backed.stderr
        assert file.stat().st_uid == 0
        done = controller(config, "restore", str(file), "--replace")
        assert done.returncode == 0, done.stderr
        assert {each.stat().st_uid for each in there.rglob("*")} == {65534}
