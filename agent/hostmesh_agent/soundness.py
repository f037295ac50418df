"""The look at what answers on this host, by connections made for it. In the dead-man timer's process alone: needs ssl.

SSH: each port is called at this host's own addresses that are not loopback's, and a server's first line must come. Such
a call stays on the loopback interface: it shows that the server answers and that the rules for calls from this host
leave it alone. What the rules do to a call that arrives by a network card is told by going through the kernel's own
table (`capture.interpret`). Not shown: other programs' firewalls, and the network itself.

The controller: a new TCP connection and TLS handshake with this host's certificate, as the agent makes them.
"""

import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from hostmesh_agent.capture.interpret import Packet, verdict
from hostmesh_agent.capture.rules import Hook, Table
from hostmesh_agent.sound import Endpoint, Sound

SSH_WITHIN_S: Final = 1.0
CONTROLLER_WITHIN_S: Final = 1.5
_GREETINGS: Final = (b"SSH-", b"Not allowed at this time", b"Exceeded MaxStartups")
"""What OpenSSH says first: also to one whom it will not serve now, which is an answer all the same."""
_ADDRESSES: Final = 4
_ANYBODY: Final = {4: "192.0.2.1", 6: "2001:db8::1"}  # RFC 5737, RFC 3849: a caller on the network
_SOME_INTERFACE: Final = 2  # any but loopback's


@dataclass(frozen=True, slots=True)
class Where:
    """What to look at: SSH ports, controllers (`host:port`), the directory of the host's identity, Envoy's user."""

    ssh_ports: frozenset[int]
    controllers: tuple[str, ...]
    identity: Path
    envoy_uid: int


def look(where: Where, table: Table | None, ssh: Iterable[Endpoint] | None = None) -> Sound:
    """Return what answers now. Blocks for at most about two seconds.

    Args:
        where: to look.
        table: that the kernel has.
        ssh: where SSH answered before; None: find out at which of this host's addresses it does.
    """
    addresses = own_addresses()
    with ThreadPoolExecutor(4) as pool:
        answering = pool.map(_ssh_at, ssh) if ssh is not None else pool.map(_first_of(addresses), where.ssh_ports)
        controller = pool.submit(_controller, where)
        past = pool.submit(_controller, where, uid=where.envoy_uid)
        found = frozenset(each for each in answering if each is not None)
        why = controller.result()
        past_rules = None if not _lets_pass(table, where) else not past.result()
    return Sound(
        ssh=found,
        ssh_silent=where.ssh_ports - {port for _, port in found},
        controller=not why,
        past_rules=past_rules,
        diverted=tuple(_diverted(table, where.ssh_ports, addresses)),
        why=why,
    )


def own_addresses() -> tuple[str, ...]:
    """Return addresses of this host by which others can reach it, at most a few."""
    import psutil

    found = []
    for name, entries in psutil.net_if_addrs().items():
        for each in entries if name != "lo" else ():  # where Envoy's own addresses are, too
            if each.family in {socket.AF_INET, socket.AF_INET6}:
                address = ip_address(each.address.partition("%")[0])
                if not (address.is_loopback or address.is_link_local or address.is_unspecified):
                    found.append(str(address))
    return tuple(found[:_ADDRESSES])


def _diverted(table: Table | None, ports: Iterable[int], addresses: Iterable[str]) -> Iterator[str]:
    for text in addresses:
        address = ip_address(text)
        for port in sorted(ports):
            caller = ip_address(_ANYBODY[address.version])
            packet = Packet(Hook.PREROUTING, caller, address, port, input_interface=_SOME_INTERFACE, local=True)
            found = verdict(table, packet)
            if found.touched:
                yield f"rule {found.number} of chain {found.chain} takes calls to SSH at {text} port {port}"


def _lets_pass(table: Table | None, where: Where) -> bool:
    """Whether the rules leave Envoy's own connections to the controllers alone."""
    for address, port in _resolved(where.controllers):
        target = ip_address(address)
        source = ip_address(_ANYBODY[target.version])
        packet = Packet(Hook.OUTPUT, source, target, port, uid=where.envoy_uid, output_interface=_SOME_INTERFACE)
        if verdict(table, packet).touched:
            return False
    return True


def _first_of(addresses: tuple[str, ...]):  # type: ignore[no-untyped-def]
    def answering(port: int) -> Endpoint | None:
        return next((each for each in ((address, port) for address in addresses) if _ssh_at(each)), None)

    return answering


def _ssh_at(endpoint: Endpoint) -> Endpoint | None:
    try:
        with socket.create_connection(endpoint, SSH_WITHIN_S) as connection:
            said = connection.recv(64)
    except OSError:
        return None
    return endpoint if said.startswith(_GREETINGS) else None


def _controller(where: Where, uid: int | None = None) -> str:
    """Return why no controller takes a new TLS connection; "" if one does."""
    try:
        context = ssl.create_default_context(cafile=str(where.identity / "bundle.pem"))
        context.load_cert_chain(where.identity / "chain.pem", where.identity / "key.pem")
        context.set_alpn_protocols(["h2"])
    except (OSError, ssl.SSLError) as error:
        return f"the host's identity cannot be used: {error}"
    why = "no controller is known"
    for name, address, port in _targets(where.controllers):
        try:
            with _connected(address, port, uid) as plain, context.wrap_socket(plain, server_hostname=name):
                return ""
        except OSError as error:
            why = f"{address} port {port}: {error.strerror or error}"
    return why


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


def _targets(controllers: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    for endpoint in controllers:
        name, _, port = endpoint.rpartition(":")
        bare = name.strip("[]")
        for address, number in _resolved((endpoint,)):
            yield bare, address, number or int(port)


def _resolved(controllers: Iterable[str]) -> Iterator[Endpoint]:
    for endpoint in controllers:
        name, _, port = endpoint.rpartition(":")
        with suppress(OSError, ValueError):
            for *_, address in socket.getaddrinfo(name.strip("[]"), int(port), type=socket.SOCK_STREAM):
                yield str(address[0]), int(port)
