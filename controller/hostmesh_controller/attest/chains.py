"""Certificate chains of others' authorities: bounded before anything is computed, verified by `cryptography`. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from hostmesh_controller.attest.evidence import EvidenceError
from hostmesh_controller.attest.signatures import PublicKey, key_problem

MAX_CHAIN: Final = 5
"""A leaf and its intermediates."""
MAX_CERTIFICATE_BYTES: Final = 8192


def read_chain(chain_der: Sequence[bytes]) -> list[x509.Certificate]:
    """Return the certificates of a chain, none of them larger than it may be.

    Raises:
        EvidenceError: too many, too large, unreadable, or a key that is not taken.
    """
    if not 1 <= len(chain_der) <= MAX_CHAIN:
        raise EvidenceError(f"a chain of {len(chain_der)} certificates: 1 to {MAX_CHAIN} are taken")
    return [_read(each) for each in chain_der]


def _read(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise EvidenceError(f"a certificate of {len(der)} bytes: at most {MAX_CERTIFICATE_BYTES} are taken")
    try:
        certificate = x509.load_der_x509_certificate(der)
        problem = key_problem(certificate.public_key())
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"a certificate cannot be read: {error}") from error
    if problem is not None:
        raise EvidenceError(problem)
    return certificate


def verify(
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    usage: x509.ObjectIdentifier,
    now: datetime,
) -> x509.Certificate:
    """Return the leaf of a chain that leads to one of the roots.

    Args:
        chain: leaf first.
        roots: of the operator's choice.
        usage: what the leaf must be for: one of its extended key usages.
        now: aware; must be within the validity of each.

    Raises:
        EvidenceError: it does not.
    """
    leaf = chain[0]
    _check_leaf(leaf, usage)
    if not roots:
        raise EvidenceError("no authority is configured")
    policies = {"ca_policy": _authority_policy(), "ee_policy": ExtensionPolicy.permit_all()}
    builder = PolicyBuilder().store(Store(list(roots))).time(now).max_chain_depth(MAX_CHAIN)
    try:
        builder.extension_policies(**policies).build_client_verifier().verify(leaf, list(chain[1:]))
    except (VerificationError, ValueError) as error:
        raise EvidenceError(f"the chain is not trusted: {str(error)[:300]}") from error
    return leaf


def public_key(certificate: x509.Certificate) -> PublicKey:
    """Return the key of a certificate that `read_chain` has looked at."""
    key = certificate.public_key()
    assert isinstance(key, PublicKey)
    return key


def _check_leaf(leaf: x509.Certificate, usage: x509.ObjectIdentifier) -> None:
    try:
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    except (ValueError, x509.DuplicateExtension) as error:
        raise EvidenceError(f"the certificate's extensions cannot be read: {error}") from error
    if constraints is not None and constraints.ca:
        raise EvidenceError("the certificate is that of an authority, not of a machine")
    try:
        usages = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        usages = []
    if usage not in usages:
        raise EvidenceError(f"the certificate has no extended key usage {_usage_name(usage)}")


def _usage_name(usage: x509.ObjectIdentifier) -> str:
    return {ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth", ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth"}.get(
        usage, usage.dotted_string
    )


def _authority_policy() -> ExtensionPolicy:
    """The authorities of companies lack much of what the web's must have: what matters here is that they are some."""
    anyhow = Criticality.AGNOSTIC
    return (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, anyhow, _may_issue)
        .may_be_present(x509.KeyUsage, anyhow, _may_sign)
    )


def _may_issue(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("a certificate in the chain is not that of an authority")


def _may_sign(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an authority in the chain may not sign certificates")
