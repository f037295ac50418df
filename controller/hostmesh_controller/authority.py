"""The certificate authority: who signs, and what a certificate of the mesh looks like.

    root (10 years, signs intermediates) ─▶ intermediate (1 year, renewed at half-life) ─▶ leaves (72 h)

Peers trust the root alone; the intermediate travels with each leaf, so that it can change without telling anybody.
A leaf says what the caller decided, never what a CSR asked for: it is made from a public key and an identity.
"""

import ipaddress
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hostmesh_api.identity import ControllerIdentity, HostIdentity, WorkloadIdentity, require_subdomain
from hostmesh_controller.authority_files import AuthorityError, Issuer, lock, read_issuer, write_issuer

__all__ = ["Authority", "AuthorityError", "Issued"]

LEAF_LIFE: Final = timedelta(hours=72)
ROOT_LIFE: Final = timedelta(days=3650)
INTERMEDIATE_LIFE: Final = timedelta(days=365)
BACKDATE: Final = timedelta(minutes=2)
"""A host whose clock is a little behind must not see a certificate from the future."""
_SERIAL_BITS: Final = 128

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Issued:
    """A signed certificate.

    Attributes:
        chain_pem: leaf first, then the intermediate; PEM.
        serial: of the leaf; 32 lower-case hexadecimal digits.
        not_before: aware, UTC.
        not_after: aware, UTC.
    """

    chain_pem: bytes = field(repr=False)
    serial: str
    not_before: datetime
    not_after: datetime


class Authority:
    """Root and intermediate of one trust domain. Thread-safe."""

    def __init__(self, root: Issuer, intermediate: Issuer, trust_domain: str, directory: Path) -> None:
        self._root = root
        self._intermediate = intermediate
        self._trust_domain = trust_domain
        self._directory = directory
        self._renewing = threading.Lock()

    @classmethod
    def load_or_create(cls, state_dir: Path, trust_domain: str, now: datetime) -> Self:
        """Return the authority kept in `state_dir`/ca, made there if there is none.

        What a crash left half-made is finished. What cannot be finished without giving every host a new root is
        refused.

        Args:
            state_dir: the controller's state directory; made if missing.
            trust_domain: what the authority signs for; an existing one must be of the same.
            now: aware.

        Raises:
            AuthorityError: files are missing, foreign, readable by others, or do not belong together; says the cure.
            ValueError: `trust_domain` is not a DNS name.
        """
        require_subdomain("trust domain", trust_domain)
        directory = state_dir / "ca"
        with lock(directory):
            root = read_issuer(directory, "root")
            intermediate = read_issuer(directory, "intermediate")
            if root is None:
                if intermediate is not None:
                    msg = (
                        f"{directory / 'root.pem'} is missing although {directory / 'intermediate.pem'} is there: "
                        "restore it from a backup. (Or remove the whole directory for a new root; then every host "
                        "must join again.)"
                    )
                    raise AuthorityError(msg)
                root = _new_root(trust_domain, now)
                write_issuer(directory, "root", root)
            _check_root(root, trust_domain, now, directory)
            if intermediate is None or not _is_current(intermediate, root, now):
                intermediate = _new_intermediate(root, trust_domain, now)
                write_issuer(directory, "intermediate", intermediate)
        return cls(root, intermediate, trust_domain, directory)

    @property
    def trust_domain(self) -> str:
        return self._trust_domain

    @property
    def root_der(self) -> bytes:
        return self._root.certificate.public_bytes(Encoding.DER)

    @property
    def bundle_pem(self) -> bytes:
        """Every root that a peer must trust; PEM."""
        return self._root.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        identity: WorkloadIdentity | HostIdentity | ControllerIdentity,
        now: datetime,
        ttl: timedelta = LEAF_LIFE,
        *,
        addresses: Sequence[str] = (),
        enrolment: str = "",
    ) -> Issued:
        """Sign a leaf for `identity`.

        Args:
            public_key: the owner's; its holder must have been proven before (csr.py).
            identity: becomes the one URI among the subject alternative names.
            now: aware.
            ttl: life from now; cut at the intermediate's own end.
            addresses: DNS names and IP addresses; only for the controller, for only its certificate may answer to
                an address.
            enrolment: under which it is issued, becomes the subject's common name; "" for none.

        Raises:
            ValueError: another trust domain, addresses for somebody else than the controller, or no life.
        """
        if identity.trust_domain != self._trust_domain:
            msg = f"{identity.uri} is outside of the trust domain {self._trust_domain}"
            raise ValueError(msg)
        if addresses and not isinstance(identity, ControllerIdentity):
            msg = f"only the controller's certificate has addresses, not that of {identity.uri}"
            raise ValueError(msg)
        if ttl <= timedelta():
            msg = f"a certificate's life must be positive, not {ttl}"
            raise ValueError(msg)
        issuer = self._issuer(now)
        serial = secrets.randbits(_SERIAL_BITS) or 1
        not_before = _whole_seconds(now - BACKDATE)
        not_after = min(_whole_seconds(now + ttl), issuer.certificate.not_valid_after_utc)
        names = [x509.UniformResourceIdentifier(identity.uri), *map(_general_name, addresses)]
        builder = (
            _builder(issuer, public_key, serial, not_before, not_after)
            # Proxies tell by it whose certificates they must refuse; whom one names is in the alternative name alone.
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, enrolment)] if enrolment else []))
            # Critical because the subject may be empty (RFC 5280, 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
        )
        leaf = builder.sign(issuer.key, hashes.SHA256())
        return Issued(leaf.public_bytes(Encoding.PEM) + issuer.certificate_pem, f"{serial:032x}", not_before, not_after)

    def _issuer(self, now: datetime) -> Issuer:
        """Return the intermediate, renewed at half of its life so that leaves never get a cut one."""
        if _is_current(self._intermediate, self._root, now):
            return self._intermediate
        with self._renewing:
            if not _is_current(self._intermediate, self._root, now):
                self._renew_intermediate(now)
        return self._intermediate

    def _renew_intermediate(self, now: datetime) -> None:
        try:
            with lock(self._directory):
                _check_root(self._root, self._trust_domain, now, self._directory)
                renewed = _new_intermediate(self._root, self._trust_domain, now)
                write_issuer(self._directory, "intermediate", renewed)
        except AuthorityError as error:
            if self._intermediate.certificate.not_valid_after_utc <= now:
                raise
            # Half a year is left to mend the disk; until then a full disk must not stop the mesh.
            _log.error("intermediate_not_renewed", error=str(error))
            return
        self._intermediate = renewed
        _log.info("intermediate_renewed", not_after=renewed.certificate.not_valid_after_utc.isoformat())


