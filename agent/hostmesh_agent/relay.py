"""The transport of the exchange: Envoy on a unix socket, the controller over mutual TLS.

Both are grpc.aio streams of delta ADS. Everything that decides is in `exchange`; this module reads, writes, waits and
reconnects.
"""

import asyncio
import os
import pwd
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from google.protobuf.struct_pb2 import Struct

from hostmesh_agent.cache import Cache
from hostmesh_agent.cold import Cold
from hostmesh_agent.exchange import Exchange, Extensions
from hostmesh_agent.gate import CURE
from hostmesh_agent.handshake import WITHIN_S, Upstream, taken
from hostmesh_agent.overdue import Overdue
from hostmesh_agent.places import BLUE, GREEN, INSTANCE_METADATA, Doorway, Instance, doorways
from hostmesh_agent.refusals import Refusal
from hostmesh_agent.shrink import OPENING_S, WAIT_S
from hostmesh_agent.state import StateError
from hostmesh_api.delta import ClientStream, Resource
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_api.wire import (
    ADS_METHOD,
    ADS_SERVICE,
    COLD_TYPE,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    ORIGIN_METADATA,
)

_REFUSALS: Final = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_LAST_S: Final = 15.0
STABLE_S: Final = 10.0
"""A stream that lived this long starts the back-off anew."""
PATIENCE_S: Final = 5.0
"""How long the controller may be away before unknown names are answered as absent: longer than its restart."""
RETRY_FIRST_S: Final = 15.0
RETRY_LAST_S: Final = 300.0
"""How long after Envoy refused something it is offered it again: a missing file may be there, a taken port free. The
agent tries a HostConfig again that it refused: the disk may have room, who is root may answer."""

Context = grpc.aio.ServicerContext[DeltaDiscoveryRequest, bytes]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RelayState:
    """What the agent's status says of its configuration."""

    connected: bool
    since: datetime | None
    """When the present stream began; None while there is none."""
    last_error: str
    envoy_connected: bool
    accepted: Mapping[str, int]
    """Type URL to the number of resources that Envoy accepted."""
    refusals: tuple[Refusal, ...]
    lost: str
    """Why the last-known-good configuration on disk could not be read; empty when it could."""
    problems: tuple[str, ...] = ()
    """What of the configuration is held back, and what is wrong with the cold copy; one sentence each."""
    cold_copy: Mapping[str, int] | None = None
    """How many `services` are in the cold copy and how many `bytes` it has; None: there is none."""


