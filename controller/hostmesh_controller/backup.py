"""One file with all that a controller knows, made while it runs, and a controller made of such a file again.

A backup is a tar: `manifest.json` (the form, the version that made it, when, the trust domain, sha256 of every other
member), `store.sqlite` (one moment of it, by SQLite's own online backup) and `ca/…` (roots, keys). The store is copied
while the authority's directory is held, so no step of a rotation falls between the two. Artifacts of Rollouts and
/etc/hostmesh are not in it: they are the operator's files.

A restore tries everything out on the side, then takes the place of what is there by renames. What was there is kept
beside it. A mark says that it is under way; no controller starts until it has been done whole.
"""

import hashlib
import itertools
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader, BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from hostmesh_controller import authority_files
from hostmesh_controller.authority import Authority, AuthorityError
from hostmesh_controller.state_dir import RESTORING, STORE, StateDirError, claimed
from hostmesh_controller.store.records import StoreError
from hostmesh_controller.store.sqlite import open_store

FORM: Final = 1
CA: Final = "ca"
MANIFEST: Final = "manifest.json"
MAX_BYTES: Final = 64 << 30
"""No member is larger: a store of 10,000 hosts is some hundred megabytes."""
_MAX_MANIFEST_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 20
_BESIDE: Final = (STORE, f"{STORE}-wal", f"{STORE}-shm", CA)


class BackupError(Exception):
    """No backup could be made or used. The message names the place and the cure."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a backup says of itself.

    Attributes:
        made_at: aware; what was written later is not in it.
        version: of the controller that made it.
        trust_domain: of its authority.
        sha256: by member.
    """

    made_at: datetime
    version: str
    trust_domain: str
    sha256: Mapping[str, str]


def make(state_dir: Path, trust_domain: str, version: str, now: datetime, out: IO[bytes]) -> Told:
    """Write a backup of a state directory, whose controller may run.

    Args:
        state_dir: of the controller, whose user calls (`as_owner`).
        trust_domain: of its authority.
        version: of this program.
        now: aware.
        out: a file or a pipe; what is written has keys in it.

    Raises:
        BackupError: there is nothing to back up, or it cannot be read or written.
    """
    ca = state_dir / CA
    try:
        if not (state_dir / STORE).exists() or not authority_files.present(ca):
            raise BackupError(
                f"{state_dir} holds no controller's state: name the controller's configuration (--config)"
            )
        with authority_files.lock(ca):
            store = _copy_of_store(state_dir)
            files = {
                f"{CA}/{each.name}": each.read_bytes()
                for each in sorted(ca.iterdir())
                if each.is_file() and each.suffix in {".pem", ".json"}
            }
        with store:
            sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            told = Told(now, version, trust_domain, sums | {STORE: hashlib.file_digest(store, "sha256").hexdigest()})
            size = store.seek(0, os.SEEK_END)
            store.seek(0)
            with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for name, data in ({MANIFEST: _dumps(told)} | files).items():
                    _add(tar, name, BytesIO(data), len(data), now)
                _add(tar, STORE, store, size, now)
    except (OSError, AuthorityError) as error:
        raise BackupError(f"{state_dir}: the backup failed: {error}") from error
    return told


def restore(
    state_dir: Path, trust_domain: str, file: IO[bytes], now: datetime, *, replace: bool
) -> tuple[Told, Path | None]:
    """Make the state directory what a backup says. The controller must not run.

    Args:
        state_dir: the controller's, whose user calls (`as_owner`).
        trust_domain: of controller.toml; the backup must be of the same.
        file: the backup; read once, from the start.
        now: aware.
        replace: what is there may be moved aside.

    Returns:
        What the backup says of itself, and where what was there is now; None if nothing was.

    Raises:
        BackupError: it is no backup, is damaged, is of another mesh or a newer version, or something is there already.
            Nothing has changed then.
        StateDirError: the controller runs.
    """
    with claimed(state_dir, restoring=True), _mapped_errors(state_dir):
        there = [state_dir / each for each in _BESIDE if (state_dir / each).exists()]
        if there and not replace and not (state_dir / RESTORING).exists():
            raise BackupError(
                f"{state_dir} has a controller's state already ({', '.join(each.name for each in there)}): "
                "with --replace it is moved aside"
            )
        _forget_drafts(state_dir, ".restore-*")
        draft = Path(tempfile.mkdtemp(prefix=".restore-", dir=state_dir))
        try:
            told = _unpack(file, draft)
            _try_out(draft, told, trust_domain, now)
            kept = _exchange(state_dir, draft, there, now)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return told, kept


