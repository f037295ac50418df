"""An intermediate that somebody else made and exchanges, as files with the names of Istio's `cacerts`.

    ca-cert.pem      the intermediate
    ca-key.pem       its key, RSA or EC, PKCS #1 or PKCS #8; 0600
    cert-chain.pem   what is between it and the root
    root-cert.pem    the root; others in it are trusted too

What is taken is kept in the controller's own directory: it goes on signing whatever becomes of the files, until what
replaces it can be used.
"""

import hashlib
import stat
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hostmesh_controller.authority_certificates import SigningKey
from hostmesh_controller.authority_files import AuthorityError, read_secret
from hostmesh_controller.authority_roots import Source
from hostmesh_controller.authority_upstream import Demand, Obtained, UnusableError, usable

CERTIFICATE: Final = "ca-cert.pem"
KEY: Final = "ca-key.pem"
CHAIN: Final = "cert-chain.pem"
ROOTS: Final = "root-cert.pem"
_MAX_BYTES: Final = 256 * 1024


class CaCerts:
    """The files of one directory."""

    source: Final = Source.FILES

    def __init__(self, directory: Path, demand: Demand) -> None:
        self._directory = directory
        self._demand = demand
        self._taken = b""

    def news(self) -> bool:
        """Tell whether the files are others than those that were taken last."""
        try:
            return self._digest() != self._taken
        except OSError:
            return True  # which `obtain` explains

    def obtain(self, trust_domain: str, now: datetime) -> Obtained:  # noqa: ARG002 - what it is for was said before
        """Return the intermediate of the files as they are now; see `Upstream.obtain`."""
        directory = self._directory
        try:
            digest = self._digest()
            if directory.stat().st_mode & 0o022:
                mode = stat.S_IMODE(directory.stat().st_mode)
                msg = f"{directory} can be written by others (mode {mode:04o}): run `chmod go-w {directory}`"
                raise AuthorityError(msg)
        except OSError as error:
            msg = f"{error.filename}: {error.strerror}: [ca] dir must hold {CERTIFICATE}, {KEY}, {CHAIN} and {ROOTS}"
            raise AuthorityError(msg) from error
        (own, *more), roots = self._certificates(CERTIFICATE), self._certificates(ROOTS)
        if more:
            msg = f"{directory / CERTIFICATE} holds {1 + len(more)} certificates: put those above it into {CHAIN}"
            raise AuthorityError(msg)
        chain = [own, *(each for each in self._certificates(CHAIN) if each != own)]
        try:
            obtained = usable(self._key(), chain, roots, self._demand, now)
        except UnusableError as error:
            raise AuthorityError(f"{directory} cannot be used: {error}") from error
        self._taken = digest
        return obtained

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for name in (CERTIFICATE, KEY, CHAIN, ROOTS):
            with (self._directory / name).open("rb") as file:
                digest.update(hashlib.sha256(file.read(_MAX_BYTES)).digest())
        return digest.digest()

    def _key(self) -> SigningKey:
        path = self._directory / KEY
        data = read_secret(path)
        try:
            key = load_pem_private_key(data, password=None)
        except TypeError as error:
            raise AuthorityError(f"{path} is encrypted: the controller has nobody to ask for its password") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise AuthorityError(f"{path} is no private key in PEM, PKCS #1 or PKCS #8") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise AuthorityError(f"{path} is a key of the kind {type(key).__name__}: give an RSA or EC key")
        return key

    def _certificates(self, name: str) -> list[x509.Certificate]:
        path = self._directory / name
        try:
            with path.open("rb") as file:
                return x509.load_pem_x509_certificates(file.read(_MAX_BYTES))
        except OSError as error:
            raise AuthorityError(f"{path}: {error.strerror}") from error
        except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
            raise AuthorityError(f"{path} holds no certificates in PEM ({error})") from error
