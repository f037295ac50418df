"""Certificate requests: the public key of one whose sender holds the private key, and nothing else.

Subject, names, extensions and CA:TRUE of a request are never looked at. What a certificate says is decided by who asks
and by the registry.
"""

import base64
import hashlib
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

MAX_CSR_BYTES: Final = 4096
"""A P-384 request without extras has about 300 bytes."""

_CURE: Final = "the agent must send a PKCS #10 request, DER, signed with its own ECDSA P-256 or P-384 key"
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
"""What Envoy takes (BoringSSL also RSA, which is six times slower to make and bigger in every handshake)."""


class CsrError(Exception):
    """The request cannot be used; the message is for the peer."""


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """Return what records keep of a public key: SHA-256 of its SubjectPublicKeyInfo, in hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def fingerprint(digest: str) -> str:
    """Return a digest (hexadecimal) as people are shown it."""
    return "SHA256:" + base64.b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()


def public_key_of(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request that is signed with the private key of the same pair.

    Raises:
        CsrError: too big, not a request, another kind of key, or not proven to be the sender's.
    """
    if len(csr_der) > MAX_CSR_BYTES:
        msg = f"certificate request of {len(csr_der)} bytes, at most {MAX_CSR_BYTES} are taken: {_CURE}"
        raise CsrError(msg)
    try:
        csr = x509.load_der_x509_csr(csr_der)
        key = csr.public_key()
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        msg = f"certificate request cannot be read: {_CURE}"
        raise CsrError(msg) from error
    # The kind of key comes before the signature: checking that of a huge RSA key is work for whoever asks.
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        msg = f"certificate request with another kind of key: {_CURE}"
        raise CsrError(msg)
    try:
        proven = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        msg = f"certificate request with an unknown kind of signature: {_CURE}"
        raise CsrError(msg) from error
    if not proven:
        msg = f"certificate request whose signature is not of its own key: {_CURE}"
        raise CsrError(msg)
    return key
