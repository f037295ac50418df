"""The authority's files in `<state_dir>/ca`, 0600 in 0700.

    roots.json                     the roots and their states; replacing it is the moment of each step
    root.pem, root-ID.pem          a root of our own, key and certificate
    intermediate.pem, …-ID.pem     what signs leaves: key, certificate, and those between it and a root that is not ours
    cross-ID.pem                   the root ID, signed by the one before it
    bundle.pem                     every root to trust, for people and their tools; certificates alone

A key and its certificate are one file, so that writing them is one atomic rename and a crash cannot leave a key without
its certificate.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from hostmesh_controller.authority_certificates import Issuer
from hostmesh_controller.authority_roots import Roots, dumps, loads

ROOTS: Final = "roots.json"
BUNDLE: Final = "bundle.pem"
_TEMPORARY_SUFFIX: Final = ".new"


class AuthorityError(Exception):
    """The authority cannot work with what is on disk or upstream. The message names the place and the cure."""


def present(directory: Path) -> bool:
    """Tell whether there is, or was, an authority in the directory."""
    return any((directory / name).exists() for name in (ROOTS, "root.pem"))


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the authority's directory, made if missing, for this process alone.

    Raises:
        AuthorityError: others may enter the directory, or it cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(directory)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        msg = f"{directory}: {error.strerror}: the controller's user must own this directory"
        raise AuthorityError(msg) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_roots(directory: Path) -> Roots | None:
    """Return the roots and their states, or None if they were never written.

    Raises:
        AuthorityError: the file is readable by others or damaged.
    """
    data = _read(directory / ROOTS)
    if data is None:
        return None
    try:
        return loads(data.decode())
    except ValueError as error:
        msg = f"{directory / ROOTS} is damaged ({error}): {_cure(ROOTS)}"
        raise AuthorityError(msg) from error


def write_roots(directory: Path, roots: Roots) -> None:
    """Write the states of the roots; see `write`."""
    write(directory, ROOTS, dumps(roots).encode())


def read_issuer(directory: Path, name: str) -> Issuer | None:
    """Return the issuer kept as `name`.pem, or None if it was never written.

    Raises:
        AuthorityError: the file is readable by others, is damaged, or its key is not its certificate's.
    """
    path = directory / f"{name}.pem"
    data = _read(path)
    if data is None:
        return None
    try:
        key = load_pem_private_key(data, password=None)
        certificate, *above = x509.load_pem_x509_certificates(data)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        msg = f"{path} is damaged ({error}): {_cure(name)}"
        raise AuthorityError(msg) from error
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        msg = f"{path}: key and certificate do not belong together: {_cure(name)}"
        raise AuthorityError(msg)
    return Issuer(key, certificate, tuple(above))


def read_certificate(directory: Path, name: str) -> x509.Certificate | None:
    """Return the certificate kept as `name`.pem, None if there is none; see `read_issuer`."""
    path = directory / f"{name}.pem"
    data = _read(path)
    try:
        return None if data is None else x509.load_pem_x509_certificate(data)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        msg = f"{path} is damaged ({error}): {_cure(name)}"
        raise AuthorityError(msg) from error


def write_issuer(directory: Path, name: str, issuer: Issuer) -> None:
    """Write the issuer as `name`.pem; see `write`."""
    key = issuer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write(directory, f"{name}.pem", key + issuer.chain_pem)


def write(directory: Path, name: str, data: bytes) -> None:
    """Write a file, 0600, so that a crash leaves the old content or the new, on disk.

    Raises:
        AuthorityError: the disk refuses.
    """
    path = directory / name
    temporary = path.with_suffix(_TEMPORARY_SUFFIX)
    try:
        with suppress(FileNotFoundError):
            # What a crash left before the rename: never in use, so nothing is lost.
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        synchronize(directory)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}"
        raise AuthorityError(msg) from error


def keep_only(directory: Path, names: Collection[str]) -> tuple[str, ...]:
    """Remove the files of roots that are not among `names` (without `.pem`), and drafts; return what was removed.

    They are of steps that a crash interrupted, or of roots that are revoked: a key that nothing needs can only be
    stolen.
    """
    kept = {f"{each}.pem" for each in names} | {BUNDLE}
    removed = []
    for path in sorted((*directory.glob("*.pem"), *directory.glob(f"*{_TEMPORARY_SUFFIX}"))):
        if path.name not in kept and not path.is_dir():
            path.unlink(missing_ok=True)
            removed.append(path.name)
    if removed:
        synchronize(directory)
    return tuple(removed)


def read_secret(path: Path, limit_bytes: int = 64 * 1024) -> bytes:
    """Return the content of a file of somebody else's making that only its owner may read; links are followed.

    Raises:
        AuthorityError: it is not there, is open to others, or is too large.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(limit_bytes + 1)
    except OSError as error:
        msg = f"{path}: {error.strerror}: the controller's user (uid {os.geteuid()}) must be able to read it"
        raise AuthorityError(msg) from error
    if mode & 0o077:
        msg = (
            f"{path} is open to others (mode {stat.S_IMODE(mode):04o}): run `chmod go= {path}`, "
            "and exchange what it holds if somebody may have read it"
        )
        raise AuthorityError(msg)
    if len(data) > limit_bytes:
        msg = f"{path} is larger than {limit_bytes} bytes"
        raise AuthorityError(msg)
    return data


def _read(path: Path) -> bytes | None:
    try:
        _require_private(path)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{path}: {error.strerror}: the controller's user must own this file"
        raise AuthorityError(msg) from error


def synchronize(path: Path) -> None:
    """Have a file's content, or a directory's names, outlive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_private(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        msg = f"{path} is a symbolic link: put the directory or file itself there"
        raise AuthorityError(msg)
    if status.st_uid != os.geteuid():
        msg = f"{path} belongs to uid {status.st_uid}, the controller runs as {os.geteuid()}: run as its owner"
        raise AuthorityError(msg)
    if status.st_mode & 0o077:
        msg = (
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): run `chmod go= {path}`; "
            "if somebody may have read it, make a new authority"
        )
        raise AuthorityError(msg)


def _cure(name: str) -> str:
    if name.startswith("intermediate"):
        return "remove it; a new one is made from the root at the next start"
    return "restore it from a backup"


def guarded(work: Callable[[], None]) -> None:
    """Do what is of use but not needed, such as tidying up: the disk may refuse it."""
    with suppress(OSError, AuthorityError):
        work()
