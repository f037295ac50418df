"""Calls of every kind at a steady rate until its input ends: what failed, by kind, is what it says then.

HTTP/1.1 on new and on kept connections, gRPC calls and one gRPC stream, one WebSocket, raw TCP on new connections and
on one that is kept. The three long conversations go on from the beginning to the end.
"""

import http.client
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from apps.programs.websocket import frame, new_key, read_frame, read_head

PERIOD_S = 0.02
TIMEOUT_S = 10.0
ended = threading.Event()
lock = threading.Lock()
counts: dict[str, int] = {}
failures: dict[str, list[str]] = {}


def at_a_rate(kind: str, call: Callable[[], None]) -> None:
    """Call again and again, each call begun on time whatever became of the one before."""
    due = time.monotonic()
    while not ended.is_set():
        try:
            call()
        except Exception as error:
            with lock:
                failures.setdefault(kind, []).append(f"{time.time():.3f} {type(error).__name__}: {error}"[:200])
        with lock:
            counts[kind] = counts.get(kind, 0) + 1
        due += PERIOD_S
        time.sleep(max(0.0, due - time.monotonic()))


def expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{found!r}, not {wanted!r}")


def http_new(host: str) -> None:
    connection = http.client.HTTPConnection(host, 8095, timeout=TIMEOUT_S)
    connection.request("GET", "/")
    expect(connection.getresponse().status, 200)
    connection.close()


def http_kept(host: str) -> Callable[[], None]:
    connection = http.client.HTTPConnection(host, 8095, timeout=TIMEOUT_S)

    def call() -> None:
        # A connection that its server has said it closes is opened anew by the library.
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        expect(response.status, 200)

    return call


def tcp_new() -> None:
    with socket.create_connection(("lines", 9000), TIMEOUT_S) as connection, connection.makefile("rwb") as file:
        file.readline()
        file.write(b"x\n")
        file.flush()
        expect(file.readline(), b"one x\n")


def tcp_kept() -> Callable[[], None]:
    file = socket.create_connection(("lines", 9000), TIMEOUT_S).makefile("rwb")
    file.readline()

    def call() -> None:
        file.write(b"x\n")
        file.flush()
        expect(file.readline(), b"one x\n")

    return call


def websocket() -> Callable[[], None]:
    connection = socket.create_connection(("chat", 9070), TIMEOUT_S)
    connection.sendall(
        b"GET / HTTP/1.1\r\nhost: chat:9070\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        + f"sec-websocket-version: 13\r\nsec-websocket-key: {new_key()}\r\n\r\n".encode()
    )
    stream = connection.makefile("rb")
    expect(read_head(stream)[0].split()[1], "101")

    def call() -> None:
        connection.sendall(frame("x", masked=True))
        expect(read_frame(stream), "one x")

    return call


def grpc_calls() -> Callable[[], None]:
    say: Any = grpc.insecure_channel("echo:9090").unary_unary("/apps.Echo/Say")  # type: ignore[call-arg]
    return lambda: expect(say(b"x", timeout=TIMEOUT_S), b"one x")


def grpc_stream() -> Callable[[], None]:
    said: queue.Queue[bytes] = queue.Queue()

    def words() -> Iterator[bytes]:
        while True:
            yield said.get()

    chat: Any = grpc.insecure_channel("echo:9090").stream_stream("/apps.Echo/Chat")  # type: ignore[call-arg]
    heard = chat(words())

    def call() -> None:
        said.put(b"x")
        expect(next(heard), b"one x")

    return call


def main(gateway: str) -> None:
    kinds = {
        "http, new connections": lambda: http_new("stock"),
        "http, kept connection": http_kept("stock"),
        "gateway, new connections": lambda: through_gateway(gateway),
        "tcp, new connections": tcp_new,
        "tcp, kept connection": tcp_kept(),
        "websocket": websocket(),
        "grpc, calls": grpc_calls(),
        "grpc, stream": grpc_stream(),
    }
    threads = [threading.Thread(target=at_a_rate, args=each, daemon=True) for each in kinds.items()]
    for each in threads:
        each.start()
    print("begun", flush=True)
    sys.stdin.read()
    ended.set()
    for each in threads:
        each.join(TIMEOUT_S)
    stuck = [kind for kind, each in zip(kinds, threads, strict=True) if each.is_alive()]
    print(json.dumps({"counts": counts, "failures": failures, "stuck": stuck}), flush=True)


def through_gateway(address: str) -> None:
    connection = http.client.HTTPConnection(address, 80, timeout=TIMEOUT_S)
    connection.request("GET", "/", headers={"host": "shop.example.com"})
    expect(connection.getresponse().status, 200)
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
