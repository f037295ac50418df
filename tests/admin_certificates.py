"""A CA for administrators' client certificates, which is none of the mesh."""

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import pki


class AdminCa:
    def __init__(self, name: str = "admins") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = (
            _builder(name, self.key, name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, SHA256())
        )
        self._name = name

    def write(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return path

    def issue(
        self, cn: str, unit: str = "", uri: str = "", life: timedelta = timedelta(hours=1)
    ) -> tuple[bytes, bytes]:
        """Return a client certificate (DER) and PEM of key and certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(cn, key, self._name, unit, life).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        if uri:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self.key, SHA256())
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate.public_bytes(Encoding.DER), key_pem + certificate.public_bytes(Encoding.PEM)


def _builder(
    cn: str, key: ec.EllipticCurvePrivateKey, issuer: str, unit: str = "", life: timedelta = timedelta(hours=1)
) -> x509.CertificateBuilder:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, cn)]
    names += [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else []
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(pki.now() - timedelta(days=2))
        .not_valid_after(pki.now() + life)
    )
