"""What a policy looks at: a connection, and the request on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request as the last proxy sees it; `headers` have lower-case names."""

    method: str
    authority: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def header(self, name: str) -> str | None:
        pseudo = {":authority": self.authority, ":method": self.method, ":path": self.path, ":scheme": "http"}
        return pseudo[name] if name in pseudo else self.headers.get(name.lower())


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connection, with a request on it or (None) bytes.

    Attributes:
        address: where it arrives, with `port`.
        identity: the SPIFFE ID of the caller's certificate; None where none is shown.
        source: the address that connects; "" where it is not known.
        remote: the address that asked first, as forwarding headers tell; by default the one that connects.
        server_name: of the TLS handshake.
        request: None for bytes.
        metadata: what filters left, by their names, such as the claims of a verified token.
    """

    address: str
    port: int
    identity: str | None = None
    source: str = ""
    remote: str = ""
    server_name: str = ""
    request: Request | None = None
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
