"""Others' authorities, whose word may let machines in: as a company, an SSH administrator or a cloud has them."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import pki

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        common_name: str = "",
        dns: Sequence[str] = (),
        *,
        key: Key | None = None,
        ca: bool = False,
        usage: x509.ObjectIdentifier | None = CLIENT,
        begins: datetime | None = None,
        life: timedelta = timedelta(days=30),
        more: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> "Issued":
        own = key or ec_key()
        extensions: list[tuple[x509.ExtensionType, bool]] = list(more)
        if dns:
            extensions.append((x509.SubjectAlternativeName([x509.DNSName(each) for each in dns]), False))
        if usage is not None and not ca:
            extensions.append((x509.ExtendedKeyUsage([usage]), False))
        return _made(common_name, own, self, ca, begins or pki.now() - timedelta(days=1), life, extensions)


def authority(name: str = "Corp CA") -> Issued:
    return _made(name, ec_key(), None, True, pki.now() - timedelta(days=400), timedelta(days=4000), [])


def _made(
    common_name: str,
    key: Key,
    parent: Issued | None,
    ca: bool,
    begins: datetime,
    life: timedelta,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> Issued:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if parent is None else parent.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + life)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signer = key if parent is None else parent.key
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Issued(builder.sign(signer, digest), key)


# SSH, with the tools that administrators use


def ssh_keygen(*words: str | Path) -> str:
    done = subprocess.run(["ssh-keygen", *map(str, words)], capture_output=True, text=True, check=True)
    return done.stdout


def ssh_key(path: Path, kind: str = "ed25519", bits: int | None = None) -> Path:
    size = [] if bits is None else ["-b", str(bits)]
    ssh_keygen("-q", "-t", kind, *size, "-N", "", "-C", "host", "-f", path)
    return path


def ssh_fingerprint(key: Path) -> str:
    return ssh_keygen("-l", "-f", f"{key}.pub").split()[1]


def ssh_certificate(ca: Path, key: Path, principals: str, *more: str, host: bool = True) -> Path:
    """Certify the key; return the file of the certificate."""
    ssh_keygen("-q", "-s", ca, "-I", "a host", *(["-h"] if host else []), "-n", principals, *more, f"{key}.pub")
    return key.with_name(f"{key.name}-cert.pub")
