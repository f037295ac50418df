"""Envoy's messages by their names: what an operator writes, or what a resource holds, may be of any type Envoy has."""

from typing import Any

from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import Resource as WireResource
from google.protobuf.any_pb2 import Any as WireAny
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from hostmesh_api.delta import Resource
from hostmesh_controller.envoy_types import message_class
from hostmesh_controller.xds.redaction import without_keys


def message_of(resource: Resource) -> Message | None:
    """Return what a resource holds; None for one that says "there is no such thing"."""
    wrapped = WireResource.FromString(resource.body)
    return unpacked(wrapped.resource) if wrapped.HasField("resource") else None


def unpacked(packed: WireAny) -> Message | None:
    """Return the message in an Any, or None if no message has its type."""
    found = message_class(packed.type_url.rpartition("/")[2])
    if found is None:
        return None
    message = found()
    packed.Unpack(message)
    return message


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as Envoy's JSON, with what is inside of it whatever its type; keys are left out."""
    _load_inner(message)
    return MessageToDict(without_keys(message) if isinstance(message, Secret) else message)


def _load_inner(message: Message) -> None:
    """Make the types of all nested Any messages known, which conversion needs."""
    if isinstance(message, WireAny):
        inner = unpacked(message)
        if inner is not None:
            _load_inner(inner)
        return
    for _, value in message.ListFields():
        for each in _messages_in(value):
            _load_inner(each)


def _messages_in(value: Any) -> list[Message]:
    if isinstance(value, Message):
        return [value]
    if hasattr(value, "values"):
        return [each for each in value.values() if isinstance(each, Message)]
    if isinstance(value, str | bytes | int | float):
        return []
    return [each for each in value if isinstance(each, Message)]
