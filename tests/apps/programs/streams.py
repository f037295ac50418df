"""Servers that speak no plain HTTP: `tcp` greets first and echoes lines, `ws` echoes WebSocket texts, `grpc` calls.

Each tells its name in what it says, so that a caller knows whom it reached.
"""

import argparse
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apps.programs.websocket import accept_of, frame, read_frame, read_head


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str, port: int, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("0.0.0.0", port), handler)
        self.name = name


class Greeter(socketserver.StreamRequestHandler):
    """The server speaks first, as SMTP's or MySQL's does; then each line comes back with the server's name."""

    server: Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.wfile.write(f"220 {self.server.name}\n".encode())
        for line in self.rfile:
            self.wfile.write(f"{self.server.name} ".encode() + line)


class Chat(socketserver.StreamRequestHandler):
    """A WebSocket server: each text comes back with the server's name."""

    server: Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        _, headers = read_head(self.rfile)
        if headers.get("upgrade", "").lower() != "websocket":
            self.wfile.write(b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        accept = accept_of(headers["sec-websocket-key"])
        head = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        self.wfile.write(f"{head}sec-websocket-accept: {accept}\r\n\r\n".encode())
        while (text := read_frame(self.rfile)) is not None:
            self.wfile.write(frame(f"{self.server.name} {text}", masked=False))


def serve_tcp(name: str, port: int) -> None:
    Server(name, port, Greeter).serve_forever()


def serve_ws(name: str, port: int) -> None:
    Server(name, port, Chat).serve_forever()


def serve_grpc(name: str, port: int) -> None:
    """`Say` answers with the server's name, `Fail` fails as often as asked, `Chat` answers each message of a stream."""
    import grpc

    failures: dict[bytes, int] = {}
    lock = threading.Lock()

    def say(request: bytes, _: Any) -> bytes:
        return f"{name} ".encode() + request

    def fail(request: bytes, context: Any) -> bytes:
        with lock:
            failures[request] = failures.get(request, 0) + 1
        if failures[request] == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"{name} is not in the mood")
        return say(request, context)

    def chat(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield say(request, context)

    server = grpc.server(ThreadPoolExecutor(8))
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("apps.Echo", handlers),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def main() -> None:
    servers: dict[str, Callable[[str, int], None]] = {"tcp": serve_tcp, "ws": serve_ws, "grpc": serve_grpc}
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=servers)
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    servers[options.kind](options.name, options.port)


if __name__ == "__main__":
    main()
