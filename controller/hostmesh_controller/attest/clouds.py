"""Instance identity documents of AWS, GCP and Azure. Pure.

Any program on an instance can ask for its document. So an instance joins once (`Attested.subject`); after that its
own key says who it is. What AWS signs cannot hold a nonce: there the age of the instance bounds how long a document
that was copied is of use to anybody.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hostmesh_api.proof import audience, azure_nonce
from hostmesh_controller.attest.chains import verify
from hostmesh_controller.attest.cms import Signer, content_of
from hostmesh_controller.attest.evidence import Attested, EvidenceError, Shown, printable
from hostmesh_controller.attest.signatures import key_problem

_SKEW: Final = timedelta(minutes=5)
_GOOGLE: Final = ("https://accounts.google.com", "accounts.google.com")
_MAX_TOKEN: Final = 16 * 1024
_AZURE_NAMES: Final = re.compile(r"(?:[a-z0-9-]+\.)*metadata\.(?:azure\.com|azure\.us|azure\.cn|microsoftazure\.de)")
_AWS_INSTANCE: Final = re.compile(r"i-[0-9a-f]{8,17}")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Whose instances, and where (regions; nothing: anywhere)."""

    owners: Sequence[str]
    regions: Sequence[str] = ()

    def require(self, owner: str, region: str) -> None:
        if owner not in self.owners:
            raise EvidenceError(f"an instance of {printable(owner)!r}, whose instances may not join")
        if self.regions and region not in self.regions:
            raise EvidenceError(f"an instance in {printable(region)!r}, where none may join from")


@dataclass(frozen=True, slots=True)
class AwsAttestor:
    """`certificates` returns those with which AWS signs documents: one for each region, of RSA with 2048 bits."""

    certificates: Callable[[], Sequence[x509.Certificate]]
    allowed: Allowed

    def verify(self, shown: Shown, now: datetime) -> Attested:
        document = _object(content_of(shown.request.aws, lambda signer: self._pinned(signer, now)))
        account, region = _plain(document, "accountId"), _plain(document, "region")
        instance = _plain(document, "instanceId")
        if not _AWS_INSTANCE.fullmatch(instance):
            raise EvidenceError("an AWS document without an instance")
        self.allowed.require(account, region)
        names = [{"instance_id": instance, "account": account, "region": region}]
        summary = f"AWS instance {instance} of account {account} in {region}"
        born = _iso(document, "pendingTime")
        if born > now + _SKEW:
            raise EvidenceError("an AWS document of the future")
        return Attested("aws", names, summary, f"aws:{account}/{instance}", born)

    def _pinned(self, signer: Signer, now: datetime) -> x509.Certificate:
        """Return the region's certificate by which the document is signed; they have no authority above them."""
        found = next((each for each in self.certificates() if signer.is_of(each)), None)
        if found is None:
            raise EvidenceError("a document signed by a certificate that is not configured")
        problem = key_problem(found.public_key())
        if problem is not None or not found.not_valid_before_utc <= now < found.not_valid_after_utc:
            raise EvidenceError(f"the certificate of the region is not good: {problem or 'its time'}")
        return found


@dataclass(frozen=True, slots=True)
class GcpAttestor:
    """`keys` returns Google's public keys (JWKS), as text."""

    keys: Callable[[], str]
    allowed: Allowed

    def verify(self, shown: Shown, now: datetime) -> Attested:
        request = shown.request
        claims = _claims(request.gcp, self.keys(), audience(request.nonce, request.csr_der), now)
        google = claims.get("google")
        instance = google.get("compute_engine") if isinstance(google, Mapping) else None
        if not isinstance(instance, Mapping):
            raise EvidenceError("a token without an instance: it must be asked for with format=full")
        project, zone = _plain(instance, "project_id"), _plain(instance, "zone")
        number, name = _plain(instance, "instance_id"), _plain(instance, "instance_name")
        self.allowed.require(project, zone.rpartition("-")[0])
        names = [{"instance_name": name, "instance_id": number, "project": project, "zone": zone}]
        summary = f"GCP instance {name} ({number}) of project {project} in {zone}"
        return Attested("gcp", names, summary, f"gcp:{project}/{number}")


