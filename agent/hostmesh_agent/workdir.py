"""Envoy's working directory: who owns what in it, and its log.

Envoy's user must be able to make its admin socket here, and must not be able to exchange what root reads and acts on:
so the directory belongs to root and is sticky, with write permission for Envoy's group.
"""

import contextlib
import errno
import os
import pwd
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostmesh_agent import rights
from hostmesh_api import wire

SYSTEM_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where Debian, Fedora and RHEL, older RHEL, SUSE and Alpine keep the roots that they trust."""
LOG: Final = "envoy.log"
BOOTSTRAP: Final = "bootstrap.json"
TRIAL: Final = "bootstrap-trial.json"
HOLD: Final = "hold"
SHARED: Final = ("certs", "wasm", HOLD)
LOG_BOUND_BYTES: Final = 16 << 20
_DIRECTORY_MODE: Final = 0o1770
_TAIL_BYTES: Final = 4096


class WorkdirError(Exception):
    """The owner of the host must create the user or open the path."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom Envoy runs as. `switch` False: as the agent, which is not root; else it gets at files by its group."""

    uid: int
    gid: int
    switch: bool


def account(user: str) -> Account:
    """Look up Envoy's user.

    Raises:
        WorkdirError: there is no such user, it is root, or the agent may not switch to it.
    """
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise WorkdirError(
            f"no user {user!r}: create it (useradd --system --no-create-home --shell /usr/sbin/nologin {user}) "
            "or set envoy.user in agent.toml"
        ) from None
    if found.pw_uid == 0:
        raise WorkdirError(f"user {user!r} is root: Envoy runs as a user of its own")
    if os.geteuid() == 0 or (rights.here().helped and may_hand_to(found.pw_gid)):
        return Account(found.pw_uid, found.pw_gid, switch=True)
    if os.geteuid() != found.pw_uid:
        raise WorkdirError(f"only root can start Envoy as user {user!r}")
    return Account(found.pw_uid, found.pw_gid, switch=False)


def may_hand_to(gid: int) -> bool:
    """Tell whether this process may give files of its own to a group."""
    return os.geteuid() == 0 or gid in os.getgroups()


