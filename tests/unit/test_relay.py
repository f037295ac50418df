"""The relay over real gRPC streams: a controller on one unix socket, Envoy's side on another."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from errno import EMFILE
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from structlog.testing import capture_logs

from hostmesh_agent.cache import Cache
from hostmesh_agent.handshake import WITHIN_S
from hostmesh_agent.relay import RETRY_FIRST_S, Relay
from hostmesh_agent.shrink import OPENING_S
from hostmesh_agent.state import StateError
from hostmesh_api.delta import Answer, ClientStream, Resource, ServerStream
from hostmesh_api.origin import Origin, origin_field
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_api.wire import (
    ADS_METHOD,
    ADS_SERVICE,
    CLUSTER_TYPE,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    SECRET_TYPE,
)
from waiting import until

BOUND_S = 10.0

Context = grpc.aio.ServicerContext[DeltaDiscoveryRequest, bytes]


def resource(name: str, version: str) -> Resource:
    return Resource(name, version, ResourceMessage(name=name, version=version).SerializeToString())


def host_config(host: str, version: str) -> Resource:
    message = ResourceMessage(name="self", version=version)
    message.resource.Pack(HostConfig(host=host))
    return Resource("self", version, message.SerializeToString())


@dataclass
class Controller:
    """A controller that serves what the test puts on its shelf, with the real server stream."""

    socket: Path
    shelf: dict[str, dict[str, Resource]] = field(default_factory=dict)
    requests: list[DeltaDiscoveryRequest] = field(default_factory=list)
    sent: list[tuple[str, ...]] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    stream: ServerStream | None = None
    origin: Origin | None = None
    refusal: str = ""
    refused: int = 0
    hangs: bool = False
    """It takes no stream and refuses none."""

    def names(self, type_url: str) -> list[str]:
        return list(self.shelf.get(type_url, {}))

    def answer(self, type_url: str, name: str) -> Answer:
        return Answer(self.shelf.get(type_url, {}).get(name))

    def take_away(self, type_url: str) -> None:
        self.shelf[type_url] = {}
        if self.stream is not None:
            self.stream.mark_all()
        self.wake.set()

    def put(self, type_url: str, *resources: Resource) -> None:
        self.shelf.setdefault(type_url, {}).update({each.name: each for each in resources})
        if self.stream is not None:
            self.stream.mark_all()
        self.wake.set()

    async def serve(self, requests: AsyncIterator[DeltaDiscoveryRequest], context: Context) -> AsyncIterator[bytes]:
        if self.refusal:
            self.refused += 1
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refusal)
        if self.hangs:
            await asyncio.Event().wait()
        await context.send_initial_metadata(())
        self.stream = stream = ServerStream()
        wake = self.wake = asyncio.Event()

        async def read() -> None:
            async for request in requests:
                self.requests.append(request)
                stream.receive(request)
                wake.set()

        reader = asyncio.ensure_future(read())
        try:
            while not reader.done():
                for push in stream.pushes(self):
                    self.sent.append((*push.names, *push.removed))
                    yield push.data + (b"" if self.origin is None else origin_field(self.origin))
                await wake.wait()
                wake.clear()
        finally:
            reader.cancel()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Controller"]:
        server = grpc.aio.server()
        method = grpc.stream_stream_rpc_method_handler(
            self.serve, request_deserializer=DeltaDiscoveryRequest.FromString, response_serializer=None
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ADS_SERVICE, {ADS_METHOD: method}),))
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(grace=None)


class Envoy:
    """Envoy's side of the relay: asks, and acknowledges or refuses as told."""

    def __init__(self, call: grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]) -> None:
        self._call = call

    async def ask(self, type_url: str, *names: str) -> None:
        await self._call.write(DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names))

    async def next(self) -> DeltaDiscoveryResponse:
        async with asyncio.timeout(BOUND_S):
            response = await self._call.read()
        assert isinstance(response, DeltaDiscoveryResponse)
        return response

    async def ack(self, response: DeltaDiscoveryResponse) -> None:
        await self._call.write(ClientStream.ack(response.type_url, response.nonce))

    async def nack(self, response: DeltaDiscoveryResponse, why: str) -> None:
        await self._call.write(ClientStream.nack(response.type_url, response.nonce, why))


