"""The TCP sockets of this network namespace, as the kernel lists them (sock_diag(7)).

The kernel is asked for the states that are wanted and no others, and a connection that was seen before is told by its
36 bytes of ports and addresses: it is neither read nor made into an object again. So a look costs about 2 µs for each
connection that stays.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from hostmesh_agent.sockets import Connection, Known, Listener, Sockets

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST_DUMP: Final = 0x1 | 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI48x")
# family, state, (timer, retransmissions), ports, addresses, (interface, cookie, expiry, queues), uid, inode
_ANSWER: Final = struct.Struct("=BBxxHH16s16s24xII")
_ANSWER_BYTES: Final = 72
_NAMES: Final = slice(4, 40)
_RECEIVE_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 2.0
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 1 << 20
_MOST_CLOSINGS: Final = 4096
_DESTROYED: Final = 1 << 0 | 1 << 2
"""SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY, Linux 4.5."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_INET_DIAG_INFO: Final = 2
_ACKED_RECEIVED: Final = struct.Struct("=QQ")
_AT_ACKED: Final = 4 + 120  # tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info
_MAPPED: Final = bytes(10) + b"\xff\xff"

# net/tcp_states.h. One that is only being opened is no connection yet.
_LISTEN: Final = 10
_CONNECTED: Final = (1, 4, 5, 6, 8, 9, 11)
"""Established, and on their way to an end: the kernel keeps what was closed for a minute (TIME_WAIT)."""


def listeners() -> list[Listener]:
    """Return what listens, sorted. However many connections there are, it costs no more.

    Raises:
        OSError: the kernel does not answer.
    """
    with _opened() as diag:
        return sorted({_listener(each) for family in _FAMILIES for each in _dump(diag, family, 1 << _LISTEN)})


def look(known: Known, most: int) -> Sockets:
    """Return what listens, and which connections there are; at most `most` of each family.

    Raises:
        OSError: the kernel does not answer.
    """
    states = sum(1 << each for each in (*_CONNECTED, _LISTEN))
    found: set[Listener] = set()
    there: dict[int, set[bytes]] = {}
    new: dict[tuple[int, bytes], Connection] = {}
    with _opened() as diag:
        for family in _FAMILIES:
            before, now = known.get(family, frozenset()), there.setdefault(family, set())
            for message in _dump(diag, family, states):
                if message[1] == _LISTEN:
                    found.add(_listener(message))
                    continue
                names = message[_NAMES]
                if len(now) < most:
                    now.add(names)
                    if names not in before:
                        new[family, names] = connection(message)
    return Sockets(tuple(sorted(found)), there, new)


class Closings:
    """Connections that ended since they were last asked for, as the kernel broadcasts them.

    They are kept in the socket's own buffer, a thousand or so: on a host that closes more between two looks the kernel
    drops the others, and neither it nor we have work with them.
    """

    def __init__(self) -> None:
        """Begin to listen in this network namespace.

        Raises:
            OSError: the kernel does not tell, or not us.
        """
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._socket.setblocking(False)
        with suppress(OSError):  # without CAP_NET_ADMIN it is as large as the kernel allows
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        try:
            self._socket.bind((0, _DESTROYED))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def take(self) -> dict[tuple[int, bytes], Connection]:
        """Return those that were really connected."""
        found: dict[tuple[int, bytes], Connection] = {}
        for _ in range(_MOST_CLOSINGS):
            try:
                message = self._socket.recv(_RECEIVE_BYTES)[_HEADER.size :]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were dropped
                    raise
                continue
            if len(message) >= _ANSWER_BYTES and was_connected(message):
                found[message[0], message[_NAMES]] = connection(message)
        return found


def was_connected(message: bytes) -> bool:
    """Tell whether a socket that ended had a peer that answered: bytes of it, or of us that it acknowledged."""
    if message[6:8] == bytes(2):
        return False
    offset = _ANSWER_BYTES
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if kind == _INET_DIAG_INFO and length >= _ACKED_RECEIVED.size + _AT_ACKED:
            return any(_ACKED_RECEIVED.unpack_from(message, offset + _AT_ACKED))
        offset += max((length + 3) & ~3, _ATTRIBUTE.size)
    return False


def connection(message: bytes) -> Connection:
    """Read one `struct inet_diag_msg`."""
    family, _, port, peer_port, address, peer, uid, inode = _ANSWER.unpack_from(message)
    return Connection(
        _text(family, address), socket.ntohs(port), _text(family, peer), socket.ntohs(peer_port), uid, inode
    )


def _listener(message: bytes) -> Listener:
    family, _, port, _, address, _, uid, inode = _ANSWER.unpack_from(message)
    return Listener(_text(family, address), socket.ntohs(port), uid, inode)


def _text(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    if packed.startswith(_MAPPED):  # IPv4 through a socket of both
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _opened() -> socket.socket:
    diag = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    diag.settimeout(_TIMEOUT_S)
    return diag


def _dump(diag: socket.socket, family: int, states: int) -> Iterator[bytes]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states)
    diag.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 0, 0) + request)
    while True:
        data = diag.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", data, offset + _HEADER.size)[0]
                if code == 0 or code == 2:  # ENOENT: this kernel has no such family
                    return
                raise OSError(code, "sock_diag")
            yield data[offset + _HEADER.size : offset + _HEADER.size + _ANSWER_BYTES]
            offset += (length + 3) & ~3
