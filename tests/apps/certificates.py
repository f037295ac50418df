"""Certificates as a company has them: one authority, and servers and clients that it vouches for."""

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_LIFE: Final = timedelta(days=1)


class Company:
    """An authority, kept in memory, and a folder for what it issues."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("the company")
        root = _certificate(self._name, self._name, self._key, self._key, x509.BasicConstraints(True, None))
        (directory / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))

    @property
    def ca(self) -> Path:
        """Whom to trust."""
        return self._directory / "ca.pem"

    def issue(self, name: str) -> Path:
        """Write `NAME.crt`, `NAME.key` and both of them as `NAME.pem`, and return the last; a new key each time."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _certificate(_name(name), self._name, key, self._key, x509.SubjectAlternativeName([x509.DNSName(name)]))
        chain = leaf.public_bytes(Encoding.PEM)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for suffix, content in (("crt", chain), ("key", secret), ("pem", chain + secret)):
            (self._directory / f"{name}.{suffix}").write_bytes(content)
        return self._directory / f"{name}.pem"

    def secret(self, name: str) -> dict[str, str]:
        """What a Secret of the last certificate issued to the name has, in base64: `certificate`, `key`, `ca`."""
        files = {"certificate": f"{name}.crt", "key": f"{name}.key", "ca": "ca.pem"}
        return {field: b64encode((self._directory / file).read_bytes()).decode() for field, file in files.items()}


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
