"""A gRPC service that answers a call with the caller's identity and a stream with each of its messages."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


def _unary(request: bytes, context: Any) -> bytes:
    caller = str(dict(context.invocation_metadata()).get("x-forwarded-client-cert", ""))
    return request + b" " + caller.encode()


def _stream(requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
    yield from requests


def serve(port: str) -> None:
    server = grpc.server(ThreadPoolExecutor(8))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Stream": grpc.stream_stream_rpc_method_handler(_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("e2e.Echo", handlers),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def call(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        # Bytes need no serializers; grpc's stubs demand them.
        unary = channel.unary_unary("/e2e.Echo/Unary")  # type: ignore[call-arg]
        stream = channel.stream_stream("/e2e.Echo/Stream")  # type: ignore[call-arg]
        print(unary(b"hello", timeout=10, wait_for_ready=True).decode())
        back = stream(iter([b"one", b"two", b"three"]), timeout=10)
        print(" ".join(message.decode() for message in back))


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])
