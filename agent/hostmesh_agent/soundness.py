"""The look at what answers on this host, by connections made for it. In the dead-man timer's process alone: needs ssl.

SSH: each port is called where its server listens, else at this host's own addresses that are not loopback's, and a
server's first line must come. Such a call stays on the loopback interface: it shows that the server answers and that
the rules for calls from this host leave it alone. What the rules do to a call that arrives by a network card is told by
going through the kernel's own table (`capture.interpret`), for each address of this host. Not shown: other programs'
firewalls, and the network itself.

The controller: a new TCP connection and TLS handshake with this host's certificate, as the agent makes them. All its
addresses are tried at once. A name that nobody resolves in time is a controller that is not reached.
"""

import os
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from hostmesh_agent import sock_diag
from hostmesh_agent.capture.interpret import Packet, verdict
from hostmesh_agent.capture.routes import is_our_address
from hostmesh_agent.capture.rules import Hook, Table
from hostmesh_agent.controller_addresses import Address, look_up
from hostmesh_agent.in_time import InTime
from hostmesh_agent.sound import Endpoint, Sound

WITHIN_S: Final = 2.0
"""For the whole look."""
SSH_WITHIN_S: Final = 1.0
CONTROLLER_WITHIN_S: Final = 1.5
_GREETINGS: Final = (b"SSH-", b"Not allowed at this time", b"Exceeded MaxStartups")
"""What OpenSSH says first: also to one whom it will not serve now, which is an answer all the same."""
_FIRST_ALONE_S: Final = 0.5
"""One answer is enough: the other addresses are called if the first one is silent for so long."""
_ADDRESSES: Final = 4
"""Of each family, so many are called where a server listens at all of them."""
_ALL: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - how the kernel writes a listener at every address
_TARGETS: Final = 32
"""So many addresses of controllers are tried, each by two threads."""
_ANYBODY: Final = {4: "192.0.2.1", 6: "2001:db8::1"}  # RFC 5737, RFC 3849: a caller on the network
_SOME_INTERFACE: Final = 2  # any but loopback's


@dataclass(frozen=True, slots=True)
class Where:
    """What to look at: SSH ports, controllers (`host:port`), the directory of the host's identity, Envoy's user."""

    ssh_ports: frozenset[int]
    controllers: tuple[str, ...]
    identity: Path
    envoy_uid: int


@dataclass(frozen=True, slots=True)
class _Reached:
    """Whether a controller takes a connection of ours, and one of Envoy's user; `tried` is where.

    `why` says how ours failed.
    """

    ours: bool
    envoys: bool
    tried: frozenset[Address]
    why: str


def look(where: Where, table: Table | None, ssh: Iterable[Endpoint] | None = None) -> Sound:
    """Return what answers now. Blocks for about two seconds at most, whoever is silent.

    Args:
        where: to look.
        table: that the kernel has.
        ssh: where SSH answered before; None: find out at which of this host's addresses it does.
    """
    until = time.monotonic() + WITHIN_S
    addresses = own_addresses()
    greeting: InTime[None, Endpoint | None] = InTime(until)
    if ssh is None:
        bound = _listening()
        for port in where.ssh_ports:
            candidates = _candidates(port, bound.get(port, frozenset()), addresses)
            greeting.start(None, partial(_first_of, candidates, until))
    else:
        for each in ssh:
            greeting.start(None, partial(_ssh_at, each))
    reached = _controllers(where, until)
    found = frozenset(each for _, each in greeting.ended() if isinstance(each, tuple))
    return Sound(
        ssh=found,
        ssh_silent=where.ssh_ports - {port for _, port in found},
        controller=reached.ours,
        past_rules=reached.envoys if _lets_pass(table, reached.tried, where.envoy_uid) else None,
        diverted=tuple(_diverted(table, where.ssh_ports, addresses)),
        why=reached.why,
    )


def own_addresses() -> tuple[str, ...]:
    """Return the addresses of this host by which others can reach it, those that are routed to loopback's card last."""
    import psutil

    found: dict[str, bool] = {}
    for name, entries in psutil.net_if_addrs().items():
        for each in entries:
            if each.family in {socket.AF_INET, socket.AF_INET6} and _is_reachable(each.address):
                found.setdefault(each.address, name == "lo")
    return tuple(sorted(found, key=found.__getitem__))


