"""Whether anybody has changed nftables: the kernel's generation number, and its word when it changes.

Reading our rules back costs 2 ms of a core, asking for the number 0.1 ms. So the rules are read when the number is
another than at the last look, and the look comes at once, because the kernel tells of each change.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

COALESCE_S: Final = 0.2
"""A change by another tool is dozens of messages; and a tool that changes rules all day must not cost a core."""

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER: Final = 12
_NFT_MSG_GETGEN: Final = (10 << 8) | 16
_NLM_F_REQUEST: Final = 1
_NFT_MSG_NEWGEN: Final = (10 << 8) | 15
_NFTA_GEN_ID, _NFTA_GEN_PROC_PID, _NFTA_GEN_PROC_NAME = 1, 2, 3
_GROUP_NFTABLES: Final = 7
_HEADER: Final = struct.Struct("=IHHIIBBH")
"""struct nlmsghdr and struct nfgenmsg."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_TIMEOUT_S: Final = 1.0
_DRAIN_BYTES: Final = 1 << 16

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Author:
    """The process that changed nftables, as the kernel names it (the name is at most 15 bytes)."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name or 'unknown'} (pid {self.pid})"


def generation() -> int | None:
    """Return the number of the present rules of this network namespace; None where the kernel does not tell."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asked:
            asked.settimeout(_TIMEOUT_S)
            asked.send(_HEADER.pack(_HEADER.size, _NFT_MSG_GETGEN, _NLM_F_REQUEST, 1, 0, 0, 0, 0))
            return parse(asked.recv(_DRAIN_BYTES))
    except OSError:
        return None


def parse(message: bytes) -> int | None:
    """Read the generation out of the kernel's answer; None if it is another answer."""
    found = next((value for kind, value in _attributes(message) if kind == _NFTA_GEN_ID), None)
    return None if found is None else int.from_bytes(found, "big")


def authors(data: bytes) -> Iterator[Author]:
    """Yield who has made each change, of what the kernel tells to listeners (several messages in one)."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if kind == _NFT_MSG_NEWGEN:
            told = dict(_attributes(data[at : at + length]))
            name = told.get(_NFTA_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
            yield Author(int.from_bytes(told.get(_NFTA_GEN_PROC_PID, b""), "big"), name)
        at += max((length + 3) & ~3, _HEADER.size)


def _attributes(message: bytes) -> Iterator[tuple[int, bytes]]:
    offset = _HEADER.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, message[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _listening() -> socket.socket:
    listening = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER
    )
    try:
        listening.bind((0, 1 << (_GROUP_NFTABLES - 1)))
    except OSError:
        listening.close()
        raise
    return listening


async def watch(changed: Callable[[], None], by: Callable[[Author], None] = lambda _: None) -> None:
    """Call `changed` at each change of nftables, and once for those that come soon after it, until cancelled.

    `by` is told before who made it, of changes that were not made by this process.
    """
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    try:
        listening = _listening()
    except OSError as error:  # also a kernel without any of it
        log.warning("nftables cannot be watched; it is looked at now and then", error=str(error))
        return

    def drain() -> None:
        # What was changed does not matter, and neither do messages lost (ENOBUFS): that something was, does.
        with suppress(OSError):
            while data := listening.recv(_DRAIN_BYTES):
                for author in authors(data):
                    if author.pid != os.getpid():
                        by(author)
        heard.set()

    loop.add_reader(listening.fileno(), drain)
    try:
        while True:
            await heard.wait()
            heard.clear()
            # At once: rules that were flushed are missing until somebody looks. What comes behind is one more look.
            changed()
            await asyncio.sleep(COALESCE_S)
    finally:
        loop.remove_reader(listening.fileno())
        listening.close()
