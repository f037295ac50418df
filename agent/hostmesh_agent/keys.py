"""Keys and certificates in memory: made here on the host, and believed only after they were checked. Pure.

The agent calls these through `keyroom`, which keeps them out of its memory.
"""

import base64
import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps
from itertools import pairwise
from typing import Final, ParamSpec, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from hostmesh_agent.svid import Standing, Svid, SvidError
from hostmesh_api.identity import HostIdentity, WorkloadIdentity

__all__ = [
    "Svid",
    "SvidError",
    "belongs_together",
    "checked",
    "csr_der",
    "fingerprint",
    "key_pem",
    "machine_proof",
    "new_key",
    "proof",
    "read_one_file",
    "request",
    "request_for",
    "root_pem",
    "roots",
    "signed_by",
    "standing",
    "validity",
]

MAX_CHAIN: Final = 8
"""A leaf, up to four intermediates, and what leads to older roots (three at most); mostly it is two."""

_CLOCK: Final = "set this host's clock (timedatectl), then try again"


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _said(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Say of a damaged file that it is one: certificates are parsed late, so any look at one may find the damage."""

    @wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except SvidError:
            raise
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion) as error:
            raise SvidError(f"the key or the certificates cannot be read ({error})") from error

    return wrapped


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def csr_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a request that proves that we hold the key, and asks for nothing: the controller knows who we are."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def request() -> tuple[bytes, bytes]:
    """Return a new key as PEM, and the request for its certificate."""
    key = new_key()
    return key_pem(key), csr_der(key)


def request_for(key: bytes) -> bytes:
    """Return the request for the certificate of a key that is there already.

    Raises:
        SvidError: the key cannot be read.
    """
    return csr_der(_load_key(key))


def fingerprint(key: bytes) -> str:
    """Return the fingerprint of a key as operators are shown it: of its public part, in SSH's manner.

    Raises:
        SvidError: the key cannot be read.
    """
    public = _load_key(key).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).rstrip(b"=").decode()


def machine_proof(key: bytes, chain: bytes, statement: bytes) -> tuple[list[bytes], bytes]:
    """Return a machine's chain, DER, leaf first, and its key's signature of the statement.

    Raises:
        SvidError: key or chain cannot be read, or the key is not the leaf's.
    """
    certificates = _load_chain(chain)
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        msg = f"the key cannot be read ({error})"
        raise SvidError(msg) from error
    if private.public_key() != certificates[0].public_key():
        msg = "the key is not that of the first certificate"
        raise SvidError(msg)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        signature = private.sign(statement, ec.ECDSA(hashes.SHA256()))
    elif isinstance(private, rsa.RSAPrivateKey):
        salted = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
        signature = private.sign(statement, salted, hashes.SHA256())
    elif isinstance(private, ed25519.Ed25519PrivateKey):
        signature = private.sign(statement)
    else:
        msg = "the key is of a kind that hostmesh does not take: use ECDSA, RSA or Ed25519"
        raise SvidError(msg)
    # The root, if it is there, is of no use: the controller has its own.
    sent = [each for each in certificates if each.subject != each.issuer] or certificates
    return [each.public_bytes(Encoding.DER) for each in sent], signature


def proof(key: bytes, chain: bytes, statement: bytes) -> tuple[str, bytes, bytes]:
    """Return the leaf's serial (as in Svid), its public key (DER) and the key's signature of the statement.

    Raises:
        SvidError: key or chain cannot be read.
    """
    leaf = _load_chain(chain)[0]
    public = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"{leaf.serial_number:032x}", public, _load_key(key).sign(statement, ec.ECDSA(hashes.SHA256()))


def root_pem(root_der: bytes) -> bytes:
    """Return the root of a join string as PEM.

    Raises:
        SvidError: it is not a certificate of an authority.
    """
    try:
        root = x509.load_der_x509_certificate(root_der)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        msg = "the join string holds no readable root certificate: ask the operator for a new one"
        raise SvidError(msg) from error
    if not _is_authority(root):
        msg = "the certificate in the join string is not that of an authority: ask the operator for a new one"
        raise SvidError(msg)
    return root.public_bytes(Encoding.PEM)


@_said
def belongs_together(key: bytes, chain: bytes) -> bool:
    """Tell whether the key is that of the chain's first certificate, both PEM.

    Raises:
        SvidError: one of the two cannot be read.
    """
    return _load_key(key).public_key() == _load_chain(chain)[0].public_key()


@_said
def checked(
    key: bytes,
    chain: bytes,
    bundle: bytes,
    identity: WorkloadIdentity | HostIdentity,
    now: datetime,
) -> Svid:
    """Return the key and chain as an SVID, after checking everything that makes it usable.

    Args:
        key: PEM; must be that of the leaf.
        chain: PEM, leaf first; each must be issued by the next, one of them by a root of the bundle. What follows that
            one is for peers who trust another root.
        bundle: PEM; the roots.
        identity: must be the leaf's one URI name.
        now: aware; must be within the validity of each.

    Raises:
        SvidError: any of this does not hold.
    """
    certificates = _load_chain(chain)
    leaf = certificates[0]
    if _load_key(key).public_key() != leaf.public_key():
        msg = f"the certificate for {identity.uri} is for another key: the controller is at fault"
        raise SvidError(msg)
    if _uris(leaf) != [identity.uri] or _is_authority(leaf):
        msg = f"the certificate names {_uris(leaf)}, not {identity.uri}: the controller is at fault"
        raise SvidError(msg)
    _check_usage(leaf)
    root = _check_path(certificates, _load_chain(bundle), now)
    return Svid(
        identity=identity,
        serial=f"{leaf.serial_number:032x}",
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        key_pem=key,
        chain_pem=chain,
        root=_fingerprint(root),
        enrolment=_enrolment(leaf),
    )


@_said
def read_one_file(data: bytes, bundle: bytes, identity: WorkloadIdentity | HostIdentity, now: datetime) -> Svid:
    """Return the SVID of a file with key and chain; see `checked`."""
    marker = data.find(b"-----BEGIN CERTIFICATE-----")
    if marker < 0:
        msg = "the file holds no certificate"
        raise SvidError(msg)
    return checked(data[:marker], data[marker:], bundle, identity, now)


@_said
def validity(chain: bytes) -> tuple[str, datetime, datetime]:
    """Return the leaf's serial (as in Svid), not-before and not-after, unchecked otherwise.

    Raises:
        SvidError: it cannot be read.
    """
    leaf = _load_chain(chain)[0]
    return f"{leaf.serial_number:032x}", leaf.not_valid_before_utc, leaf.not_valid_after_utc


@_said
def standing(chain: bytes, bundle: bytes) -> Standing:
    """Return when the leaf is good, of which joining it is, and to which root of the bundle it leads; else unchecked.

    Raises:
        SvidError: one of the two cannot be read.
    """
    certificates = _load_chain(chain)
    found = _path(certificates, _load_chain(bundle))
    root = "" if found is None else _fingerprint(found[1])
    return Standing(*validity(chain), root, _enrolment(certificates[0]))


@_said
def roots(bundle: bytes) -> tuple[str, ...]:
    """Return the roots of a bundle: SHA-256 in hexadecimal, in order.

    Raises:
        SvidError: it cannot be read.
    """
    return tuple(map(_fingerprint, _load_chain(bundle)))


def _enrolment(leaf: x509.Certificate) -> str:
    """Return the joining of a host under which the leaf was issued; "" for none."""
    found = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _check_usage(leaf: x509.Certificate) -> None:
    try:
        usages = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        usages = set()
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH} <= usages:
        msg = "the certificate is not for clients and servers: the controller is at fault"
        raise SvidError(msg)


def _check_path(chain: list[x509.Certificate], roots: list[x509.Certificate], now: datetime) -> x509.Certificate:
    """Return the root that the chain leads to, by the shortest way."""
    if len(chain) > MAX_CHAIN:
        msg = f"a chain of {len(chain)} certificates, at most {MAX_CHAIN} are taken: the controller is at fault"
        raise SvidError(msg)
    for child, parent in pairwise(chain):
        if not _issued_by(child, parent):
            msg = "the chain's certificates are not issued one by the other: the controller is at fault"
            raise SvidError(msg)
    found = _path(chain, roots)
    if found is None:
        msg = "the chain does not lead to a root that this host trusts: the operator must check the authority"
        raise SvidError(msg)
    path, root = found
    for certificate in (*path, root):
        _check_time(certificate, now)
    return root


def _path(
    chain: list[x509.Certificate], roots: list[x509.Certificate]
) -> tuple[list[x509.Certificate], x509.Certificate] | None:
    for length, last in enumerate(chain, start=1):
        for root in roots:
            if _issued_by(last, root):
                return chain[:length], root
    return None


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        early = certificate.not_valid_before_utc - now
        msg = f"a certificate begins only in {_rounded(early)}: {_CLOCK}"
        raise SvidError(msg)
    if now >= certificate.not_valid_after_utc:
        late = now - certificate.not_valid_after_utc
        msg = f"a certificate ended {_rounded(late)} ago: renew it; if it is new, {_CLOCK}"
        raise SvidError(msg)


def _issued_by(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return _is_authority(parent)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        msg = f"the key cannot be read ({error})"
        raise SvidError(msg) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = "the key is not an elliptic curve key"
        raise SvidError(msg)
    return key


def _load_chain(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        msg = f"the certificates cannot be read ({error})"
        raise SvidError(msg) from error


def _rounded(span: timedelta) -> timedelta:
    return timedelta(seconds=round(span.total_seconds()))


def signed_by(key: bytes, data: bytes, signature: bytes) -> bool:
    """Tell whether the holder of an Ed25519 key (its public half, 32 bytes) has signed some bytes."""
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
