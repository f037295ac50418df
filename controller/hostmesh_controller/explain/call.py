"""What is to be explained: one call of one program."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from hostmesh_controller.names import MAX_PORT, canonical_address

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443, "grpc": 80, "tcp": None, "tls": 443}
_CLEAR_HTTP: Final = frozenset({"http", "ws", "grpc"})
_TLS: Final = frozenset({"https", "wss", "tls"})


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `host` (a name or an address) on `port`.

    `scheme` is http, ws or grpc (requests that a proxy can read), https, wss or tls (the program's own TLS, told by its
    server name), or tcp. `headers` have lower-case names. `address` is what the name stands for if the mesh does not
    say.
    """

    scheme: str
    host: str
    port: int
    path: str = "/"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None

    @property
    def is_http(self) -> bool:
        """Tell whether a proxy can read the request."""
        return self.scheme in _CLEAR_HTTP

    @property
    def is_tls(self) -> bool:
        return self.scheme in _TLS

    @property
    def authority(self) -> str:
        """The host header: as given, else host and a port that is not the scheme's own."""
        given = self.headers.get("host")
        if given:
            return given.lower()
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS.get(self.scheme) else f"{host}:{self.port}"


def parse_call(
    target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, address: str | None = None
) -> Call:
    """Return the call that a URL or `HOST:PORT` describes.

    Args:
        target: such as `http://reviews:9080/reviews/1`, `https://shop.example.com`, `db:5432`, `tcp://10.0.0.7:5432`.
        method: of an HTTP request.
        headers: of an HTTP request.
        address: what the name resolves to, for names that are not of the mesh.

    Raises:
        ValueError: it is neither; the message says what is wrong.
    """
    url = urlsplit(target if "://" in target else f"tcp://{target}")
    if url.scheme not in _PORTS:
        raise ValueError(f"unknown scheme {url.scheme!r}: write one of {', '.join(sorted(_PORTS))}, or HOST:PORT")
    try:
        port = url.port
    except ValueError:
        raise ValueError(f"{target!r}: the port must be between 1 and {MAX_PORT}") from None
    port = port if port is not None else _PORTS[url.scheme]
    if not url.hostname:
        raise ValueError(f"{target!r} names no host: write a URL or HOST:PORT")
    if not port:
        raise ValueError(f"{target!r} names no port: write HOST:PORT")
    if address is not None and canonical_address(address) is None:
        raise ValueError(f"{address!r} is not an IP address")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    return Call(url.scheme, url.hostname, port, path, method.upper(), lower, canonical_address(address or ""))
