"""Messages of protocol buffers as they are on the wire, field by field, without knowing what they are. Pure.

Envoy's messages, with all that they need, are nothing that an agent has to load.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_64_BITS: Final = (1 << 64) - 1
_32_BITS: Final = (1 << 32) - 1
_MAX_VARINT_BITS: Final = 70

Value = int | bytes


def fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Yield number and value of the fields of a message that are numbers, or messages and strings.

    Raises:
        ValueError: it is no message, or has what only version 2 of the language had (groups).
    """
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
        if kind == _BYTES:
            yield tag >> 3, data[at : at + length]
        at += length


def inside(message: bytes, wanted: int) -> list[bytes]:
    """Return all values of a field of messages or strings. What has another type there is unknown to who reads it.

    Raises:
        ValueError: there is no message.
    """
    return [value for found, value in fields(message) if found == wanted and isinstance(value, bytes)]


def merged(message: bytes, wanted: int) -> bytes | None:
    """Return a field that is a message, as whoever reads it takes it: all that is said of it, together. None: nothing.

    Raises:
        ValueError: there is no message.
    """
    found = inside(message, wanted)
    return b"".join(found) if found else None


def number(message: bytes, wanted: int) -> int | None:
    """Return a field of 32 bits or less: the last one, and of that what fits, as whoever reads it takes it.

    Raises:
        ValueError: there is no message.
    """
    found = [value for each, value in fields(message) if each == wanted and isinstance(value, int)]
    return found[-1] & _32_BITS if found else None


def rewritten(message: bytes, changes: Mapping[int, Callable[[bytes], bytes]]) -> bytes:
    """Return a message with the values of some of its fields of messages exchanged; all else stays byte for byte.

    Raises:
        ValueError: there is no message.
    """
    out: list[bytes] = []
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        kind, begins = tag & 7, at
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            length, begins = _varint(message, at)
            at = begins + length
        elif kind in {_EIGHT_BYTES, _FOUR_BYTES}:
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("cut off")
        change = changes.get(tag >> 3) if kind == _BYTES else None
        out.append(message[start:at] if change is None else bytes_field(tag >> 3, change(message[begins:at])))
    return b"".join(out)


def bytes_field(field: int, value: bytes) -> bytes:
    """Return a field that is a message or a string, as it is on the wire."""
    return varint(field << 3 | _BYTES) + varint(len(value)) + value


def number_field(field: int, value: int) -> bytes:
    """Return a field that is a number, as it is on the wire. Behind another one of the same field it is what counts."""
    return varint(field << 3 | _VARINT) + varint(value)


def varint(value: int) -> bytes:
    """Return a number that is not negative as it is on the wire."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(data) and shift < _MAX_VARINT_BITS:
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return result & _64_BITS, at
    raise ValueError("cut off")