@asynccontextmanager
async def envoy(socket: Path) -> AsyncIterator[Envoy]:
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        method = channel.stream_stream(
            f"/{ADS_SERVICE}/{ADS_METHOD}",
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        call = method()  # type: ignore[call-arg] # the stubs miss that a call can be written to
        await call.wait_for_connection()
        yield Envoy(call)
        call.cancel()


async def ignore(config: HostConfig) -> None:
    del config


@asynccontextmanager
async def relaying(
    directory: Path,
    on_host_config: Callable[[HostConfig], Awaitable[None]] = ignore,
    retry_first_s: float = RETRY_FIRST_S,
    accept_after_s: float = 0.0,
    opening_s: float = OPENING_S,
    sockets: Iterable[str] = (),
    reached: Callable[[], None] = lambda: None,
    changed: Callable[[], None] = lambda: None,
    taken_within_s: float = WITHIN_S,
    before_dial: Callable[[], None] = lambda: None,
) -> AsyncIterator[Relay]:
    """`sockets` are where the first connections go, and the last of them all later ones."""
    places = chain(sockets, repeat("controller.sock"))

    def connect() -> grpc.aio.Channel:
        before_dial()
        return grpc.aio.insecure_channel(f"unix:{directory / next(places)}")

    cache = Cache(directory / "cache")
    relay = Relay(
        cache=cache,
        socket=directory / "xds.sock",
        envoy_uid=-1,
        host="shop",
        node_metadata={"IPV6": True},
        connect=connect,
        taken_within_s=taken_within_s,
        reached=reached,
        changed=changed,
        on_host_config=on_host_config,
        retry_first_s=retry_first_s,
        accept_after_s=accept_after_s,
        opening_s=opening_s,
    )
    task = asyncio.ensure_future(relay.run())
    try:
        await until((directory / "xds.sock").exists)
        yield relay
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cache.close()


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path / "controller.sock")


async def test_envoy_gets_what_the_controller_sends_and_its_refusal_gets_back(
    tmp_path: Path, controller: Controller
) -> None:
    controller.put(LISTENER_TYPE, resource("in", "1"))
    async with controller.running(), relaying(tmp_path), envoy(tmp_path / "xds.sock") as proxy:
        await proxy.ask(LISTENER_TYPE)
        response = await proxy.next()
        assert [each.name for each in response.resources] == ["in"]
        await proxy.ack(response)
        await until(lambda: any(each.response_nonce for each in controller.requests))
        assert controller.requests[0].node.id == "shop"
        controller.put(LISTENER_TYPE, resource("in", "2"))
        await proxy.nack(await proxy.next(), "filter is bad")
        await until(lambda: controller.requests[-1].error_detail.message == "in: filter is bad")


async def test_what_envoy_refused_is_offered_again_after_a_while_and_told_once(
    tmp_path: Path, controller: Controller
) -> None:
    controller.put(SECRET_TYPE, resource("file-cert:/c~/k", "1"))
    async with (
        controller.running(),
        relaying(tmp_path, retry_first_s=0.05) as relay,
        envoy(tmp_path / "xds.sock") as proxy,
    ):
        await proxy.ask(SECRET_TYPE, "file-cert:/c~/k")
        for _ in range(3):
            await proxy.nack(await proxy.next(), "no such file")
        await proxy.ack(await proxy.next())
        await until(lambda: relay.accepted_version(SECRET_TYPE, "file-cert:/c~/k") == "1")
        assert [each.message for each in relay.state().refusals] == ["no such file"]
        assert [each.error_detail.message for each in controller.requests if each.HasField("error_detail")] == [
            "file-cert:/c~/k: no such file"
        ]


async def test_a_second_life_answers_from_disk_while_the_controller_is_away(
    tmp_path: Path, controller: Controller
) -> None:
    controller.put(LISTENER_TYPE, resource("in", "1"))
    controller.put(CLUSTER_TYPE, resource("own", "1"), resource("used", "1"))
    async with controller.running(), relaying(tmp_path), envoy(tmp_path / "xds.sock") as proxy:
        for type_url in (LISTENER_TYPE, CLUSTER_TYPE):
            await proxy.ask(type_url)
            await proxy.ack(await proxy.next())
        await until(lambda: len([each for each in controller.requests if each.response_nonce]) == 2)
    async with relaying(tmp_path) as relay, envoy(tmp_path / "xds.sock") as proxy:
        assert not relay.state().connected
        await proxy.ask(LISTENER_TYPE)
        assert [each.version for each in (await proxy.next()).resources] == ["1"]


