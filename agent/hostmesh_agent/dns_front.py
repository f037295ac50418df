"""Questions about names over TCP: taken here, put to Envoy over UDP, answered.

Envoy's DNS filter is of UDP alone, and few programs ask over TCP: `options use-vc`, some that were told so. Without
the agent the port is closed and without Envoy the connection ends at once, so that a resolver goes on to its next
server; it never has to wait. What is asked of Envoy takes the way of any program's question, through the kernel's
rules, so that its answers are the same.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

import structlog

from hostmesh_agent import dns_message
from hostmesh_api import wire

CONNECTIONS: Final = 64
IDLE_S: Final = 10.0
"""How long a connection may stay without a question (RFC 7766 asks for some seconds)."""
ENVOY_ANSWERS_WITHIN_S: Final = 1.0
RETRY_S: Final = 30.0

_SO_ORIGINAL_DST: Final = 80
_ADDRESSES: Final = {wire.DNS_ADDRESS, wire.SPLIT_DNS_ADDRESS}
_DNS: Final = 53

log = structlog.get_logger(__name__)


class Front:
    """The listener; `connections` counts those that are open."""

    def __init__(self, port: int = wire.DNS_TCP_PORT) -> None:
        self._port = port
        self.connections = 0

    async def run(self) -> None:
        """Listen until cancelled. A port that another program holds is tried again: names work without this."""
        while True:
            try:
                server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 13)
            except OSError as error:
                log.warning("names are not answered over TCP", port=self._port, reason=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            async with server:
                await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            asked = _asked_address(writer)
            if asked in _ADDRESSES and self.connections <= CONNECTIONS:
                with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    await _converse(reader, writer, asked)
        finally:
            self.connections -= 1
            writer.close()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: str) -> None:
    """Answer question after question; end where there is no answer, and where it is not a question."""
    while True:
        async with asyncio.timeout(IDLE_S):
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            if not 0 < length <= dns_message.MAX_QUESTION_BYTES:
                return
            question = dns_message.question(await reader.readexactly(length))
        answer = None if question is None else await ask(asked, question)
        if answer is None:
            return
        writer.write(dns_message.framed(answer))
        async with asyncio.timeout(IDLE_S):
            await writer.drain()


async def ask(address: str, question: dns_message.Question) -> bytes | None:
    """Put a question to Envoy over UDP at one of its addresses.

    Returns:
        The answer; None if nobody is there, or none came in time.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        asking.connect((address, _DNS))
        try:
            async with asyncio.timeout(ENVOY_ANSWERS_WITHIN_S):
                await loop.sock_sendall(asking, question.for_envoy())
                return question.answered(await loop.sock_recv(asking, 65535))
        except (OSError, TimeoutError):
            return None


def _asked_address(writer: asyncio.StreamWriter) -> str:
    """Return where the caller wanted to go; "" if it came by itself."""
    connection = writer.get_extra_info("socket")
    try:
        raw = connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    except OSError:
        return ""
    return str(IPv4Address(raw[4:8]))
