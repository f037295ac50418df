"""Whoever has the key of a root that is not our own, and when what he gives can be used. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import pairwise
from typing import Final, Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hostmesh_controller.authority_certificates import Issuer, SigningKey, issued_by, pem
from hostmesh_controller.authority_roots import Source

MAX_CHAIN: Final = 4
"""Intermediates between leaf and root: each is in every handshake."""
_MIN_RSA_BITS: Final = 2048

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class UnusableError(Exception):
    """An intermediate that cannot sign for the mesh; the message says why."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """An intermediate of somebody else's root, checked.

    `trusted_pem` is the root's certificate, and after it others that are to be trusted beside it.
    """

    issuer: Issuer
    root: x509.Certificate
    trusted_pem: str


class Upstream(Protocol):
    """Whoever has the key of the root."""

    @property
    def source(self) -> Source: ...

    def obtain(self, trust_domain: str, now: datetime) -> Obtained:
        """Return an intermediate that signs from now on; blocking.

        Raises:
            AuthorityError: there is none to be had, or not a usable one; see authority_files.
        """
        ...

    def news(self) -> bool:
        """Tell whether it has another intermediate than it gave last, without asking over a network."""
        ...


@dataclass(frozen=True, slots=True)
class Demand:
    """What an intermediate must be good for: leaves of the trust domain, and the controller's own addresses."""

    trust_domain: str
    addresses: tuple[str, ...]


def usable(
    key: SigningKey,
    chain: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    demand: Demand,
    now: datetime,
) -> Obtained:
    """Return the intermediate if it can sign for the mesh.

    Args:
        key: must be that of the first certificate.
        chain: the intermediate and those above it; the root may be among them.
        trusted: roots; one of them must have issued the chain's last.
        demand: what it is for.
        now: aware.

    Raises:
        UnusableError: any of this does not hold, or the certificates forbid what is to be issued.
    """
    own = chain[0]
    if own.public_key() != key.public_key():
        raise UnusableError("the key is not that of the certificate")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _MIN_RSA_BITS:
        raise UnusableError(f"an RSA key of {key.key_size} bits is too weak: use {_MIN_RSA_BITS} or more, or EC")
    path = [each for each in dict.fromkeys(chain) if each not in trusted]
    if not path:
        raise UnusableError("the certificate is itself a root: give an intermediate, so that it can be exchanged")
    if len(path) > MAX_CHAIN:
        raise UnusableError(f"{len(path)} certificates between leaf and root, at most {MAX_CHAIN} are taken")
    for child, parent in pairwise(path):
        if not issued_by(child, parent):
            raise UnusableError(f"{_name(child)} was not issued by {_name(parent)}, which follows it in the chain")
    root = next((each for each in trusted if issued_by(path[-1], each)), None)
    if root is None:
        raise UnusableError(f"{_name(path[-1])} was not issued by any of the roots")
    for below, each in enumerate((*path, root)):
        _check_authority(each, below, now)
        _check_constraints(each, demand)
    others = [each for each in trusted if each != root]
    for each in others:
        _check_authority(each, 0, now)
    return Obtained(Issuer(key, own, tuple(path[1:])), root, pem([root, *others]).decode())


def _check_authority(certificate: x509.Certificate, below: int, now: datetime) -> None:
    """Raise UnusableError unless it may issue, with `below` authorities between it and a leaf."""
    name = _name(certificate)
    if now >= certificate.not_valid_after_utc:
        raise UnusableError(f"{name} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < certificate.not_valid_before_utc:
        raise UnusableError(f"{name} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise UnusableError(f"{name} is not that of an authority (CA:TRUE)")
    if constraints.path_length is not None and constraints.path_length < below:
        raise UnusableError(
            f"{name} allows a path length of {constraints.path_length}, and {below} authorities are below it"
        )
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise UnusableError(f"{name} may not sign certificates (key usage lacks keyCertSign)")
    if not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise UnusableError(f"{name} has a key that is neither RSA nor EC, which proxies do not take")


def _check_constraints(certificate: x509.Certificate, demand: Demand) -> None:
    """Raise UnusableError if name constraints forbid an identity of the trust domain or the controller's addresses."""
    found = _extension(certificate, x509.NameConstraints)
    if found is None:
        return
    wanted = [("URI", demand.trust_domain), *((_kind(each), each) for each in demand.addresses)]
    for kind, value in wanted:
        permitted = [each for each in found.permitted_subtrees or () if _kind_of(each) == kind]
        excluded = [each for each in found.excluded_subtrees or () if _kind_of(each) == kind]
        if any(_covers(each, value) for each in excluded) or (
            permitted and not any(_covers(each, value) for each in permitted)
        ):
            raise UnusableError(f"the name constraints of {_name(certificate)} do not allow {kind} {value}")


def _kind(address: str) -> str:
    try:
        ip_address(address)
    except ValueError:
        return "DNS"
    return "IP"


def _kind_of(name: x509.GeneralName) -> str:
    kinds = {x509.UniformResourceIdentifier: "URI", x509.DNSName: "DNS", x509.IPAddress: "IP"}
    return kinds.get(type(name), "other")


def _covers(constraint: x509.GeneralName, value: str) -> bool:
    """Tell whether a constraint is about a value of its kind (RFC 5280, 4.2.1.10); of a URI, its host counts."""
    limit = constraint.value
    if isinstance(limit, IPv4Network | IPv6Network):
        return ip_address(value) in limit
    text, value = str(limit).lower(), value.lower()
    if isinstance(constraint, x509.UniformResourceIdentifier):
        # One with a dot in front is for hosts below it alone, one without for that host alone.
        return value.endswith(text) if text.startswith(".") else value == text
    return not text or value == text.removeprefix(".") or value.endswith("." + text.removeprefix("."))


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except ValueError as error:
        raise UnusableError(f"{_name(certificate)} has extensions that cannot be read ({error})") from error


def _name(certificate: x509.Certificate) -> str:
    subject = certificate.subject.rfc4514_string() or f"{certificate.serial_number:x}"
    return f"the certificate '{subject}'"
