"""The edge to the kernel's rules, whichever part of it holds them: nf_tables, or iptables where there is none.

What a table is made for is in the table (`backend`). Reading needs no word about it: what is there tells.
"""

import errno
import socket
import struct
from typing import Final

from hostmesh_agent.capture import iptables, nft
from hostmesh_agent.capture.errors import CaptureError
from hostmesh_agent.capture.nft import Reading
from hostmesh_agent.capture.owner import Owner
from hostmesh_agent.capture.rules import Backend, Table

AUTO: Final = "auto"

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER: Final = 12
_ASKED: Final = struct.pack("=IHHIIBBH", 20, (10 << 8) | 16, 1, 1, 0, 0, 0, 0)  # NFT_MSG_GETGEN
_ERROR: Final = 2
_CODE: Final = struct.Struct("=i")
_NONE: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})
_WITHIN_S: Final = 2.0


def backend(setting: str) -> Backend:
    """Return what holds the rules on this host; `setting` is the word of its owner, "auto" for none."""
    if setting != AUTO:
        return Backend(setting)
    return Backend.NFTABLES if has_nf_tables() else Backend.IPTABLES


def has_nf_tables() -> bool:
    """Tell whether the kernel has nf_tables; if it does not let us ask, that it has."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asked:
            asked.settimeout(_WITHIN_S)
            asked.send(_ASKED)
            return not lacks_nf_tables(asked.recv(4096))
    except OSError as error:
        return error.errno not in _NONE


def lacks_nf_tables(answer: bytes) -> bool:
    """Tell whether the kernel's answer to the question for nf_tables' generation says that there is none."""
    if len(answer) < 16 + _CODE.size or int.from_bytes(answer[4:6], "little") != _ERROR:
        return False
    return -_CODE.unpack_from(answer, 16)[0] in _NONE


def look() -> Reading:
    """Return what the kernel has of ours; the generation is nf_tables' and says nothing of iptables' rules.

    Raises:
        CaptureError: it does not tell.
    """
    try:
        reading = nft.look()
    except CaptureError:
        if has_nf_tables():
            raise
        return Reading(iptables.read(), 0)
    if reading.table is None and iptables.in_use():
        return Reading(iptables.read(), reading.generation)
    return reading


def read() -> Table | None:
    """Like `look`, the table alone."""
    return look().table


def write(table: Table, owner: Owner | None = None) -> Reading:
    """Make the kernel hold `table`; what another back end holds of ours goes afterwards.

    Raises:
        CaptureError: the kernel refused.
    """
    if table.backend is Backend.NFTABLES:
        reading = nft.write(table, owner)
        if iptables.in_use():
            iptables.remove()
        return reading
    found = iptables.write(table)
    if has_nf_tables() and nft.read() is not None:
        nft.remove(owner)
    return Reading(found, 0)


def remove(owner: Owner | None = None) -> None:
    """Remove what is ours, from wherever it is.

    Raises:
        CaptureError: the kernel refused.
    """
    if has_nf_tables():
        nft.remove(owner)
    iptables.remove()
