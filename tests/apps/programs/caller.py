"""A client that is told what to call, line by line: a JSON object in, a JSON object out. It knows nothing of a mesh.

One process makes all calls of a test module, so that a call costs a call and not the start of a Python.
"""

import json
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import urlsplit

from apps.programs import calling, websocket
from apps.programs.calling import Load, Request

_LOADS: Final[dict[str, Load]] = {}


def _request(told: dict[str, Any]) -> Request:
    connect = told.pop("connect", None)
    return Request(connect=tuple(connect) if connect else None, **told)


def get(told: dict[str, Any]) -> dict[str, Any]:
    """One request on a connection of its own."""
    return asdict(calling.get(_request(told)))


def many(told: dict[str, Any]) -> dict[str, Any]:
    """`count` requests by `workers`, and their tally."""
    count, workers = told.pop("count"), told.pop("workers", 1)
    return Load(_request(told), count=count, workers=workers).finish()


def start(told: dict[str, Any]) -> dict[str, Any]:
    """Begin a load that goes on by itself."""
    name, workers, pause_s = told.pop("name"), told.pop("workers", 4), told.pop("pause_s", 0.01)
    _LOADS[name] = Load(_request(told), workers=workers, pause_s=pause_s)
    return {}


def fresh(told: dict[str, Any]) -> dict[str, Any]:
    """The tally of a load's requests that begin from now on, `count` of them at least."""
    return _LOADS[told["name"]].fresh(told["count"])


def stop(told: dict[str, Any]) -> dict[str, Any]:
    """End a load; the tally of all its requests."""
    return _LOADS.pop(told["name"]).stop()


def talk(told: dict[str, Any]) -> dict[str, Any]:
    """Wait for the server's greeting on each of `times` connections, then say the lines and hear the answers."""
    heard = []
    for _ in range(told.get("times", 1)):
        try:
            heard.append(_conversation(told))
        except OSError as error:
            heard.append([f"{type(error).__name__}: {error}"])
    return {"heard": heard, "servers": Counter(lines[0] for lines in heard)}


def _conversation(told: dict[str, Any]) -> list[str]:
    with socket.create_connection((told["host"], told["port"]), told.get("timeout_s", 5)) as connection:
        stream = connection.makefile("rwb")
        lines = [stream.readline().decode().strip()]
        for line in told.get("lines", ()):
            stream.write(f"{line}\n".encode())
            stream.flush()
            lines.append(stream.readline().decode().strip())
    return lines


def ws(told: dict[str, Any]) -> dict[str, Any]:
    """Open a WebSocket and say the texts one by one."""
    parts = urlsplit(told["url"])
    assert parts.hostname is not None
    address = tuple(told["connect"]) if told.get("connect") else (parts.hostname, parts.port or 80)
    try:
        with socket.create_connection(address, told.get("timeout_s", 5)) as connection:
            return _chat(connection, parts.netloc, parts.path or "/", told["texts"])
    except OSError as error:
        return {"first": f"{type(error).__name__}: {error}", "texts": [], "accepted": False}


def _chat(connection: socket.socket, authority: str, path: str, texts: list[str]) -> dict[str, Any]:
    stream, key = connection.makefile("rwb"), websocket.new_key()
    lines = (
        f"GET {path} HTTP/1.1",
        f"host: {authority}",
        "connection: Upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        f"sec-websocket-key: {key}",
    )
    stream.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    stream.flush()
    first, headers = websocket.read_head(stream)
    heard: list[str | None] = []
    for text in texts if " 101 " in first else ():
        stream.write(websocket.frame(text, masked=True))
        stream.flush()
        heard.append(websocket.read_frame(stream))
    accepted = headers.get("sec-websocket-accept") == websocket.accept_of(key)
    return {"first": first, "texts": heard, "accepted": accepted}


def grpc(told: dict[str, Any]) -> dict[str, Any]:
    """On one channel: `calls` unary calls of `method`, then one stream of `messages`; whom each answer came from."""
    import grpc as library

    with library.insecure_channel(told["target"]) as channel:
        # Bytes need no serializers; grpc's stubs demand them.
        unary = channel.unary_unary(f"/apps.Echo/{told.get('method', 'Say')}")  # type: ignore[call-arg]
        stream = channel.stream_stream("/apps.Echo/Chat")  # type: ignore[call-arg]
        metadata = tuple(told.get("metadata", {}).items())
        try:
            said = told.get("say", "hello").encode()
            answers = [
                unary(said, timeout=10, wait_for_ready=True, metadata=metadata).decode()
                for _ in range(told.get("calls", 1))
            ]
            messages = iter([each.encode() for each in told.get("messages", ())])
            streamed = [each.decode() for each in stream(messages, timeout=10, metadata=metadata)]
        except library.RpcError as error:
            return {"code": error.code().name, "details": error.details(), "servers": {}, "streamed": []}
    return {"code": "OK", "servers": Counter(each.partition(" ")[0] for each in answers), "streamed": streamed}


_VERBS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    verb.__name__: verb for verb in (get, many, start, fresh, stop, talk, ws, grpc)
}


def main() -> None:
    for line in sys.stdin:
        told = json.loads(line)
        try:
            done = _VERBS[told.pop("do")](told)
        except Exception as error:
            # Whatever it was: the test is told, and the next line is read.
            done = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