class Relay:
    """Keeps Envoy's configuration stream answered and the controller's stream open.

    `connect` makes a channel to the controller for each attempt; `on_host_config` applies the agent's own
    configuration and raises to refuse it. `host_refuses` is as that of the exchange.
    """

    def __init__(
        self,
        *,
        cache: Cache,
        socket: Path,
        envoy_uid: int,
        host: str,
        node_metadata: Mapping[str, bool | str],
        connect: Callable[[], grpc.aio.Channel],
        on_host_config: Callable[[HostConfig], Awaitable[None]],
        retry_first_s: float = RETRY_FIRST_S,
        extensions: Extensions | None = None,
        cold: Cold | None = None,
        accept_after_s: float = 0.0,
        opening_s: float = OPENING_S,
        taken_within_s: float = WITHIN_S,
        changed: Callable[[], None] = lambda: None,
        reached: Callable[[], None] = lambda: None,
        host_refuses: Callable[[str, Resource], str] = lambda *_: "",
        uses_clients: Callable[[Instance], bool] = lambda _: False,
    ) -> None:
        """`uses_clients` tells whether an Envoy may use its clients' addresses.

        `accept_after_s`: after so long what is held back is taken; 0: never. `opening_s`: after so long a stream has
        said what is different. `taken_within_s`: for so long the controller may take to take a stream.

        `changed` is called when the problems of `state` are others, `reached` when the controller is.
        """
        self._cache = cache
        self._cold = cold
        self._overdue = Overdue(accept_after_s)
        self._opening_s = opening_s
        self._taken_within_s = taken_within_s
        self._changed = changed
        self._reached = reached
        self._is_holding = False
        self._is_opening = True
        self._accepting: asyncio.TimerHandle | None = None
        self._uses_clients = uses_clients
        self._deciding: asyncio.TimerHandle | None = None
        self._opening: asyncio.TimerHandle | None = None
        self._kept_origin = cache.origin()
        self._exchange = Exchange(
            cache.entries(), extensions=extensions, cold=cold, host_refuses=host_refuses, origin=self._kept_origin
        )
        self._socket = socket
        self._envoy_uid = envoy_uid
        self._host = host
        self._metadata = Struct()
        self._metadata.update(dict(node_metadata))
        self._connect = connect
        self._on_host_config = on_host_config
        self._outbox: asyncio.Queue[DeltaDiscoveryRequest] = asyncio.Queue()
        self._wakes: dict[Instance, asyncio.Event] = {}
        self._judge = BLUE
        self._own_changed = asyncio.Event()
        self._disk = asyncio.Event()
        self._connected_at: datetime | None = None
        self._last_error = self._refused = ""
        self._call: Upstream | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._retry_first_s = self._retry_s = retry_first_s
        self._hurry = asyncio.Event()

    def state(self) -> RelayState:
        """Return what is true now."""
        return RelayState(
            connected=self._connected_at is not None,
            since=self._connected_at,
            last_error=self._last_error,
            envoy_connected=self._judge in self._wakes,
            accepted=self._exchange.accepted(),
            refusals=tuple(self._exchange.refusals),
            lost=self._cache.lost,
            problems=tuple(self._problems()),
            cold_copy=None if self._cold is None else self._cold.size,
        )

    def _problems(self) -> Iterator[str]:
        if self._exchange.held_back:
            yield f"configuration is held back: {self._exchange.held_back}; {CURE}"
        if self._cold is not None:
            yield from self._cold.problems()

    def host_config(self) -> HostConfig | None:
        """Return the newest HostConfig, from disk before the controller is reached; None before the first ever."""
        resource = self._exchange.host_config()
        return None if resource is None else host_config(resource.body)

    def accepted_version(self, type_url: str, name: str) -> str | None:
        """Return the version of a resource that Envoy has accepted, now or in an earlier life; None if none."""
        return self._exchange.accepted_version(type_url, name)

    def judged_by(self, instance: Instance) -> None:
        """Take the word of this one of the two Envoys for what is good and what is not."""
        self._judge = instance
        self._exchange.judged_by(instance)
        self._wake_envoy()

    def lacks(self, instance: Instance) -> tuple[str, ...]:
        """Say what an Envoy does not have of what is accepted; empty if it has all."""
        return self._exchange.lacks(instance)

    def doorways(self) -> frozenset[Doorway]:
        """Return the ports that Envoy itself listens on, beside the well-known ones."""
        return frozenset(way for each in self._exchange.held(LISTENER_TYPE) for way in doorways(each))

    def accepted_resource(self, type_url: str, name: str) -> Resource | None:
        """Return a resource that Envoy has accepted, now or in an earlier life; None if none."""
        return self._exchange.accepted_resource(type_url, name)

    def try_again(self) -> None:
        """Offer once more what Envoy refused, or the agent, now that files have changed, or time has passed."""
        own = self._exchange.host_config()
        self._exchange.try_again()
        self._go_on(own)

    def extension_decided(self, name: str) -> None:
        """Offer Envoy an extension's configuration again: what it needs is here now, or something stands for it."""
        self._exchange.extension_decided(name)
        self._wake_envoy()

    def reconnect(self) -> None:
        """End the present stream to the controller, or the wait for one; a new one is opened by `connect` at once."""
        self._hurry.set()
        if self._call is not None:
            self._call.cancel()

    async def run(self) -> None:
        """Serve Envoy and follow the controller until cancelled."""
        server = await self._serve()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._apply_own())
                group.create_task(self._write_disk())
                if self._cold is not None:
                    group.create_task(self._cold.run(lambda request: self._tell([request])))
        finally:
            if self._retry is not None:
                self._retry.cancel()
            for timer in (self._accepting, self._deciding, self._opening):
                if timer is not None:
                    timer.cancel()
            await server.stop(grace=None)
            await self._save()

    # Envoy

    async def _serve(self) -> grpc.aio.Server:
        self._socket.unlink(missing_ok=True)
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
        method = grpc.stream_stream_rpc_method_handler(
            self._envoy, request_deserializer=DeltaDiscoveryRequest.FromString, response_serializer=None
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ADS_SERVICE, {ADS_METHOD: method}),))
        previous = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{self._socket}")
            await server.start()
        finally:
            os.umask(previous)
        _admit(self._socket, self._envoy_uid)
        return server

    async def _envoy(self, requests: AsyncIterator[DeltaDiscoveryRequest], context: Context) -> None:
        instance, wake = _caller(context), asyncio.Event()
        self._wake_envoy()
        self._wakes[instance] = wake
        self._exchange.envoy_connected(instance, uses_clients=self._uses_clients(instance))
        _log.info("envoy connected", instance=instance)
        reader = asyncio.ensure_future(self._read_envoy(requests, wake, instance))
        try:
            while self._wakes.get(instance) is wake and not reader.done():
                for push in self._exchange.pushes(instance):
                    await context.write(push.data)
                self._settle()
                await wake.wait()
                wake.clear()
        finally:
            reader.cancel()
            if self._wakes.get(instance) is wake:
                del self._wakes[instance]
                self._exchange.envoy_disconnected(instance)
            _log.info("envoy disconnected", instance=instance)

    async def _read_envoy(
        self, requests: AsyncIterator[DeltaDiscoveryRequest], wake: asyncio.Event, instance: Instance
    ) -> None:
        try:
            async for request in requests:
                if self._wakes.get(instance) is not wake:
                    return
                if request.HasField("error_detail"):
                    message = request.error_detail.message[:2000]
                    _log.error("envoy refused configuration", type_url=request.type_url, reason=message)
                self._tell(self._exchange.receive(request, datetime.now(UTC), instance))
                wake.set()
        finally:
            wake.set()

    def _settle(self) -> None:
        self._tell(self._exchange.settle(datetime.now(UTC)))
        self._disk.set()
        self._retry_later()

    def _retry_later(self) -> None:
        if self._retry is None and self._exchange.has_refused():
            self._retry = asyncio.get_running_loop().call_later(self._retry_s, self._retry_refused)

    def _retry_refused(self) -> None:
        self._retry = None
        self._retry_s = min(self._retry_s * 2, RETRY_LAST_S)
        self.try_again()

    def _tell(self, requests: Iterable[DeltaDiscoveryRequest]) -> None:
        if self._connected_at is not None:
            for request in requests:
                self._outbox.put_nowait(request)

    # The controller

    async def _follow(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        impatience = _Impatience(self._cut_off)
        impatience.start()
        while True:
            started = datetime.now(UTC)
            try:
                await self._stream(impatience)
            except (grpc.aio.AioRpcError, OSError, StateError, sqlite3.Error) as error:
                self._failed(error)
            finally:
                self._lost_controller()
            lived_s = (datetime.now(UTC) - started).total_seconds()
            backoff_s = BACKOFF_FIRST_S if lived_s > STABLE_S else min(backoff_s * 2, BACKOFF_LAST_S)
            wait_s = random.uniform(backoff_s / 2, backoff_s)  # noqa: S311 - jitter, not a secret
            _log.warning("controller not connected", reason=self._last_error, retry_in_s=round(wait_s, 1))
            impatience.start()
            await self._pause(wait_s)

    def _failed(self, error: Exception) -> None:
        """Note why there is no stream: because of the controller, or of this host (descriptors, disk)."""
        said, is_refusal = str(error) or type(error).__name__, False
        if isinstance(error, grpc.aio.AioRpcError):
            said, is_refusal = f"{error.code().name}: {error.details() or 'no details'}", error.code() in _REFUSALS
        if is_refusal:
            self._refused = said
        elif self._refused and isinstance(error, grpc.aio.AioRpcError | TimeoutError):
            # Another address that is dead says less than the controller that answered.
            said = f"{self._refused} (another address: {said})"
        self._last_error = said

    async def _pause(self, wait_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._hurry.wait()
        self._hurry.clear()

    def _cut_off(self) -> None:
        self._exchange.cut_off()
        self._wake_envoy()

    def _lost_controller(self) -> None:
        self._connected_at = None
        self._call = None
        if self._opening is not None:
            self._opening.cancel()
        self._is_opening = True
        self._overdue.interrupt(asyncio.get_running_loop().time())
        self._exchange.disconnected()
        self._watch_guard()
        if self._cold is not None:
            self._cold.disconnected()
            # What waits for the controller may be in the cold copy.
            self._wake_envoy()
        self._outbox = asyncio.Queue()

    async def _stream(self, impatience: "_Impatience") -> None:
        async with self._connect() as channel:
            method = channel.stream_stream(
                f"/{ADS_SERVICE}/{ADS_METHOD}",
                request_serializer=DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=DeltaDiscoveryResponse.FromString,
            )
            # grpc's stubs miss that without an iterator the call is written to with write().
            call: Upstream = method()  # type: ignore[call-arg]
            self._call = call
            if not await taken(call, self._hurry, self._taken_within_s):
                self._last_error = "reconnecting"
                return
            self._connected_at = datetime.now(UTC)
            self._last_error = self._refused = ""
            impatience.stop()
            _log.info("controller connected")
            self._reached()
            opening = self._exchange.connected()
            self._opening = asyncio.get_running_loop().call_later(self._opening_s, self._opening_over)
            opening[0].node.id = self._host
            opening[0].node.metadata.CopyFrom(self._metadata)
            opening[0].node.metadata[ORIGIN_METADATA] = str(self._exchange.origin or "")
            self._tell(opening)
            if self._cold is not None:
                self._tell([self._cold.opening()])
            writer = asyncio.ensure_future(self._write_controller(call, self._outbox))
            try:
                async for response in call:
                    self._take(response)
            except asyncio.CancelledError:
                if not call.cancelled() or _being_cancelled():
                    raise
                self._last_error = "reconnecting"
            finally:
                writer.cancel()
                call.cancel()
        if not self._last_error:
            self._last_error = "the controller ended the stream"

    @staticmethod
    async def _write_controller(call: Upstream, outbox: "asyncio.Queue[DeltaDiscoveryRequest]") -> None:
        while True:
            await call.write(await outbox.get())

    def _take(self, response: DeltaDiscoveryResponse) -> None:
        if response.type_url == COLD_TYPE:
            if self._cold is not None:
                self._cold.take(response)
            return
        own = self._exchange.host_config()
        self._tell(self._exchange.update(ClientStream.update(response)))
        self._retry_s = self._retry_first_s
        self._watch_guard()
        if response.type_url == HOST_CONFIG_TYPE:
            self._own_changed.set()
        self._go_on(own)

    def _go_on(self, own: Resource | None) -> None:
        """Apply what came; `own` is the HostConfig from before."""
        if self._exchange.host_config() is not own:
            self._own_changed.set()
        self._wake_envoy()

    # What is held back

    def accept(self) -> str:
        """Take what is held back; return what is lost by that, in words ("": nothing was held back)."""
        reason, own = self._exchange.held_back, self._exchange.host_config()
        self._tell(self._exchange.accept())
        self._overdue.end()
        self._watch_guard()
        self._go_on(own)
        if reason:
            _log.warning("what was held back is taken", reason=reason)
        return reason

    def _opening_over(self) -> None:
        self._is_opening = False
        self._exchange.opening_over()
        if not self._is_holding:
            self._overdue.end()

    def _watch_guard(self) -> None:
        """Take what is held back by itself if it stays so for long: a host must not miss everything for ever."""
        reason = self._exchange.held_back
        if self._exchange.undecided and self._deciding is None:
            self._deciding = asyncio.get_running_loop().call_later(WAIT_S, self._decide)
        elif not self._exchange.undecided and self._deciding is not None:
            self._deciding.cancel()
            self._deciding = None
        if self._exchange.origin_to_keep() != self._kept_origin:
            self._disk.set()
        if bool(reason) is self._is_holding:
            return
        self._is_holding = bool(reason)
        if reason:
            _log.error("configuration is held back", reason=reason, cure=CURE)
            loop = asyncio.get_running_loop()
            in_s = self._overdue.begin(loop.time())
            self._accepting = None if in_s is None else loop.call_later(in_s, self.accept)
        else:
            if self._accepting is not None:
                self._accepting.cancel()
                self._accepting = None
            if not self._is_opening:
                self._overdue.end()
        self._changed()

    def _decide(self) -> None:
        self._deciding = None
        own = self._exchange.host_config()
        self._exchange.decide()
        self._go_on(own)

    def _wake_envoy(self) -> None:
        for wake in self._wakes.values():
            wake.set()

    # The agent's own configuration

    async def _apply_own(self) -> None:
        error = ""
        while True:
            await self._own_changed.wait()
            self._own_changed.clear()
            own = self._exchange.host_config()
            before, error = error, ""
            if own is not None:
                try:
                    await self._on_host_config(host_config(own.body))
                except Exception as refused:
                    error = str(refused) or type(refused).__name__
                    # Told once: it is tried again and again.
                    if error != before:
                        _log.error("host configuration refused", reason=error, exc_info=refused)
            if self._exchange.host_config() is not own:
                # A newer one came meanwhile, and is next.
                if own is not None and not error:
                    self._exchange.own_in_force(own)
                continue
            self._tell(self._exchange.own_settled(error, datetime.now(UTC)))
            self._disk.set()
            self._retry_later()
            self._wake_envoy()

    # The disk

    async def _write_disk(self) -> None:
        while True:
            await self._disk.wait()
            self._disk.clear()
            await self._save()

    async def _save(self) -> None:
        changes, origin = self._exchange.take_changes(), self._exchange.origin_to_keep()
        if not changes and origin == self._kept_origin:
            return
        # Before it is written: whoever ends this wait does not end the write.
        kept, self._kept_origin = self._kept_origin, origin
        try:
            await asyncio.to_thread(self._cache.write, changes, origin)
        except sqlite3.Error as error:
            self._kept_origin = kept
            self._exchange.return_changes(changes)
            _log.error("last-known-good configuration could not be written", reason=str(error))


class _Impatience:
    """Calls back once when the controller has been away for `PATIENCE_S`."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._call)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _caller(context: Context) -> Instance:
    """Return which Envoy calls: it says so itself. Both are one user's, and have the same rights."""
    said = dict(context.invocation_metadata() or ()).get(INSTANCE_METADATA, "")
    return GREEN if said == GREEN else BLUE


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def host_config(body: bytes) -> HostConfig:
    """Read a HostConfig out of a resource as the cache keeps it."""
    config = HostConfig()
    ResourceMessage.FromString(body).resource.Unpack(config)
    return config


def _admit(path: Path, uid: int) -> None:
    """Let Envoy's user connect to a socket, which nobody else but root may."""
    if os.geteuid() in (0, uid):
        os.chown(path, uid, -1)
    else:
        os.chown(path, -1, pwd.getpwuid(uid).pw_gid)
        path.chmod(0o660)
