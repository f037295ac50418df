"""Passwords and passphrases: asked on the terminal, or read from a descriptor or a file that is nobody else's."""

import getpass
import os
import stat
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from hostmesh_controller.cli.failure import CliError

_MAX_BYTES = 4096


@dataclass(slots=True)
class Secrets:
    """What may be asked for; each kind is asked for once, whatever the number of hosts.

    `sources` is kind (`sudo`, `login`, `passphrase`) to `FILE` or `fd:N`.
    """

    sources: dict[str, str]
    terminal: bool = field(default_factory=lambda: sys.stdin.isatty() and sys.stderr.isatty())
    _known: dict[str, str] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def get(self, kind: str, prompt: str) -> str | None:
        """Return the secret; None when nobody can be asked.

        Raises:
            CliError: its file is open to others, or cannot be read.
        """
        with self._lock:
            if kind not in self._known:
                if source := self.sources.get(kind):
                    self._known[kind] = read_secret(source)
                elif self.terminal:
                    self._known[kind] = getpass.getpass(f"{prompt}: ", stream=sys.stderr)
                else:
                    return None
            return self._known[kind]

    def given(self, kind: str) -> bool:
        return bool(self.sources.get(kind))

    def read_all(self) -> None:
        """Read what files and descriptors hold, before anything is done.

        Raises:
            CliError: see `get`.
        """
        for kind in self.sources:
            if self.given(kind):
                self.get(kind, kind)


def read_secret(source: str) -> str:
    """Read the first line of `FILE` or `fd:N`.

    Raises:
        CliError: it cannot be read, is empty, or others can read it.
    """
    try:
        if source.startswith("fd:"):
            with os.fdopen(os.dup(int(source[3:])), "rb") as stream:
                content = stream.read(_MAX_BYTES)
        else:
            content = _of_file(Path(source))
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not fd:NUMBER"
        raise CliError(f"error: the secret in {source} cannot be read: {reason}") from None
    try:
        line = content.decode().splitlines()[0] if content else ""
    except UnicodeDecodeError:
        raise CliError(f"error: {source} holds no text in UTF-8") from None
    if not line:
        raise CliError(f"error: {source} is empty: its first line is the secret")
    return line


def _of_file(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(stream.fileno())
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise CliError(f"error: {path} is open to others (mode {found.st_mode & 0o777:04o}): chmod 600 {path}")
        return stream.read(_MAX_BYTES)
