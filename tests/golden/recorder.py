"""A program that remembers what it was asked, so that a test sees what reached it and how often."""

import http.client
import http.server
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

WAIT_S: Final = 10.0


class Recorded(NamedTuple):
    """A request as the program saw it; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def _any(self) -> None:
        recorder = self.server.recorder
        headers = {name.lower(): value for name, value in self.headers.items()}
        recorder.requests.put(Recorded(self.command, self.path, headers))
        body = recorder.name.encode()
        # The caller says what is to be answered, and where.
        code = int(headers.get("x-answer", "200")) if headers.get("x-at", recorder.name) == recorder.name else 200
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = _any  # noqa: N815 - names that the library calls
    do_PUT = _any  # noqa: N815
    do_OPTIONS = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, recorder: "Recorder") -> None:
        self.recorder = recorder
        super().__init__(("0.0.0.0", port), _Handler)


@dataclass
class Recorder:
    """Made in the network namespace of the thread that calls `serve`."""

    name: str
    requests: "queue.SimpleQueue[Recorded]" = field(default_factory=queue.SimpleQueue)
    _server: _Server | None = None

    def serve(self, port: int) -> "Recorder":
        self._server = _Server(port, self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def next(self) -> Recorded:
        """Return the next request; one that does not come fails the test."""
        return self.requests.get(timeout=WAIT_S)

    def taken(self) -> list[Recorded]:
        """Return all that came so far, and forget it."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self.requests.get_nowait())
        return found


class Reply(NamedTuple):
    """An answer; header names are lower case."""

    status: int
    body: str
    headers: Mapping[str, str]


def ask(
    address: str, port: int, host: str, path: str = "/", method: str = "GET", headers: Mapping[str, str] | None = None
) -> Reply:
    client = http.client.HTTPConnection(address, port, timeout=WAIT_S)
    try:
        client.request(method, path, None, {"Host": host, **(headers or {})})
        answer = client.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, answer.read().decode(), found)
    finally:
        client.close()
