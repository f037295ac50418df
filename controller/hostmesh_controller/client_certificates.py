"""Client certificates on the admin port: what one says, and who that is by controller.toml. Pure.

TLS has verified the chain to `admin.client_ca` before anything here runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from hostmesh_controller.client_rules import ClientRule
from hostmesh_controller.grants import Grant

_MAX_SHOWN = 200


class UnreadableCertificateError(Exception):
    """A certificate that TLS let through and that cannot be read all the same."""


@dataclass(frozen=True, slots=True)
class AdminCertificate:
    """The names in a certificate, by the fields of `client_rules`; `serial` in hexadecimal."""

    serial: str
    names: tuple[tuple[str, str], ...]

    @property
    def shown(self) -> str:
        """For messages."""
        return ", ".join(f"{field}={value!r}" for field, value in self.names)[:_MAX_SHOWN] or "it has no names"


@lru_cache(256)
def read(der: bytes) -> AdminCertificate:
    """Read a certificate.

    Raises:
        UnreadableCertificateError: it is not well-formed.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = [("cn", str(each.value)) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        names += [("ou", str(each.value)) for each in units]
        try:
            also = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            also = x509.SubjectAlternativeName([])
        names += [("uri", each) for each in also.get_values_for_type(x509.UniformResourceIdentifier)]
        names += [("dns", each) for each in also.get_values_for_type(x509.DNSName)]
        names += [("email", each) for each in also.get_values_for_type(x509.RFC822Name)]
        return AdminCertificate(f"{certificate.serial_number:x}", tuple(names))
    except (ValueError, TypeError, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise UnreadableCertificateError("it is not well-formed") from error


def principal_of(certificate: AdminCertificate, clients: Sequence[ClientRule]) -> tuple[str, tuple[Grant, ...]] | None:
    """Return name and grants of whom a certificate is, by the first rule that fits; None if none does."""
    for rule in clients:
        matched = rule.match(certificate.names)
        if matched is not None:
            return rule.name or next(
                (value for field, value in certificate.names if field == "cn"), matched
            ), rule.grants
    return None
