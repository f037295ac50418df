"""Certificates as a company has them: one authority, and servers and clients that it vouches for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_LIFE: Final = timedelta(days=1)


def make_certificates(directory: Path, *names: str) -> None:
    """Write `ca.pem`, and for each DNS name `NAME.crt`, `NAME.key` and both of them as `NAME.pem`."""
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("the company")
    root = _certificate(issuer, issuer, authority, authority, x509.BasicConstraints(ca=True, path_length=None))
    (directory / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _certificate(_name(name), issuer, key, authority, x509.SubjectAlternativeName([x509.DNSName(name)]))
        chain = leaf.public_bytes(Encoding.PEM)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for suffix, content in (("crt", chain), ("key", secret), ("pem", chain + secret)):
            (directory / f"{name}.{suffix}").write_bytes(content)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - _LIFE).not_valid_after(now + _LIFE)
    return builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints)).sign(
        signer, hashes.SHA256()
    )
