"""A program that remembers what it was asked, so that a test sees what reached it and how often."""

import http.client
import http.server
import queue
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from golden.programs import Handler, Server

WAIT_S: Final = 10.0


class Recorded(NamedTuple):
    """A request as the program saw it; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


class _Recording(Handler):
    recorder: "Recorder"

    def _any(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.recorder.requests.put(Recorded(self.command, self.path, headers))
        # The caller says what is to be answered, and where.
        name = self.recorder.name
        self.answer(name.encode(), int(headers.get("x-answer", "200")) if headers.get("x-at", name) == name else 200)

    do_GET = _any  # noqa: N815 - names that the library calls
    do_PUT = _any  # noqa: N815 - as above
    do_OPTIONS = _any  # noqa: N815 - as above


@dataclass
class Recorder:
    """Made in the network namespace of the thread that calls `serve`."""

    name: str
    requests: "queue.SimpleQueue[Recorded]" = field(default_factory=queue.SimpleQueue)
    _server: Server | None = None

    def serve(self, port: int) -> "Recorder":
        self._server = Server(port, type("Handler", (_Recording,), {"recorder": self}))
        return self

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

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
