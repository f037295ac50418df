"""The agent's own files: who the host is, and its key. All-or-nothing on disk, closed to others, checked when read.

    <state_dir>/host.json                           name, trust domain, where the controller is: there once joined
    <state_dir>/identity/{key,chain,bundle}.pem     the host's own identity, 0600 in 0700
    <state_dir>/spare.json                          a copy of all of it: what is damaged is made anew from it

A host has joined if and only if host.json is there: it is written last and removed first. The spare copy is removed
before it and written after it, so that it never brings back an identity that was given up.
"""

import dataclasses
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import structlog

from hostmesh_agent import spare
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.keyroom import belongs_together, roots, standing
from hostmesh_agent.spare import Spare
from hostmesh_agent.svid import SvidError
from hostmesh_api.identity import HostIdentity

MAX_FILE_BYTES: Final = 1 << 20
_NEXT_KEY: Final = "key.next.pem"
_WAITING_KEY: Final = "waiting.key.pem"
_REJOIN: Final = "join again with a new join string (hostmesh-agent join --force)"

_log = structlog.get_logger(__name__)


class StateError(Exception):
    """The owner of the host must act; the message names the file and the cure."""


class NotJoinedError(StateError):
    """The host has no identity yet."""


class ExposedError(StateError):
    """Others may have read what is ours alone."""


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What host.json says.

    `agents_endpoints` is `host:port` of the controllers' agents' port, best first; `join_endpoints` of the port where
    hosts join, and come back after a long absence.
    """

    host: str
    trust_domain: str
    agents_endpoints: tuple[str, ...]
    join_endpoints: tuple[str, ...] = ()

    @property
    def identity(self) -> HostIdentity:
        return HostIdentity(self.trust_domain, self.host)


@dataclass(frozen=True, slots=True)
class HostFiles:
    """The host's own identity, PEM. `chain` is leaf first; `bundle` every root to trust."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    bundle_pem: bytes = field(repr=False)


