"""The host's resolver: mesh names are asked of Envoy first, everything else goes where it went before.

Envoy's address is put before the resolvers in resolv.conf. It answers mesh names, and for every other name the
kernel turns its answer into "refused" (see capture.plan), upon which a resolver asks its next server; a dead Envoy is
a closed port, which is noticed at once. So no name outside the mesh ever depends on us.

The file itself says how to take our lines out again: restoring needs no state, and what another tool has written
since stays. The copy in the state directory is for the person who wants to see what was there.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from hostmesh_api import wire

BACKUP_NAME: Final = "resolv.conf.before"

_ASKED_BY_GLIBC: Final = 3  # MAXNS in glibc's resolv.h
_SAYS: Final = "# hostmesh: "
_OURS: Final = f"nameserver {wire.DNS_ADDRESS}"
_DEFAULT: Final = "nameserver 127.0.0.1"  # what resolv.conf(5) says a resolver uses where none is named
_FIRST: Final = f"{_SAYS}mesh names are answered by the first resolver, all others by those behind it"
_NONE_BEFORE: Final = f"{_SAYS}no resolver was named here, which means this one"
_NO_FILE: Final = f"{_SAYS}there was no such file"
_LINK: Final = f"{_SAYS}this was a link to "
_INSTEAD_OF: Final = f"{_SAYS}instead of: "
_LINK_LINE: Final = re.compile(re.escape(_LINK) + r"(.+) \(([0-9a-f]+)\)")
_STUB: Final = "/run/systemd/resolve/stub-resolv.conf"
_UPLINK: Final = "/run/systemd/resolve/resolv.conf"
_DENIED: Final = {errno.EPERM, errno.EACCES, errno.EROFS}
_RESOLVED_ADDRESSES: Final = {"127.0.0.53", "127.0.0.54"}


class ResolverError(RuntimeError):
    """The resolver's file cannot be changed. The message says who must act."""


@dataclass(frozen=True, slots=True)
class Original:
    """What resolv.conf is without us.

    Attributes:
        text: its content; None if there is no such file.
        link: where it points, if it is a symbolic link; "" if it is a file.
    """

    text: str | None
    link: str = ""


@dataclass(frozen=True, slots=True)
class ResolverState:
    """Whether mesh names reach Envoy; `detail` says why not, or what the operator should know."""

    in_place: bool
    detail: str = ""


def with_mesh(original: Original) -> str:
    """Return `original` with Envoy before its resolvers. Everything else in it stays, but for `rotate`.

    `rotate` would ask Envoy only every n-th time, and the other resolvers do not know mesh names.
    """
    text = original.text or ""
    resolvers = _resolvers(text)
    lines = [_FIRST]
    if len(resolvers) >= _ASKED_BY_GLIBC:
        unreached = " ".join(resolvers[_ASKED_BY_GLIBC - 1 :])
        lines.append(f"{_SAYS}glibc asks {_ASKED_BY_GLIBC} resolvers at most; not reached meanwhile: {unreached}")
    lines.append(_OURS)
    if not resolvers:
        lines += [_NONE_BEFORE, _DEFAULT]
    if original.link:
        lines.append(f"{_LINK}{original.link} ({_digest(text)})")
    elif original.text is None:
        lines.append(_NO_FILE)
    return "".join(f"{line}\n" for line in lines) + "\n".join(map(_without_rotate, text.split("\n")))


def without_mesh(text: str) -> Original:
    """Return what was there before `with_mesh`, with all that others have changed since.

    A link is told only where nobody has changed the file that stands in its place.
    """
    kept: list[str] = []
    link, digest, no_file = "", "", False
    lines = text.split("\n")
    expected = ""  # the line that we put behind a comment, unless somebody has changed it
    for line in lines:
        ours, expected = expected, ""
        found = _LINK_LINE.fullmatch(line)
        if found:
            link, digest = found.groups()
        elif line.startswith(_INSTEAD_OF):
            kept.append(line.removeprefix(_INSTEAD_OF))
            expected = _options_without_rotate(kept[-1])
        elif line == _NONE_BEFORE:
            expected = _DEFAULT
        elif line == _NO_FILE:
            no_file = True
        elif not (line == _OURS or line.startswith(_SAYS) or (ours and line == ours)):
            kept.append(line)
    rest = "\n".join(kept)
    if link and digest == _digest(rest):
        return Original(rest, link)
    return Original(None if no_file and not rest else rest)


def has_mesh(text: str) -> bool:
    """Return whether a resolver that reads `text` asks Envoy first, every time."""
    resolvers = _resolvers(text)
    return resolvers[:1] == [wire.DNS_ADDRESS] and not any(_rotates(line) for line in text.split("\n"))


def is_stub(path: PurePath, text: str) -> bool:
    """Return whether the file, links followed, or what is in it, sends programs to systemd-resolved."""
    return os.fspath(path) == _STUB or bool(_RESOLVED_ADDRESSES & set(_resolvers(text)))


def _resolvers(text: str) -> list[str]:
    return re.findall(r"^nameserver[ \t]+([^\s;#]+)", text, re.MULTILINE)


def _rotates(line: str) -> bool:
    return bool(re.match(r"options[ \t](?:.*[ \t])?rotate(?:\s|$)", line))


def _options_without_rotate(line: str) -> str:
    """Return the options that are left of `line`; "" if it holds no other."""
    rest = [word for word in line.split()[1:] if word != "rotate"]
    return " ".join(["options", *rest]) if rest else ""


def _without_rotate(line: str) -> str:
    if not _rotates(line):
        return line
    rest = _options_without_rotate(line)
    return f"{_INSTEAD_OF}{line}" + (f"\n{rest}" if rest else "")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


