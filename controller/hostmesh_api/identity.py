"""SPIFFE identities: who a workload, a host and the controller are, and how they are written.

Names are strict on purpose. They become parts of URIs, directory names and file names: what is not a lower-case DNS
name is refused here, once, so that nothing behind has to think of `..`, `%2f` or upper case.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

MAX_URI_CHARS: Final = 2048
"""SPIFFE-ID, section 2.3."""
MAX_NAME_CHARS: Final = 253
MAX_LABEL_CHARS: Final = 63
MAX_SLUG_CHARS: Final = 200
"""Leaves room under Linux's NAME_MAX of 255 for the affixes of temporary files."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_LABEL_RE: Final = re.compile(_LABEL, re.ASCII)
_SUBDOMAIN_RE: Final = re.compile(_SUBDOMAIN, re.ASCII)
_URI_RE: Final = re.compile(r"spiffe://([^/]*)/(.*)", re.ASCII)


def require_label(what: str, name: str) -> None:
    """Raise ValueError unless `name` is an RFC 1123 label; `what` names it in the message."""
    if _LABEL_RE.fullmatch(name) is None:
        msg = f"{what} {name!r} is not a lower-case DNS label (letters, digits and '-', at most {MAX_LABEL_CHARS})"
        raise ValueError(msg)


def require_subdomain(what: str, name: str) -> None:
    """Raise ValueError unless `name` is an RFC 1123 subdomain; `what` names it in the message."""
    if len(name) > MAX_NAME_CHARS or _SUBDOMAIN_RE.fullmatch(name) is None:
        msg = f"{what} {name!r} is not a lower-case DNS name (labels of letters, digits and '-', joined by '.')"
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """The identity a service instance is served under; Istio's form."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        require_subdomain("trust domain", self.trust_domain)
        require_label("namespace", self.namespace)
        require_subdomain("service account", self.service_account)

    @property
    def uri(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def slug(self) -> str:
        """Name of the directory with its certificate: one path component, different for different identities.

        `_` cannot occur in a name, so that a shortened slug never equals another identity's full one.
        """
        slug = f"ns.{self.namespace}.sa.{self.service_account}"
        if len(slug) <= MAX_SLUG_CHARS:
            return slug
        digest = hashlib.sha256(slug.encode()).hexdigest()[:32]
        return f"{slug[: MAX_SLUG_CHARS - 33]}_{digest}"


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """The identity of a host itself: what its agent is to the controller."""

    trust_domain: str
    host: str

    def __post_init__(self) -> None:
        require_subdomain("trust domain", self.trust_domain)
        require_subdomain("host", self.host)

    @property
    def uri(self) -> str:
        return f"spiffe://{self.trust_domain}/host/{self.host}"

    @property
    def slug(self) -> str:
        return "host"


@dataclass(frozen=True, slots=True)
class ControllerIdentity:
    """The controller's own identity. `parse_identity` refuses it: it is never a peer of the mesh's traffic."""

    trust_domain: str

    def __post_init__(self) -> None:
        require_subdomain("trust domain", self.trust_domain)

    @property
    def uri(self) -> str:
        return f"spiffe://{self.trust_domain}/hostmesh/controller"


def parse_identity(uri: str) -> WorkloadIdentity | HostIdentity:
    """Return the identity that a SPIFFE ID names.

    Raises:
        ValueError: it is not exactly `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` or
            `spiffe://<trust domain>/host/<host>`, in lower case, without query, port, user or escapes.
    """
    if len(uri) > MAX_URI_CHARS:
        msg = f"SPIFFE ID of {len(uri)} characters: at most {MAX_URI_CHARS} are allowed"
        raise ValueError(msg)
    match = _URI_RE.fullmatch(uri)
    if match is not None:
        trust_domain, path = match.groups()
        parts = path.split("/")
        if len(parts) == 4 and (parts[0], parts[2]) == ("ns", "sa"):
            return WorkloadIdentity(trust_domain, parts[1], parts[3])
        if len(parts) == 2 and parts[0] == "host":
            return HostIdentity(trust_domain, parts[1])
    msg = f"{uri!r} is not a SPIFFE ID of a workload (spiffe://…/ns/…/sa/…) or of a host (spiffe://…/host/…)"
    raise ValueError(msg)
