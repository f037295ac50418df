"""What capture needs beside the rules: routes for virtual addresses, and the address Envoy's inbound calls come from.

And where programs see who calls (`transparent`) a routing rule for what they answer (`marked`).

A packet to a virtual address meets the rules only if the kernel finds a route for it first. Most hosts have a default
route and need nothing. Where there is none, the range is routed to the loopback interface, with a source that is
always valid there. In IPv6 that must be a route of type local: others over loopback are turned into rejects by the
kernel.

Ours are the routes with our protocol number, and the addresses on lo that are of our own ranges and never preferred as
a source; nothing else is touched and no state is kept.
"""

# mypy: disable-error-code="import-untyped"
# (pyroute2 ships no types)

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final, TypeVar

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import AsyncNetlinkSocket
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from hostmesh_agent.capture import marked
from hostmesh_agent.capture.errors import CaptureError
from hostmesh_api import wire
from hostmesh_api.callers import CALLERS_V6

ROUTE_PROTOCOL: Final = 157
"""Marks our routes ("proto" in `ip route`); free in iproute2's rt_protos."""

_OUR_ADDRESSES: Final = {IPv6Address(wire.INBOUND_SOURCE_V6), IPv6Address(wire.OUTBOUND_V6)}
_LOOPBACK: Final = 1  # LOOPBACK_IFINDEX
_ANSWER_WITHIN_S: Final = 10.0
_ANY_PORT: Final = 9  # nothing is ever sent to it
_FOREVER: Final = 0xFFFFFFFF
_NO_PREFIX_ROUTE: Final = 0x200  # IFA_F_NOPREFIXROUTE
_NO_DUPLICATE_DETECTION: Final = 0x02  # IFA_F_NODAD
_DEPRECATED: Final = 0x20  # IFA_F_DEPRECATED
_UNICAST, _LOCAL = 1, 2  # RTN_UNICAST, RTN_LOCAL
_MAIN_TABLE, _LOCAL_TABLE = 254, 255
_SCOPE_GLOBAL, _SCOPE_LINK = 0, 253
_ADD: Final = "add the routes of virtual addresses"
_NOWHERE: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.EAGAIN}
"""How the kernel says that there is no route, or one that goes nowhere (unreachable, blackhole, prohibit, throw)."""

# Not pyroute2's socket for routes: its module brings every kind of link, queue and filter, 5 MB.
_MESSAGES: Final = marked.MESSAGES | {
    RTM_NEWADDR: ifaddrmsg,
    RTM_DELADDR: ifaddrmsg,
    RTM_NEWROUTE: rtmsg,
    RTM_DELROUTE: rtmsg,
}

T = TypeVar("T")
Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Additions:
    """What we have added beside the rules. `marked` is as in `marked.read`: IP version, and "rule" or "route"."""

    prefixes: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    marked: frozenset[tuple[int, str]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.prefixes or self.addresses or self.marked)

    @property
    def marked_home(self) -> frozenset[int]:
        """The IP versions of which marked packets stay on this host."""
        return frozenset(version for version, _ in self.marked)


def read() -> Additions:
    """Return what of ours is in the kernel.

    Raises:
        CaptureError: the kernel refused.
    """
    return _run(_read, "read the routes")


def write(virtual_prefixes: Iterable[str], addresses: Iterable[str], marked_home: Collection[int] = ()) -> Additions:
    """Make every prefix routable and every address present, remove what of ours is no longer needed; return what is.

    `marked_home` are the IP versions of which packets with our mark stay on this host.

    A prefix that the host can route by itself gets no route of ours, and keeps one it has got.

    Raises:
        CaptureError: the kernel refused.
    """

    async def act(ipr: Any) -> Additions:
        before = await _read(ipr)
        wanted = await _wanted(ipr, before, virtual_prefixes, addresses, marked_home)
        await _change(ipr, before, wanted)
        return wanted

    return _run(act, _ADD)


def add(virtual_prefixes: Iterable[str], addresses: Iterable[str], marked_home: Collection[int] = ()) -> bool:
    """Do the half of `write` that rules need before they come; return whether it has to remove something after them.

    Raises:
        CaptureError: the kernel refused.
    """

    async def act(ipr: Any) -> bool:
        before = await _read(ipr)
        wanted = await _wanted(ipr, before, virtual_prefixes, addresses, marked_home)
        both = Additions(
            before.prefixes | wanted.prefixes, before.addresses | wanted.addresses, before.marked | wanted.marked
        )
        await _change(ipr, before, both)
        return both != wanted

    return _run(act, _ADD)


