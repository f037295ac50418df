"""Opening the controller's ports: gRPC for agents, HTTPS and a unix socket for operators."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc
import uvicorn
from starlette.types import ASGIApp

from hostmesh_controller.authority_server import ServerCertificate, ServerKeyPair
from hostmesh_controller.config import Endpoint

_MIB: Final = 1024 * 1024
GRACE_S: Final = 2.0
"""How long calls in progress may take to end when the controller stops."""
_BACKLOG: Final = 2048

GRPC_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A second controller on the port must fail, not silently share it.
    ("grpc.so_reuseport", 0),
    # gRPC sheds calls above 1,000 pending; after a restart all hosts come at once.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    # A host that vanished without a word is noticed within 130 s, or 10 s after something was sent to it; nothing but
    # its status depends on that, and with 1,000 hosts 33 pings a second were most of what an idle controller did.
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Agents may ask this often.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", 128),
    # gRPC measures the bandwidth with a ping for each message it reads: 39 bytes each way for every acknowledgement.
    ("grpc.http2.bdp_probe", 0),
)
AGENTS_RECEIVE_BYTES: Final = 8 * _MIB
"""A host that asks for its 50,000 names again at once sends about 4 MiB."""
JOIN_RECEIVE_BYTES: Final = 64 * 1024
"""A certificate request and facts; whoever sends it is not known yet."""


class ListenError(Exception):
    """A port or socket cannot be opened; the text says which, why, and what to do."""


def grpc_server(
    receive_bytes: int, interceptors: "Sequence[grpc.aio.ServerInterceptor[Any, Any]]" = ()
) -> grpc.aio.Server:
    options = [*GRPC_OPTIONS, ("grpc.max_receive_message_length", receive_bytes)]
    return grpc.aio.server(options=options, interceptors=list(interceptors))


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
    """Return a bound socket.

    Args:
        endpoint: where.
        setting: what the operator calls it in controller.toml, for the message.

    Raises:
        ListenError: the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((endpoint.host, endpoint.port))
    except OSError as error:
        opened.close()
        raise ListenError(_refusal(endpoint, setting, error)) from error
    return opened


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


class ApiServer(uvicorn.Server):
    """uvicorn inside our event loop: signals are ours, the socket is open already."""

    def __init__(self, app: ASGIApp, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(GRACE_S),
        )
        config.load()
        config.ssl = tls
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True


def server_tls(pair: ServerKeyPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, pair)
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
