"""What goes over the wire, where it is more than a dictionary: requests, and records as answers."""

from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hostmesh_controller.changes import Change
from hostmesh_controller.enrolments import MAX_REASON_CHARS
from hostmesh_controller.found_services import PROTOCOLS
from hostmesh_controller.grants import MAX_GRANTS, MAX_NAMES, Grant, Role, checked, parse_grant
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.model.redaction import redacted
from hostmesh_controller.store import ApiTokenRecord, AuditRecord, StoredObject, TokenRecord
from hostmesh_controller.tokens import MAX_ALLOWED, MAX_GROUP_LIFE, MAX_LIFE

MAX_JOIN_TTL_S: Final = int(MAX_LIFE.total_seconds())
MAX_GROUP_TTL_S: Final = int(MAX_GROUP_LIFE.total_seconds())
MAX_API_TTL_S: Final = 100 * 365 * 86_400


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Request):
    """A file's text: YAML, of any number of documents."""

    name: str = Field(default="request", max_length=4096)
    text: str


class Documents(Request):
    """Objects as text, as JSON, or both."""

    sources: list[Source] = Field(default_factory=list)
    documents: list[dict[str, Any]] = Field(default_factory=list)
    namespace: str = "default"


class ApplyRequest(Documents):
    dry_run: bool = False


class Key(Request):
    kind: str
    namespace: str = ""
    name: str


class DeleteRequest(Documents):
    """What goes, and how sure the caller is.

    `confirmed`: it is meant, even if most of the mesh's services, hosts or workloads go. `abandon`: so may a Rollout
    whose hosts have the version and have not proven it: nobody calls them back.
    """

    keys: list[Key] = Field(default_factory=list)
    ignore_missing: bool = False
    confirmed: bool = False
    abandon: bool = False


