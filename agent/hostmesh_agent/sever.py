"""Closes the mesh's connections with hosts that were expelled.

Envoy refuses what an expelled host asks from now on; a connection that carries raw TCP it would carry on. The kernel
closes those for us (SOCK_DESTROY): of Envoy's own sockets alone, so that nothing outside the mesh is touched, neither
SSH nor any program's own connection.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import structlog

EAGER_S: Final = 1.0
EAGER_SWEEPS: Final = 15
"""Envoy is told at the same time to call them no more and whom to refuse. For a second requests that are under way may
end by themselves; and after it Envoy may have let another connection in before it knew."""
PULSE_S: Final = 10.0
_TIMEOUT_S: Final = 2.0

# linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h
_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY, _DESTROY = 20, 21
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_BYTECODE: Final = 1
_DESTINATION_CONDITION: Final = 8
_TCP: Final = 6
# All but LISTEN, TIME_WAIT and CLOSE (net/tcp_states.h).
_STATES: Final = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11))
_LISTEN: Final = 10
_LISTENING: Final = 1 << _LISTEN
_HEADER: Final = struct.Struct("=IHHII")
_ASKED: Final = struct.Struct("=BBBxI48s")
"""struct inet_diag_req_v2; the 48 bytes are struct inet_diag_sockid."""
_FOUND: Final = struct.Struct("=BBBB48sIIIII")
"""struct inet_diag_msg."""
_CONDITION: Final = struct.Struct("=BBHBBxxi")
"""struct inet_diag_bc_op and the begin of struct inet_diag_hostcond."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_RECEIVE_BYTES: Final = 1 << 17
_UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL, errno.EPROTONOSUPPORT}

log = structlog.get_logger(__name__)

Address = IPv4Address | IPv6Address


class SeverError(Exception):
    """The kernel does not close connections; the message says what the owner of the host can do."""


@dataclass(frozen=True, slots=True)
class Found:
    """A socket as the kernel tells it: `uid` is its owner's, `key` names it to the kernel."""

    family: int
    state: int
    uid: int
    key: bytes

    @property
    def port(self) -> int:
        """Its own."""
        return int.from_bytes(self.key[:2], "big")

    @property
    def peer(self) -> Address:
        if self.family == socket.AF_INET:
            return IPv4Address(self.key[20:24])
        found = IPv6Address(self.key[20:36])
        return found.ipv4_mapped or found


def looking_for(family: int, peer: Address | None) -> bytes:
    """Return the question for all TCP connections with a peer, over sockets of a family; None: also for listeners."""
    if peer is None:
        body = _ASKED.pack(family, _TCP, 0, _STATES | _LISTENING, bytes(48))
        return _HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST | _DUMP, 1, 0) + body
    packed = peer.packed
    size = _CONDITION.size + len(packed)
    own_family = socket.AF_INET if peer.version == 4 else socket.AF_INET6
    # "yes" leads to the end of the program, "no" beyond it.
    condition = _CONDITION.pack(_DESTINATION_CONDITION, size, size + 4, own_family, 8 * len(packed), -1) + packed
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(condition), _BYTECODE) + condition
    body = _ASKED.pack(family, _TCP, 0, _STATES, bytes(48)) + attribute
    return _HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST | _DUMP, 1, 0) + body


