"""Servers of keys (and of what they might answer instead) for tests: real ones, on loopback."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from http_servers import serving

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class KeyServer:
    """What is answered, by path; `asked` tells what was asked for, with the headers."""

    replies: dict[str, Reply] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"

    def url(self, path: str = "/keys", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def says(self, path: str, body: str | bytes, status: int = 200, **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.replies[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, data)

    def redirects(self, path: str, to: str, status: int = 302) -> None:
        self.says(path, "", status, Location=to)

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def key_server(tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[KeyServer]:
    found = KeyServer(scheme="https" if tls else "http")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, headers, body = found.replies.get(self.path, (404, {}, b"nothing here"))
            etag = headers.get("ETag")
            if etag and self.headers.get("If-None-Match") == etag:
                status, body = 304, b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler, tls, port) as found.port:
        yield found
