"""What Gateway and Sidecar say about listeners: their protocol, address, and the hosts behind them."""

from typing import Annotated, Final

from pydantic import AfterValidator

from hostmesh_controller.model.domains import check_wildcard_domain, is_ip
from hostmesh_controller.model.paths import check_plain_path
from hostmesh_controller.model.protocols import KNOWN_PROTOCOLS
from hostmesh_controller.model.schema import as_fault, fault
from hostmesh_controller.suggest import did_you_mean

UNIX: Final = "unix://"


def is_http(protocol: str) -> bool:
    """Tell whether routes for HTTP apply."""
    return protocol.lower() in {"http", "http2", "grpc", "grpc-web"}


def is_tls(protocol: str) -> bool:
    """Tell whether the protocol has TLS settings."""
    return protocol.lower() in {"https", "tls"}


def _protocol(value: str) -> str:
    if value.upper() not in KNOWN_PROTOCOLS:
        near = did_you_mean(value.upper(), KNOWN_PROTOCOLS)
        raise fault("protocol", f"{value!r} is not a protocol: one of {', '.join(KNOWN_PROTOCOLS)}{near}")
    if value.upper() == "UDP":
        raise fault("not-supported", "UDP is not supported: Envoy's routes are for TCP and what runs over it")
    return value


def _optional_protocol(value: str) -> str:
    # Nothing said: found out per connection.
    return _protocol(value) if value else value


def check_unix_path(value: str) -> str:
    """Return the socket's path if it is absolute, or abstract (with '@').

    Raises:
        ValueError: it is neither.
    """
    if not value.startswith("@") and (not value.startswith("/") or value.endswith("/")):
        raise ValueError(f"{value!r} is not the absolute path of a socket")
    return check_plain_path(value)


def _bind(value: str) -> str:
    with as_fault("address"):
        if value.startswith(UNIX):
            check_unix_path(value.removeprefix(UNIX))
        elif value and not is_ip(value):
            raise ValueError(f"{value!r} is not an IP address (or unix:// and a path)")
    return value


def check_full_host(value: str) -> str:
    """Return `value` if it is "*", a full DNS name, or a wildcard such as `*.example.com`.

    Raises:
        ValueError: it is none, a short name for instance.
    """
    if "*" in value and value != "*" and not value.startswith("*."):
        raise ValueError(f"{value!r}: a '*' stands for whole labels, as in '*.example.com'")
    check_wildcard_domain(value)
    if value != "*" and "." not in value:
        raise ValueError(f"{value!r} is a short name; write the full one, such as '{value}.default.svc.cluster.local'")
    return value


Protocol = Annotated[str, AfterValidator(_protocol)]
OptionalProtocol = Annotated[str, AfterValidator(_optional_protocol)]
Bind = Annotated[str, AfterValidator(_bind)]
