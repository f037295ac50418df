"""As much of the WebSocket protocol (RFC 6455) as an echo needs: the handshake and small text frames."""

import base64
import hashlib
import os
from typing import Final, Protocol

_MAGIC: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT: Final = 0x81
_MASKED: Final = 0x80
_SMALL: Final = 125


class Readable(Protocol):
    """What sockets' files have in common, whatever their type says."""

    def readline(self) -> bytes: ...
    def read(self, size: int, /) -> bytes: ...


def new_key() -> str:
    return base64.b64encode(os.urandom(16)).decode()


def accept_of(key: str) -> str:
    """What a server must answer to a client's key."""
    return base64.b64encode(hashlib.sha1((key + _MAGIC).encode(), usedforsecurity=False).digest()).decode()


def read_head(stream: Readable) -> tuple[str, dict[str, str]]:
    """Read a request's or an answer's first line and its headers, by lower-case name."""
    first = stream.readline().decode().strip()
    headers = {}
    while line := stream.readline().decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return first, headers


def frame(text: str, *, masked: bool) -> bytes:
    """One text frame; clients mask, servers do not."""
    data = text.encode()
    assert len(data) <= _SMALL
    if not masked:
        return bytes([_TEXT, len(data)]) + data
    mask = os.urandom(4)
    return bytes([_TEXT, _MASKED | len(data)]) + mask + _unmasked(data, mask)


def read_frame(stream: Readable) -> str | None:
    """The next text; None when the connection or the conversation is over."""
    head = stream.read(2)
    if len(head) < 2 or head[0] != _TEXT:
        return None
    mask = stream.read(4) if head[1] & _MASKED else bytes(4)
    return _unmasked(stream.read(head[1] & ~_MASKED), mask).decode()


def _unmasked(data: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
