"""An ordinary HTTP service: says who it is and who called, and fails every Nth request when told to."""

import argparse
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(ThreadingHTTPServer):
    daemon_threads = True
    # A burst of new connections is not refused while Python is busy with the ones before.
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("0.0.0.0", options.port), Handler)  # noqa: S104 - a service for other hosts
        self.name = options.name
        self.version = options.version
        self.fail_every = options.fail_every
        self.served = 0
        self.failed = 0
        self.lock = threading.Lock()

    def count(self, path: str) -> bool:
        """Count a request; whether it is to succeed."""
        with self.lock:
            if path == "/counters":
                return True
            self.served += 1
            if self.fail_every and self.served % self.fail_every == 0:
                self.failed += 1
                return False
            return True


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"
    # Without this the last packet of an answer waits for the peer's ACK (Nagle), 40 ms.
    wbufsize = -1

    def do_GET(self) -> None:
        service = self.server
        succeeds = service.count(self.path)
        body = {
            "service": service.name,
            "version": service.version,
            "host": socket.gethostname(),
            "path": self.path,
            "caller": self.headers.get("x-forwarded-client-cert", ""),
        }
        if self.path == "/counters":
            body = {"served": service.served, "failed": service.failed}
        text = json.dumps(body).encode() + b"\n"
        self.send_response(200 if succeeds else 500)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--version", default="v1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--fail-every", type=int, default=0)
    service = Service(parser.parse_args())
    print(f"{service.name} {service.version} on port {service.server_port}, pid {os.getpid()}", flush=True)
    service.serve_forever()


if __name__ == "__main__":
    main()
