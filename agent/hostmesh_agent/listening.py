"""Where a listener would listen, read from its bytes. Pure.

Envoy's message of listeners, with all that it needs, is nothing that an agent has to load: its fields are walked over.
"""

from collections.abc import Iterator
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_api.delta import Resource

# Numbers of fields: envoy/config/listener/v3/listener.proto and envoy/config/core/v3/address.proto.
_ADDRESS: Final = 2
_BIND_TO_PORT: Final = 26
_ADDITIONAL: Final = 33
_ADDITIONAL_ADDRESS: Final = 1
_SOCKET: Final = 1
_PORT: Final = 3
_VALUE: Final = 1

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
Value = int | bytes


def bound_ports(resource: Resource) -> frozenset[int]:
    """Return the ports that Envoy would bind for a listener; none for what cannot be read, which Envoy refuses."""
    try:
        fields = list(_fields(ResourceMessage.FromString(resource.body).resource.value))
        if any(_bytes_of(value, _VALUE, 0) == 0 for number, value in fields if number == _BIND_TO_PORT):
            return frozenset()
        addresses = [value for number, value in fields if number == _ADDRESS]
        more = [value for number, value in fields if number == _ADDITIONAL]
        addresses += [each for value in more for each in _inside(value, _ADDITIONAL_ADDRESS)]
        found = (port for each in addresses for where in _inside(each, _SOCKET) for port in _inside(where, _PORT))
        return frozenset(port for port in found if isinstance(port, int))
    except ValueError:
        return frozenset()


def _bytes_of(value: Value, number: int, default: int) -> Value:
    return next(iter(_inside(value, number)), default)


def _inside(message: Value, wanted: int) -> list[Value]:
    if isinstance(message, int):
        raise ValueError("a number where a message is expected")
    return [value for number, value in _fields(message) if number == wanted]


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Yield number and value of each field of a message on the wire."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in {_EIGHT_BYTES, _FOUR_BYTES}:
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(data):
            raise ValueError("cut off")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return result, at
    raise ValueError("cut off")
