"""The socket to which our table belongs, for as long as the agent lives.

Another program's `flush ruleset` leaves a table that has an owner, and nobody else may change it. When the owner ends,
however that comes, the table stays (the kernel calls it persistent) and the next agent takes it over. Needs Linux 6.9.
"""

# mypy: disable-error-code="import-untyped"
# (pyroute2 ships no types)

import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from pyroute2.netlink.exceptions import NetlinkError

from hostmesh_agent.capture import encode
from hostmesh_agent.capture.encode import Message

OWNED: Final = 2
"""NFT_TABLE_F_OWNER: the owner lives."""
PERSISTS: Final = 4
"""NFT_TABLE_F_PERSIST: the table outlives its owner."""
NOT_SUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL})
"""What an older kernel says of these flags."""

_NETLINK_NETFILTER: Final = 12
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python does not name it
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_CODE: Final = struct.Struct("=i")
_NLMSG_ERROR: Final = 2
_ANSWER_WITHIN_S: Final = 10.0
_ANSWER_BYTES: Final = 1 << 16
_LENT_NUMBERS: Final = 1 << 30
"""Where another process begins to number its batches: the owner passes over answers to numbers that are not its own."""


class Owner:
    """One per agent. `supported` is False once the kernel has refused."""

    def __init__(self) -> None:
        self.supported = True
        self._socket: socket.socket | None = None
        self._number = 0

    def send(self, messages: Sequence[Message], buffer_bytes: int) -> None:
        """Have the kernel do the messages, all or none.

        Raises:
            NetlinkError: it refuses.
            OSError: it does not answer.
        """
        if self._socket is None:
            self._socket = _open()
        self._number += 1
        with suppress(PermissionError):  # an older kernel, to root of a user namespace only
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, buffer_bytes)
        self._socket.send(b"".join(each.pack(self._number) for each in encode.batch(messages)))
        while True:
            answer = _answer(self._socket.recv(_ANSWER_BYTES), self._number)
            if answer is not None:
                if answer:
                    raise NetlinkError(answer)
                return

    def lend(self) -> int:
        """Return the socket's descriptor, for a process that must be able to change the table whatever we do.

        To the kernel the socket is the owner, not the process: who holds it may change the table, also while we hang
        or after our end. The table is free when the last of them has let go.
        """
        if self._socket is None:
            self._socket = _open()
        return self._socket.fileno()

    def close(self) -> None:
        """Let go of the table: it stays, and belongs to nobody."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Lent(Owner):
    """The owner's socket in another process. Its answers are the owner's to read: success is seen in the table."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._socket = socket.socket(fileno=descriptor)
        self._number = _LENT_NUMBERS

    def send(self, messages: Sequence[Message], buffer_bytes: int) -> None:
        """Send the messages: the kernel has done all of them, or none, when this returns.

        Raises:
            OSError: they cannot be sent.
        """
        if self._socket is None:
            raise OSError(errno.EBADF, "the socket was given back")
        self._number += 1
        with suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, buffer_bytes)
        self._socket.send(b"".join(each.pack(self._number) for each in encode.batch(messages)))


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    opened.bind((0, 0))
    opened.settimeout(_ANSWER_WITHIN_S)
    return opened


def _answer(data: bytes, number: int) -> int | None:
    """Return the first error in what the kernel says of a batch, 0 if it is done; None: nothing about this one."""
    found: int | None = None
    at = 0
    while at + _HEADER.size + _CODE.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if kind == _NLMSG_ERROR and sequence == number:
            found = found or -_CODE.unpack_from(data, at + _HEADER.size)[0]
        at += max((length + 3) & ~3, _HEADER.size)
    return found
