"""Whether a host that answers is the one that was meant: by a pinned fingerprint, or by known_hosts files."""

import base64
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.ssh.place import Place
from hostmesh_controller.cli.ssh.steps import StepError

_PIN: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
FAMILIES: Final = ("ed25519", "ecdsa", "rsa")
_MAX_BYTES: Final = 16 << 20
"""More than the keys of a hundred thousand hosts."""
_LOOK: Final = "compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the host's own console"


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key that some file has for a host."""

    kind: str
    blob: bytes
    file: Path

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.blob)


def fingerprint_of(blob: bytes) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def read_pin(text: str) -> str:
    """Return a fingerprint without padding.

    Raises:
        ValueError: it is none.
    """
    pin = text.strip().rstrip("=")
    if not _PIN.fullmatch(pin):
        raise ValueError(f"'{text}' is no fingerprint: write SHA256:… as `ssh-keygen -lf KEY.pub` shows it")
    return pin


def state_file() -> Path:
    """Return where this command keeps the keys of hosts that it registered."""
    base = os.environ.get("XDG_STATE_HOME") or f"{os.environ.get('HOME') or '/root'}/.local/state"
    return Path(base) / "hostmesh" / "known_hosts"


def operators_file() -> Path:
    return Path(os.environ.get("HOME") or "/root") / ".ssh" / "known_hosts"


@lru_cache
def lasting(file: Path) -> Path:
    """Return a file that says what this one says as often as it is read: a pipe says it once, and is kept in memory.

    Raises:
        CliError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return file
            descriptor = os.memfd_create("known_hosts")  # open as long as this command runs
            os.write(descriptor, stream.read(_MAX_BYTES))
    except OSError as error:
        raise CliError(f"error: {file}: {error.strerror} (--known-hosts)") from None
    return Path(f"/proc/self/fd/{descriptor}")


@dataclass(frozen=True, slots=True)
class HostKeys:
    """What is trusted. `ask` shows an unknown key on the terminal and tells whether it is accepted; None: nobody asks.

    With pins nothing else counts; keys that were pinned or accepted are kept in `store`.
    """

    pins: tuple[str, ...] = ()
    files: tuple[Path, ...] = field(default_factory=lambda: (operators_file(), state_file()))
    store: Path = field(default_factory=state_file)
    ask: Callable[[Place, str, str], bool] | None = None
    remember: bool = True

    def families(self, place: Place) -> tuple[tuple[str, ...], ...]:
        """Return the families of keys to ask the host for, in the order of trying."""
        if self.pins:
            return tuple((each,) for each in FAMILIES)
        known = {family for each in self.known(place) for family in FAMILIES if family in each.kind}
        return (tuple(each for each in FAMILIES if each in known), FAMILIES) if known else (FAMILIES,)

    def known(self, place: Place) -> list[KnownKey]:
        return [key for file in self.files for key in _read(file, place)]

    def judge(self, place: Place, kind: str, blob: bytes) -> bool:
        """Return whether the key is the host's, False for one that is none of the pins (another may be).

        Raises:
            StepError: it is unknown, another than before, or revoked.
        """
        offered = fingerprint_of(blob)
        if any(_revokes(file, blob) for file in self.files):
            raise StepError(f"the host key {offered} of {place} is marked @revoked", "give the host another key")
        if self.pins:
            return offered in self.pins
        known = self.known(place)
        if any(each.blob == blob for each in known):
            return True
        if known:
            raise _changed(place, kind, offered, known)
        if self.ask is not None and self.ask(place, kind, offered):
            return True
        raise StepError(
            f"the host key of {place} is unknown: {kind} {offered}; nothing was sent to it",
            f"{_LOOK}, then give --host-key {offered} (hosts.yaml: hostKey)",
        )

    def wrong_pin(self, place: Place, offered: Sequence[str]) -> StepError:
        shown = ", ".join(offered) or "none that is understood"
        return StepError(
            f"{place} IS NOT THE HOST THAT WAS MEANT: pinned {', '.join(self.pins)}, it showed {shown}; "
            "nothing was sent to it",
            f"{_LOOK}, and correct --host-key (hosts.yaml: hostKey) if the host is right",
        )

    def keep(self, place: Place, kind: str, blob: bytes) -> None:
        """Remember a key that was pinned or accepted, in place of what was remembered of the host."""
        if any(each.blob == blob for each in _read(self.store, place)):
            return
        self.store.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Who reads takes no lock: what is there is whole at every moment, and replaced at once.
        with self.store.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = self.store.read_text("utf-8") if self.store.exists() else ""
            lines = [line for line in text.splitlines() if line.split(" ")[0] != place.known_as]
            lines.append(f"{place.known_as} {kind} {base64.b64encode(blob).decode()}")
            _replace(self.store, "\n".join(lines) + "\n")


def _replace(path: Path, text: str) -> None:
    path = path.resolve()
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(path)


def _changed(place: Place, kind: str, offered: str, known: Sequence[KnownKey]) -> StepError:
    first = known[0]
    return StepError(
        f"THE HOST KEY OF {place} HAS CHANGED: known {first.kind} {first.fingerprint} ({first.file}), "
        f"it shows {kind} {offered}; somebody may be in between; nothing was sent to it",
        f"{_LOOK}; if it is right: ssh-keygen -R '{place.known_as}' -f {first.file}, and give --host-key {offered}",
    )


def _read(file: Path, place: Place) -> list[KnownKey]:
    from paramiko.hostkeys import HostKeys as File

    if not file.exists():
        return []
    try:
        found: Any = File(str(file)).lookup(place.known_as)
    except OSError as error:
        raise CliError(f"error: {file} cannot be read: {error.strerror}") from None
    return [] if found is None else [KnownKey(kind, key.asbytes(), file) for kind, key in found.items()]


def _revokes(file: Path, blob: bytes) -> bool:
    text = base64.b64encode(blob).decode()
    if not file.exists():
        return False
    return any(line.startswith("@revoked") and text in line.split() for line in file.read_text("utf-8").splitlines())
