"""SSH signatures as `ssh-keygen -Y sign` makes them (PROTOCOL.sshsig of OpenSSH): read, and checked. Pure."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import SSHCertificate, load_ssh_public_identity

from hostmesh_controller.attest.evidence import EvidenceError
from hostmesh_controller.attest.signatures import PublicKey, key_problem

MAX_CHARS: Final = 8192
"""A signature with RSA keys of 4096 bits and a certificate has about 4,000."""
_ARMOR: Final = re.compile(
    r"-----BEGIN SSH SIGNATURE-----\s+([A-Za-z0-9+/=\s]+)-----END SSH SIGNATURE-----\s*", re.ASCII
)
_MAGIC: Final = b"SSHSIG"
_VERSION: Final = (1).to_bytes(4)
_DIGESTS: Final = {b"sha256": "sha256", b"sha512": "sha512"}
_RSA: Final = {b"rsa-sha2-256": hashes.SHA256(), b"rsa-sha2-512": hashes.SHA512()}
"""Not `ssh-rsa`: that is SHA-1."""
_ECDSA: Final = {
    b"ecdsa-sha2-nistp256": (ec.SECP256R1, hashes.SHA256()),
    b"ecdsa-sha2-nistp384": (ec.SECP384R1, hashes.SHA384()),
    b"ecdsa-sha2-nistp521": (ec.SECP521R1, hashes.SHA512()),
}


@dataclass(frozen=True, slots=True)
class SshSignature:
    """`identity` is the key that signed, with its certificate if the signature carries one."""

    identity: SSHCertificate | PublicKey
    namespace: bytes
    digest: bytes
    algorithm: bytes
    signature: bytes = field(repr=False)


def read(text: str) -> SshSignature:
    """Read an armored signature; nothing is checked but its form.

    Raises:
        EvidenceError: it is none, or of a kind that is not taken.
    """
    match = _ARMOR.fullmatch(text) if len(text) <= MAX_CHARS else None
    if match is None:
        raise EvidenceError("no SSH signature")
    fields = _Fields(_decoded(match[1]))
    if fields.take(len(_MAGIC)) != _MAGIC or fields.take(4) != _VERSION:
        raise EvidenceError("an SSH signature of another version")
    key_blob, namespace, _, digest, signature = (fields.string() for _ in range(5))
    inner = _Fields(signature)
    algorithm, raw = inner.string(), inner.string()
    if fields.rest() or inner.rest():
        raise EvidenceError("an SSH signature with more than belongs to it")
    return SshSignature(read_identity(key_blob), namespace, digest, algorithm, raw)


def read_identity(blob: bytes) -> SSHCertificate | PublicKey:
    """Return the key or certificate of a blob in SSH's wire form.

    Raises:
        EvidenceError: it is none, or its key is of a kind or size that is not taken.
    """
    kind = _Fields(blob).string()
    try:
        identity = load_ssh_public_identity(kind + b" " + base64.b64encode(blob))
        key = identity.public_key() if isinstance(identity, SSHCertificate) else identity
        problem = key_problem(key)
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"an SSH key that cannot be read: {str(error)[:200]}") from error
    if problem is not None:
        raise EvidenceError(problem)
    assert isinstance(identity, SSHCertificate | PublicKey)
    return identity


def signed(signature: SshSignature, key: PublicKey, namespace: str, data: bytes) -> bool:
    """Tell whether the key signed the data for the namespace."""
    name = _DIGESTS.get(signature.digest)
    if name is None or signature.namespace != namespace.encode():
        return False
    parts = (signature.namespace, b"", signature.digest, hashlib.new(name, data).digest())
    signed_data = _MAGIC + b"".join(len(part).to_bytes(4) + part for part in parts)
    try:
        return _verify(signature, key, signed_data)
    except (InvalidSignature, EvidenceError):
        return False


def _verify(signature: SshSignature, key: PublicKey, data: bytes) -> bool:
    """Tell whether the algorithm is one for the key; raise InvalidSignature if it did not sign."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        if signature.algorithm != b"ssh-ed25519":
            return False
        key.verify(signature.signature, data)
    elif isinstance(key, rsa.RSAPublicKey):
        digest = _RSA.get(signature.algorithm)
        if digest is None:
            return False
        key.verify(signature.signature, data, padding.PKCS1v15(), digest)
    else:
        curve = _ECDSA.get(signature.algorithm)
        if curve is None or not isinstance(key.curve, curve[0]):
            return False
        fields = _Fields(signature.signature)
        numbers = [int.from_bytes(fields.string()) for _ in range(2)]
        if fields.rest():
            return False
        key.verify(encode_dss_signature(*numbers), data, ec.ECDSA(curve[1]))
    return True


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise EvidenceError("an SSH signature that is not base64") from error


class _Fields:
    """Takes length-prefixed strings off the front of the bytes (RFC 4251, section 5)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise EvidenceError("an SSH message that ends too early")
        self._at += count
        return taken

    def string(self) -> bytes:
        return self.take(int.from_bytes(self.take(4)))

    def rest(self) -> int:
        return len(self._data) - self._at