class State:
    """The state directory. Synchronous: the files are small and on the local disk."""

    def __init__(self, directory: Path, alarms: Alarms | None = None) -> None:
        """`alarms` is told of damage that was mended; the agent's own."""
        self.directory = directory
        self._alarms = Alarms() if alarms is None else alarms
        self._identity = directory / "identity"
        self._host = directory / "host.json"

    @property
    def joined(self) -> bool:
        return self._host.exists()

    def host(self) -> HostRecord:
        """Return who this host is.

        Raises:
            NotJoinedError: it has not joined.
            StateError: host.json is damaged and so is the spare copy, or it is open to others.
        """
        try:
            return self._read_host()
        except (NotJoinedError, ExposedError):
            raise
        except StateError as error:
            self._mend(error)
            return self._read_host()

    def _read_host(self) -> HostRecord:
        try:
            data = read_private(self._host)
        except FileNotFoundError:
            msg = f"{self._host} is not there: this host has not joined (hostmesh-agent join STRING)"
            raise NotJoinedError(msg) from None
        try:
            record = _host_record(json.loads(data))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            msg = f"{self._host} is damaged ({error}): {_REJOIN}"
            raise StateError(msg) from error
        return record

    def files(self) -> HostFiles:
        """Return the host's own identity, as one that belongs together.

        Raises:
            StateError: a file is missing or damaged and so is the spare copy, or one is open to others.
        """
        try:
            return self._read_files()
        except ExposedError:
            raise
        except StateError as error:
            self._mend(error)
            return self._read_files()

    def _read_files(self) -> HostFiles:
        try:
            chain_pem = read_private(self._identity / "chain.pem")
            key_pem = self._key(chain_pem)
            bundle_pem = read_private(self._identity / "bundle.pem")
            roots(bundle_pem)  # raises SvidError for what is no bundle
            return HostFiles(key_pem, chain_pem, bundle_pem)
        except FileNotFoundError as error:
            msg = f"{error.filename} is missing: {_REJOIN}"
            raise StateError(msg) from error
        except SvidError as error:
            msg = f"{self._identity}: {error}: {_REJOIN}"
            raise StateError(msg) from error

    def save_joined(self, record: HostRecord, files: HostFiles) -> None:
        """Make this the host's identity, in place of any other. A crash leaves the host joined or not joined.

        Raises:
            StateError: the disk refuses.
        """
        staging, old = self.directory / "identity.new", self.directory / "identity.old"
        with _explained(self.directory):
            self._prepare()
            self._remove_drafts()
            for leftover in (staging, old):
                if leftover.exists():
                    shutil.rmtree(leftover)
            self._drop_spare()
            staging.mkdir(mode=0o700)
            write_private(staging / "key.pem", files.key_pem)
            write_private(staging / "chain.pem", files.chain_pem)
            write_private(staging / "bundle.pem", files.bundle_pem)
            self._host.unlink(missing_ok=True)
            if self._identity.exists():
                self._identity.rename(old)
            staging.rename(self._identity)
            fsync_directory(self.directory)
            write_private(self._host, _host_document(record))
            if old.exists():
                shutil.rmtree(old)
        self.keep_spare()

    def save_renewed(self, files: HostFiles) -> None:
        """Put a new key and certificate in the old ones' place.

        Two files cannot change at once. So the new key is put beside the old one first; replacing the chain is the
        moment of change; a reader that finds the new chain with the old key finishes the job (`_key`).

        Raises:
            StateError: the disk refuses; what was there before is still good.
        """
        with _explained(self._identity):
            self._remove_drafts()
            write_private(self._identity / "bundle.pem", files.bundle_pem)
            write_private(self._identity / _NEXT_KEY, files.key_pem)
            write_private(self._identity / "chain.pem", files.chain_pem)
            self._adopt_next_key()
        self.keep_spare()

    def waiting_key(self) -> bytes | None:
        """Return the key with which this host waits for approval, PEM; None if it does not.

        Raises:
            StateError: the file is open to others, or damaged.
        """
        try:
            return read_private(self.directory / _WAITING_KEY)
        except FileNotFoundError:
            return None

    def save_waiting_key(self, key_pem: bytes) -> None:
        """Keep the key with which this host waits for approval: the operator approves this one and no other.

        Raises:
            StateError: the disk refuses.
        """
        with _explained(self.directory):
            self._prepare()
            write_private(self.directory / _WAITING_KEY, key_pem)

    def drop_waiting_key(self) -> None:
        """Forget the key with which this host waited."""
        with _explained(self.directory):
            (self.directory / _WAITING_KEY).unlink(missing_ok=True)

    def save_host(self, record: HostRecord) -> None:
        """Replace what is known of the controllers: they may have moved.

        Raises:
            StateError: the disk refuses.
        """
        with _explained(self.directory):
            write_private(self._host, _host_document(record))
        self.keep_spare()

    def save_bundle(self, bundle_pem: bytes) -> None:
        """Replace the roots that the host trusts the controller by."""
        with _explained(self._identity):
            write_private(self._identity / "bundle.pem", bundle_pem)
        self.keep_spare()

    def begin(self) -> None:
        """Look after the files when an agent starts: mend what is damaged, and make the spare copy that of today.

        Raises:
            NotJoinedError, StateError: as `host` and `files` do.
        """
        self.host()
        files = self.files()
        if not _stands(files.chain_pem, files.bundle_pem):
            with suppress(ValueError, OSError, StateError):
                found = spare.decode(read_private(self.directory / spare.FILE))
                if _stands(found.chain, found.bundle):
                    # A flipped bit in a signature: it can be read, and nobody believes it.
                    self._mend(StateError(f"{self._identity / 'chain.pem'} leads to none of the roots"))
        self.keep_spare()

    def keep_spare(self) -> None:
        """Make the spare copy that of today. A disk that refuses costs an alarm: what is there now is good."""
        try:
            files = self.files()
            data = spare.encode(Spare(read_private(self._host), files.key_pem, files.chain_pem, files.bundle_pem))
            if self._read_spare() != data:
                write_private(self.directory / spare.FILE, data)
        except (OSError, StateError) as error:
            text = f"{self.directory / spare.FILE}: {error}: damage to the identity could not be mended now"
            self._alarms.up("state.not-written", text)
        else:
            self._alarms.down("state.not-written")

    def _read_spare(self) -> bytes:
        with suppress(FileNotFoundError, StateError):
            return read_private(self.directory / spare.FILE)
        return b""

    def _drop_spare(self) -> None:
        path = self.directory / spare.FILE
        if path.exists():
            path.unlink()
            # A power cut must not bring it back beside another identity.
            fsync_directory(self.directory)

    def _mend(self, damage: StateError) -> None:
        """Make the identity's files what the spare copy says. Raises the damage if that cannot be."""
        if not self.joined:
            raise damage
        try:
            found = spare.decode(read_private(self.directory / spare.FILE))
            self._identity.mkdir(mode=0o700, exist_ok=True)
            for path, data in (
                (self._host, found.host),
                (self._identity / "bundle.pem", found.bundle),
                (self._identity / _NEXT_KEY, found.key),
                (self._identity / "chain.pem", found.chain),
            ):
                write_private(path, data)
            self._adopt_next_key()
        except (OSError, ValueError, StateError) as error:
            _log.error("the host's identity cannot be mended", reason=str(error))
            raise damage from error
        text = f"{damage} -- no need to: it was made anew from {spare.FILE}; look after the disk"
        self._alarms.up("state.repaired", text)

    def forget(self) -> None:
        """Remove the host's identity: it has not joined any more."""
        with _explained(self.directory):
            if self.directory.exists():
                self._drop_spare()
            self._host.unlink(missing_ok=True)
            (self.directory / _WAITING_KEY).unlink(missing_ok=True)
            for name in ("identity", "identity.new", "identity.old"):
                with suppress(FileNotFoundError):
                    shutil.rmtree(self.directory / name)

    def _prepare(self) -> None:
        # Envoy's user passes through to its own directory, and lists nothing.
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        status = self.directory.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            msg = f"{self.directory} can be written by others: run `chown {os.geteuid()} DIR && chmod go-w DIR` on it"
            raise StateError(msg)

    def _remove_drafts(self) -> None:
        """Remove what a kill left before its rename: half a key is of no use to anybody."""
        for directory in (self.directory, self._identity):
            for draft in (*directory.glob(".*.pem.*"), *directory.glob(".*.json.*")):
                draft.unlink(missing_ok=True)

    def _key(self, chain_pem: bytes) -> bytes:
        key_pem = read_private(self._identity / "key.pem")
        if belongs_together(key_pem, chain_pem):
            return key_pem
        with suppress(FileNotFoundError):
            next_pem = read_private(self._identity / _NEXT_KEY)
            if belongs_together(next_pem, chain_pem):
                self._adopt_next_key()
                return next_pem
        msg = "key.pem is not the key of chain.pem"
        raise SvidError(msg)

    def _adopt_next_key(self) -> None:
        (self._identity / _NEXT_KEY).rename(self._identity / "key.pem")
        fsync_directory(self._identity)


