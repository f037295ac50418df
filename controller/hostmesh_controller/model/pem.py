"""Certificates and keys as files hold them: are they what they say, and do they fit each other?

No message quotes what it read, and none passes on an error of the parser, which might.
"""

import re
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import ocsp

_RSA_MIN: Final = 2048
"""Envoy refuses shorter keys."""
_REVOCATION: Final = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


_BEGIN: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----")
_OWN_LINE: Final = re.compile(rb"^-----BEGIN [A-Z0-9 ]+-----[ \t\r]*$", re.MULTILINE)


def _check_lines(pem: bytes) -> None:
    # Envoy's reader goes by lines, where the one used here does not. YAML's '>' joins them.
    if len(_BEGIN.findall(pem)) != len(_OWN_LINE.findall(pem)):
        raise ValueError("the line breaks of the PEM are lost: in YAML, write it as a block after '|'")


def _certificates(pem: bytes) -> list[x509.Certificate]:
    if b"PRIVATE KEY-----" in pem:
        raise ValueError("there is a private key among the certificates: it belongs into a field of its own")
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ValueError("this is no certificate in PEM: expected -----BEGIN CERTIFICATE-----")
    _check_lines(pem)
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ValueError("this is no certificate in PEM: what is between BEGIN and END cannot be read") from None


def check_certificates(pem: bytes, *, chain: bool) -> None:
    """Check certificates in PEM.

    Args:
        pem: at least one certificate.
        chain: whether each must be signed by the next one.

    Raises:
        ValueError: they are not.
    """
    found = _certificates(pem)
    for number, (child, parent) in enumerate(pairwise(found), start=1):
        if chain and child.issuer != parent.subject:
            raise ValueError(
                f"certificate {number + 1} did not issue certificate {number}: the order is the server's own "
                "certificate, then the one that issued it, and so on"
            )


def check_key(pem: bytes, certificates: bytes) -> None:
    """Check a private key in PEM, and that the first of the certificates is for it.

    Raises:
        ValueError: it is no key Envoy can use, or is another certificate's.
    """
    _check_lines(pem)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("the private key is encrypted: store it without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("this is no private key in PEM: expected -----BEGIN PRIVATE KEY----- or the like") from None
    if isinstance(key, RSAPrivateKey) and key.key_size < _RSA_MIN:
        raise ValueError(f"the RSA key has {key.key_size} bits; Envoy needs {_RSA_MIN} at least")
    try:
        leaf = _certificates(certificates)[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        return  # said of the certificate itself
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_bytes(*form):
        raise ValueError("the private key is not that of the certificate (of the first one, if there are several)")


def check_revocations(pem: bytes) -> None:
    """Check certificate revocation lists in PEM.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    found = _REVOCATION.findall(pem)
    if not found:
        raise ValueError("this is no revocation list in PEM: expected -----BEGIN X509 CRL-----")
    _check_lines(pem)
    for one in found:
        try:
            x509.load_pem_x509_crl(one)
        except ValueError:
            raise ValueError("this is no revocation list: what is between BEGIN and END cannot be read") from None


def check_ocsp_staple(der: bytes) -> None:
    """Check an OCSP answer in DER.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        ocsp.load_der_ocsp_response(der)
    except ValueError:
        raise ValueError("this is no OCSP answer in DER") from None
