"""The edge to the kernel's routing rules: packets with our mark stay on this host.

    ip rule add fwmark 1506 lookup 1506 priority 15 protocol 157
    ip route add local default dev lo table 1506 protocol 157

Both families. Ours are the rules with our protocol number and the routes with it in our table.
"""

# mypy: disable-error-code="import-untyped"
# (pyroute2 ships no types)

import errno
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from hostmesh_api.wire import CLIENT_MARK

PRIORITY: Final = 15
"""Before everybody's rules but that of the host's own addresses (0): a VPN's or another table must not take these."""
TABLE: Final = CLIENT_MARK
_WHOLE_MARK: Final = 0xFFFFFFFF
_TO_TABLE: Final = 1  # FR_ACT_TO_TBL
_LOOPBACK: Final = 1
_LOCAL: Final = 2  # RTN_LOCAL
_SCOPE_HOST: Final = 254
_ANY_PORT: Final = 9
_FAMILY: Final[dict[int, socket.AddressFamily]] = {4: socket.AF_INET, 6: socket.AF_INET6}
_SOURCE: Final = {4: "127.0.0.1", 6: "::1"}
_ELSEWHERE: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
"""For documentation: no host has them."""
_NONE: Final = {errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT}
"""The kernel has no such table yet, no routing rules at all, or no IPv6."""
_GONE: Final = {errno.ENOENT, errno.ESRCH, errno.EAFNOSUPPORT}

Request = Callable[[Any, Any, int, int], Awaitable[list[Any]]]
"""Sends a message of a kind, with flags; returns the answers."""


async def read(ipr: Any, request: Request, protocol: int) -> frozenset[tuple[int, str]]:
    """Return what of ours is there: IP version, and "rule" or "route"."""
    found = set()
    for version in (4, 6):
        for kind, message, what in (
            (RTM_GETRULE, _family(fibmsg(), version), "rule"),
            (RTM_GETROUTE, _routes(version, protocol), "route"),
        ):
            try:
                answers = await request(ipr, message, kind, NLM_F_DUMP)
            except NetlinkError as error:
                if error.code not in _NONE:
                    raise
                answers = []
            if any(_is_ours(each, what, version, protocol) for each in answers):
                found.add((version, what))
    return frozenset(found)


def wanted(versions: Collection[int]) -> frozenset[tuple[int, str]]:
    return frozenset((version, what) for version in versions for what in ("rule", "route"))


async def change(
    ipr: Any, request: Request, protocol: int, before: Collection[tuple[int, str]], after: Collection[tuple[int, str]]
) -> None:
    """Add what is missing, the route before its rule, and remove what is too much, the other way round."""
    for version, what in sorted(set(after) - set(before)):
        message = _rule(version, protocol) if what == "rule" else _route(version, protocol)
        try:
            await request(ipr, message, _NEW[what], NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
    for version, what in sorted(set(before) - set(after), reverse=True):
        message = _rule(version, protocol) if what == "rule" else _route(version, protocol)
        try:
            await request(ipr, message, _DELETE[what], NLM_F_ACK)
        except NetlinkError as error:
            if error.code not in _GONE:
                raise


_NEW: Final = {"rule": RTM_NEWRULE, "route": RTM_NEWROUTE}
_DELETE: Final = {"rule": RTM_DELRULE, "route": RTM_DELROUTE}
MESSAGES: Final = {RTM_NEWRULE: fibmsg, RTM_DELRULE: fibmsg}


def in_place(versions: Collection[int]) -> bool:
    """Return whether the kernel would keep a marked packet here, whoever else it is for; when in doubt, False.

    It looks for a route when a UDP socket is connected, and nothing is sent.
    """
    try:
        for version in versions:
            with socket.socket(_FAMILY[version], socket.SOCK_DGRAM) as asked:
                asked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, CLIENT_MARK)
                asked.connect((_ELSEWHERE[version], _ANY_PORT))
                if asked.getsockname()[0] != _SOURCE[version]:
                    return False
    except OSError:
        return False
    return True


def asked() -> Any:
    """Return the message that asks for all rules of IPv4."""
    return _family(fibmsg(), 4)


def _family(message: Any, version: int) -> Any:
    message["family"] = _FAMILY[version]
    return message


def _rule(version: int, protocol: int) -> Any:
    message = _family(fibmsg(), version)
    message["action"] = _TO_TABLE
    message["attrs"] = [
        ("FRA_TABLE", TABLE),
        ("FRA_PRIORITY", PRIORITY),
        ("FRA_FWMARK", CLIENT_MARK),
        ("FRA_FWMASK", _WHOLE_MARK),
        ("FRA_PROTOCOL", protocol),
    ]
    return message


def _route(version: int, protocol: int) -> Any:
    message = _family(rtmsg(), version)
    message.update(proto=protocol, type=_LOCAL, scope=_SCOPE_HOST if version == 4 else 0)
    message["attrs"] = [("RTA_TABLE", TABLE), ("RTA_OIF", _LOOPBACK), ("RTA_PREFSRC", _SOURCE[version])]
    return message


def _routes(version: int, protocol: int) -> Any:
    """Return the question for the routes of our table; what else a route has must not be in it."""
    message = _family(rtmsg(), version)
    message.update(proto=protocol)
    message["attrs"] = [("RTA_TABLE", TABLE)]
    return message


def _is_ours(answer: Any, what: str, version: int, protocol: int) -> bool:
    if answer["family"] != _FAMILY[version]:
        return False
    if what == "rule":
        return bool(answer.get_attr("FRA_PROTOCOL") == protocol and answer.get_attr("FRA_FWMARK") == CLIENT_MARK)
    return bool(answer["proto"] == protocol and answer.get_attr("RTA_TABLE") == TABLE)
