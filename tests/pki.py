"""What tests of identity share: a moment, an authority, keys and requests."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh_agent.keys import Svid, checked, key_pem, new_key
from hostmesh_agent.state import HostFiles, HostRecord, State
from hostmesh_api.identity import HostIdentity, WorkloadIdentity
from hostmesh_controller.authority import LEAF_LIFE, Authority

TRUST_DOMAIN = "cluster.local"
HOST = HostIdentity(TRUST_DOMAIN, "web-1")
CART = WorkloadIdentity(TRUST_DOMAIN, "shop", "cart")


def now() -> datetime:
    return datetime.now(UTC)


def new_authority(directory: Path, trust_domain: str = TRUST_DOMAIN, at: datetime | None = None) -> Authority:
    return Authority.load_or_create(directory, trust_domain, at or now())


def svid(
    authority: Authority,
    identity: HostIdentity | WorkloadIdentity,
    at: datetime | None = None,
    life: timedelta = LEAF_LIFE,
    enrolment: str = "",
) -> Svid:
    """Issue to a new key; `at` is the moment of issue."""
    key = new_key()
    moment = at or now()
    issued = authority.issue(key.public_key(), identity, moment, life, enrolment=enrolment)
    return checked(key_pem(key), issued.chain_pem, authority.bundle_pem, identity, moment)


def joined(directory: Path, authority: Authority, identity: HostIdentity = HOST, endpoint: str = "a:1") -> State:
    """Return the state of a host that has joined."""
    state = State(directory)
    own = svid(authority, identity)
    record = HostRecord(identity.host, identity.trust_domain, (endpoint,))
    state.save_joined(record, HostFiles(own.key_pem, own.chain_pem, authority.bundle_pem))
    return state


def leaf(chain_pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain_pem)[0]


def ders(bundle_pem: bytes) -> list[bytes]:
    return [each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(bundle_pem)]


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def greedy_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request that asks for all that it must not get."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "controller")]))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier("spiffe://cluster.local/ns/bank/sa/vault"),
                    x509.UniformResourceIdentifier("spiffe://cluster.local/hostmesh/controller"),
                    x509.DNSName("controller.example.org"),
                ]
            ),
            critical=True,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), critical=True
        )
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
