"""Opening the controller's ports: gRPC for agents, HTTPS and a unix socket for operators."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc

from hostmesh_controller.authority_server import ServerCertificate, ServerKeyPair
from hostmesh_controller.config_reader import Endpoint
from hostmesh_controller.limits import Limits
from hostmesh_controller.tcp_keepalive import GIVE_UP_MS

GRPC_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A second controller on the port must fail, not silently share it.
    ("grpc.so_reuseport", 0),
    # gRPC sheds calls above 1,000 pending; after a restart all hosts come at once.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    # That a host has vanished is the kernel's to notice (`tcp_keepalive`), in seconds; gRPC's pings find an agent that
    # hangs while its kernel answers. With 1,000 hosts 33 of them a second were most of what an idle controller did.
    ("grpc.keepalive_time_ms", 120_000),
    # It is the kernel's limit, too.
    ("grpc.keepalive_timeout_ms", GIVE_UP_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    # Agents may ask this often.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # gRPC measures the bandwidth with a ping for each message it reads: 39 bytes each way for every acknowledgement.
    ("grpc.http2.bdp_probe", 0),
)


class ListenError(Exception):
    """A port or socket cannot be opened; the text says which, why, and what to do."""


def agents_options(limits: Limits) -> list[tuple[str, int]]:
    """Return gRPC's options for the port of hosts that have joined."""
    return [
        *_options(limits),
        ("grpc.max_receive_message_length", limits.agents_message_bytes),
        ("grpc.max_concurrent_streams", limits.agents_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", limits.agents_connections),
    ]


def join_options(limits: Limits) -> list[tuple[str, int]]:
    """Return gRPC's options for the port that anybody may call: a connection is for one call, and ends soon."""
    return [
        *_options(limits),
        ("grpc.max_receive_message_length", limits.join_message_bytes),
        ("grpc.max_concurrent_streams", limits.join_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", limits.join_connections),
        ("grpc.max_connection_idle_ms", limits.join_idle_s * 1000),
        ("grpc.max_connection_age_ms", limits.join_age_s * 1000),
        ("grpc.max_connection_age_grace_ms", limits.join_idle_s * 1000),
    ]


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        *GRPC_OPTIONS,
        ("grpc.server_handshake_timeout_ms", limits.handshake_s * 1000),
        # Beyond the soft limit gRPC refuses by chance, from the hard one on always.
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
    ]


def grpc_server(
    options: Sequence[tuple[str, int]], interceptors: "Sequence[grpc.aio.ServerInterceptor[Any, Any]]" = ()
) -> grpc.aio.Server:
    return grpc.aio.server(options=list(options), interceptors=list(interceptors))


def open_grpc(server: grpc.aio.Server, endpoint: Endpoint, setting: str, credentials: grpc.ServerCredentials) -> None:
    """Bind a gRPC server to its port.

    Raises:
        ListenError: the port cannot be had.
    """
    # gRPC's own message does not say why; the kernel's does.
    open_tcp(endpoint, setting).close()
    try:
        server.add_secure_port(str(endpoint), credentials)
    except RuntimeError as error:
        raise ListenError(f"{setting}: cannot listen on {endpoint}: {error}") from error


def open_tcp(endpoint: Endpoint, setting: str) -> socket.socket:
    """Return a bound socket; at "::" it is for both families, or for IPv4 alone where the kernel has no IPv6.

    Args:
        endpoint: where.
        setting: what the operator calls it in controller.toml, for the message.

    Raises:
        ListenError: the port cannot be had.
    """
    opened, host = _socket_for(endpoint.host)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, endpoint.port))
    except OSError as error:
        opened.close()
        raise ListenError(_refusal(endpoint, setting, error)) from error
    return opened


def _socket_for(host: str) -> tuple[socket.socket, str]:
    """Return a socket, and where to bind it. gRPC does with "::" what is done here."""
    if ":" not in host:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM), host
    try:
        opened = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError as error:
        if host != "::" or error.errno != errno.EAFNOSUPPORT:
            raise ListenError(f"cannot listen on {host}: {error.strerror}") from error
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM), "0.0.0.0"  # noqa: S104 - as "::" says
    if host == "::":
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return opened, host


def _refusal(endpoint: Endpoint, setting: str, error: OSError) -> str:
    head = f"{setting}: cannot listen on {endpoint}: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return f"{head}; another program has it (see: ss -ltnp 'sport = :{endpoint.port}'): stop it or change {setting}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{head}; {endpoint.host} is no address of this machine: change {setting}"
    return f"{head}; run as root or choose a port above 1023"


def open_unix(path: Path) -> socket.socket:
    """Return a bound unix socket that only the owner may use; what a killed controller left there is replaced.

    Raises:
        ListenError: another program listens there, or it cannot be made.
    """
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket():
            if _answers(path):
                raise ListenError(f"listen.admin_socket: another program listens on {path}: stop it")
            path.unlink()
        # The mode must be right from the first moment, not after a chmod.
        before = os.umask(0o177)
        try:
            opened.bind(str(path))
        finally:
            os.umask(before)
    except (OSError, ListenError) as error:
        opened.close()
        if isinstance(error, ListenError):
            raise
        raise ListenError(f"listen.admin_socket: cannot listen on {path}: {error.strerror}") from error
    return opened


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def server_tls(pair: ServerKeyPair, client_ca: Path | None = None) -> ssl.SSLContext:
    """Return TLS 1.3 without resumption: each connection proves anew who it is.

    Args:
        pair: what to present.
        client_ca: PEM of the CA whose certificates clients may show; None: none is asked for.

    Raises:
        ListenError: the CA cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    load_pair(context, pair)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ListenError(f"admin.client_ca: {client_ca} cannot be used: {error}") from error
    return context


def load_pair(context: ssl.SSLContext, pair: ServerKeyPair) -> None:
    """Present `pair` from the next handshake on."""
    # ssl reads keys from files alone; this file is memory that nobody else can open, and is gone right after.
    with os.fdopen(os.memfd_create("hostmesh-server"), "wb") as file:
        file.write(pair.key_pem + pair.chain_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


async def follow(context: ssl.SSLContext, certificate: ServerCertificate, changed: asyncio.Event) -> None:
    """Keep `context` at the current certificate, until cancelled; `changed` says that there may be another."""
    presented = certificate.current()
    while True:
        wait_s = (presented.renew_at - datetime.now(presented.renew_at.tzinfo)).total_seconds()
        # Not longer than an hour, so that a clock that was set forward is noticed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(max(wait_s, 60.0), 3600.0)):
                await changed.wait()
        changed.clear()
        current = certificate.current()
        if current is not presented:
            load_pair(context, current)
            presented = current
