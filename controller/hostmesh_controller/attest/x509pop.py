"""An existing certificate of a machine, and proof that who shows it holds its key. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hostmesh_controller.attest.chains import public_key, read_chain, verify
from hostmesh_controller.attest.evidence import Attested, EvidenceError, Shown, printable
from hostmesh_controller.attest.signatures import signed


@dataclass(frozen=True, slots=True)
class X509Attestor:
    """`roots` returns the authorities that issue machines' certificates, as the operator's files have them now."""

    roots: Callable[[], Sequence[x509.Certificate]]

    def verify(self, shown: Shown, now: datetime) -> Attested:
        evidence = shown.request.x509pop
        chain = read_chain(evidence.chain_der)
        leaf = verify(chain, self.roots(), ExtendedKeyUsageOID.CLIENT_AUTH, now)
        if not signed(public_key(leaf), evidence.signature, shown.statement):
            raise EvidenceError("the signature is not of the certificate's key")
        common = _with_label("cn", _common_name(leaf))
        names = [{**_with_label("dns", each), **common} for each in _dns_names(leaf)] or [common]
        subject, issuer = leaf.subject.rfc4514_string(), leaf.issuer.rfc4514_string()
        summary = f"certificate {subject or '(no subject)'}, serial {leaf.serial_number:x}, issued by {issuer}"
        return Attested("x509pop", names, printable(summary))


def _with_label(field: str, name: str) -> dict[str, str]:
    """Return what a template may use of a DNS name; nothing of none."""
    return {field: name, f"{field}_label": name.partition(".")[0]} if name else {}


def _dns_names(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [each.lower() for each in names.get_values_for_type(x509.DNSName)]


def _common_name(leaf: x509.Certificate) -> str:
    """Return the one common name of the subject; "" if there is none, or several."""
    found = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value).lower() if len(found) == 1 else ""
