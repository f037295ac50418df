"""RateLimit: how much the selected workloads take."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.http_match import StringMatch
from hostmesh_controller.model.route_fields import HeaderName, HeaderValue, RouteHost
from hostmesh_controller.model.schema import (
    Flag,
    Integer,
    Label,
    Port,
    PositiveDuration,
    Spec,
    at_most_one,
    fault,
    given,
)
from hostmesh_controller.model.security import PolicySelector

_TOKENS_MAX: Final = 2**32 - 1
_INTERVAL_MIN: Final = timedelta(milliseconds=50)
"""Envoy fills a bucket no oftener."""
_STATUSES: Final = frozenset({*range(400, 418), *range(421, 425), 426, 428, 429, 431, *range(500, 509), 510, 511})
"""Errors that Envoy has a name for (envoy.type.v3.StatusCode): it refuses others here."""
_METHOD: Final = re.compile(r"[A-Z][A-Z-]*")
_HOST: Final = re.compile(r"\*|(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(\.\*)?")
_LABEL: Final = r"(\*|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)"
_IDENTITY: Final = re.compile(rf"{_LABEL}/{_LABEL}|spiffe://[a-z0-9.-]+/ns/{_LABEL}/sa/{_LABEL}")


def _interval(value: Duration) -> Duration:
    if value < _INTERVAL_MIN:
        raise fault("duration", f"{value} is too short: Envoy fills a bucket every 50ms at most")
    return value


def _method(value: str) -> str:
    if not _METHOD.fullmatch(value):
        raise fault("method", f"{value!r} is not an HTTP method, such as GET")
    return value


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise fault("host-name", f"{value!r} is not a host: write it like shop.example.com, *.example.com or shop.*")
    return value


def _identity(value: str) -> str:
    if not _IDENTITY.fullmatch(value):
        raise fault(
            "identity",
            f"{value!r} is not an identity: write NAMESPACE/SERVICEACCOUNT (either may be '*') or "
            "spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT",
        )
    return value


def _status(value: int) -> int:
    if value not in _STATUSES:
        raise fault("status", f"{value} is not a status that Envoy gives: 429, 503 or another that means an error")
    return value


Tokens = Annotated[Integer, Field(ge=1, le=_TOKENS_MAX)]
Interval = Annotated[PositiveDuration, AfterValidator(_interval)]
Method = Annotated[str, AfterValidator(_method)]
HostPattern = Annotated[str, AfterValidator(_host)]
IdentityPattern = Annotated[str, AfterValidator(_identity)]


class LimitMatch(Spec):
    """All fields that are given must hold; within a list, one of them. `ports` are the workload's own."""

    ports: tuple[Port, ...] = ()
    paths: tuple[StringMatch, ...] = ()
    methods: tuple[Method, ...] = ()
    hosts: tuple[HostPattern, ...] = ()
    headers: Mapping[HeaderName, StringMatch] = Field(default_factory=dict)
    identities: tuple[IdentityPattern, ...] = ()


class PerValue(Spec):
    """The value of a header or of a query parameter."""

    header: HeaderName | None = None
    query: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "PerValue":
        at_most_one(self, "header", "query")
        if not given(self, "header", "query"):
            raise fault("missing", "give header or query")
        return self


PerProperty = Literal["identity", "sourceIp", "path", "method", "host"]


def _form(value: Any) -> str:
    return "[value]" if isinstance(value, Mapping | PerValue) else "[property]"


Per = Annotated[
    Annotated[PerValue, Tag("[value]")] | Annotated[PerProperty, Tag("[property]")],
    Discriminator(_form),
]
"""One bucket for each distinct value of this; of several, for each combination."""


class Limit(Spec):
    """A bucket: `requests` each `per`, and `burst` (None: as many as `requests`) when it was full."""

    requests: Tokens
    per: Interval
    burst: Tokens | None = None

    @model_validator(mode="after")
    def _burst_is_no_smaller(self) -> "Limit":
        if self.burst is not None and self.burst < self.requests:
            raise fault("burst", f"a burst of {self.burst} is less than the {self.requests} requests", "burst")
        return self


