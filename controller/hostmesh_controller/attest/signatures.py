"""Signatures of hosts' keys. The kind of key decides the algorithm, never the peer. Pure."""

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

RSA_BITS: Final = (2048, 4096)
"""Checking a signature of 16,384 bits takes as long as sixty of 2,048; below is broken."""
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
MAX_KEY_BYTES: Final = 1024


def key_problem(key: object) -> str | None:
    """Return why a public key is not taken, None if it is. Look before anything is checked with it."""
    if isinstance(key, rsa.RSAPublicKey):
        low, high = RSA_BITS
        if not low <= key.key_size <= high:
            return f"an RSA key of {key.key_size} bits: {low} to {high} are taken"
        return None if key.public_numbers().e == 65537 else "an RSA key with an exponent other than 65537"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if isinstance(key.curve, _CURVES) else f"a key on the curve {key.curve.name}"
    return None if isinstance(key, ed25519.Ed25519PublicKey) else f"a key of the kind {type(key).__name__}"


def read_key(der: bytes) -> PublicKey | None:
    """Return a SubjectPublicKeyInfo's key; None if it is none, or of a kind that is not taken."""
    if len(der) > MAX_KEY_BYTES:
        return None
    try:
        key = load_der_public_key(der)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if key_problem(key) is not None:
        return None
    return key if isinstance(key, PublicKey) else None


def signed(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Tell whether the holder of the key signed the data: ECDSA or RSA-PSS with SHA-256, or Ed25519."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            salted = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            key.verify(signature, data, salted, hashes.SHA256())
        else:
            key.verify(signature, data)
    except InvalidSignature:
        return False
    return True
