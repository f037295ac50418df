"""Plaintext that must never arrive: one end calls all the time, the other counts what it sees.

canary.py serve PORT           answers HTTP; GET /seen tells how many bytes of the canary came
canary.py call ADDRESS PORT    calls until its input ends; then prints what came of it, as JSON
"""

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CANARY = b"GET /canary HTTP/1.1\r\nhost: canary\r\nconnection: close\r\n\r\n"
seen: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/canary":
            seen.append(self.path)
        body = str(len(seen)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def call(address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), timeout=5) as client:
            client.sendall(CANARY)
            return "answered" if client.recv(4096) else "closed"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return type(error).__name__


def call_until_told(address: str, port: int) -> dict[str, Any]:
    tally: dict[str, int] = {}
    done = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        done.set()

    threading.Thread(target=wait, daemon=True).start()
    while True:
        # Once at least: whoever looks at it may be done before this program has begun.
        found = call(address, port)
        tally[found] = tally.get(found, 0) + 1
        if done.wait(0.002):
            return tally


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        Server(("::", int(sys.argv[2])), Handler).serve_forever()
    print(json.dumps(call_until_told(sys.argv[2], int(sys.argv[3]))))
