"""What goes into the store and comes out of it. All times are aware and in UTC; digests are of secrets never stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from hostmesh_controller.model.objects import ObjectKey

Document = Mapping[str, Any]
"""An object in the user's form, as `ApiObject.to_dict` gives it."""


MAX_REASON_CHARS: Final = 500


def plain(text: str, limit: int = 256) -> str:
    """Return text without what could end a line or drive a terminal, cut at the limit."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:limit])


class Actor(str):
    """Who makes a change: a name, for whoever takes text, and how they proved it.

    `way` is socket, token or certificate, `proof` the user id, the token's id or the certificate's serial, `address`
    where they called from. All are "" of what is text alone: the controller itself, an agent.
    """

    def __new__(cls, name: str, *, way: str = "", proof: str = "", address: str = "") -> "Actor":  # noqa: ARG004 - __init__'s
        return super().__new__(cls, name)

    def __init__(self, name: str, *, way: str = "", proof: str = "", address: str = "") -> None:  # noqa: ARG002 - __new__'s
        self.way, self.proof, self.address = way, proof, address


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
class Lineage:
    """The history that a store's revisions count: its id, and the key (hex) by which its controller knows its own word.

    `committed` is how many objects the last commit left, `found` how many there are.
    """

    id: str
    key: str = field(repr=False)
    committed: int
    found: int


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
    """

    serial: str
    spiffe_id: str
    host: str
    not_after: datetime
    issued_at: datetime
    key_sha256: str = ""


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


class Denial(StrEnum):
    """Why an enrolment is refused; NONE: it is not."""

    NONE = ""
    EXPELLED = "expelled"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class EnrolmentRecord:
    """One joining of a host, and what was issued under it.

    Every certificate of the enrolment carries `id` (32 hexadecimal digits). `ended_at`: the host left, or joined again.
    `certificates_end` is when the last of its certificates ends, None before the first. `used_serial` is the newest of
    the host's own certificates that was used, since `used_at`. `reason` says why it is denied. `readmitted_at`: the
    host may join again; what was denied stays so.
    """

    id: str
    host: str
    begun_at: datetime
    ended_at: datetime | None = None
    certificates_end: datetime | None = None
    used_serial: str = ""
    used_at: datetime | None = None
    denial: Denial = Denial.NONE
    denied_at: datetime | None = None
    reason: str = ""
    readmitted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class HostState:
    """What is known of a host at run time.

    `report` is the last HostReport, serialized ("" before the first). `ready` holds (namespace, workload) for which
    the agent last said that mutual TLS is served. `silent_at` is when it was withdrawn because it seems to be dead.
    """

    joined_at: datetime | None = None
    left_at: datetime | None = None
    last_report_at: datetime | None = None
    report: bytes = b""
    ready: frozenset[tuple[str, str]] = frozenset()
    silent_at: datetime | None = None


class PortKey(NamedTuple):
    """A port of a workload."""

    namespace: str
    workload: str
    port: int


class CallKey(NamedTuple):
    """Who calls which port of a workload, and how.

    `kind` is that of the filter chain, see `hostmesh_api.call_stats`; `caller` a SPIFFE ID, an address, or "" for
    those that are not told apart.
    """

    namespace: str
    workload: str
    port: int
    kind: str
    caller: str

    @property
    def of(self) -> PortKey:
        """The port that is called."""
        return PortKey(self.namespace, self.workload, self.port)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """Observed calls. `methods` are of HTTP, none for connections.

    `told` and `told_denied` are what `host` last said of them, counted in its `epoch`.
    """

    key: CallKey
    methods: frozenset[str]
    count: int
    denied: int
    first_seen: datetime
    last_seen: datetime
    host: str
    epoch: str
    told: int
    told_denied: int


class FlowKey(NamedTuple):
    """Connections of one program of a host with one peer: to `port` of the host if `inbound`, else of the peer.

    `program` and `unit` are "" where they are not known, `peer` for those that are not told apart.
    """

    host: str
    program: str
    unit: str
    inbound: bool
    peer: str
    port: int


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """Observed connections; `told` is what the host last said of them, counted in its `epoch`."""

    key: FlowKey
    count: int
    first_seen: datetime
    last_seen: datetime
    epoch: str
    told: int


@dataclass(frozen=True, slots=True)
class WatchedPort:
    """A port whose calls have all been observed since some moment, by the agent of `host`."""

    key: PortKey
    host: str
    since: datetime


@dataclass(frozen=True, slots=True)
class JwksRecord:
    """The keys that were last fetched for a URL, from `source`."""

    url: str
    text: str
    source: str
    etag: str
    fetched_at: datetime


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """How far the rollout of a name is. `uid` is of the object that it was; `progress` is rollout.document's."""

    name: str
    uid: str
    progress: str


@dataclass(frozen=True, slots=True)
class ApiTokenRecord:
    """A bearer token of the admin API; `expires_at` None means never.

    `role` is the highest role of `grants` (see `grants.parse_grants`). `last_used_at` is exact to a minute or so.
    """

    id: str
    name: str
    role: str
    digest: bytes
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    grants: str = ""
    created_by: str = ""
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change, or one that was refused: who did what to which object.

    `before`/`after` are None where there was or is nothing. `action` is create, update or delete for objects, and
    noun.verb for the rest (token.add, token.redeem, …). `way`, `proof` and `address` are the Actor's. `result` is "ok"
    or "denied", with the `reason`.
    """

    id: int
    at: datetime
    actor: str
    action: str
    key: ObjectKey
    before: Document | None
    after: Document | None
    revision: int
    way: str = ""
    proof: str = ""
    address: str = ""
    result: str = "ok"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which audit records: all that is given must fit. `namespaces` None: of all, and of none."""

    key: ObjectKey | None = None
    before_id: int | None = None
    actor: str | None = None
    action: str | None = None
    kind: str | None = None
    result: str | None = None
    since: datetime | None = None
    namespaces: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class RefusedWrite:
    """A write that was refused to its caller."""

    actor: str
    action: str
    key: ObjectKey
    reason: str
