"""UDP flows that the kernel remembers, and made to forget (nf_conntrack, over ctnetlink). Blocks: for a thread.

A redirect is looked up for the first packet of a flow alone. Where questions for names were led before, the kernel goes
on to lead them for 30 s: those of a program that keeps its socket, and those of any other that gets its port number.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h
_NETLINK_NETFILTER: Final = 12
_GET: Final = 1 << 8 | 1
_DELETE: Final = 1 << 8 | 2
_REQUEST: Final = 0x1
_ACKNOWLEDGE: Final = 0x4
_DUMP: Final = 0x300
_ERROR: Final = 2
_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct("=BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_KIND: Final = 0x3FFF
_NESTED: Final = 0x8000
_ORIGINAL, _REPLY, _ZONE = 1, 2, 18
_PROTO: Final = 2
_NUMBER, _SOURCE_PORT = 1, 2
_RECEIVE_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 5.0


def forget(port: int) -> int:
    """Forget the flows of IPv4 that are answered from `port`; their next packet goes where the rules say now.

    Returns how many there were.

    Raises:
        OSError: the kernel does not tell, or not us.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        names = [_name_of(each) for each in _dump(netlink) if _answered_from(each, port)]
        for name in names:
            _ask(netlink, _DELETE, _REQUEST | _ACKNOWLEDGE, name)
            with suppress(FileNotFoundError):  # it has ended by itself
                _acknowledged(netlink)
    return len(names)


def _ask(netlink: socket.socket, kind: int, flags: int, body: bytes = b"") -> None:
    payload = _FAMILY.pack(socket.AF_INET, 0, 0) + body
    netlink.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, 0, 0) + payload)


def _dump(netlink: socket.socket) -> Iterator[bytes]:
    """Yield the attributes of each flow."""
    _ask(netlink, _GET, _REQUEST | _DUMP)
    while True:
        for kind, body in _messages(netlink.recv(_RECEIVE_BYTES)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                _raise(body)
            yield body[_FAMILY.size :]


def _acknowledged(netlink: socket.socket) -> None:
    for _, body in _messages(netlink.recv(_RECEIVE_BYTES)):
        _raise(body)


def _raise(body: bytes) -> None:
    code = -int(struct.unpack_from("=i", body)[0])
    if code:
        raise OSError(code, f"conntrack: {errno.errorcode.get(code, code)}")


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found, offset = {}, 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        found[kind & _KIND] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += max((length + 3) & ~3, _ATTRIBUTE.size)
    return found


def _answered_from(flow: bytes, port: int) -> bool:
    proto = _attributes(_attributes(_attributes(flow).get(_REPLY, b"")).get(_PROTO, b""))
    return proto.get(_NUMBER) == bytes([socket.IPPROTO_UDP]) and proto.get(_SOURCE_PORT) == port.to_bytes(2, "big")


def _name_of(flow: bytes) -> bytes:
    found = _attributes(flow)
    zone = _attribute(_ZONE, found[_ZONE]) if _ZONE in found else b""
    return _attribute(_ORIGINAL | _NESTED, found[_ORIGINAL]) + zone


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)
