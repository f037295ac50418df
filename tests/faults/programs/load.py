"""An open-loop load: six ways of calling, each on a fixed schedule, whether answers come or not.

load.py HTTP_URL GRPC_TARGET TCP_HOST:PORT SECRET

It says "begun" once each way has succeeded, and goes on until its input ends; then it prints one JSON list of
[kind, at, took, fate, lag].
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import grpc

PERIOD_S = {"http-new": 0.1, "http-kept": 0.1, "grpc": 0.1, "grpc-stream": 0.2, "tcp-new": 0.1, "tcp-kept": 0.2}
TIMEOUT_S = 5.0
FIRST_S = 60.0
_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    # It is also how long a connection may take to be made.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 500),
]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
records: list[tuple[str, float, float, str, float]] = []


class CallError(Exception):
    """The call came to no good end, for the reason it holds."""


class Http:
    """HTTP/1.1. Kept connections are taken from a pool, so that one that hangs holds nobody up."""

    def __init__(self, url: str, secret: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._request = f"GET / HTTP/1.1\r\nhost: {parts.netloc}\r\nx-secret: {secret}\r\n\r\n".encode()
        self._idle: list[Connection] = []

    async def new(self) -> None:
        connection = await asyncio.open_connection(self._host, self._port)
        await self._call(connection)
        connection[1].close()

    async def kept(self) -> None:
        """Call on a kept connection; on a new one if that was closed before a byte of an answer, as all clients do."""
        while self._idle:
            connection = self._idle.pop()
            if connection[0].at_eof():
                continue
            try:
                await self._call_kept(connection)
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    raise
            except ConnectionResetError:
                continue
            else:
                return
        await self._call_kept(await asyncio.open_connection(self._host, self._port))

    async def _call_kept(self, connection: Connection) -> None:
        await self._call(connection)
        self._idle.append(connection)

    async def _call(self, connection: Connection) -> None:
        reader, writer = connection
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode().lower().split("\r\n")
            length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
            body = await reader.readexactly(length)
            if lines[0].split()[1] != "200":
                raise CallError(f"status {lines[0].split()[1]}: {body.decode(errors='replace')[:120]}")
        except BaseException:
            writer.close()
            raise


class Grpc:
    """HTTP/2: calls, and one stream that stays."""

    def __init__(self, target: str, secret: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL)
        self._secret = secret.encode()
        # Bytes need no serializers; grpc's stubs demand them.
        self._unary = self._channel.unary_unary("/e2e.Echo/Unary")  # type: ignore[call-arg]
        self._stream: Any = None
        self._turn = asyncio.Lock()

    async def call(self) -> None:
        try:
            await self._unary(self._secret, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise CallError(f"{error.code().name}: {(error.details() or '')[:120]}") from None

    async def say(self) -> None:
        async with self._turn:
            if self._stream is None:
                self._stream = self._channel.stream_stream("/e2e.Echo/Stream")()  # type: ignore[call-arg]
            try:
                await self._stream.write(self._secret)
                if await self._stream.read() == grpc.aio.EOF:  # type: ignore[attr-defined]  # no stub has it
                    raise CallError("the stream ended")
            except BaseException as error:
                self._stream.cancel()
                self._stream = None
                if isinstance(error, grpc.aio.AioRpcError):
                    raise CallError(f"the stream: {error.code().name}") from None
                if isinstance(error, asyncio.InvalidStateError):
                    raise CallError("the stream had ended") from None
                raise


class Tcp:
    """A protocol in which the server speaks first, then gives each line back."""

    def __init__(self, address: str, secret: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._line = f"{secret}\n".encode()
        self._kept: Connection | None = None
        self._turn = asyncio.Lock()

    async def new(self) -> None:
        connection = await self._open()
        await self._say(connection)
        connection[1].close()

    async def _open(self) -> Connection:
        connection = await asyncio.open_connection(self._host, self._port)
        if not await connection[0].readline():
            connection[1].close()
            raise CallError("closed before the greeting")
        return connection

    async def _say(self, connection: Connection) -> None:
        connection[1].write(self._line)
        if not await connection[0].readline():
            connection[1].close()
            raise CallError("closed")

    async def kept(self) -> None:
        async with self._turn:
            try:
                self._kept = self._kept or await self._open()
                await self._say(self._kept)
            except BaseException:
                if self._kept is not None:
                    self._kept[1].close()
                self._kept = None
                raise


async def attempt(kind: str, call: Callable[[], Awaitable[None]], due_s: float) -> None:
    fate = "ok"
    lag_s = time.monotonic() - due_s
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await call()
    except CallError as error:
        fate = str(error)
    except TimeoutError:
        fate = "no answer in time"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        fate = f"{type(error).__name__}: {error}"[:80]
    records.append((kind, due_s, time.monotonic() - due_s, fate, lag_s))


async def first(call: Callable[[], Awaitable[None]]) -> None:
    """Call until it succeeds: what comes on demand comes now, and is no part of what is measured."""
    async with asyncio.timeout(FIRST_S):
        while True:
            with contextlib.suppress(CallError, OSError, asyncio.IncompleteReadError):
                return await call()
            await asyncio.sleep(0.1)


async def schedule(kind: str, call: Callable[[], Awaitable[None]], begin_s: float, done: asyncio.Event) -> None:
    number = 0
    async with asyncio.TaskGroup() as calls:
        while not done.is_set():
            due_s = begin_s + number * PERIOD_S[kind]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), max(0.0, due_s - time.monotonic()))
            if not done.is_set():
                calls.create_task(attempt(kind, call, due_s))
                number += 1


async def main() -> None:
    url, target, address, secret = sys.argv[1:5]
    http, rpc, tcp = Http(url, secret), Grpc(target, secret), Tcp(address, secret)
    ways = {
        "http-new": http.new,
        "http-kept": http.kept,
        "grpc": rpc.call,
        "grpc-stream": rpc.say,
        "tcp-new": tcp.new,
        "tcp-kept": tcp.kept,
    }
    for call in ways.values():
        await first(call)
    print("begun", flush=True)
    done = asyncio.Event()
    begin_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for place, (kind, call) in enumerate(ways.items()):
            group.create_task(schedule(kind, call, begin_s + place * 0.015, done))
        await asyncio.to_thread(sys.stdin.read)
        done.set()
    print(json.dumps(records))


asyncio.run(main())
