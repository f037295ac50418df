"""The authority's keys on disk: `<state_dir>/ca/{root,intermediate}.pem`, 0600 in 0700.

One file holds an issuer's key *and* certificate, so that writing it is one atomic rename and a crash cannot leave a
key without its certificate.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

_TEMPORARY_SUFFIX: Final = ".new"


class AuthorityError(Exception):
    """The authority cannot work with what is on disk. The message names the file and the cure."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """A key that signs, and the certificate that says so."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


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


def read_issuer(directory: Path, name: str) -> Issuer | None:
    """Return the issuer kept as `name`.pem, or None if it was never written.

    Raises:
        AuthorityError: the file is readable by others, is damaged, or its key is not its certificate's.
    """
    path = directory / f"{name}.pem"
    with suppress(FileNotFoundError):
        # What a crash left before the rename: never in use, so nothing is lost.
        path.with_suffix(_TEMPORARY_SUFFIX).unlink()
    try:
        _require_private(path)
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{path}: {error.strerror}: the controller's user must own this file"
        raise AuthorityError(msg) from error
    try:
        key = load_pem_private_key(data, password=None)
        certificate = x509.load_pem_x509_certificate(data)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        msg = f"{path} is damaged ({error}): {_cure(name)}"
        raise AuthorityError(msg) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        msg = f"{path}: key and certificate do not belong together: {_cure(name)}"
        raise AuthorityError(msg)
    return Issuer(key=key, certificate=certificate)


def write_issuer(directory: Path, name: str, issuer: Issuer) -> None:
    """Write the issuer so that a crash leaves the old file or the new one, on disk.

    Raises:
        AuthorityError: the disk refuses.
    """
    path = directory / f"{name}.pem"
    temporary = path.with_suffix(_TEMPORARY_SUFFIX)
    data = issuer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + issuer.certificate_pem
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _fsync_directory(directory)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}"
        raise AuthorityError(msg) from error


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
    if name == "root":
        return "restore it from a backup"
    return "remove it; a new one is made from the root at the next start"
