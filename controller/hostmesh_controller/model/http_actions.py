"""What a route of a VirtualService does with a request: where it goes, what is changed, what goes wrong on purpose."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hostmesh_controller.model.http_match import StringMatch
from hostmesh_controller.model.route_fields import (
    Base64Body,
    CorsHeaderName,
    DestinationHost,
    GrpcStatus,
    HeaderValue,
    Line,
    MillisecondDuration,
    PlainHeaderName,
    Regex,
    RequestHeaderName,
    RetryOn,
    SubsetName,
    TextBody,
)
from hostmesh_controller.model.schema import Count, Flag, Integer, Percent, Port, Spec, at_most_one, fault, given


class PortSelector(Spec):
    """A port of a service by its number."""

    number: Port


class Destination(Spec):
    """A service (short names resolve in the VirtualService's namespace), maybe one of its subsets or ports."""

    host: DestinationHost
    subset: SubsetName | None = None
    port: PortSelector | None = None


class HeaderOperations(Spec):
    """Headers to overwrite, append and drop, in this order."""

    set: Mapping[RequestHeaderName, HeaderValue] = Field(default_factory=dict)
    add: Mapping[RequestHeaderName, HeaderValue] = Field(default_factory=dict)
    remove: tuple[PlainHeaderName, ...] = ()


class ResponseHeaderOperations(HeaderOperations):
    """The same for a response, which has no authority."""

    set: Mapping[PlainHeaderName, HeaderValue] = Field(default_factory=dict)
    add: Mapping[PlainHeaderName, HeaderValue] = Field(default_factory=dict)


class Headers(Spec):
    """What happens to the headers of a request on its way out and of a response on its way back."""

    request: HeaderOperations | None = None
    response: ResponseHeaderOperations | None = None


class HttpRouteDestination(Spec):
    """`weight` None is 0 beside others, and everything alone."""

    destination: Destination
    weight: Count | None = None
    headers: Headers | None = None


class Delegate(Spec):
    """The VirtualService without hosts that has the routes; its namespace is this one's where None or ""."""

    name: str
    namespace: str | None = None


class HttpRedirect(Spec):
    """Send the caller elsewhere. What is None stays as in the request; the code is 301 unless given (0 is not given).

    `uri` replaces the path, `prefix_rewrite` what a prefix matched.
    """

    uri: Line | None = None
    prefix_rewrite: Line | None = None
    authority: Line | None = None
    scheme: Literal["", "http", "https"] | None = None
    port: Port | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    redirect_code: Literal[0, 301, 302, 303, 307, 308] | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "HttpRedirect":
        at_most_one(self, "port", "derive_port")
        if self.uri and self.prefix_rewrite:
            raise fault("one-of", "only one of uri, prefixRewrite may be set", "prefixRewrite")
        texts = (self.uri, self.prefix_rewrite, self.authority, self.scheme)
        if not any(texts) and not given(self, "port", "derive_port"):
            raise fault(
                "empty", "nothing to redirect to: give uri, prefixRewrite, authority, scheme, port or derivePort"
            )
        return self


class RegexRewrite(Spec):
    """Replace what matches (RE2) by the text, in which a backslash and 1 is the first group."""

    match: Regex
    rewrite: Annotated[Line, Field(min_length=1)]


class HttpRewrite(Spec):
    """Change the path (`uri` replaces the matched prefix, or all of an exact match) or the authority."""

    uri: Line | None = None
    authority: Line | None = None
    uri_regex_rewrite: RegexRewrite | None = None

    @model_validator(mode="after")
    def _one_path(self) -> "HttpRewrite":
        if self.uri and self.uri_regex_rewrite is not None:
            raise fault("one-of", "only one of uri, uriRegexRewrite may be set", "uriRegexRewrite")
        if not self.uri and not self.authority and self.uri_regex_rewrite is None:
            raise fault("empty", "nothing to rewrite: give uri, uriRegexRewrite or authority")
        return self


class DirectBody(Spec):
    """The body as text, or as bytes in base64; 1 MiB at most."""

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


_SMALLEST_PERCENTAGE = 0.0001


def _check_percentage(percentage: Percentage | None) -> None:
    if percentage is not None and 0 < percentage.value < _SMALLEST_PERCENTAGE:
        raise fault("value", f"must be 0 or at least {_SMALLEST_PERCENTAGE}", "percentage", "value")


class MirrorPolicy(Spec):
    """Where a copy of the requests goes, whose answers are thrown away. No percentage given: of all of them."""

    destination: Destination
    percentage: Percentage | None = None


class FaultDelay(Spec):
    """Hold some of the requests. `percentage` wins over the old `percent`; neither given: none of them, as in Istio."""

    refused: ClassVar[Mapping[str, str]] = {"exponentialDelay": "Istio has no such delay either; use fixedDelay"}

    fixed_delay: MillisecondDuration
    percentage: Percentage | None = None
    percent: Annotated[Integer, Field(ge=0, le=100)] | None = None

    @model_validator(mode="after")
    def _percentage_can_be_told(self) -> "FaultDelay":
        _check_percentage(self.percentage)
        return self


class FaultAbort(Spec):
    """Fail some of the requests. No percentage given: none of them, as in Istio."""

    refused: ClassVar[Mapping[str, str]] = {"http2Error": "Istio has no such failure either; use httpStatus"}

    http_status: Annotated[Integer, Field(ge=200, le=599)] | None = None
    grpc_status: GrpcStatus | None = None
    percentage: Percentage | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "FaultAbort":
        at_most_one(self, "http_status", "grpc_status")
        if not given(self, "http_status", "grpc_status"):
            raise fault("missing", "give httpStatus or grpcStatus")
        _check_percentage(self.percentage)
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
    """`attempts` 0 (also where it is left out, as in Istio) turns retries off. None elsewhere is Istio's default.

    `backoff` is the base of the growing waits between tries.
    """

    attempts: Count = 0
    per_try_timeout: MillisecondDuration | None = None
    retry_on: RetryOn | None = None
    backoff: MillisecondDuration | None = None
    retry_ignore_previous_hosts: Flag | None = None
    retry_remote_localities: Flag | None = None

    @model_validator(mode="after")
    def _there_are_tries(self) -> "Retries":
        fields = ("per_try_timeout", "retry_remote_localities")
        if self.attempts == 0 and (given(self, *fields) or self.retry_on):
            raise fault("retries", "attempts is 0, which turns retries off: say how many, or remove the rest")
        return self


class InboundRetries(Spec):
    """How often a proxy tries a request again at its own program. `attempts` 0 turns it off."""

    refused: ClassVar[Mapping[str, str]] = {
        "perTryTimeout": "Istio ignores it here: the caller's proxy has the timeouts",
        "retryIgnorePreviousHosts": "Istio ignores it here: there is one program to ask",
        "retryRemoteLocalities": "Istio ignores it here: there is one program to ask",
    }

    attempts: Count = 0
    retry_on: RetryOn | None = None
    backoff: MillisecondDuration | None = None

    @model_validator(mode="after")
    def _there_are_tries(self) -> "InboundRetries":
        if self.attempts == 0 and (self.backoff is not None or self.retry_on):
            raise fault("retries", "attempts is 0, which turns retries off: say how many, or remove the rest")
        return self


class CorsPolicy(Spec):
    """Which other origins' pages may call, and what browsers are told. `allow_origin` is the old list of exact ones."""

    allow_origins: tuple[StringMatch, ...] = ()
    allow_origin: tuple[Line, ...] = ()
    allow_methods: tuple[
        Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"], ...
    ] = ()
    allow_headers: tuple[CorsHeaderName, ...] = ()
    expose_headers: tuple[CorsHeaderName, ...] = ()
    max_age: MillisecondDuration | None = None
    allow_credentials: Flag | None = None
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = "UNSPECIFIED"

    @model_validator(mode="after")
    def _can_be_told(self) -> "CorsPolicy":
        for index, origin in enumerate(self.allow_origins):
            if not (origin.exact or origin.prefix or origin.regex):
                raise fault("empty", "give exact, prefix or regex", "allowOrigins", index)
        if self.max_age is not None and self.max_age % timedelta(seconds=1):
            raise fault("duration", f"{self.max_age.text!r}: browsers count in whole seconds", "maxAge")
        return self