def _new_root(trust_domain: str, now: datetime) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    return _new_issuer(key, None, f"hostmesh root of {trust_domain}", trust_domain, now)


def _new_intermediate(root: Issuer, trust_domain: str, now: datetime) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    return _new_issuer(key, root, f"hostmesh intermediate of {trust_domain}", trust_domain, now)


def _new_issuer(
    key: ec.EllipticCurvePrivateKey, parent: Issuer | None, name: str, trust_domain: str, now: datetime
) -> Issuer:
    serial = secrets.randbits(_SERIAL_BITS) or 1
    subject = x509.Name(
        [
            # At most 64 characters (RFC 5280, ub-common-name); a trust domain can be longer.
            x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
            # Two roots must not have one name: some verifiers look issuers up by it.
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{serial:032x}"),
        ]
    )
    not_before = _whole_seconds(now - BACKDATE)
    if parent is None:
        not_after = _whole_seconds(now + ROOT_LIFE)
    else:
        not_after = min(_whole_seconds(now + INTERMEDIATE_LIFE), parent.certificate.not_valid_after_utc)
    base = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if parent is None else parent.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1 if parent is None else 0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        # X509-SVID, section 4.1: a signing certificate may carry the trust domain's own ID.
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
    )
    if parent is not None:
        base = base.add_extension(parent.authority_key_identifier, critical=False)
    return Issuer(key=key, certificate=base.sign(key if parent is None else parent.key, hashes.SHA256()))


def _builder(
    issuer: Issuer, public_key: ec.EllipticCurvePublicKey, serial: int, not_before: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer.certificate.subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(issuer.authority_key_identifier, critical=False)
    )


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


def _check_root(root: Issuer, trust_domain: str, now: datetime, directory: Path) -> None:
    try:
        names = root.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        owned = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        owned = []
    if owned != [f"spiffe://{trust_domain}"]:
        msg = (
            f"{directory / 'root.pem'} belongs to {owned or 'no trust domain'}, the configuration says trust_domain = "
            f"{trust_domain!r}: "
            "set trust_domain back, or use another state_dir for the other trust domain"
        )
        raise AuthorityError(msg)
    if root.certificate.not_valid_after_utc <= now:
        msg = (
            f"{directory / 'root.pem'} expired at {root.certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: "
            "check this machine's clock; if it is right, the mesh needs a new root and every host must join again"
        )
        raise AuthorityError(msg)


def _is_current(intermediate: Issuer, root: Issuer, now: datetime) -> bool:
    """Tell whether the intermediate is the root's and in the first half of its life, or cannot be renewed further."""
    certificate = intermediate.certificate
    try:
        certificate.verify_directly_issued_by(root.certificate)
    except (InvalidSignature, TypeError, ValueError):
        return False
    end = certificate.not_valid_after_utc
    if end == root.certificate.not_valid_after_utc:
        return now < end
    return now < certificate.not_valid_before_utc + (end - certificate.not_valid_before_utc) / 2


def _whole_seconds(moment: datetime) -> datetime:
    """X.509 has no fractions: cut here, so that what is returned is what is in the certificate."""
    return moment.replace(microsecond=0)