class Resolver:
    """The host's resolv.conf. Methods block for a moment on the disk."""

    def __init__(self, path: Path, state_dir: Path) -> None:
        self._path = path
        self._backup = state_dir / BACKUP_NAME

    def names_uplink(self) -> bool:
        """Return whether the file is systemd-resolved's list of the servers that it asks itself.

        A file in its place would be taken by systemd-resolved for a list of servers, ours among them, and not be
        forgotten when the link is back (measured with 252).
        """
        return os.fspath(self._path.resolve()) == _UPLINK

    def names_resolved(self) -> bool:
        """Return whether the file sends programs to systemd-resolved: it stays as it is."""
        target = self._path.resolve()
        return is_stub(target, _read(target) or "")

    def apply(self) -> ResolverState:
        """Put Envoy before the other resolvers, from whatever is there.

        Raises:
            ResolverError: the file cannot be changed; it is what it was.
        """
        left_alone = self._why_left_alone()
        if left_alone:
            return ResolverState(in_place=False, detail=left_alone)
        current = self._current()
        original = self._original(current)
        wanted = with_mesh(original)
        if current.link or current.text != wanted:
            self._keep(original)
            self._write(wanted)
        return ResolverState(in_place=True)

    def check(self) -> ResolverState:
        """Tell whether mesh names reach Envoy now: another tool may have written the file."""
        left_alone = self._why_left_alone()
        if left_alone:
            return ResolverState(in_place=False, detail=left_alone)
        current = self._current()
        if not has_mesh(current.text or ""):
            return ResolverState(in_place=False, detail=f"{self._path} does not name {wire.DNS_ADDRESS} first")
        original = self._original(current)
        if original.link and with_mesh(original) != current.text:
            return ResolverState(in_place=False, detail=f"{original.link} has changed since {self._path} replaced it")
        return ResolverState(in_place=True)

    def restore(self) -> None:
        """Take our lines out; without changes by others since, the file is what it was byte for byte.

        Needs nothing but the file itself, and is done where we have never been.

        Raises:
            ResolverError: the file cannot be changed; it is what it was.
        """
        current = self._current()
        if not current.link and current.text is not None:
            original = without_mesh(current.text)
            if original.link:
                self._link(original.link)
            elif original.text is None:
                self._acting(self._path.unlink)
            elif original.text != current.text:
                self._write(original.text)
        self._fresh()
        self._backup.unlink(missing_ok=True)

    def _why_left_alone(self) -> str:
        """Return why the file is not ours to change, "" if it is."""
        if self.names_uplink() or self.names_resolved():
            return f"{self._path} names systemd-resolved, which is told by other means"
        if self._path.is_symlink() and _read(self._path.resolve()) is None:
            return f"{self._path} is a link to {self._path.readlink()}, which is not there"
        return ""

    def _current(self) -> Original:
        link = os.fspath(self._path.readlink()) if self._path.is_symlink() else ""
        return Original(_read(self._path), link)

    def _original(self, current: Original) -> Original:
        """Return what is there without us; of a link that we replaced, what it points to now."""
        if current.link or current.text is None:
            return current
        original = without_mesh(current.text)
        if not original.link:
            return original
        now = _read(self._path.parent / original.link)
        return original if now is None else Original(now, original.link)

    def _keep(self, original: Original) -> None:
        """Keep a copy for people to see: a link as a link, a missing file as none."""
        self._backup.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._backup.with_name(f"{BACKUP_NAME}.new")
        fresh.unlink(missing_ok=True)
        if original.link:
            fresh.symlink_to(original.link)
        elif original.text is not None:
            fresh.write_bytes(_bytes(original.text))
        else:
            self._backup.unlink(missing_ok=True)
            return
        fresh.replace(self._backup)

    def _link(self, target: str) -> None:
        fresh = self._fresh()
        self._acting(lambda: fresh.symlink_to(target))
        self._acting(lambda: fresh.replace(self._path))

    def _write(self, text: str) -> None:
        self._acting(lambda: self._write_atomically(_bytes(text)))

    def _write_atomically(self, data: bytes) -> None:
        """Replace the file in one step, with the mode, owner and security label of the old one.

        Where the file cannot be replaced (containers mount it), it is written in place.
        """
        fresh = self._fresh()
        try:
            with fresh.open("xb") as file:
                _copy_attributes(self._path, file.fileno())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            if error.errno not in {errno.EBUSY, errno.EXDEV}:
                raise
            _write_in_place(self._path, data)

    def _fresh(self) -> Path:
        fresh = self._path.with_name(f".{self._path.name}.hostmesh")
        self._acting(lambda: fresh.unlink(missing_ok=True))  # of a run that was killed
        return fresh

    def _acting(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            hint = "; is it immutable (lsattr), or its file system read-only?" if error.errno in _DENIED else ""
            raise ResolverError(f"cannot change {self._path}: {error.strerror}{hint}") from error


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="surrogateescape")  # any bytes come back as they were
    except (FileNotFoundError, NotADirectoryError):
        return None


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _copy_attributes(path: Path, descriptor: int) -> None:
    """Give the open file the mode, owner and extended attributes of the file at `path`, links followed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, 0o644)
        return
    os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    with suppress(OSError):  # a file system without them, or a label that only its policy may set
        for name in os.listxattr(path):
            os.setxattr(descriptor, name, os.getxattr(path, name))


def _write_in_place(path: Path, data: bytes) -> None:
    """Write so that a reader, or a crash, at any moment finds the old lines or the new ones and empty lines."""
    with path.open("r+b") as file:
        rest = max(0, path.stat().st_size - len(data))
        file.write(data + b"\n" * rest)
        file.truncate(len(data))