def prepare(directory: Path, owner: Account) -> None:
    """Make the directory what it should be; what is in it stays."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = directory.stat()
    if owner.switch and (info.st_uid, info.st_gid) != (os.geteuid(), owner.gid):
        os.chown(directory, os.geteuid(), owner.gid)
    if stat.S_IMODE(info.st_mode) != _DIRECTORY_MODE:
        directory.chmod(_DIRECTORY_MODE)
    if owner.switch:
        _share_log(directory, owner)
    link_system_roots(directory)


def remove_sockets(directory: Path) -> None:
    """Take away what an Envoy that has ended listened on.

    The next one does so by itself, but not in a sticky directory with what was given to another user meanwhile: systemd
    gives a state directory to the user of its unit, with all that is in it.
    """
    for path in directory.glob("*.sock"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()


def share(directory: Path, first: Path) -> None:
    """Give a second Envoy what is the same for both, in the first one's directory: certificates, modules, the hold."""
    for name in SHARED:
        link, target = directory / name, Path("..") / first.name / name
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def link_system_roots(directory: Path, candidates: Iterable[str] = SYSTEM_ROOTS) -> Path | None:
    """Give the operating system's trusted roots one name that is the same on every host, and return where they are.

    The link is dangling where none of the files is there: what needs the roots then fails, and nothing is trusted.
    """
    found = next((path for path in map(Path, candidates) if path.is_file()), None)
    link = directory / wire.SYSTEM_ROOTS
    link.parent.mkdir(mode=0o755, exist_ok=True)
    target = found or Path(next(iter(candidates)))
    if not link.is_symlink() or link.readlink() != target:
        draft = link.with_name(f".{link.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        draft.symlink_to(target)
        draft.replace(link)
    return found


def _share_log(directory: Path, owner: Account) -> None:
    """Let Envoy's group write the log: an access log to /dev/stdout opens it anew, by its name."""
    descriptor = open_log(directory)
    try:
        info = os.fstat(descriptor)
        if stat.S_ISREG(info.st_mode) and (info.st_gid, stat.S_IMODE(info.st_mode)) != (owner.gid, 0o660):
            os.fchown(descriptor, -1, owner.gid)
            os.fchmod(descriptor, 0o660)
    finally:
        os.close(descriptor)


def check_reachable(path: Path, owner: Account) -> None:
    """Raise WorkdirError if Envoy's user cannot get at `path` through the directories above it."""
    for parent in path.parents:
        info = parent.stat()
        shift = 6 if info.st_uid == owner.uid else 3 if info.st_gid == owner.gid else 0
        if not info.st_mode >> shift & stat.S_IXOTH:
            user = pwd.getpwuid(owner.uid).pw_name
            raise WorkdirError(f"{parent}: Envoy's user {user!r} cannot search it (chmod o+x {parent})")


def write_bootstrap(directory: Path, content: bytes, owner: Account, name: str = BOOTSTRAP) -> Path:
    """Write bootstrap.json (or another `name`) atomically, for Envoy's group to read."""
    target = directory / name
    if _holds(target, content, owner):
        # A full disk is no reason for an Envoy not to start as it did before.
        return target
    draft = directory / f".{name}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if owner.switch:
            os.fchown(descriptor, -1, owner.gid)
        os.fchmod(descriptor, 0o640)
        # Renamed and not synchronised it may be empty after a power cut.
        file.flush()
        os.fsync(descriptor)
    draft.replace(target)
    return target


def _holds(path: Path, content: bytes, owner: Account) -> bool:
    """Tell whether this is our own file already, with this content and closed to those who are not to read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        group = owner.gid if owner.switch else info.st_gid
        ours = (info.st_uid, info.st_gid, info.st_mode) == (os.geteuid(), group, stat.S_IFREG | 0o640)
        return ours and file.read(len(content) + 1) == content


def open_log(directory: Path) -> int:
    """Return a descriptor that appends to envoy.log. What is not our own plain file in its place is removed first.

    Where the disk takes no file its words are lost, and it starts.
    """
    try:
        return _open_log(directory)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _open_log(directory: Path) -> int:
    path = directory / LOG
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags, 0o640)
        info = os.fstat(descriptor)
        if stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1:
            return descriptor
        os.close(descriptor)
    path.unlink(missing_ok=True)
    return os.open(path, flags | os.O_EXCL, 0o640)


def bound_log(directory: Path, bound_bytes: int = LOG_BOUND_BYTES) -> bool:
    """Move the log's content to envoy.log.1 if it is larger than the bound; return whether that was done.

    Envoy keeps its descriptor, so the content is copied and the file emptied. Lines written in between are lost,
    and all of them where the disk has no room for a copy.
    """
    path = directory / LOG
    try:
        if path.lstat().st_size <= bound_bytes:
            return False
    except OSError:
        return False
    draft = directory / f".{LOG}.{os.getpid()}"
    with os.fdopen(open_log(directory), "rb") as old:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
            with draft.open("xb") as new:
                os.fchmod(new.fileno(), 0o640)
                old.seek(max(0, old.seek(0, os.SEEK_END) - bound_bytes))
                shutil.copyfileobj(old, new)
            draft.replace(directory / f"{LOG}.1")
        with contextlib.suppress(OSError):  # a disk that has become read-only
            os.ftruncate(old.fileno(), 0)
    draft.unlink(missing_ok=True)
    return True


def last_words(directory: Path) -> str:
    """Return the most telling line at the end of the log: the last critical one, else the last; "" if there is none."""
    try:
        descriptor = os.open(directory / LOG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "[critical]" in line or "[hostmesh-agent]" in line]
    return (telling or lines or [""])[-1][:500]
