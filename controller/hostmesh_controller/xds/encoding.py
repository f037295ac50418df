"""Resources as bytes: messages are packed the same way every time, and named by a hash of what they hold."""

from collections.abc import Iterable
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import Resource as WireResource
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from hostmesh_api.cold import version_of
from hostmesh_api.delta import Resource

_TYPE_PREFIX: Final = "type.googleapis.com/"


def resource(name: str, message: Message, aliases: Iterable[str] = ()) -> Resource:
    """Return a message as resource, versioned by its content."""
    return _resource(name, any_of(message), tuple(aliases))


def resource_of_bytes(name: str, type_url: str, value: bytes) -> Resource:
    """Return an already serialized message as resource."""
    return _resource(name, Any(type_url=type_url, value=value), ())


def absent(name: str) -> Resource:
    """Return the resource that says "there is no such thing" and that Envoy acts on at once: aliases and no body."""
    version = _NOTHING
    wire = WireResource(name=name, version=version, aliases=[name])
    return Resource(name, version, wire.SerializeToString(deterministic=True))


def is_absent(resource: Resource) -> bool:
    """Tell whether a resource only says that there is no such thing."""
    return resource.version == _NOTHING


def _resource(name: str, body: Any, aliases: tuple[str, ...]) -> Resource:
    version = version_of(body.value)
    wire = WireResource(name=name, version=version, resource=body, aliases=aliases)
    return Resource(name, version, wire.SerializeToString(deterministic=True))


_NOTHING: Final = version_of(b"")


def any_of(message: Message) -> Any:
    """Return the message packed. `Any.Pack` is not deterministic for maps unless it is told to be."""
    return Any(
        type_url=_TYPE_PREFIX + message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )


def duration(seconds: float) -> Duration:
    result = Duration()
    result.FromMicroseconds(round(seconds * 1_000_000))
    return result


def length_delimited(field_number: int, payload: bytes) -> bytes:
    """Return one length-delimited field in protobuf's wire format: joining such fields joins messages."""
    return varint(field_number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
