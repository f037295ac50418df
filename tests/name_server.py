"""The resolver of the C library with a name server that answers what a test says, or nothing at all."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Any

import pytest

_own = socket.getaddrinfo


class NameServer:
    """`names` are its answers. While it is `dark` who asks waits, as one does for a server that is away."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._lit = threading.Event()
        self._lit.set()

    @property
    def dark(self) -> bool:
        return not self._lit.is_set()

    @dark.setter
    def dark(self, dark: bool) -> None:
        self._lit.clear() if dark else self._lit.set()

    def __call__(self, host: str, port: int, *more: Any, **named: Any) -> list[Any]:
        with suppress(ValueError):
            ip_address(host)
            return list(_own(host, port, *more, **named))
        self.asked.append(host)
        # The resolver gives up some day: longer than anybody here waits.
        if not self._lit.wait(60) or host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for each in self.names[host] for found in _own(each, port, *more, **named)]


@contextmanager
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", server)
        yield server
        server.dark = False
