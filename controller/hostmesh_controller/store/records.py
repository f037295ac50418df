"""What goes into the store and comes out of it. All times are aware and in UTC; digests are of secrets never stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hostmesh_controller.model.objects import ObjectKey

Document = Mapping[str, Any]
"""An object in the user's form, as `ApiObject.to_dict` gives it."""


class StoreError(Exception):
    """The store cannot do its work: the environment's fault (disk, permissions, versions), said in one sentence."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object with the facts the store adds: `revision` is that of its last change, `created_at` of its first."""

    key: ObjectKey
    uid: str
    revision: int
    created_at: datetime
    document: Document


@dataclass(frozen=True, slots=True)
class Put:
    """Create the object or replace it."""

    key: ObjectKey
    document: Document


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the object; removing what is not there changes nothing."""

    key: ObjectKey


@dataclass(frozen=True, slots=True)
class Commit:
    """The outcome of a commit: the store's revision after it, and what really changed (empty: nothing did)."""

    revision: int
    changed_keys: tuple[ObjectKey, ...]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A join token: it is for one host (`host`), once, or for the hosts of a group (`pool`, "namespace/name").

    `joins` hosts have joined with it, at most `max_joins` may (None: any number). `allowed` are the CIDR blocks, with
    commas between them, in which the address of a host that joins a group must be; "" for none.
    `redeemed_at` and `redeemed_by` tell of the last one that joined.
    """

    id: str
    digest: bytes
    created_at: datetime
    expires_at: datetime
    host: str = ""
    pool: str = ""
    created_by: str = ""
    redeemed_at: datetime | None = None
    redeemed_by: str = ""
    revoked_at: datetime | None = None
    max_joins: int | None = 1
    joins: int = 0
    allowed: str = ""

    @property
    def used_up(self) -> bool:
        """Whether no other host may join with it."""
        return self.max_joins is not None and self.joins >= self.max_joins


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A leaf certificate that was issued to a host or to a workload on it; `serial` in hexadecimal.

    `key_sha256` is of its public key (SubjectPublicKeyInfo, DER), in hexadecimal; "" in records of older versions.
    `used_at` is when a host first called with its own one; None while it has not.
    """

    serial: str
    spiffe_id: str
    host: str
    not_after: datetime
    issued_at: datetime
    key_sha256: str = ""
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PendingRecord:
    """A host that waits for an operator. What is approved is its key; `key_sha256` is its digest (hexadecimal).

    `attestor` vouches for it, by `summary`. `decision` is "", "approved" or "denied". `seen_at` is when it last asked.
    """

    id: str
    host: str
    attestor: str
    key_sha256: str
    address: str
    summary: str
    asked_at: datetime
    seen_at: datetime
    decision: str = ""
    decided_at: datetime | None = None
    decided_by: str = ""


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """A machine that any program on it can prove to be on: it joined once, as this host, with this key."""

    subject: str
    host: str
    key_sha256: str
    joined_at: datetime


@dataclass(frozen=True, slots=True)
class HostState:
    """What is known of a host at run time.

    `report` is the last HostReport, serialized ("" before the first). `ready` holds (namespace, workload) for which
    the agent last said that mutual TLS is served.
    """

    joined_at: datetime | None = None
    left_at: datetime | None = None
    last_report_at: datetime | None = None
    report: bytes = b""
    ready: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class ApiTokenRecord:
    """A bearer token of the admin API; `expires_at` None means never."""

    id: str
    name: str
    role: str
    digest: bytes
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change: who did what to which object. `before`/`after` are None where there was or is nothing.

    `action` is create, update or delete for objects, and noun.verb for the rest (token.add, token.redeem, …).
    """

    id: int
    at: datetime
    actor: str
    action: str
    key: ObjectKey
    before: Document | None
    after: Document | None
    revision: int