class TokenRequest(Request):
    """For a host, or for the hosts of a group ("namespace/name"), which alone can be told how many may join."""

    host: str = ""
    group: str = ""
    ttl_s: Annotated[int, Field(ge=10, le=MAX_GROUP_TTL_S)] = 900
    max_joins: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    allowed_addresses: Annotated[list[str], Field(max_length=MAX_ALLOWED)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits(self) -> "TokenRequest":
        if bool(self.host) == bool(self.group):
            raise ValueError("name one of host and group")
        if self.host and self.max_joins is not None:
            raise ValueError("max_joins is for a group: the token of a host works once")
        if self.host and self.ttl_s > MAX_JOIN_TTL_S:
            raise ValueError(f"the token of a host lives for at most {MAX_JOIN_TTL_S} s")
        return self


class ApiTokenRequest(Request):
    """One grant (`role` in `namespaces` for `kinds`; empty: all), or several as text: `editor:shop:VirtualService`."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._@-]+$")]
    role: Annotated[str | None, Field(pattern=r"^(viewer|editor|admin)$")] = None
    namespaces: Annotated[list[str], Field(max_length=MAX_NAMES)] = Field(default_factory=list)
    kinds: Annotated[list[str], Field(max_length=MAX_NAMES)] = Field(default_factory=list)
    grants: Annotated[list[str], Field(max_length=MAX_GRANTS)] = Field(default_factory=list)
    ttl_s: Annotated[int | None, Field(ge=10, le=MAX_API_TTL_S)] = None

    @model_validator(mode="after")
    def _one_form(self) -> "ApiTokenRequest":
        if bool(self.role) == bool(self.grants):
            raise ValueError("give one of role and grants")
        if self.grants and (self.namespaces or self.kinds):
            raise ValueError("namespaces and kinds go with role: each of grants has its own")
        self.parsed()
        return self

    def parsed(self) -> tuple[Grant, ...]:
        """Return the grants.

        Raises:
            ValueError: one of them is none.
        """
        if self.role is None:
            return tuple(map(parse_grant, self.grants))
        return (checked(Role[self.role.upper()], self.namespaces, self.kinds),)


class NamedPort(Request):
    name: str
    number: Annotated[int, Field(ge=1, le=65535)]


class RegisterRequest(Request):
    """`addresses` may be left out for a host that is registered; `token`: whether a join string is wanted.

    `labels` are those of the workload, all of them; each of `host_labels` is set beside those that the Host has.
    `dry_run`: it is told what would be refused and what would change; nothing is made, no join string either.
    """

    host: str
    addresses: list[str] = Field(default_factory=list)
    namespace: str | None = None
    service_account: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    host_labels: dict[str, str] = Field(default_factory=dict)
    ports: list[NamedPort] = Field(default_factory=list)
    workload: str | None = None
    ssh_host_keys: list[str] = Field(default_factory=list)
    token: bool = True
    dry_run: bool = False
    ttl_s: Annotated[int, Field(ge=10, le=MAX_JOIN_TTL_S)] = 900


class AdoptRequest(Request):
    """`port` or `unit` names what was found; neither: the only program that can be adopted."""

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    unit: Annotated[str, Field(max_length=256)] = ""
    service: Annotated[str, Field(max_length=63)] = ""
    namespace: Annotated[str, Field(max_length=63)] = ""
    protocol: Annotated[str, Field(max_length=16)] = ""
    service_account: Annotated[str, Field(max_length=253)] = ""
    service_port: Annotated[int, Field(ge=0, le=65535)] = 0
    dry_run: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> "AdoptRequest":
        if self.port and self.unit:
            raise ValueError("name one of port and unit")
        if self.protocol and self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}; there are {', '.join(PROTOCOLS)}")
        return self


class ExpelRequest(Request):
    reason: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""


class ActivateRequest(Request):
    force: bool = False


class TaintRequest(Request):
    """`root` is an ID or the beginning of a fingerprint; None: the only one that it can be."""

    root: Annotated[str | None, Field(max_length=64, pattern="^[0-9a-fA-F]+$")] = None
    within_s: Annotated[float, Field(ge=0, le=3600)] = 30.0


class RevokeRequest(Request):
    root: Annotated[str | None, Field(max_length=64, pattern="^[0-9a-fA-F]+$")] = None
    force: bool = False
    compromised: bool = False


def moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def key_body(key: ObjectKey) -> dict[str, Any]:
    return {"kind": key.kind, "namespace": key.namespace, "name": key.name}


def object_body(stored: StoredObject) -> dict[str, Any]:
    return {
        **key_body(stored.key),
        "uid": stored.uid,
        "revision": stored.revision,
        "created_at": moment(stored.created_at),
        "document": redacted(stored.document),
    }


def change_body(change: Change) -> dict[str, Any]:
    return {**key_body(change.key), "action": change.action}


def token_body(token: TokenRecord, now: datetime) -> dict[str, Any]:
    if token.revoked_at is not None:
        state = "revoked"
    elif token.used_up:
        state = "used"
    else:
        state = "expired" if token.expires_at <= now else "open"
    return {
        "id": token.id,
        "host": token.host or None,
        "group": token.pool or None,
        "state": state,
        "joins": token.joins,
        "max_joins": token.max_joins,
        "allowed_addresses": [each for each in token.allowed.split(",") if each],
        "created_at": moment(token.created_at),
        "expires_at": moment(token.expires_at),
        "created_by": token.created_by,
        "redeemed_at": moment(token.redeemed_at),
        "redeemed_by": token.redeemed_by,
    }


def api_token_body(token: ApiTokenRecord, now: datetime) -> dict[str, Any]:
    expired = token.expires_at is not None and token.expires_at <= now
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "grants": (token.grants or token.role).split(),
        "state": "revoked" if token.revoked_at is not None else "expired" if expired else "open",
        "created_at": moment(token.created_at),
        "created_by": token.created_by or None,
        "expires_at": moment(token.expires_at),
        "last_used_at": moment(token.last_used_at),
    }


def audit_body(record: AuditRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "at": moment(record.at),
        "actor": record.actor,
        "way": record.way or None,
        "proof": record.proof or None,
        "address": record.address or None,
        "result": record.result,
        "reason": record.reason or None,
        "action": record.action,
        **key_body(record.key),
        "object": "/".join(part for part in (record.key.kind.lower(), record.key.namespace, record.key.name) if part),
        "before": record.before,
        "after": record.after,
        "revision": record.revision,
    }