async def test_a_controller_that_comes_back_with_the_same_content_sends_nothing(
    tmp_path: Path, controller: Controller
) -> None:
    controller.put(HOST_CONFIG_TYPE, host_config("shop", "1"))
    controller.put(LISTENER_TYPE, resource("in", "1"))
    async with relaying(tmp_path) as relay, envoy(tmp_path / "xds.sock") as proxy:
        await proxy.ask(LISTENER_TYPE)
        async with controller.running():
            await proxy.ack(await proxy.next())
            await until(lambda: len([each for each in controller.requests if each.response_nonce]) == 2)
        await until(lambda: not relay.state().connected)
        controller.sent.clear()
        controller.requests.clear()
        async with controller.running():
            await until(lambda: any(each.type_url == LISTENER_TYPE for each in controller.requests))
            controller.put(LISTENER_TYPE, resource("in", "2"))
            response = await proxy.next()
            assert [each.version for each in response.resources] == ["2"]
            assert controller.sent == [("in",)]


async def test_the_agents_own_configuration_is_applied_and_a_refusal_is_told(
    tmp_path: Path, controller: Controller
) -> None:
    applied: list[str] = []

    async def apply(config: HostConfig) -> None:
        if config.host == "bad":
            raise ValueError("port 22 is not to be captured")
        applied.append(config.host)

    controller.put(HOST_CONFIG_TYPE, host_config("shop", "1"))
    async with controller.running(), relaying(tmp_path, apply) as relay:
        await until(lambda: applied == ["shop"])
        controller.put(HOST_CONFIG_TYPE, host_config("bad", "2"))
        await until(lambda: controller.requests[-1].error_detail.message == "self: port 22 is not to be captured")
        config = relay.host_config()
        assert config is not None
        assert config.host == "shop"
        assert relay.state().refusals[-1].message == "port 22 is not to be captured"


async def test_a_host_config_that_could_not_be_applied_is_tried_again_also_without_an_envoy(
    tmp_path: Path, controller: Controller
) -> None:
    tried: list[str] = []

    async def apply(config: HostConfig) -> None:
        tried.append(config.host)
        if len(tried) < 3:
            raise OSError("no space left on device")

    controller.put(HOST_CONFIG_TYPE, host_config("shop", "1"))
    with capture_logs() as logs:
        async with controller.running(), relaying(tmp_path, apply, retry_first_s=0.05) as relay:
            await until(lambda: relay.accepted_version(HOST_CONFIG_TYPE, "self") == "1")
        assert tried == ["shop"] * 3
        assert [each["event"] for each in logs].count("host configuration refused") == 1
        assert [each.error_detail.message for each in controller.requests if each.response_nonce] == [
            "self: no space left on device"
        ]


async def test_a_host_config_that_came_while_another_was_applied_counts_once_it_is_applied_itself(
    tmp_path: Path, controller: Controller
) -> None:
    begun: list[str] = []
    may_end = {"old": asyncio.Event(), "new": asyncio.Event()}

    async def apply(config: HostConfig) -> None:
        begun.append(config.host)
        await may_end[config.host].wait()

    def newest(relay: Relay) -> str:
        config = relay.host_config()
        return "" if config is None else config.host

    controller.put(HOST_CONFIG_TYPE, host_config("old", "1"))
    async with controller.running(), relaying(tmp_path, apply) as relay:
        await until(lambda: begun == ["old"])
        controller.shelf[HOST_CONFIG_TYPE] = {"self": host_config("new", "2")}
        relay.reconnect()
        await until(lambda: newest(relay) == "new")
        may_end["old"].set()
        await until(lambda: begun == ["old", "new"])
        assert relay.accepted_version(HOST_CONFIG_TYPE, "self") == "1", "that is in force"
        assert not any(each.response_nonce for each in controller.requests)
        may_end["new"].set()
        await until(lambda: any(each.response_nonce for each in controller.requests))
        assert relay.accepted_version(HOST_CONFIG_TYPE, "self") == "2"


