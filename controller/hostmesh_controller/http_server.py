"""The admin API's server: uvicorn in our event loop, with bounds on what a connection may be and take."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from hostmesh_controller.api.principals import PEER_CERTIFICATE, PEER_UID
from hostmesh_controller.limits import Limits

GRACE_S: Final = 2.0
"""How long calls in progress may take to end when the controller stops."""
_BACKLOG: Final = 2048
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class _WithPeer:
    """The app, told by the scope who is at the other end of one connection."""

    def __init__(self, app: ASGIApp, facts: dict[str, Any]) -> None:
        self._app = app
        self._facts = facts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, **self._facts}, receive, send)


class BoundedProtocol(H11Protocol):
    """Ends a connection on which no request's line and headers come whole in time, and says who called."""

    header_s: float = 10.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        facts = _peer(transport)
        if facts:
            self.app = _WithPeer(self.app, facts)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiting is not None and self.cycle is not None and not self.cycle.response_complete:
            # The headers are there; the body has a bound of its own (`api.bounds`).
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(self.header_s, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_slow(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self.transport.abort()


def _peer(transport: asyncio.Transport) -> dict[str, Any]:
    secured = transport.get_extra_info("ssl_object")
    if secured is not None:
        # None where the client showed none; what it showed was verified, or the handshake had failed.
        der = secured.getpeercert(binary_form=True)
        return {PEER_CERTIFICATE: der} if der else {}
    opened = transport.get_extra_info("socket")
    if opened is None or opened.family != socket.AF_UNIX:
        return {}
    _, uid, _ = _CREDENTIALS.unpack(opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return {PEER_UID: uid}


class ApiServer(uvicorn.Server):
    """uvicorn inside our event loop: signals are ours, the socket is open already."""

    def __init__(self, app: ASGIApp, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=type("_Protocol", (BoundedProtocol,), {"header_s": float(limits.header_s)}),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_graceful_shutdown=int(GRACE_S),
        )
        config.load()
        config.ssl = tls
        self._handshake_s = limits.handshake_s
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve the sockets. uvicorn's own start has no say about the time that a handshake may take."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]  # uvicorn's types are of several
                config=self.config, server_state=self.server_state, app_state={}
            )
            return made

        tls = self.config.ssl
        handshake_s = None if tls is None else float(self._handshake_s)
        self.servers = [
            await loop.create_server(
                protocol, sock=each, ssl=tls, backlog=self.config.backlog, ssl_handshake_timeout=handshake_s
            )
            for each in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True