def _is_reachable(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    if address.is_loopback or address.is_link_local or address.is_unspecified:
        return False
    # Envoy's are on loopback's card as well, and nobody's to call.
    return not is_our_address(address)


def _listening() -> dict[int, frozenset[str]]:
    """Return at which addresses of this host something listens, for each port; nothing if the kernel does not tell."""
    found: dict[int, set[str]] = {}
    try:
        for each in sock_diag.listeners():
            found.setdefault(each.port, set()).add(each.address)
    except OSError:
        return {}
    return {port: frozenset(addresses) for port, addresses in found.items()}


def _candidates(port: int, bound: frozenset[str], addresses: Sequence[str]) -> list[Endpoint]:
    """Return where to call a port: where its server is bound, and a few addresses if that is all of them."""
    alone = [each for each in addresses if each in bound]
    few: list[str] = []
    if bound & _ALL or not alone:
        # What nobody listens on may be led elsewhere.
        few += [each for each in addresses if ":" not in each][:_ADDRESSES]
    if "::" in bound or not bound:
        few += [each for each in addresses if ":" in each][:_ADDRESSES]
    return [(each, port) for each in dict.fromkeys((*alone, *few))]


def _diverted(table: Table | None, ports: Iterable[int], addresses: Iterable[str]) -> Iterator[str]:
    for text in addresses:
        address = ip_address(text)
        for port in sorted(ports):
            caller = ip_address(_ANYBODY[address.version])
            packet = Packet(Hook.PREROUTING, caller, address, port, input_interface=_SOME_INTERFACE, local=True)
            found = verdict(table, packet)
            if found.touched:
                yield f"rule {found.number} of chain {found.chain} takes calls to SSH at {text} port {port}"


def _lets_pass(table: Table | None, targets: Iterable[Address], envoy_uid: int) -> bool:
    """Whether the rules leave Envoy's own connections to the controllers alone."""
    for address, port in targets:
        target = ip_address(address)
        source = ip_address(_ANYBODY[target.version])
        packet = Packet(Hook.OUTPUT, source, target, port, uid=envoy_uid, output_interface=_SOME_INTERFACE)
        if verdict(table, packet).touched:
            return False
    return True


def _first_of(candidates: Sequence[Endpoint], until: float) -> Endpoint | None:
    calls: InTime[None, Endpoint | None] = InTime(until)
    for some, within in ((candidates[:1], time.monotonic() + _FIRST_ALONE_S), (candidates[1:], until)):
        for each in some:
            calls.start(None, partial(_ssh_at, each))
        for _, found in calls.ended(within):
            if isinstance(found, tuple):
                return found
    return None


def _ssh_at(endpoint: Endpoint) -> Endpoint | None:
    try:
        with socket.create_connection(endpoint, SSH_WITHIN_S) as connection:
            said = connection.recv(64)
    except OSError:
        return None
    return endpoint if said.startswith(_GREETINGS) else None


def _controllers(where: Where, until: float) -> _Reached:
    """Call all controllers at once, as ourselves and as Envoy's user, until one has answered each."""
    try:
        context = ssl.create_default_context(cafile=str(where.identity / "bundle.pem"))
        context.load_cert_chain(where.identity / "chain.pem", where.identity / "key.pem")
        context.set_alpn_protocols(["h2"])
    except (OSError, ssl.SSLError) as error:
        return _Reached(False, False, frozenset(), f"the host's identity cannot be used: {error}")
    # A call by its endpoint and, once that has addresses, one of these and the user; what is looked up is returned.
    calls: InTime[tuple[str, Address | None, int | None], tuple[Address, ...]] = InTime(until)
    for endpoint in dict.fromkeys(where.controllers):
        calls.start((endpoint, None, None), partial(look_up, endpoint))
    why = f"no controller answers within {WITHIN_S:g} s" if where.controllers else "no controller is known"
    tried: set[tuple[str, Address]] = set()
    by: set[int | None] = set()
    for (endpoint, address, uid), found in calls.ended():
        if isinstance(found, OSError):
            at = endpoint if address is None else f"{address[0]} port {address[1]}"
            why = f"{at}: {found.strerror or found}" if uid is None else why
            continue
        if address is not None:
            by.add(uid)
        if by == {None, where.envoy_uid}:
            break
        name = endpoint.rpartition(":")[0].strip("[]")
        for each in found:
            if (name, each) not in tried and len(tried) < _TARGETS:
                tried.add((name, each))
                for user in (None, where.envoy_uid):
                    calls.start((endpoint, each, user), partial(_shake_hands, context, name, each, user))
    ours = None in by
    return _Reached(ours, where.envoy_uid in by, frozenset(each for _, each in tried), "" if ours else why)


def _shake_hands(context: ssl.SSLContext, name: str, address: Address, uid: int | None) -> tuple[Address, ...]:
    try:
        with _connected(*address, uid) as plain, context.wrap_socket(plain, server_hostname=name):
            return ()
    except ValueError as error:
        raise OSError(f"{name}: {error}") from error


@contextmanager
def _connected(address: str, port: int, uid: int | None) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with _socket_of(family, uid) as opened:
        opened.settimeout(CONTROLLER_WITHIN_S)
        opened.connect((address, port))
        yield opened


def _socket_of(family: int, uid: int | None) -> socket.socket:
    """Open a socket that belongs to a user, as `meta skuid` sees it: that is who makes it."""
    if uid is None:
        return socket.socket(family, socket.SOCK_STREAM)
    import ctypes

    libc = ctypes.CDLL(None)
    # Of this thread alone, unlike seteuid.
    libc.setfsuid(uid)
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    finally:
        libc.setfsuid(os.geteuid())
