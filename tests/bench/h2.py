"""One gRPC stream over HTTP/2 and calls beside it, the client's side, without I/O: a few microseconds per message.

The benchmarks simulate a thousand proxies on the machine that also runs the controller. A real gRPC client would take
more of that machine than the controller does, and the figures would tell about the client. This speaks the little of
HTTP/2 (RFC 9113) that one stream and some calls on one connection need, towards a server that plays by the rules:
requests are small, so the server's windows are not counted, and the headers that come back are not decoded.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WHOLE_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
_HEADER_BYTES: Final = 9
_PREFIX_BYTES: Final = 5
_STREAM: Final = 1
_ACK: Final = 0x1
_END_STREAM: Final = 0x1
_END_HEADERS: Final = 0x4
_MAX_FRAME_BYTES: Final = 16_384


class Kind(IntEnum):
    """Frame types."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8


@dataclass(slots=True)
class Received:
    """What some bytes meant: whole messages, bytes to send back, and why the stream ended ("" while it has not)."""

    messages: list[bytes] = field(default_factory=list)
    reply: bytes = b""
    ended: str = ""
    answers: list[bytes] = field(default_factory=list)
    """The responses of calls that have ended; empty bytes for one that failed."""


def frame(kind: Kind, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) > 126:
        raise ValueError(f"too long for a one-byte length: {value!r}")
    return bytes((len(data),)) + data


def headers(path: str, authority: str) -> bytes:
    """Return the header block of a gRPC call: literals that touch no table (RFC 7541, 6.2.2)."""
    return b"".join(
        (
            b"\x83\x87",  # :method POST, :scheme https
            b"\x04" + _text(path),
            b"\x01" + _text(authority),
            b"\x0f\x10" + _text("application/grpc"),  # content-type
            b"\x00" + _text("te") + _text("trailers"),
        )
    )


class GrpcStream:
    """One bidirectional gRPC call: bytes in, messages out, and the other way round."""

    def __init__(self) -> None:
        self._incoming = bytearray()
        self._partial = bytearray()
        self._last_call = _STREAM
        self._answers: dict[int, bytes] = {}

    @staticmethod
    def open(path: str, authority: str) -> bytes:
        """Return what opens the connection and the call."""
        settings = struct.pack(">HIHI", 2, 0, 4, _WHOLE_WINDOW)  # no push; the largest window for each stream
        grant = struct.pack(">I", _WHOLE_WINDOW - _FIRST_WINDOW)
        return b"".join(
            (
                _PREFACE,
                frame(Kind.SETTINGS, 0, 0, settings),
                frame(Kind.WINDOW_UPDATE, 0, 0, grant),
                frame(Kind.HEADERS, _END_HEADERS, _STREAM, headers(path, authority)),
            )
        )

    @staticmethod
    def message(data: bytes) -> bytes:
        """Return the frames of one request message."""
        body = struct.pack(">BI", 0, len(data)) + data
        pieces = (body[at : at + _MAX_FRAME_BYTES] for at in range(0, len(body), _MAX_FRAME_BYTES))
        return b"".join(frame(Kind.DATA, 0, _STREAM, piece) for piece in pieces)

    def call(self, path: str, authority: str, data: bytes) -> bytes:
        """Return the frames of a call with one request and one response, beside the stream."""
        self._last_call += 2
        body = struct.pack(">BI", 0, len(data)) + data
        if len(body) > _MAX_FRAME_BYTES:
            raise ValueError("a request of more than one frame")
        opening = frame(Kind.HEADERS, _END_HEADERS, self._last_call, headers(path, authority))
        return opening + frame(Kind.DATA, _END_STREAM, self._last_call, body)

    def receive(self, data: bytes) -> Received:
        """Take bytes from the connection."""
        self._incoming += data
        received = Received()
        at = 0
        while len(self._incoming) - at >= _HEADER_BYTES:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", self._incoming, at)
            end = at + _HEADER_BYTES + (high << 16 | low)
            if len(self._incoming) < end:
                break
            self._take(kind, flags, stream, bytes(self._incoming[at + _HEADER_BYTES : end]), received)
            at = end
        del self._incoming[:at]
        return received

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, received: Received) -> None:
        if stream > _STREAM:
            self._take_of_call(kind, flags, stream, payload, received)
        elif kind == Kind.DATA:
            self._partial += payload
            self._split(received)
        elif kind == Kind.SETTINGS and not flags & _ACK:
            received.reply += frame(Kind.SETTINGS, _ACK, 0, b"")
        elif kind == Kind.PING and not flags & _ACK:
            received.reply += frame(Kind.PING, _ACK, 0, payload)
        elif kind == Kind.RST_STREAM:
            received.ended = received.ended or f"reset with code {int.from_bytes(payload)}"
        elif kind == Kind.GOAWAY:
            received.ended = received.ended or f"the server goes away: {payload[8:].decode(errors='replace')}"
        if stream == _STREAM and kind in (Kind.DATA, Kind.HEADERS) and flags & _END_STREAM:
            received.ended = received.ended or "ended by the server; its log says why"

    def _take_of_call(self, kind: int, flags: int, stream: int, payload: bytes, received: Received) -> None:
        if kind == Kind.DATA:
            self._answers[stream] = self._answers.get(stream, b"") + payload
        if kind == Kind.RST_STREAM or (kind in (Kind.DATA, Kind.HEADERS) and flags & _END_STREAM):
            # Of a call that is over already, nothing is known any more.
            received.answers.append(self._answers.pop(stream, b"")[_PREFIX_BYTES:])

    def _split(self, received: Received) -> None:
        at = 0
        while len(self._partial) - at >= _PREFIX_BYTES:
            compressed, size = struct.unpack_from(">BI", self._partial, at)
            if compressed:
                raise ValueError("a compressed message, which was not asked for")
            end = at + _PREFIX_BYTES + size
            if len(self._partial) < end:
                break
            received.messages.append(bytes(self._partial[at + _PREFIX_BYTES : end]))
            at = end
        del self._partial[:at]