async def test_a_new_envoy_takes_over_from_one_that_hangs(tmp_path: Path, controller: Controller) -> None:
    controller.put(LISTENER_TYPE, resource("in", "1"))
    async with controller.running(), relaying(tmp_path), envoy(tmp_path / "xds.sock") as old:
        await old.ask(LISTENER_TYPE)
        await old.ack(await old.next())
        async with envoy(tmp_path / "xds.sock") as new:
            await new.ask(LISTENER_TYPE)
            await new.ack(await new.next())


async def test_a_reconnect_opens_a_new_stream(tmp_path: Path, controller: Controller) -> None:
    async with controller.running(), relaying(tmp_path) as relay:
        await until(lambda: relay.state().connected)
        first = relay.state().since
        relay.reconnect()
        await until(lambda: relay.state().connected and relay.state().since != first)


async def test_a_refusal_is_told_in_its_own_words_and_is_no_connection(tmp_path: Path, controller: Controller) -> None:
    controller.refusal = "it was expelled"
    heard: list[bool] = []
    told: set[str] = set()

    def refused(times: int) -> bool:
        told.add(relay.state().last_error)
        return controller.refused > times and relay.state().last_error != "reconnecting"

    async with controller.running(), relaying(tmp_path, reached=lambda: heard.append(True)) as relay:
        for _ in range(20):
            before = controller.refused
            relay.reconnect()
            await until(partial(refused, before))
    assert told - {"", "reconnecting"} == {"PERMISSION_DENIED: it was expelled"}
    assert not heard


async def test_a_refusal_is_not_hidden_by_another_address_that_is_dead(tmp_path: Path, controller: Controller) -> None:
    controller.refusal = "it was expelled"
    places = ["controller.sock", *["nobody.sock"] * 20]
    async with controller.running(), relaying(tmp_path, sockets=places) as relay:
        await until(lambda: "another address: UNAVAILABLE" in relay.state().last_error)
        assert relay.state().last_error.startswith("PERMISSION_DENIED: it was expelled (")


async def test_a_connection_that_never_stands_is_given_up_for_another_at_once(
    tmp_path: Path, controller: Controller
) -> None:
    heard: list[bool] = []
    with socket(AF_UNIX, SOCK_STREAM) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        here = relaying(tmp_path, sockets=["silent.sock"], reached=lambda: heard.append(True))
        async with controller.running(), here as relay:
            taken, _ = await asyncio.to_thread(silent.accept)
            with taken:
                assert not relay.state().connected
                relay.reconnect()
                await until(lambda: relay.state().connected)
    assert heard == [True]


async def test_a_controller_that_never_takes_the_stream_is_given_up_for_another(
    tmp_path: Path, controller: Controller
) -> None:
    hanging = Controller(tmp_path / "hanging.sock", hangs=True)
    here = relaying(tmp_path, sockets=["hanging.sock"], taken_within_s=0.5)
    async with hanging.running(), controller.running(), here as relay:
        await until(lambda: relay.state().last_error == "the controller did not take the stream within 0.5 s")
        await until(lambda: relay.state().connected)


class Failing:
    """Fails the first time that it is called."""

    def __init__(self, error: Exception) -> None:
        self._errors = [error]

    def __call__(self) -> None:
        if self._errors:
            raise self._errors.pop()


@pytest.mark.parametrize(
    "error",
    [
        StateError("/var/lib/hostmesh/identity/key.pem: too many open files"),
        OSError(EMFILE, "Too many open files"),
        sqlite3.OperationalError("unable to open database file"),
    ],
)
async def test_a_host_that_cannot_connect_for_a_reason_of_its_own_says_which_and_tries_again(
    tmp_path: Path, controller: Controller, error: Exception
) -> None:
    here = relaying(tmp_path, before_dial=Failing(error), reached=Failing(error))
    async with controller.running(), here as relay:
        await until(lambda: relay.state().last_error == str(error))
        await until(lambda: relay.state().connected and not relay.state().last_error)


async def reconnected(relay: Relay, since: datetime | None) -> None:
    relay.reconnect()
    await until(lambda: relay.state().connected and relay.state().since != since)


async def test_connections_that_are_given_up_one_after_another_wait_for_no_back_off(
    tmp_path: Path, controller: Controller
) -> None:
    async with controller.running(), relaying(tmp_path) as relay, asyncio.timeout(3):
        for _ in range(6):
            await until(lambda: relay.state().connected)
            await reconnected(relay, relay.state().since)