@dataclass(frozen=True, slots=True)
class AzureAttestor:
    """`authorities` returns those above the certificates of Azure's metadata service, intermediates among them."""

    authorities: Callable[[], Sequence[x509.Certificate]]
    allowed: Allowed

    def verify(self, shown: Shown, now: datetime) -> Attested:
        request = shown.request
        document = _object(content_of(request.azure, lambda signer: self._trusted(signer, now)))
        if document.get("nonce") != azure_nonce(request.nonce, request.csr_der):
            raise EvidenceError("an Azure document for another nonce")
        times = document.get("timeStamp")
        if not isinstance(times, Mapping):
            raise EvidenceError("an Azure document without a time")
        if not _azure_time(times, "createdOn") - _SKEW <= now < _azure_time(times, "expiresOn"):
            raise EvidenceError("an Azure document of another time")
        machine = _plain(document, "vmId").lower()
        subscription = _plain(document, "subscriptionId").lower()
        self.allowed.require(subscription, "")
        names = [{"vm_id": machine, "subscription": subscription}]
        summary = f"Azure instance {machine} of subscription {subscription}"
        return Attested("azure", names, summary, f"azure:{subscription}/{machine}")

    def _trusted(self, signer: Signer, now: datetime) -> x509.Certificate:
        leaf = next((each for each in signer.certificates if signer.is_of(each)), None)
        if leaf is None:
            raise EvidenceError("an Azure document without the certificate of its signer")
        others = [each for each in signer.certificates if each is not leaf]
        verify([leaf, *others], self.authorities(), ExtendedKeyUsageOID.SERVER_AUTH, now)
        names = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if len(names) != 1 or not _AZURE_NAMES.fullmatch(names[0].lower()):
            raise EvidenceError("a document that is signed by another service than Azure's metadata service")
        return leaf


def _claims(token: str, keys: str, wanted: str, now: datetime) -> Mapping[str, Any]:
    if len(token) > _MAX_TOKEN:
        raise EvidenceError(f"a token of {len(token)} characters: at most {_MAX_TOKEN} are taken")
    try:
        known = {each.key_id: each for each in jwt.PyJWKSet.from_json(keys).keys if each.key_type == "RSA"}
        key = known.get(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise EvidenceError("a token signed by a key that is not in the file of Google's keys")
        problem = key_problem(key.key)
        if problem is not None:
            raise EvidenceError(f"among Google's keys is {problem}")
        # Times are judged by the controller's clock, below.
        claims = jwt.decode(
            token,
            key.key,
            algorithms=["RS256"],
            audience=wanted,
            issuer=list(_GOOGLE),
            options={
                "require": ["exp", "iat", "aud", "iss"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        issued, ends = (datetime.fromtimestamp(float(claims[each]), UTC) for each in ("iat", "exp"))
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError, OSError) as error:
        raise EvidenceError(f"a token that is not taken: {str(error)[:200] or type(error).__name__}") from error
    if not issued - _SKEW <= now < ends:
        raise EvidenceError("a token of another time")
    return dict(claims)


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvidenceError("a signed document that is not JSON") from error
    if not isinstance(document, dict):
        raise EvidenceError("a signed document that is no JSON object")
    return document


def _plain(document: Mapping[str, Any], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str) or not _PLAIN.fullmatch(value):
        raise EvidenceError(f"a signed document without a usable {field}")
    return value


def _iso(document: Mapping[str, Any], field: str) -> datetime:
    try:
        moment = datetime.fromisoformat(str(document.get(field)))
    except ValueError as error:
        raise EvidenceError(f"a signed document without a usable {field}") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _azure_time(times: Mapping[str, Any], field: str) -> datetime:
    try:
        return datetime.strptime(str(times.get(field)), "%m/%d/%y %H:%M:%S %z")
    except ValueError as error:
        raise EvidenceError(f"an Azure document without a usable {field}") from error
