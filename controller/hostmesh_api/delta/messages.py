"""What the two sides of a delta stream say to each other, and how it becomes bytes."""

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse

from hostmesh_api.wire import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    SECRET_TYPE,
    VIRTUAL_HOST_TYPE,
)

WILDCARD: Final = "*"

PUSH_ORDER: Final = (
    HOST_CONFIG_TYPE,
    SECRET_TYPE,
    EXTENSION_TYPE,
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    VIRTUAL_HOST_TYPE,
)
"""Make before break: what is referred to is sent before what refers to it."""

WILDCARD_TYPES: Final = frozenset({CLUSTER_TYPE, LISTENER_TYPE})
"""Types whose first request without names means "everything" (the protocol's legacy wildcard)."""

_RESOURCE_TAG: Final = b"\x12"
"""Field 2 (`resources`), length-delimited, of DeltaDiscoveryResponse."""
_NONCE_TAG: Final = b"\x2a"
"""Field 5 (`nonce`)."""


_ONE_BYTE: Final = tuple(bytes((size,)) for size in range(0x80))


class Resource(NamedTuple):
    """One resource, ready to be sent: `body` is a serialized envoy.service.discovery.v3.Resource."""

    name: str
    version: str
    body: bytes


class Answer(NamedTuple):
    """What a source knows of a name: a resource, or (`resource` None) for certain that there is none."""

    resource: Resource | None


class Source(Protocol):
    """Where a server stream takes its resources from, already bound to whoever asks."""

    def names(self, type_url: str) -> Iterable[str] | None:
        """Return the names that "*" stands for; None while that is not known."""
        ...

    def answer(self, type_url: str, name: str) -> Answer | None:
        """Return what is known of `name`; None while nothing is (the name stays asked for)."""
        ...


class Nack(NamedTuple):
    """A refusal by the client: it keeps what it had of `names`."""

    type_url: str
    names: tuple[str, ...]
    message: str


class Received(NamedTuple):
    """What one request meant.

    `acked` and `nacked` are None where the request answers nothing that is in flight.
    """

    type_url: str
    subscribed: tuple[str, ...]
    unsubscribed: tuple[str, ...]
    acked: tuple[str, ...] | None
    nacked: Nack | None


class Push(NamedTuple):
    """One response to write: its bytes, and what they carry."""

    type_url: str
    nonce: str
    names: tuple[str, ...]
    removed: tuple[str, ...]
    data: bytes


def _length(size: int) -> bytes:
    """Return `size` as a protobuf varint."""
    if size <= 0x7F:
        return _ONE_BYTE[size]
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def encode_response(type_url: str, nonce: str, bodies: Iterable[bytes], removed: Collection[str] = ()) -> bytes:
    """Return a serialized DeltaDiscoveryResponse around resources that are bytes already.

    Joining is a hundred times cheaper than building messages again (1,000 endpoints: 18 µs against 1.7 ms), and legal:
    a protobuf message is the concatenation of its fields.
    """
    number = nonce.encode()
    parts = [_type_field(type_url), _NONCE_TAG, _length(len(number)), number]
    for body in bodies:
        parts += (_RESOURCE_TAG, _length(len(body)), body)
    if removed:
        parts.append(DeltaDiscoveryResponse(removed_resources=removed).SerializeToString())
    return b"".join(parts)


@lru_cache(64)
def _type_field(type_url: str) -> bytes:
    return DeltaDiscoveryResponse(type_url=type_url).SerializeToString()
