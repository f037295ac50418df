"""The types of a route's fields: texts that Envoy interprets, checked as far as can be told here."""

from base64 import b64decode
from typing import Annotated, Final, Literal

from pydantic import AfterValidator

from hostmesh_controller.model.patterns import (
    RETRY_CONDITIONS,
    check_header_name,
    check_header_value,
    check_one_line,
    check_regex,
    unknown_conditions,
)
from hostmesh_controller.model.schema import as_fault, check_host, check_ip, fault
from hostmesh_controller.suggest import did_you_mean

_BODY_MAX_BYTES: Final = 4096
"""Envoy's limit of an answer it gives by itself."""


def _route_host(value: str) -> str:
    # An IP address is allowed as the host of a TCP route (and of any request made to a bare address).
    try:
        return check_ip(value)
    except ValueError:
        pass
    try:
        return check_host(value)
    except ValueError as error:
        raise fault("host-name", str(error)) from error


def _no_bare_wildcard(value: str) -> str:
    if value == "*":
        raise fault("host-name", "'*' would take every host of the mesh; name the hosts")
    return _route_host(value)


def _only_mesh(value: str) -> str:
    if value != "mesh":
        raise fault("not-supported", f"gateway {value!r}: gateways are not supported yet, only 'mesh'")
    return value


def _regex(value: str) -> str:
    with as_fault("regex"):
        return check_regex(value)


def _match_regex(value: str) -> str:
    # Istio takes a lone '*' for "anything", though it is no regular expression.
    return value if value == "*" else _regex(value)


def _header_name(value: str) -> str:
    with as_fault("header-name"):
        return check_header_name(value)


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
        raise fault("too-big", f"{size_bytes} bytes; Envoy answers with {_BODY_MAX_BYTES} at most")
    return value


def _retry_on(value: str) -> str:
    for part in unknown_conditions(value):
        near = did_you_mean(part, RETRY_CONDITIONS)
        raise fault("retry-on", f"{part!r} is neither a retry condition nor a status code{near}")
    return value


RouteHost = Annotated[str, AfterValidator(_route_host)]
VirtualHost = Annotated[str, AfterValidator(_no_bare_wildcard)]
Gateway = Annotated[str, AfterValidator(_only_mesh)]
Regex = Annotated[str, AfterValidator(_regex)]
MatchRegex = Annotated[str, AfterValidator(_match_regex)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]
Line = Annotated[str, AfterValidator(_line)]
TextBody = Annotated[str, AfterValidator(_text_body)]
Base64Body = Annotated[str, AfterValidator(_base64)]
RetryOn = Annotated[str, AfterValidator(_retry_on)]
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
