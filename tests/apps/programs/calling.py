"""HTTP as an ordinary client speaks it: one request, or many from several workers, and what came of them."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

WAIT_S: Final = 30.0


@dataclass(frozen=True)
class Request:
    """`connect` is an address and port to go to instead of the URL's; `ca` the roots (PEM file) to trust for https."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    connect: tuple[str, int] | None = None
    ca: str = ""
    certificate: str = ""
    timeout_s: float = 10.0


@dataclass(frozen=True)
class Answer:
    """Status 0 and a problem where there was no answer."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    started: float = 0.0
    took_s: float = 0.0

    @property
    def version(self) -> str:
        """Service and version of an answer of the shop; "" for any other."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return ""
        return f"{found.get('service', '')} {found.get('version', '')}" if isinstance(found, dict) else ""


def _opened(request: Request) -> http.client.HTTPConnection:
    parts = urlsplit(request.url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    assert parts.hostname is not None
    # Its own socket: the name in the request and the address it goes to are two things.
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=request.timeout_s)
    plain = socket.create_connection(request.connect or (parts.hostname, port), request.timeout_s)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sock = plain
    if secure:
        context = ssl.create_default_context(cafile=request.ca or None)
        if request.certificate:
            context.load_cert_chain(request.certificate)
        try:
            connection.sock = context.wrap_socket(plain, server_hostname=parts.hostname)
        except OSError:
            plain.close()
            raise
    return connection


class Client:
    """One connection, opened when there is none; `keep` says whether it is used again."""

    def __init__(self, request: Request, *, keep: bool) -> None:
        self._request = request
        self._keep = keep
        self._connection: http.client.HTTPConnection | None = None

    def call(self) -> Answer:
        started = time.monotonic()
        try:
            answer = self._call()
        except (OSError, http.client.HTTPException) as error:
            answer = Answer(0, problem=f"{type(error).__name__}: {error}")
        if not answer.status or not self._keep or answer.headers.get("connection") == "close":
            self.close()
        return replace(answer, started=started, took_s=time.monotonic() - started)

    def _call(self) -> Answer:
        request, parts = self._request, urlsplit(self._request.url)
        if self._connection is None:
            self._connection = _opened(request)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        body = None if request.body is None else request.body.encode()
        default_port = parts.port in (None, 80 if parts.scheme == "http" else 443)
        authority = parts.hostname if default_port else f"{parts.hostname}:{parts.port}"
        self._connection.request(request.method, path, body, {"host": authority or "", **request.headers})
        answer = self._connection.getresponse()
        text = answer.read().decode(errors="replace")
        return Answer(answer.status, text, {name.lower(): value for name, value in answer.getheaders()})

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def get(request: Request) -> Answer:
    client = Client(request, keep=False)
    return client.call()


class Load:
    """Workers that call all the while, or so many times in all; even ones keep their connection, odd ones do not."""

    def __init__(self, request: Request, *, workers: int = 1, count: int = -1, pause_s: float = 0.0) -> None:
        self._request = request
        self._left = count
        self._pause_s = pause_s
        self._grown = threading.Condition()
        self._stopped = threading.Event()
        self._answers: list[Answer] = []
        self._threads = [threading.Thread(target=self._work, args=(number % 2 == 0,)) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    def _work(self, keep: bool) -> None:
        client = Client(self._request, keep=keep)
        while self._take():
            answer = client.call()
            with self._grown:
                self._answers.append(answer)
                self._grown.notify_all()
            if self._pause_s:
                self._stopped.wait(self._pause_s)
        client.close()

    def _take(self) -> bool:
        with self._grown:
            if self._stopped.is_set() or self._left == 0:
                return False
            self._left -= 1
            return True

    def fresh(self, count: int) -> dict[str, Any]:
        """The tally of requests that begin from now on, `count` of them at least."""
        now = time.monotonic()

        def found() -> list[Answer]:
            return [each for each in self._answers if each.started >= now]

        with self._grown:
            self._grown.wait_for(lambda: len(found()) >= count, WAIT_S)
            return tally(found())

    def stop(self) -> dict[str, Any]:
        self._stopped.set()
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """The tally of all requests, when their workers have ended."""
        for thread in self._threads:
            thread.join()
        return tally(self._answers)


def tally(answers: Sequence[Answer]) -> dict[str, Any]:
    """Count answers: `failed` are those without a 200; `problems` are the first few of them.

    `overflows` are those that a circuit breaker turned away.
    """
    failed = [each for each in answers if each.status != 200]
    return {
        "sent": len(answers),
        "failed": len(failed),
        "statuses": Counter(str(each.status) for each in answers),
        "versions": Counter(each.version for each in answers if each.status == 200),
        "overflows": sum("overflow" in each.body for each in failed),
        "problems": [f"{each.status} {each.problem or each.body[:200]}" for each in failed[:5]],
        "slowest_s": max((each.took_s for each in answers), default=0.0),
    }