class ConnectionLimit(Spec):
    """With `per`: that many new connections in that time. Without: that many open at a time."""

    limit: Tokens
    per: Interval | None = None
    burst: Tokens | None = None

    @model_validator(mode="after")
    def _burst_fits(self) -> "ConnectionLimit":
        if self.burst is not None and self.per is None:
            raise fault("burst", "burst needs per: without it, open connections are counted", "burst")
        if self.burst is not None and self.burst < self.limit:
            raise fault("burst", f"a burst of {self.burst} is less than the limit of {self.limit}", "burst")
        return self


class LimitResponse(Spec):
    """What a caller gets who is over the limit."""

    refused: ClassVar[Mapping[str, str]] = {"body": "Envoy answers who is over a limit without a body of ours"}

    status: Annotated[Integer, AfterValidator(_status)] = 429
    headers: Mapping[HeaderName, HeaderValue] = Field(default_factory=dict)


class LimitRule(Spec):
    """A limit of the traffic that one of `match` describes (none: all).

    SHADOW counts and refuses nobody. `connections` is for ports that speak TCP; None of `limit` and `connections`:
    the rate limit service knows the limit.
    """

    name: Label
    match: tuple[LimitMatch, ...] = ()
    per: tuple[Per, ...] = ()
    limit: Limit | None = None
    connections: ConnectionLimit | None = None
    response: LimitResponse | None = None
    mode: Literal["ENFORCE", "SHADOW"] = "ENFORCE"

    @model_validator(mode="after")
    def _parts_fit(self) -> "LimitRule":
        at_most_one(self, "limit", "connections")
        for index, part in enumerate(self.per):
            if part in self.per[:index]:
                raise fault("duplicate", "this is there twice", "per", index)
        if self.connections is None:
            return self
        if self.per:
            raise fault("one-of", "connections are counted together; remove this", "per")
        if self.response is not None:
            raise fault("one-of", "a connection over the limit is closed without an answer; remove this", "response")
        for index, match in enumerate(self.match):
            for field in match.model_fields_set - {"ports"}:
                raise fault("one-of", "a connection can only be told by its port; remove this", "match", index, field)
        return self


class LimitService(Spec):
    """A service that speaks Envoy's rate limit protocol (RLS) and counts for all proxies together.

    `fail_open`: whether requests pass while it does not answer.
    """

    service: RouteHost
    port: Port
    domain: Annotated[str, Field(min_length=1)]
    timeout: PositiveDuration = Duration("20ms")
    fail_open: Flag = True


class RateLimitSpec(Spec):
    """Limits of the inbound traffic of the selected workloads.

    None selected: all of the namespace, and in the root namespace all of the mesh. Each proxy counts by itself unless
    a service counts for all (`global_service`).
    """

    selector: PolicySelector | None = None
    rules: Annotated[tuple[LimitRule, ...], Field(min_length=1)]
    global_service: LimitService | None = Field(default=None, alias="global")

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> "RateLimitSpec":
        seen: set[str] = set()
        for index, rule in enumerate(self.rules):
            if rule.name in seen:
                raise fault("duplicate", f"rule {rule.name!r} is there twice", "rules", index, "name")
            seen.add(rule.name)
        return self

    @model_validator(mode="after")
    def _somebody_knows_the_limit(self) -> "RateLimitSpec":
        for index, rule in enumerate(self.rules):
            own = given(rule, "limit", "connections")
            if self.global_service is None and not own:
                raise fault("missing", "give limit or connections (or global, a rate limit service)", "rules", index)
            if self.global_service is not None and own:
                message = "the rate limit service named by global has the limits; remove this"
                raise fault("one-of", message, "rules", index, own[0])
        return self
