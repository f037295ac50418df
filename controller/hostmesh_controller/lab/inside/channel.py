"""Words between the lab's verbs and the processes they start in a namespace: one JSON object per packet."""

import json
import socket
import struct
from typing import Any, Final

_MAX_BYTES: Final = 65536
_CREDENTIALS: Final = struct.Struct("3i")


class Channel:
    """One end of a SOCK_SEQPACKET pair."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def inherited(cls, fd: int) -> "Channel":
        return cls(socket.socket(fileno=fd))

    def send(self, **words: Any) -> None:
        self._end.send(json.dumps(words).encode())

    def receive(self) -> tuple[dict[str, Any], int] | None:
        """Return the next words and the sender's pid as this end's own PID namespace counts, None when the peer ended.

        The pid is the kernel's word (SCM_CREDENTIALS), 0 where the receiver has not set SO_PASSCRED.
        """
        data, ancillary, _, _ = self._end.recvmsg(_MAX_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
        if not data:
            return None
        pid = 0
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid = _CREDENTIALS.unpack(value)[0]
        words: dict[str, Any] = json.loads(data)
        return words, pid

    def wish(self) -> dict[str, Any]:
        """The first words: what the started process is to do; it ends when nobody is there to tell."""
        received = self.receive()
        if received is None:
            raise SystemExit(1)
        return received[0]

    def wait_for_go(self) -> bool:
        """True when told to go on; False when the other end is gone, and nobody knows of this process."""
        received = self.receive()
        return received is not None and bool(received[0].get("go"))

    def set_timeout(self, timeout_s: float) -> None:
        """Have `receive` raise `TimeoutError` after this long."""
        self._end.settimeout(timeout_s)

    def close(self) -> None:
        self._end.close()

    def fileno(self) -> int:
        return self._end.fileno()


def pair() -> tuple[Channel, Channel]:
    """Return the near end, which learns the sender's pid, and the far end, for a child to take along."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return Channel(near), Channel(far)