async def _wanted(
    ipr: Any,
    before: Additions,
    virtual_prefixes: Iterable[str],
    addresses: Iterable[str],
    marked_home: Collection[int],
) -> Additions:
    return Additions(
        frozenset([each for each in virtual_prefixes if each in before.prefixes or not await _routable(ipr, each)]),
        frozenset(addresses),
        marked.wanted(marked_home),
    )


def remove() -> None:
    """Remove what of ours is in the kernel.

    Raises:
        CaptureError: the kernel refused.
    """

    async def act(ipr: Any) -> None:
        await _change(ipr, await _read(ipr), Additions())

    _run(act, "remove the routes of virtual addresses")


def lacking(virtual_prefixes: Iterable[str], addresses: Iterable[str], marked_home: Collection[int] = ()) -> Additions:
    """Return the prefixes to which a packet would not be sent at all, and the addresses that lo does not have.

    And what is not there so that marked packets stay on this host.

    Raises:
        CaptureError: the kernel refused.
    """

    async def act(ipr: Any) -> Additions:
        present = {each.get_attr("IFA_ADDRESS") for each in await _loopback_addresses(ipr)}
        return Additions(
            frozenset([each for each in virtual_prefixes if not await _routable(ipr, each)]),
            frozenset(addresses) - present,
            marked.wanted(marked_home) - (await marked.read(ipr, _request, ROUTE_PROTOCOL) if marked_home else set()),
        )

    return _run(act, "look up the routes of virtual addresses")


def knows_marks() -> bool:
    """Tell whether the kernel can choose a routing table by a packet's mark; not if it does not let us ask."""

    async def act(ipr: Any) -> None:
        message = marked.asked()
        await _request(ipr, message, RTM_GETRULE, NLM_F_DUMP)

    try:
        _run(act, "ask for routing rules")
    except CaptureError:
        return False
    return True


def in_place(virtual_prefixes: Iterable[str], addresses: Collection[str], marked_home: Collection[int] = ()) -> bool:
    """Return whether nothing of it is `lacking`, in a hundredth of a millisecond for each; when in doubt, False.

    A program's own way: the kernel looks for a route when a UDP socket is connected, and nothing is sent.
    """
    try:
        for prefix in virtual_prefixes:
            network = ip_network(prefix)
            family = socket.AF_INET if network.version == 4 else socket.AF_INET6
            with socket.socket(family, socket.SOCK_DGRAM) as asked:
                asked.connect((_example(network), _ANY_PORT))
        present = Path("/proc/thread-self/net/if_inet6").read_text().splitlines() if addresses else []
    except OSError:
        return False
    if not marked.in_place(marked_home):
        return False
    # Of the columns the first is the address and the last the name; the kernel calls it so in every namespace.
    on_loopback = {line[:32] for line in present if line.endswith(" lo")}
    return all(ip_address(address).packed.hex() in on_loopback for address in addresses)


def _example(network: Prefix) -> str:
    """Return an address in the network; not its first, which may have a meaning of its own."""
    return str(network[min(1, network.num_addresses - 1)])


def _run(act: Callable[[Any], Awaitable[T]], doing: str) -> T:
    async def bounded() -> T:
        # strict_check makes the kernel filter dumps: a router's table of a million routes stays where it is.
        async with AsyncNetlinkSocket(NETLINK_ROUTE, strict_check=True) as ipr, asyncio.timeout(_ANSWER_WITHIN_S):
            ipr.register_policy(_MESSAGES)
            return await act(ipr)

    try:
        return asyncio.run(bounded())
    except NetlinkError as error:
        raise CaptureError(f"could not {doing}: {os.strerror(error.code)}") from error
    except (OSError, TimeoutError) as error:
        raise CaptureError(f"could not {doing}: {error or 'the kernel gave no answer'}") from error


async def _request(ipr: Any, message: Any, kind: int, flags: int) -> list[Any]:
    return [answer async for answer in await ipr.nlm_request(message, kind, NLM_F_REQUEST | flags)]


async def _read(ipr: Any) -> Additions:
    prefixes = []
    for version, table in ((4, _MAIN_TABLE), (6, _LOCAL_TABLE)):
        message = _route_message(version, {"RTA_TABLE": table}, table=table, proto=ROUTE_PROTOCOL)
        found = await _request(ipr, message, RTM_GETROUTE, NLM_F_DUMP)
        prefixes += [
            f"{route.get_attr('RTA_DST')}/{route['dst_len']}" for route in found if route["proto"] == ROUTE_PROTOCOL
        ]
    ours = [each.get_attr("IFA_ADDRESS") for each in await _loopback_addresses(ipr) if _is_ours(each)]
    return Additions(frozenset(prefixes), frozenset(ours), await marked.read(ipr, _request, ROUTE_PROTOCOL))