def read_private(path: Path) -> bytes:
    """Return the content of a file that only its owner, us, may read.

    Raises:
        FileNotFoundError: there is none.
        StateError: it is not ours alone, not a plain file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        msg = f"{path}: {error.strerror}: it must be a plain file that uid {os.geteuid()} owns"
        raise StateError(msg) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            msg = f"{path} is not a plain file of uid {os.geteuid()}: run the agent as the file's owner, or {_REJOIN}"
            raise StateError(msg)
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            msg = f"{path} is open to others (mode {mode:04o}): run `chmod 600 {path}`; if it was read, {_REJOIN}"
            raise ExposedError(msg)
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        msg = f"{path} is larger than {MAX_FILE_BYTES} bytes, so it is not ours: {_REJOIN}"
        raise StateError(msg)
    return data


def write_private(path: Path, data: bytes) -> None:
    """Write the file, 0600, so that a crash leaves the old content or the new.

    Raises:
        OSError: the disk refuses; the old content is still there.
    """
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write_at(descriptor, path.name, data)
    finally:
        os.close(descriptor)


def write_at(directory: int, name: str, data: bytes, owner: tuple[int, int] | None = None, mode: int = 0o600) -> None:
    """Write the file `name` in an open directory by an atomic rename; `owner` is (uid, gid) if not ourselves.

    Raises:
        OSError: the disk refuses; the old content is still there.
    """
    draft = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(descriptor, *owner)
            if mode != 0o600:
                os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=directory)
        raise
    os.fsync(directory)


def keep_closed(directory: Path, forbidden: int = 0o077) -> None:
    """Take from others what they must not have of a directory of ours: a backup may have been restored too open.

    Args:
        directory: may be absent.
        forbidden: bits of the mode.

    Raises:
        StateError: it is another user's, or no directory.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        msg = f"{directory}: {error.strerror}: it must be a directory of uid {os.geteuid()}"
        raise StateError(msg) from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            whose = f"{directory} is uid {status.st_uid}'s, who could change what is in it"
            msg = f"{whose}: run `chown {os.geteuid()}` on it"
            raise StateError(msg)
        if status.st_mode & forbidden:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~forbidden)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Make renames in the directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"{error.filename or path} cannot be written: {error.strerror}"
        raise StateError(msg) from error


def _stands(chain_pem: bytes, bundle_pem: bytes) -> bool:
    try:
        return standing(chain_pem, bundle_pem).root != ""
    except SvidError:
        return False


def _host_document(record: HostRecord) -> bytes:
    document = dataclasses.asdict(record)
    return json.dumps({**document, "checksum": _checksum(document)}, indent=1).encode() + b"\n"


def _checksum(document: Mapping[str, Any]) -> str:
    told = json.dumps({name: each for name, each in document.items() if name != "checksum"}, sort_keys=True)
    return blake2b(told.encode(), digest_size=16).hexdigest()


def _host_record(document: Any) -> HostRecord:
    if "checksum" in document and document["checksum"] != _checksum(document):
        raise ValueError("the checksum does not match")
    endpoints = tuple(document["agents_endpoints"])
    joining = tuple(document.get("join_endpoints", ()))
    if not endpoints or not all(isinstance(each, str) for each in (*endpoints, *joining)):
        msg = "agents_endpoints is not a list of host:port"
        raise ValueError(msg)
    record = HostRecord(document["host"], document["trust_domain"], endpoints, joining)
    _ = record.identity  # raises ValueError for names that are none
    return record
