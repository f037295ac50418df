"""The transport of delta ADS: grpc.aio around the hub. It reads, writes and identifies; it decides nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol

import grpc
import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from google.protobuf.message import DecodeError

from hostmesh_api.wire import ADS_METHOD, ADS_SERVICE, AGENT_METADATA, ORIGIN_METADATA
from hostmesh_controller import xds
from hostmesh_controller.clones import Sighting, sighting
from hostmesh_controller.hub import Connection, Hub, TooManyNamesError
from hostmesh_controller.peers import peer_address

Context = grpc.aio.ServicerContext[bytes, bytes]
Identify = Callable[[Context], Awaitable[str]]
"""Returns the calling host's name from its verified certificate, or aborts the call."""

Seen = Callable[[str, Sighting], Awaitable[None]]
Told = Callable[[str, str], Awaitable[None]]


class Presence(Protocol):
    """Who wants to know which hosts have a stream."""

    def connected(self, host: str) -> None: ...
    def ended(self, host: str) -> None: ...


_log = structlog.get_logger(__name__)


class _RefusedError(Exception):
    """The peer must be told and the stream ended."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class AdsServer:
    """Serves DeltaAggregatedResources to agents; `seen` is told which agent opens the stream of a host."""

    def __init__(
        self,
        hub: Hub,
        identify: Identify,
        seen: Seen,
        allow: Callable[[str, int], bool] = lambda _host, _bytes: True,
        *,
        presence: Presence | None = None,
        told: Told | None = None,
    ) -> None:
        """`allow` tells whether a host may send a request of so many bytes now.

        `told` hears what an agent that opens a stream knows of the store, before it gets anything.
        """
        self._told = told
        self._hub = hub
        self._identify = identify
        self._seen = seen
        self._allow = allow
        self._presence = presence

    def handler(self) -> "grpc.GenericRpcHandler[bytes, bytes]":
        """Return the handler to add to a grpc.aio server.

        Responses are bytes already. Requests are read here and not by gRPC, which would log a peer's garbage as a
        fault of this server.
        """
        method = grpc.stream_stream_rpc_method_handler(
            self._stream, request_deserializer=None, response_serializer=None
        )
        return grpc.method_handlers_generic_handler(ADS_SERVICE, {ADS_METHOD: method})

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        host = await self._identify(context)
        if not xds.knows_host(self._hub.mesh, host):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"host {host!r} is not registered; register it again with: hostmesh register {host}",
            )
        # Only with this does an agent write: a write that meets a refusal hides its reason from the agent.
        await context.send_initial_metadata(())
        wake = asyncio.Event()
        connection = self._hub.connect(host, context.peer(), datetime.now(UTC), wake.set)
        if self._presence is not None:
            self._presence.connected(host)
        log = _log.bind(host=host, peer=context.peer())
        log.info("proxy connected")
        reader = asyncio.ensure_future(self._read(requests, connection, wake, peer_address(context.peer())))
        try:
            await self._write(context, connection, wake, reader)
        except _RefusedError as refused:
            log.warning("proxy refused", reason=refused.message)
            await context.abort(refused.code, refused.message)
        finally:
            reader.cancel()
            self._hub.disconnect(connection)
            if self._presence is not None:
                self._presence.ended(host)
            log.info("proxy disconnected")

    async def _write(
        self, context: Context, connection: Connection, wake: asyncio.Event, reader: "asyncio.Future[None]"
    ) -> None:
        while not connection.closed:
            await wake.wait()
            wake.clear()
            for push in self._hub.pushes(connection):
                await context.write(push.data)
            if reader.done():
                reader.result()
                return
        raise _RefusedError(grpc.StatusCode.ABORTED, "another stream of this host took over, or the host was removed")

    async def _read(
        self, requests: AsyncIterator[bytes], connection: Connection, wake: asyncio.Event, address: str
    ) -> None:
        seen = False
        try:
            async for data in requests:
                if not self._allow(connection.host, len(data)):
                    msg = f"host {connection.host!r} sends more than it may in a minute; try again later"
                    raise _RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, msg)
                try:
                    request = DeltaDiscoveryRequest.FromString(data)
                except DecodeError as error:
                    raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "not a DeltaDiscoveryRequest") from error
                if not seen and request.HasField("node"):
                    seen = True
                    await self._seen(connection.host, _sighting(request, address))
                    if self._told is not None:
                        await self._told(connection.host, request.node.metadata.fields[ORIGIN_METADATA].string_value)
                # Waking the writer for each acknowledgement, for nothing, was a tenth of a push's cost.
                if self._take(request, connection):
                    wake.set()
        finally:
            wake.set()

    def _take(self, request: DeltaDiscoveryRequest, connection: Connection) -> bool:
        if request.node.id and request.node.id != connection.host:
            raise _RefusedError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"node id {request.node.id!r} is not the host of the certificate, {connection.host!r}",
            )
        if request.HasField("error_detail"):
            _log.warning(
                "proxy refused configuration",
                host=connection.host,
                type_url=request.type_url,
                reason=request.error_detail.message[:2000],
            )
        try:
            return self._hub.receive(connection, request, datetime.now(UTC))
        except TooManyNamesError as error:
            raise _RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from error


def _sighting(request: DeltaDiscoveryRequest, address: str) -> Sighting:
    said = request.node.metadata.fields
    agent, boot_id, machine = (said[name].string_value if name in said else "" for name in AGENT_METADATA)
    return sighting(agent, boot_id, machine, address)
