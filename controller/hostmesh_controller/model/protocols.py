"""Which protocol a port speaks, by Istio's rules of protocol selection."""

from enum import StrEnum
from typing import Final


class Protocol(StrEnum):
    """What Envoy is told about a port. UNSUPPORTED means nothing was said: look at the first bytes."""

    HTTP = "HTTP"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    TCP = "TCP"
    TLS = "TLS"
    HTTPS = "HTTPS"
    UDP = "UDP"
    UNSUPPORTED = "UNSUPPORTED"

    @property
    def is_http(self) -> bool:
        """Plain HTTP of any version: routes apply."""
        return self in {Protocol.HTTP, Protocol.HTTP2, Protocol.GRPC}

    @property
    def is_http2(self) -> bool:
        """HTTP/2 without negotiation."""
        return self in {Protocol.HTTP2, Protocol.GRPC}

    @property
    def is_detected(self) -> bool:
        """Nothing was declared: HTTP or not is found out per connection."""
        return self is Protocol.UNSUPPORTED


_NAMES: Final = {
    "http": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "grpc": Protocol.GRPC,
    "grpc-web": Protocol.HTTP,  # HTTP/1.1 with another content type
    "tcp": Protocol.TCP,
    "tls": Protocol.TLS,
    "https": Protocol.HTTPS,
    "udp": Protocol.UDP,
    # Istio knows these by name; without their own filters they are TCP.
    "mongo": Protocol.TCP,
    "mysql": Protocol.TCP,
    "redis": Protocol.TCP,
    # Istio's name for the port of a forward proxy.
    "http_proxy": Protocol.HTTP,
}
_APP_PROTOCOLS: Final = {
    "kubernetes.io/h2c": Protocol.HTTP2,
    "kubernetes.io/ws": Protocol.HTTP,
    "kubernetes.io/wss": Protocol.HTTPS,
}
_SERVER_FIRST_PORTS: Final = frozenset({25, 53, 3306, 27017})
"""SMTP, DNS, MySQL and MongoDB, which Istio takes for TCP where nothing is declared: looking would wait in vain."""


def _named(name: str) -> Protocol:
    lower = name.lower()
    if lower.startswith("grpc-web"):
        return Protocol.HTTP
    return _NAMES.get(lower.partition("-")[0], Protocol.UNSUPPORTED)


def service_protocol(number: int, name: str = "", transport: str = "TCP", app_protocol: str | None = None) -> Protocol:
    """Return the protocol of a Service's port: appProtocol wins over the name's prefix (`http`, `http-admin`).

    Args:
        number: the port, for the few numbers that are known to be TCP.
        name: the port's name, "" if it has none.
        transport: TCP or UDP.
        app_protocol: None if it is not set.
    """
    if transport == "UDP":
        return Protocol.UDP
    if app_protocol in _APP_PROTOCOLS:
        return _APP_PROTOCOLS[app_protocol]
    found = _named(app_protocol if app_protocol is not None else name)
    if found is Protocol.UNSUPPORTED and number in _SERVER_FIRST_PORTS:
        return Protocol.TCP
    return found


def entry_protocol(declared: str, name: str = "") -> Protocol:
    """Return the protocol of a ServiceEntry's port: what it declares, or else the prefix of its name.

    Args:
        declared: the port's `protocol`, "" if it is not set.
        name: the port's name.
    """
    return _NAMES.get(declared.lower(), Protocol.UNSUPPORTED) if declared else _named(name)


def tells_hosts_apart(declared: str) -> bool:
    """Whether calls by this protocol of a ServiceEntry's port say which host they mean; nothing declared does not."""
    found = _NAMES.get(declared.lower(), Protocol.UNSUPPORTED)
    return found.is_http or found in {Protocol.TLS, Protocol.HTTPS}


KNOWN_PROTOCOLS: Final = tuple(name.upper() for name in _NAMES)
"""What a ServiceEntry's port may declare."""
