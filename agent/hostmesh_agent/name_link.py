"""The network link that carries what systemd-resolved is told: its settings belong to links, and vanish with them.

Nothing is sent over it. It has one address, systemd-resolved's server for the mesh's domain, because a link without a
routable address does not count. Ours is the link that has our name and says so in its alias; nothing else is touched.

Its messages are made here, of a few dozen bytes: pyroute2's class for links would bring 5 MB.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from hostmesh_agent.capture.codec import NESTED, attribute, split
from hostmesh_api import wire

NAME: Final = "hostmesh0"
ALIAS: Final = "hostmesh: mesh names for systemd-resolved"
KINDS: Final = ("dummy", "bridge")
"""What it may be, the best first: a kernel without dummy links has bridges."""

_ANSWER_WITHIN_S: Final = 5.0
# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/netlink.h
_NEW_LINK, _DELETE_LINK, _GET_LINK, _NEW_ADDRESS = 16, 17, 18, 20
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
_NAME, _LINK_INFO, _ALIAS, _AF_SPEC, _GROUP = 3, 18, 20, 26, 27
_INFO_KIND: Final = 1
_BEGUN: Final = 1506
"""The link's group until it has its alias, which the kernel does not take while it makes a link."""
_ADDRESS_MODE, _NO_ADDRESS = 8, 1  # IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_UP: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg
_NUMBER: Final = struct.Struct("=I")
_ERROR: Final = 2  # NLMSG_ERROR
_UNKNOWN_KIND: Final = {errno.EOPNOTSUPP, errno.ENOENT}


class LinkError(RuntimeError):
    """The link cannot be made or removed. The message says who must act."""


@dataclass(frozen=True, slots=True)
class Found:
    """The link that has our name: whether it is ours, whether it is up, and whether its making was not finished."""

    index: int
    ours: bool
    up: bool
    begun: bool = False


def find() -> Found | None:
    """Return the link of our name; None if there is none.

    Raises:
        LinkError: the kernel does not tell.
    """
    try:
        answers = _talk(_GET_LINK, 0, _link(_named(NAME)))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise LinkError(f"could not look for the link {NAME}: {error.strerror}") from error
    _, _, index, flags, _ = _LINK.unpack_from(answers[0])
    attributes = dict(split(answers[0][_LINK.size :]))
    begun = attributes.get(_GROUP) == _NUMBER.pack(_BEGUN)
    ours = begun or attributes.get(_ALIAS, b"").rstrip(b"\0") == ALIAS.encode()
    return Found(index, ours, bool(flags & _UP), begun)


def make() -> int:
    """See to it that the link is there and up, with its address; return its index.

    Raises:
        LinkError: the kernel refused, or somebody else has a link of this name.
    """
    try:
        found = find() or _create()
        if not found.ours:
            raise LinkError(f"there is a link {NAME} that is not ours; rename it (ip link set {NAME} name OTHER)")
        if found.begun:
            _mark(found.index)
        if not found.up:
            _talk(_NEW_LINK, _ACK, _link(b"", index=found.index, flags=_UP))
        address = IPv4Address(wire.SPLIT_DNS_ADDRESS).packed
        body = _ADDRESS.pack(socket.AF_INET, 32, 0, 0, found.index)  # of global scope, or it does not count
        body += attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address)
        _talk(_NEW_ADDRESS, _ACK | _CREATE | _REPLACE, body)
    except OSError as error:
        raise LinkError(f"could not make the link {NAME}: {error.strerror}") from error
    return found.index


def remove() -> int | None:
    """Remove the link, if it is there and ours; return the index that it had.

    Raises:
        LinkError: the kernel refused.
    """
    found = find()
    if found is None or not found.ours:
        return None
    try:
        _talk(_DELETE_LINK, _ACK, _link(b"", index=found.index))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise LinkError(f"could not remove the link {NAME}: {error.strerror}") from error
    return found.index


def _create() -> Found:
    for kind in KINDS:
        info = attribute(_LINK_INFO | NESTED, attribute(_INFO_KIND, kind.encode()))
        try:
            _talk(_NEW_LINK, _ACK | _CREATE | _EXCLUSIVE, _link(_named(NAME) + _group(_BEGUN) + info))
        except OSError as error:
            if error.errno in _UNKNOWN_KIND and kind != KINDS[-1]:
                continue
            raise
        break
    return Found(socket.if_nametoindex(NAME), ours=True, up=False, begun=True)


def _mark(index: int) -> None:
    """Finish the making of our link. What a killed agent leaves behind is known as ours by its group until then."""
    no_address = attribute(_ADDRESS_MODE, bytes([_NO_ADDRESS]))
    quiet = attribute(_AF_SPEC | NESTED, attribute(socket.AF_INET6 | NESTED, no_address))
    try:
        _talk(_NEW_LINK, _ACK, _link(quiet, index=index))
    except OSError as error:
        if error.errno not in {errno.EAFNOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP}:  # IPv6 is off
            raise
    _talk(_NEW_LINK, _ACK, _link(attribute(_ALIAS, ALIAS.encode() + b"\0"), index=index))
    _talk(_NEW_LINK, _ACK, _link(_group(0), index=index))


def _group(number: int) -> bytes:
    return attribute(_GROUP, _NUMBER.pack(number))


def _named(name: str) -> bytes:
    return attribute(_NAME, name.encode() + b"\0")


def _link(attributes: bytes, *, index: int = 0, flags: int = 0) -> bytes:
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags) + attributes


def _talk(kind: int, flags: int, body: bytes) -> list[bytes]:
    """Send one message and return the bodies of the answers, until the one that ends them.

    Raises:
        OSError: the kernel's error, or it gave no answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.settimeout(_ANSWER_WITHIN_S)
        route.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
        found = []
        for answer_kind, answer in _messages(route.recv(1 << 16)):
            if answer_kind == _ERROR:
                number = -struct.unpack_from("=i", answer)[0]
                if number:
                    raise OSError(number, os.strerror(number))
            else:
                found.append(answer)
        return found


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += (max(length, _HEADER.size) + 3) & ~3
