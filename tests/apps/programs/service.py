"""An HTTP service of a shop: answers with who it is, what it was asked, and what the services it calls said.

It knows nothing of a mesh. The path can ask for trouble (`/status/503`, `/delay/0.5`), and the host's own programs can
make this instance ill (`POST /behave`) and read what it served (`GET /served`).
"""

import argparse
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

CALL_TIMEOUT_S: Final = 10.0
FORWARDED: Final = ("end-user", "x-request-id", "user-agent")
"""What a program hands on when it calls others, as any traced program does."""


class Service(ThreadingHTTPServer):
    """`ill` is what the instance was told to do wrong: `status` and `delay_s`, for `first` requests or (-1) all."""

    address_family = socket.AF_INET6
    daemon_threads = True
    # A burst of new connections is not refused while Python is busy with the ones before.
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("::", options.port), Handler)
        self.name: str = options.name
        self.version: str = options.version
        self.calls: dict[str, str] = dict(call.split("=", 1) for call in options.calls)
        self.ill: dict[str, Any] = {}
        self.served: Counter[str] = Counter()
        self.lock = threading.Lock()

    def symptom(self, path: str, authority: str) -> tuple[int, float]:
        """Count a request; the status and the delay (s) it is to have."""
        with self.lock:
            self.served[path] += 1
            self.served[f"{authority}{path}"] += 1
            if not self.ill.get("first"):
                return 200, 0.0
            self.ill["first"] -= 1
            return self.ill.get("status", 200), self.ill.get("delay_s", 0.0)


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"
    # Without this the last packet of an answer waits for the peer's ACK (Nagle), 40 ms.
    wbufsize = -1

    def do_GET(self) -> None:
        if self.path == "/served":
            with self.server.lock:
                self._answer(200, dict(self.server.served))
            return
        path = self.path.partition("?")[0]
        status, delay_s = self.server.symptom(path, self.headers.get("host", ""))
        verb, _, value = path.strip("/").partition("/")
        time.sleep(float(value) if verb == "delay" else delay_s)
        self._answer(int(value) if verb == "status" else status, self._body())

    def do_POST(self) -> None:
        told = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/behave":
            self.do_GET()
            return
        with self.server.lock:
            self.server.ill = {"first": -1, **json.loads(told)} if told else {}
        self._answer(200, self.server.ill)

    def _body(self) -> dict[str, Any]:
        service = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        return {
            "service": service.name,
            "version": service.version,
            "host": socket.gethostname(),
            "path": self.path,
            "headers": headers,
            "peer": self.client_address[0],
            "calls": {name: call(url, headers) for name, url in service.calls.items()},
        }

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def call(url: str, headers: dict[str, str]) -> dict[str, Any]:
    """Ask another service; status 0 when it gave no answer."""
    forwarded = {name: headers[name] for name in FORWARDED if name in headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=forwarded), timeout=CALL_TIMEOUT_S) as answer:
            return {"status": answer.status, **json.loads(answer.read())}
    except urllib.error.HTTPError as error:
        with error:
            return {"status": error.code, "problem": error.read().decode(errors="replace")}
    except (OSError, ValueError) as error:
        return {"status": 0, "problem": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--version", default="v1")
    parser.add_argument("--port", type=int, default=9080)
    parser.add_argument("--calls", nargs="*", default=[], metavar="NAME=URL")
    parser.add_argument("--tls", help="certificate and key (PEM): speak HTTPS")
    options = parser.parse_args()
    service = Service(options)
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls)
        # The handshake is each connection's own thread's: a silent peer must not keep the others waiting.
        service.socket = context.wrap_socket(service.socket, server_side=True, do_handshake_on_connect=False)
    service.serve_forever()


if __name__ == "__main__":
    main()
