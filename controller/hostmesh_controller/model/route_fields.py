"""The types of a route's fields: texts that Envoy interprets, checked as far as can be told here."""

import re
from base64 import b64decode
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator

from hostmesh_controller.model.domains import WILDCARD, check_subnet, check_wildcard_domain, is_ip, is_label
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.patterns import (
    RETRY_CONDITIONS,
    check_header_name,
    check_header_value,
    check_one_line,
    check_regex,
    unknown_conditions,
)
from hostmesh_controller.model.routing_claims import routing_claim
from hostmesh_controller.model.schema import Port, PositiveDuration, as_fault, fault
from hostmesh_controller.suggest import did_you_mean

_BODY_MAX_BYTES: Final = 1024 * 1024
"""Istio's limit of an answer that Envoy gives by itself."""
GENERATED_SERVER_NAME: Final = "outbound_."
"""How the server names begin under which clusters are called, `outbound_.PORT_.SUBSET_.HOST`."""
_GENERATED: Final = re.compile(r"outbound_\.[0-9]+_\.[-A-Za-z0-9]*_\.[A-Za-z0-9][-.A-Za-z0-9]*")
_AUTHORITY: Final = frozenset({":authority", "host"})


def _destination_host(value: str) -> str:
    with as_fault("host-name"):
        if value == WILDCARD:
            raise ValueError("'*' is no destination: name a service")
        if is_ip(value):
            raise ValueError(f"{value!r}: an address is no destination; make it a ServiceEntry and name its host")
        return check_wildcard_domain(value)


def check_server_name(value: str) -> str:
    """Return `value` if it is a host name, a wildcard, or the server name of a cluster.

    Raises:
        ValueError: it is none of them.
    """
    if not value.startswith(GENERATED_SERVER_NAME):
        return check_wildcard_domain(value)
    if not _GENERATED.fullmatch(value):
        raise ValueError(f"{value!r} is not a cluster's server name: write outbound_.PORT_.SUBSET_.HOST")
    return value


def _virtual_host(value: str) -> str:
    with as_fault("host-name"):
        return value if is_ip(value) else check_server_name(value)


def _route_host(value: str) -> str:
    # An IP address is allowed as the host of a request made to a bare address.
    with as_fault("host-name"):
        if value == WILDCARD:
            raise ValueError("'*' is no host: name one")
        return value if is_ip(value) else check_wildcard_domain(value)


def _gateway(value: str) -> str:
    with as_fault("name"):
        namespace, slash, name = value.rpartition("/")
        parts = [namespace, name] if slash else value.split(".")
        if not all(is_label(part) for part in parts):
            raise ValueError(f"{value!r} is not the name of a gateway: write 'mesh', NAME or NAMESPACE/NAME")
    return value


def subset_name(value: str) -> str:
    """Check the name of a subset: it becomes part of cluster names and of TLS server names."""
    if not is_label(value):
        with as_fault("name"):
            raise ValueError(
                f"{value!r} is not a valid name of a subset: up to 63 letters, digits and '-', starting and ending "
                "with a letter or digit"
            )
    return value


def _regex(value: str) -> str:
    with as_fault("regex"):
        return check_regex(value)


def _regex_or_any(value: str) -> str:
    # Istio takes a lone '*' for "anything" here, though it is no regular expression.
    return value if value == "*" else _regex(value)


def _subnet(value: str) -> str:
    with as_fault("address"):
        return check_subnet(value)


def _plain_name(value: str) -> str:
    with as_fault("header-name"):
        if value.lower() in _AUTHORITY:
            raise ValueError(f"{value!r} can only be set in requests; elsewhere it cannot be changed")
        return check_header_name(value)


def _request_name(value: str) -> str:
    with as_fault("header-name"):
        return value if value.lower() in _AUTHORITY else check_header_name(value)


def _header_name(value: str) -> str:
    with as_fault("header-name"):
        return value if value == ":authority" else check_header_name(value)


def _matched_name(value: str) -> str:
    if routing_claim(value) is not None:
        return value
    with as_fault("header-name"):
        return check_header_name(value, pseudo=True)


def _cors_name(value: str) -> str:
    with as_fault("header-name"):
        return value if value == WILDCARD else check_header_name(value)


def _header_value(value: str) -> str:
    with as_fault("header-value"):
        return check_header_value(value)


def _line(value: str) -> str:
    with as_fault("text"):
        return check_one_line(value)


def _base64(value: str) -> str:
    with as_fault("base64"):
        try:
            size = len(b64decode(value, validate=True))
        except ValueError:
            raise ValueError("expected bytes in base64") from None
    return _checked_body(value, size)


def _text_body(value: str) -> str:
    return _checked_body(value, len(value.encode()))


def _checked_body(value: str, size_bytes: int) -> str:
    if size_bytes > _BODY_MAX_BYTES:
        raise fault("too-big", f"{size_bytes} bytes; a body may have {_BODY_MAX_BYTES} at most")
    return value


def _retry_on(value: str) -> str:
    for part in unknown_conditions(value) if value else ():
        near = did_you_mean(part.strip(), RETRY_CONDITIONS)
        raise fault("retry-on", f"{part!r} is neither a retry condition nor a status code{near}")
    return value


def _whole_ms(value: Duration) -> Duration:
    if not value.is_whole_ms:
        raise fault("duration", f"{value.text!r} is finer than a millisecond, the smallest step")
    return value


def _none_if_zero(value: object) -> object:
    # As in protobuf, whose port 0 is no port.
    return None if value == 0 and not isinstance(value, bool) else value


DestinationHost = Annotated[str, AfterValidator(_destination_host)]
RouteHost = Annotated[str, AfterValidator(_route_host)]
VirtualHost = Annotated[str, AfterValidator(_virtual_host)]
Gateway = Annotated[str, AfterValidator(_gateway)]
"""`mesh`, the name of a Gateway of the same namespace, or NAMESPACE/NAME; NAME.NAMESPACE… is the old form."""
SubsetName = Annotated[str, AfterValidator(lambda value: value and subset_name(value))]
"""Of a destination; "" is none."""
Subnet = Annotated[str, AfterValidator(_subnet)]
MatchPort = Annotated[Port | None, BeforeValidator(_none_if_zero)]
Regex = Annotated[str, AfterValidator(_regex)]
RegexOrAny = Annotated[str, AfterValidator(_regex_or_any)]
RequestHeaderName = Annotated[str, AfterValidator(_request_name)]
"""Of a header to set or add in requests: the authority may be one."""
PlainHeaderName = Annotated[str, AfterValidator(_plain_name)]
"""Of a header to remove, or to change in responses: not the authority."""
HeaderName = Annotated[str, AfterValidator(_header_name)]
MatchHeaderName = Annotated[str, AfterValidator(_matched_name)]
"""Of a header to look at: pseudo headers such as `:method` too, and claims of a token (see `routing_claim`)."""
CorsHeaderName = Annotated[str, AfterValidator(_cors_name)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]
Line = Annotated[str, AfterValidator(_line)]
TextBody = Annotated[str, AfterValidator(_text_body)]
Base64Body = Annotated[str, AfterValidator(_base64)]
RetryOn = Annotated[str, AfterValidator(_retry_on)]
MillisecondDuration = Annotated[PositiveDuration, AfterValidator(_whole_ms)]
"""At least 1 ms, in steps of 1 ms."""
GrpcStatus = Literal[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]
