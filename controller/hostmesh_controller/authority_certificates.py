"""What the certificates of the mesh say: roots, intermediates, cross certificates and leaves. No I/O.

    root (10 years) ─▶ intermediate (1 year) ─▶ leaf (72 h)

A cross certificate says of a new root, in the name of the one before, that it may be trusted: it leads those who trust
the old one alone to certificates of the new one.
"""

import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT_LIFE: Final = timedelta(days=3650)
INTERMEDIATE_LIFE: Final = timedelta(days=365)
BACKDATE: Final = timedelta(minutes=2)
"""A host whose clock is a little behind must not see a certificate from the future."""
_SERIAL_BITS: Final = 128

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Issuer:
    """A key that signs, the certificate that says so, and those between that one and the root; none for our own."""

    key: SigningKey = field(repr=False)
    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        return (self.certificate, *self.above)

    @property
    def chain_pem(self) -> bytes:
        return pem(self.chain)

    @property
    def not_after(self) -> datetime:
        """When the first of the chain ends."""
        return min(each.not_valid_after_utc for each in self.chain)

    @property
    def renew_at(self) -> datetime:
        """Half-way through its life, so that leaves never get a cut one."""
        begin = self.certificate.not_valid_before_utc
        return begin + (self.not_after - begin) / 2


def pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the certificate, in hexadecimal."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def issued_by(child: x509.Certificate, parent: x509.Certificate) -> bool:
    """Tell whether the parent's key has signed the child, and is named as its issuer."""
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def new_root(trust_domain: str, now: datetime) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"hostmesh root of {trust_domain}")
    # No bound on the path: below it may be the next root, by its cross certificate, and that one's intermediate.
    builder = _authority(subject, key.public_key(), subject, now, now + ROOT_LIFE, trust_domain, path_length=None)
    return Issuer(key, builder.sign(key, hashes.SHA256()))


def new_intermediate(root: Issuer, trust_domain: str, now: datetime) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"hostmesh intermediate of {trust_domain}")
    end = min(_whole_seconds(now + INTERMEDIATE_LIFE), root.certificate.not_valid_after_utc)
    issuer = root.certificate.subject
    builder = _authority(subject, key.public_key(), issuer, now, end, trust_domain, path_length=0)
    builder = builder.add_extension(_authority_key_identifier(root.certificate), critical=False)
    return Issuer(key, builder.sign(root.key, hashes.SHA256()))


def cross_signed(root: x509.Certificate, by: Issuer, trust_domain: str, now: datetime) -> x509.Certificate:
    """Return a certificate of the root's name and key, signed by another root."""
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        msg = f"a root with a key of the kind {type(key).__name__} cannot be cross-signed"
        raise ValueError(msg)
    end = min(root.not_valid_after_utc, by.certificate.not_valid_after_utc)
    # The identifier that those below the root name it by.
    own = _authority_key_identifier(root).key_identifier or b""
    builder = _authority(
        root.subject, key, by.certificate.subject, now, end, trust_domain, path_length=None, identifier=own
    )
    builder = builder.add_extension(_authority_key_identifier(by.certificate), critical=False)
    return builder.sign(by.key, hashes.SHA256())


def intermediate_request(key: SigningKey, trust_domain: str) -> x509.CertificateSigningRequest:
    """Return what an upstream authority is asked for."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(f"hostmesh intermediate of {trust_domain}"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(_trust_domain_name(trust_domain), critical=False)
        .sign(key, hashes.SHA256())
    )


@dataclass(frozen=True, slots=True)
class LeafTerms:
    """What a leaf says. `addresses` are DNS names and IP addresses, `enrolment` is the subject's common name or ""."""

    uri: str
    addresses: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    enrolment: str


def leaf_terms(
    uri: str, addresses: Sequence[str], now: datetime, ttl: timedelta, end: datetime, enrolment: str
) -> LeafTerms:
    """Return the terms of a leaf from now; `end` is that of what signs it, `enrolment` "" for none."""
    not_after = min(_whole_seconds(now + ttl), end)
    return LeafTerms(uri, tuple(addresses), _whole_seconds(now - BACKDATE), not_after, enrolment)


def new_leaf(issuer: Issuer, public_key: ec.EllipticCurvePublicKey, terms: LeafTerms) -> x509.Certificate:
    """Sign for a public key; nothing of a request is in it."""
    names = [x509.UniformResourceIdentifier(terms.uri), *map(_general_name, terms.addresses)]
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer.certificate.subject)
        .public_key(public_key)
        .serial_number(_serial())
        .not_valid_before(terms.not_before)
        .not_valid_after(terms.not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_authority_key_identifier(issuer.certificate), critical=False)
        # Proxies tell by it whose certificates they must refuse; whom one names is in the alternative name alone.
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, terms.enrolment)] if terms.enrolment else []))
        # Critical because the subject may be empty (RFC 5280, 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(issuer.key, hashes.SHA256())
    )


def names_trust_domain(root: x509.Certificate) -> list[str]:
    """Return the URIs of a root's own names: one of ours has its trust domain's and no other."""
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return []


def _authority(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    issuer: x509.Name,
    now: datetime,
    end: datetime,
    trust_domain: str,
    *,
    path_length: int | None,
    identifier: bytes = b"",
) -> x509.CertificateBuilder:
    own = x509.SubjectKeyIdentifier(identifier) if identifier else x509.SubjectKeyIdentifier.from_public_key(key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(_serial())
        .not_valid_before(_whole_seconds(now - BACKDATE))
        .not_valid_after(_whole_seconds(end))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(own, critical=False)
        .add_extension(_trust_domain_name(trust_domain), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [
            # At most 64 characters (RFC 5280, ub-common-name); a trust domain can be longer.
            x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
            # Two roots must not have one name: some verifiers look issuers up by it.
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{_serial():032x}"),
        ]
    )


def _trust_domain_name(trust_domain: str) -> x509.SubjectAlternativeName:
    # X509-SVID, section 4.1: a signing certificate may carry the trust domain's own ID.
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")])


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        # Only an authority that was made elsewhere can lack it.
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _serial() -> int:
    return secrets.randbits(_SERIAL_BITS) or 1


def _whole_seconds(moment: datetime) -> datetime:
    """X.509 has no fractions: cut here, so that what is returned is what is in the certificate."""
    return moment.replace(microsecond=0)
