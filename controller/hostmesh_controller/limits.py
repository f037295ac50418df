"""How much anybody may ask of the controller: `[limits]` of controller.toml, each limit with its default and range."""

from dataclasses import dataclass, field, fields
from typing import Any, Final

_KIB: Final = 1024
_MIB: Final = 1024 * 1024


def _limit(default: int, least: int, most: int) -> Any:
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True, slots=True)
class Limits:
    """Each is far above what a mesh of 2,000 hosts asks for, and far below what hurts."""

    request_bytes: int = _limit(8 * _MIB, 64 * _KIB, 256 * _MIB)
    """Of a request's body on the admin port and socket."""
    request_s: int = _limit(30, 1, 600)
    """How long a request's body may take to come whole."""
    header_bytes: int = _limit(16 * _KIB, 4 * _KIB, 256 * _KIB)
    """Of a request's line and headers on the admin port."""
    header_s: int = _limit(10, 1, 120)
    """How long they may take to come whole, from the connection or the last answer on."""
    handshake_s: int = _limit(10, 1, 120)
    """How long a TLS handshake may take, on all three ports."""
    admin_connections: int = _limit(1_000, 10, 100_000)
    admin_connections_per_address: int = _limit(100, 1, 100_000)
    """IPv6 addresses of one /64 are one."""
    document_bytes: int = _limit(4 * _MIB, 64 * _KIB, 64 * _MIB)
    """Of all YAML in a request. The parser takes about 10 s for a MiB in its worst form."""
    document_depth: int = _limit(64, 16, 256)
    """Deepest nesting. Istio's deepest object has about 15 levels."""
    document_values: int = _limit(500_000, 1_000, 10_000_000)
    """Mappings, lists and scalars of one text, once its aliases are expanded."""
    documents: int = _limit(20_000, 100, 1_000_000)
    """In one request."""
    agents_message_bytes: int = _limit(8 * _MIB, 256 * _KIB, 256 * _MIB)
    """A host that asks for its 50,000 names again at once sends about 4 MiB."""
    agents_bytes_per_minute: int = _limit(32 * _MIB, _MIB, 4096 * _MIB)
    """Of requests on the streams of one host. Parsing 8 MiB of the worst takes half a second."""
    join_message_bytes: int = _limit(64 * _KIB, 16 * _KIB, 16 * _MIB)
    """A certificate request and facts; whoever sends it is not known yet."""
    metadata_bytes: int = _limit(16 * _KIB, 4 * _KIB, 256 * _KIB)
    """Of a gRPC call."""
    agents_streams_per_connection: int = _limit(128, 8, 10_000)
    join_streams_per_connection: int = _limit(16, 1, 10_000)
    agents_connections: int = _limit(20_000, 10, 1_000_000)
    join_connections: int = _limit(2_000, 10, 1_000_000)
    join_idle_s: int = _limit(30, 1, 3_600)
    """How long a connection to the join port may be without a call."""
    join_age_s: int = _limit(120, 10, 3_600)
    """How long a connection to the join port may be open at all."""
    joins_per_minute: int = _limit(600, 1, 1_000_000)
    """Attempts to join, of one address (IPv6: of one /64)."""
    certificates_per_minute: int = _limit(600, 10, 1_000_000)
    """Calls for certificates, of one host; as many workloads may start on it at once."""
    calls_per_host: int = _limit(64, 4, 100_000)
    """Of one host at the same time: streams and calls."""


def limit_ranges() -> dict[str, tuple[int, int, int]]:
    """Return default, least and most of each limit, by its name in controller.toml."""
    return {each.name: (each.default, *each.metadata["range"]) for each in fields(Limits)}