async def _loopback_addresses(ipr: Any) -> list[Any]:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET6
    message["index"] = _LOOPBACK
    return [each for each in await _request(ipr, message, RTM_GETADDR, NLM_F_DUMP) if each["index"] == _LOOPBACK]


def is_our_address(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address on lo is of those that capture puts there."""
    return address in _OUR_ADDRESSES or address in CALLERS_V6


def _is_ours(address: Any) -> bool:
    """Others have such addresses, too: the virtual ones of a load balancer are never preferred either."""
    return is_our_address(IPv6Address(address.get_attr("IFA_ADDRESS"))) and bool(
        (address.get_attr("IFA_FLAGS") or address["flags"]) & _DEPRECATED
        and address["prefixlen"] == 128
        and address.get_attr("IFA_CACHEINFO")["ifa_valid"] == _FOREVER
    )


async def _routable(ipr: Any, prefix: str) -> bool:
    network = ip_network(prefix)
    message = _route_message(network.version, {"RTA_DST": _example(network)})
    message["dst_len"] = network.max_prefixlen
    try:
        answers = await _request(ipr, message, RTM_GETROUTE, NLM_F_ACK)
    except NetlinkError as error:
        if error.code in _NOWHERE:
            return False
        raise
    return any(answer.get("type") in {_UNICAST, _LOCAL} for answer in answers)


async def _change(ipr: Any, before: Additions, wanted: Additions) -> None:
    for address in sorted(wanted.addresses - before.addresses):
        await _add(ipr, _address_message(address), RTM_NEWADDR)
    for prefix in sorted(wanted.prefixes - before.prefixes):
        await _add(ipr, _loopback_route(ip_network(prefix)), RTM_NEWROUTE)
        if not await _routable(ipr, prefix):
            raise CaptureError(f"the route of {prefix} leads nowhere: another program holds it; remove that route")
    await marked.change(ipr, _request, ROUTE_PROTOCOL, before.marked, wanted.marked)
    for prefix in sorted(before.prefixes - wanted.prefixes):
        await _delete(ipr, _loopback_route(ip_network(prefix)), RTM_DELROUTE)
    for address in sorted(before.addresses - wanted.addresses):
        await _delete(ipr, _address_message(address), RTM_DELADDR)


async def _add(ipr: Any, message: Any, kind: int) -> None:
    """Add, where somebody else's is as good as ours."""
    try:
        await _request(ipr, message, kind, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


async def _delete(ipr: Any, message: Any, kind: int) -> None:
    try:
        await _request(ipr, message, kind, NLM_F_ACK)
    except NetlinkError as error:
        if error.code not in {errno.ESRCH, errno.EADDRNOTAVAIL}:  # gone already
            raise


def _route_message(version: int, attributes: dict[str, Any], **fields: int) -> Any:
    message = rtmsg()
    message["family"] = socket.AF_INET if version == 4 else socket.AF_INET6
    message["attrs"] = list(attributes.items())
    message.update(fields)
    return message


def _loopback_route(prefix: Prefix) -> Any:
    version = prefix.version
    attributes = {
        "RTA_DST": str(prefix.network_address),
        "RTA_OIF": _LOOPBACK,
        "RTA_PREFSRC": "127.0.0.1" if version == 4 else "::1",
    }
    return _route_message(
        version,
        attributes,
        dst_len=prefix.prefixlen,
        proto=ROUTE_PROTOCOL,
        table=_MAIN_TABLE if version == 4 else _LOCAL_TABLE,
        type=_UNICAST if version == 4 else _LOCAL,
        scope=_SCOPE_LINK if version == 4 else _SCOPE_GLOBAL,
    )


def _address_message(address: str) -> Any:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET6
    message["prefixlen"] = 128
    message["index"] = _LOOPBACK
    message["attrs"] = [
        ("IFA_ADDRESS", address),
        ("IFA_LOCAL", address),
        ("IFA_FLAGS", _NO_PREFIX_ROUTE | _NO_DUPLICATE_DETECTION),
        # Never preferred: no program's connection may leave with Envoy's mark.
        ("IFA_CACHEINFO", {"ifa_preferred": 0, "ifa_valid": _FOREVER, "cstamp": 0, "tstamp": 0}),
    ]
    return message
