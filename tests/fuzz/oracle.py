"""A second opinion on resources for Envoy: what protobuf's own reading of them would make Envoy reach."""

from collections.abc import Iterator
from typing import Any

from envoy.config.core.v3.address_pb2 import Pipe
from envoy.config.core.v3.base_pb2 import DataSource
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.message import Message


def reaches(message: Message, ssh: frozenset[int]) -> str:
    """Return what of a message must not be, "" if there is nothing. It is not complete: it is only never wrong."""
    if isinstance(message, Listener) and (not message.HasField("bind_to_port") or message.bind_to_port.value):
        addresses = [message.address, *(each.address for each in message.additional_addresses)]
        if taken := {each.socket_address.port_value for each in addresses} & ssh:
            return f"it listens on {taken}"
    for each in _messages(message):
        if isinstance(each, Pipe) and each.path:
            return f"it uses the socket {each.path!r}"
        if isinstance(each, DataSource) and each.filename.startswith("/"):
            return f"it reads {each.filename!r}"
    return ""


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            found = [each for each in value.values() if isinstance(each, Message)]
        else:
            found = list(value) if not isinstance(value, Message) else [value]
        for each in found:
            yield from _messages(each)