def _copy_of_store(state_dir: Path) -> BufferedReader:
    """Return an open copy of the store as it is now, which has no name any more: whatever ends us, it is gone."""
    _forget_drafts(state_dir, ".backup-*")
    draft = Path(tempfile.mkdtemp(prefix=".backup-", dir=state_dir))
    try:
        with (
            closing(sqlite3.connect(f"{(state_dir / STORE).absolute().as_uri()}?mode=rw", uri=True)) as live,
            closing(sqlite3.connect(draft / STORE)) as copy,
        ):
            live.backup(copy)
            # One file, whatever form the live one has: no log has to go along.
            copy.execute("PRAGMA journal_mode=DELETE")
        return (draft / STORE).open("rb")
    except sqlite3.Error as error:
        raise BackupError(f"{state_dir / STORE}: cannot be copied: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _add(tar: tarfile.TarFile, name: str, data: IO[bytes], size: int, now: datetime) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(now.timestamp())
    tar.addfile(member, data)


def _dumps(told: Told) -> bytes:
    document = {
        "form": FORM,
        "made_at": told.made_at.isoformat(),
        "version": told.version,
        "trust_domain": told.trust_domain,
        "sha256": dict(told.sha256),
    }
    return json.dumps(document, indent=1).encode()


def _loads(data: bytes) -> Told:
    try:
        document: Any = json.loads(data)
        if document["form"] != FORM:
            raise BackupError(
                f"the backup has form {document['form']}, this version reads {FORM}: use the version that made it"
            )
        sums = {str(name): str(each) for name, each in document["sha256"].items()}
        made_at = datetime.fromisoformat(document["made_at"])
        return Told(made_at, str(document["version"]), str(document["trust_domain"]), sums)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupError(
            f"the backup's {MANIFEST} cannot be read ({error}): it is damaged, or no backup of a controller"
        ) from error


def _unpack(file: IO[bytes], draft: Path) -> Told:
    """Write the members into the draft; each must be named in the manifest, which comes first, and have its sum."""
    told: Told | None = None
    found = set()
    (draft / CA).mkdir(mode=0o700)
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                data = tar.extractfile(member) if member.isfile() else None
                if data is None or member.size > MAX_BYTES:
                    raise BackupError(f"the backup has {member.name!r}, which is no plain file of a backup")
                if told is None:
                    if member.name != MANIFEST or member.size > _MAX_MANIFEST_BYTES:
                        raise BackupError(f"the backup does not begin with {MANIFEST}: it is no backup of a controller")
                    told = _loads(data.read())
                    continue
                _require_member(member.name, told)
                if _write(draft / member.name, data) != told.sha256[member.name]:
                    raise BackupError(f"the backup is damaged: {member.name} is not what it was when it was made")
                found.add(member.name)
    except tarfile.TarError as error:
        raise BackupError(f"the backup cannot be read: {error}") from error
    if told is None:
        raise BackupError("the backup is empty")
    if missing := sorted(set(told.sha256) - found):
        raise BackupError(f"the backup is cut off: {', '.join(missing)} is not there")
    return told


def _require_member(name: str, told: Told) -> None:
    parts = PurePosixPath(name).parts
    place = name == STORE or (
        len(parts) == 2 and parts[0] == CA and parts[1] not in {".", ".."} and "/".join(parts) == name
    )
    if not place or name not in told.sha256:
        raise BackupError(f"the backup has {name!r}, which no backup has")


def _write(path: Path, data: IO[bytes]) -> str:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := data.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _try_out(draft: Path, told: Told, trust_domain: str, now: datetime) -> None:
    """Open store and authority as a controller would, in the draft: what cannot be used replaces nothing."""
    if told.trust_domain != trust_domain:
        raise BackupError(
            f"the backup is of trust domain {told.trust_domain!r}, controller.toml says {trust_domain!r}: "
            "restore it where controller.toml is that mesh's"
        )
    if STORE not in told.sha256 or not authority_files.present(draft / CA):
        raise BackupError("the backup has no store or no root: it is no backup of a controller")
    with closing(sqlite3.connect(draft / STORE)) as store:
        found = store.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise BackupError(f"the backup's store is damaged: {found}")
    open_store(draft / STORE).close()
    Authority.load_or_create(draft, trust_domain, now)


def _exchange(state_dir: Path, draft: Path, there: list[Path], now: datetime) -> Path | None:
    """Take the place of what is there. The mark names where that goes, so that a second try goes on there."""
    mark = state_dir / RESTORING
    name = mark.read_text() if mark.exists() else ""
    kept = state_dir / (name or _free_name(state_dir, now))
    if there or name:
        kept.mkdir(mode=0o700, exist_ok=True)
    mark.write_text(kept.name)
    authority_files.synchronize(mark)
    authority_files.synchronize(state_dir)
    for each in there:
        if (kept / each.name).exists():
            # The first try had begun to put the backup here.
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        else:
            each.rename(kept / each.name)
    if kept.exists():
        authority_files.synchronize(kept)
    for part in _BESIDE:
        if (draft / part).exists():
            (draft / part).rename(state_dir / part)
    authority_files.synchronize(state_dir)
    mark.unlink()
    authority_files.synchronize(state_dir)
    return kept if kept.exists() else None


def _free_name(state_dir: Path, now: datetime) -> str:
    name = f"replaced-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    return next(each for n in itertools.count(1) if not (state_dir / (each := f"{name}-{n}")).exists())


def _forget_drafts(state_dir: Path, pattern: str) -> None:
    for each in state_dir.glob(pattern):
        shutil.rmtree(each, ignore_errors=True)


@contextmanager
def _mapped_errors(state_dir: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, AuthorityError, StoreError) as error:
        raise BackupError(f"{state_dir}: the backup cannot be restored: {error}") from error


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for a backup, 0600; it is there whole or, after an error, not at all.

    Raises:
        BackupError: there is a file already, or it cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise BackupError(f"{path} is there already: a backup overwrites nothing; give another name") from error
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


@contextmanager
def as_owner(state_dir: Path) -> Iterator[None]:
    """Where root calls: act as the user whose the state directory is, so that all that is made there is the user's.

    Raises:
        StateDirError: the directory is not there, and so says nothing of whose it is.
    """
    if os.geteuid() != 0:
        yield
        return
    try:
        owner = state_dir.stat()
    except FileNotFoundError:
        raise StateDirError(
            f"{state_dir} is not there: start the controller once, or make the directory for its user"
        ) from None
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