def closing(found: Found) -> bytes:
    """Return the order to close a connection."""
    body = _ASKED.pack(found.family, _TCP, 0, 0, found.key)
    return _HEADER.pack(_HEADER.size + len(body), _DESTROY, _REQUEST | _ACK, 1, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each message in an answer of the kernel."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def sever(peers: Collection[Address], uid: int) -> int:
    """Close the TCP connections of a user with any of the peers; return how many there were. Blocks for milliseconds.

    Raises:
        SeverError: the kernel cannot, or does not answer.
    """
    with _asking() as kernel:
        found = [each for peer in peers for each in _sockets(kernel, peer) if each.uid == uid]
        return sum(_close(kernel, each) for each in found)


def sever_own_calls(uid: int) -> int:
    """Close the TCP connections that a user's programs opened to other machines; return how many there were.

    Raises:
        SeverError: the kernel cannot, or does not answer.
    """
    with _asking() as kernel:
        found = [each for each in _sockets(kernel, None) if each.uid == uid]
        served = {each.port for each in found if each.state == _LISTEN}
        opened = [each for each in found if each.state != _LISTEN and each.port not in served]
        return sum(_close(kernel, each) for each in opened if not each.peer.is_loopback)


@contextmanager
def _asking() -> Iterator[socket.socket]:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(_TIMEOUT_S)
            yield kernel
    except OSError as error:
        cure = " (its configuration lacks INET_DIAG_DESTROY)" if error.errno in _UNSUPPORTED else ""
        msg = f"the kernel does not close connections with expelled hosts{cure}: {error}: restart Envoy to end them"
        raise SeverError(msg) from error


def _sockets(kernel: socket.socket, peer: Address | None) -> Iterator[Found]:
    # A socket of IPv6 can carry IPv4.
    for family in (socket.AF_INET6,) if peer is not None and peer.version == 6 else (socket.AF_INET, socket.AF_INET6):
        kernel.send(looking_for(family, peer))
        ended = False
        while not ended:
            for kind, content in messages(kernel.recv(_RECEIVE_BYTES)):
                ended = ended or kind == _DONE
                if kind == _ERROR:
                    _raise(content)
                if kind == _BY_FAMILY:
                    of_family, state, _, _, key, _, _, _, uid, _ = _FOUND.unpack_from(content)
                    yield Found(of_family, state, uid, key)


def _close(kernel: socket.socket, found: Found) -> bool:
    kernel.send(closing(found))
    for kind, content in messages(kernel.recv(_RECEIVE_BYTES)):
        if kind == _ERROR:
            if _error(content) == errno.ENOENT:
                return False  # it has ended meanwhile
            _raise(content)
    return True


def _error(content: bytes) -> int:
    """Return the number of an error, 0 for an acknowledgement."""
    return -int(struct.unpack_from("=i", content)[0])


def _raise(content: bytes) -> None:
    code = _error(content)
    if code:
        raise OSError(code, f"sock_diag: {errno.errorcode.get(code, code)}")


class Severing:
    """Keeps the connections of Envoy's user with expelled hosts closed, until cancelled."""

    def __init__(
        self,
        uid: int,
        close: Callable[[Collection[Address], int], int] = sever,
        *,
        eager_s: float = EAGER_S,
        pulse_s: float = PULSE_S,
    ) -> None:
        self._uid = uid
        self._close = close
        self._eager_s = eager_s
        self._pulse_s = pulse_s
        self._peers: frozenset[Address] = frozenset()
        self._changed = asyncio.Event()
        self._eager = 0
        self.problem = ""
        """Why connections are not closed; "" while they are."""

    def take(self, addresses: Collection[str]) -> None:
        """Close connections with these addresses from now on, and with no others. What is no address is left out."""
        peers = frozenset(each for each in map(_address, addresses) if each is not None)
        if peers != self._peers:
            self._peers = peers
            self._eager = EAGER_SWEEPS
            self.problem = ""
            self._changed.set()

    async def renew_own(self) -> None:
        """Close what Envoy has opened, soon: others refuse the certificate that it was opened with. It opens anew."""
        await asyncio.sleep(self._eager_s)  # Envoy reads the new certificate first
        try:
            closed = await asyncio.to_thread(sever_own_calls, self._uid)
        except SeverError as error:
            log.error("connections opened with a refused certificate are not closed", reason=str(error))
        else:
            log.info("connections opened with a refused certificate closed", count=closed)

    async def run(self) -> None:
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._changed.wait()
            except TimeoutError:
                self._eager = max(self._eager - 1, 0)
                await self._sweep(self._peers)

    def _pause_s(self) -> float | None:
        if not self._peers:
            return None
        return self._eager_s if self._eager else self._pulse_s

    async def _sweep(self, peers: frozenset[Address]) -> None:
        try:
            closed = await asyncio.to_thread(self._close, peers, self._uid)
        except SeverError as error:
            if str(error) != self.problem:
                log.error("connections with expelled hosts are not closed", reason=str(error))
            self.problem = str(error)
            return
        self.problem = ""
        if closed:
            log.info("connections with expelled hosts closed", count=closed)


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
