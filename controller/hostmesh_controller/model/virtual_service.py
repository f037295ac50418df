"""VirtualService: where requests for a host go, and what happens to them on the way."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hostmesh_controller.model.route_fields import (
    Base64Body,
    Gateway,
    GrpcStatus,
    HeaderName,
    HeaderValue,
    Line,
    MatchRegex,
    Regex,
    RetryOn,
    RouteHost,
    TextBody,
    VirtualHost,
)
from hostmesh_controller.model.schema import (
    Count,
    ExportTo,
    Flag,
    Integer,
    Percent,
    Port,
    PositiveDuration,
    Spec,
    at_most_one,
    fault,
    given,
)


class StringMatch(Spec):
    """One of the three ways, or none: then the thing has only to be there."""

    exact: Line | None = None
    prefix: Line | None = None
    regex: MatchRegex | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "StringMatch":
        at_most_one(self, "exact", "prefix", "regex")
        return self


class PortSelector(Spec):
    """A port of a service by its number."""

    number: Port | None = None


class Destination(Spec):
    """A service (short names resolve in the VirtualService's namespace), maybe one of its subsets or ports."""

    host: RouteHost
    subset: str | None = None
    port: PortSelector | None = None


class HeaderOperations(Spec):
    """Headers to overwrite, append and drop, in this order."""

    set: Mapping[HeaderName, HeaderValue] = Field(default_factory=dict)
    add: Mapping[HeaderName, HeaderValue] = Field(default_factory=dict)
    remove: tuple[HeaderName, ...] = ()


class Headers(Spec):
    """What happens to the headers of a request on its way out and of a response on its way back."""

    request: HeaderOperations | None = None
    response: HeaderOperations | None = None


class HttpMatch(Spec):
    """All that is given must hold. `port` is the service's port that was called."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"sourceLabels", "sourceNamespace", "statPrefix"})

    name: str | None = None
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: Mapping[HeaderName, StringMatch] = Field(default_factory=dict)
    without_headers: Mapping[HeaderName, StringMatch] = Field(default_factory=dict)
    query_params: Mapping[str, StringMatch] = Field(default_factory=dict)
    port: Port | None = None
    ignore_uri_case: Flag = False
    gateways: tuple[Gateway, ...] = ()

    @model_validator(mode="after")
    def _uri_is_a_path(self) -> "HttpMatch":
        if self.uri is not None and self.uri.regex == "*":
            raise fault("regex", "'*' has nothing before it to repeat in '*'", "uri", "regex")
        return self


class HttpRouteDestination(Spec):
    """`weight` None is 0 beside others, and everything alone."""

    destination: Destination
    weight: Count | None = None
    headers: Headers | None = None


class HttpRedirect(Spec):
    """Send the caller elsewhere. What is None stays as in the request; the code is 301 unless given."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"prefixRewrite"})

    uri: Line | None = None
    authority: Line | None = None
    scheme: Literal["http", "https"] | None = None
    port: Port | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    redirect_code: Literal[301, 302, 303, 307, 308] | None = None

    @model_validator(mode="after")
    def _one_port(self) -> "HttpRedirect":
        at_most_one(self, "port", "derive_port")
        return self


class RegexRewrite(Spec):
    """Replace what matches (RE2) by the text, in which a backslash and 1 is the first group."""

    match: Regex
    rewrite: Line


class HttpRewrite(Spec):
    """Change the path (`uri` replaces the matched prefix, or all of an exact match) or the authority."""

    uri: Line | None = None
    authority: Line | None = None
    uri_regex_rewrite: RegexRewrite | None = None

    @model_validator(mode="after")
    def _one_path(self) -> "HttpRewrite":
        at_most_one(self, "uri", "uri_regex_rewrite")
        if not given(self, "uri", "authority", "uri_regex_rewrite"):
            raise fault("empty", "nothing to rewrite: give uri, uriRegexRewrite or authority")
        return self


class DirectBody(Spec):
    """The body as text, or as bytes in base64."""

    string: TextBody | None = None
    bytes: Base64Body | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "DirectBody":
        at_most_one(self, "string", "bytes")
        return self


class DirectResponse(Spec):
    """Answer without asking any service."""

    status: Annotated[Integer, Field(ge=200, le=599)]
    body: DirectBody | None = None


class Percentage(Spec):
    """0 to 100, in steps of 0.0001."""

    value: Percent = 0.0


class FaultDelay(Spec):
    """Hold some of the requests. No percentage given: all of them."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"exponentialDelay", "percent"})

    fixed_delay: PositiveDuration
    percentage: Percentage | None = None


class FaultAbort(Spec):
    """Fail some of the requests. No percentage given: all of them."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"http2Error"})

    http_status: Annotated[Integer, Field(ge=200, le=599)] | None = None
    grpc_status: GrpcStatus | None = None
    percentage: Percentage | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "FaultAbort":
        at_most_one(self, "http_status", "grpc_status")
        if not given(self, "http_status", "grpc_status"):
            raise fault("missing", "give httpStatus or grpcStatus")
        return self


class Fault(Spec):
    """Failures to inject."""

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None

    @model_validator(mode="after")
    def _something(self) -> "Fault":
        if not given(self, "delay", "abort"):
            raise fault("empty", "give delay or abort")
        return self


class Retries(Spec):
    """`attempts` 0 turns retries off. None elsewhere is Istio's default."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"backoff", "retryIgnorePreviousHosts", "retryRemoteLocalities"})

    attempts: Count | None = None
    per_try_timeout: PositiveDuration | None = None
    retry_on: RetryOn | None = None


_WEIGHTS_MAX = 2**32 - 1
"""Envoy's limit of their sum."""


def _check_weights(weights: Sequence[int | None]) -> None:
    if len(weights) > 1 and not any(weights):
        raise fault("weights", "the weights of the destinations sum to 0", "route")
    if sum(weight or 0 for weight in weights) > _WEIGHTS_MAX:
        raise fault("weights", f"the weights of the destinations sum to more than {_WEIGHTS_MAX}", "route")


class HttpRoute(Spec):
    """The first route with a match that holds is taken; a route without matches takes everything."""

    not_yet: ClassVar[frozenset[str]] = frozenset(
        {"corsPolicy", "delegate", "mirror", "mirrorPercent", "mirror_percent", "mirrorPercentage", "mirrors"}
    )

    name: str | None = None
    match: tuple[HttpMatch, ...] = ()
    route: tuple[HttpRouteDestination, ...] = ()
    redirect: HttpRedirect | None = None
    direct_response: DirectResponse | None = None
    rewrite: HttpRewrite | None = None
    timeout: PositiveDuration | None = None
    retries: Retries | None = None
    fault: Fault | None = None
    headers: Headers | None = None

    @model_validator(mode="after")
    def _one_outcome(self) -> "HttpRoute":
        outcomes = [name for name in ("route", "redirect", "direct_response") if getattr(self, name)]
        written = {"direct_response": "directResponse"}
        if not outcomes:
            raise fault("missing", "give one of route, redirect and directResponse")
        if len(outcomes) > 1:
            names = [written.get(name, name) for name in outcomes]
            raise fault("one-of", f"only one of {', '.join(names)} may be set", names[1])
        if self.rewrite is not None and self.redirect is not None:
            raise fault("one-of", "rewrite cannot be set beside redirect", "rewrite")
        _check_weights([route.weight for route in self.route])
        return self


class L4Match(Spec):
    """`port` is the service's port that was called."""

    not_yet: ClassVar[frozenset[str]] = frozenset(
        {"destinationSubnets", "sourceLabels", "sourceNamespace", "sourceSubnet"}
    )

    port: Port | None = None
    gateways: tuple[Gateway, ...] = ()


class RouteDestination(Spec):
    """`weight` None is 0 beside others, and everything alone."""

    destination: Destination
    weight: Count | None = None


class TcpRoute(Spec):
    """The first route with a match that holds is taken; a route without matches takes everything."""

    match: tuple[L4Match, ...] = ()
    route: Annotated[tuple[RouteDestination, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _some_weight(self) -> "TcpRoute":
        _check_weights([route.weight for route in self.route])
        return self


class VirtualServiceSpec(Spec):
    """Routes of the hosts; short names resolve in the VirtualService's namespace. `gateways` can only be [mesh]."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"tls"})

    hosts: Annotated[tuple[VirtualHost, ...], Field(min_length=1)]
    gateways: tuple[Gateway, ...] = ()
    http: tuple[HttpRoute, ...] = ()
    tcp: tuple[TcpRoute, ...] = ()
    export_to: tuple[ExportTo, ...] = ()

    @model_validator(mode="after")
    def _some_route(self) -> "VirtualServiceSpec":
        if not self.http and not self.tcp:
            raise fault("missing", "give http or tcp routes")
        for index, host in enumerate(self.hosts):
            if host in self.hosts[:index]:
                raise fault("duplicate-host", f"host {host!r} is there twice", "hosts", index)
        return self
