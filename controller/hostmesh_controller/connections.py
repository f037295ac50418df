"""A listening socket that takes so many connections, of all and of one address; those beyond are closed unseen.

They are counted from the moment the kernel hands them over, before any TLS: a handshake that never ends counts too.
"""

import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from hostmesh_controller.rates import source_of


class Places:
    """How many connections are open, of all and of each source. For one event loop."""

    def __init__(self, most: int, most_per_source: int) -> None:
        self._most = most
        self._most_per_source = most_per_source
        self._open: Counter[str] = Counter()
        self._total = 0

    def take(self, source: str) -> bool:
        """Count a connection if there is a place for it."""
        if self._total >= self._most or self._open[source] >= self._most_per_source:
            return False
        self._total += 1
        self._open[source] += 1
        return True

    def give_back(self, source: str) -> None:
        """Take note that a connection that was counted has ended."""
        self._total -= 1
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]


class BoundedListener(socket.socket):
    """Listens like the socket whose descriptor it takes over, within `places`."""

    def __init__(self, opened: socket.socket, places: Places, refused: Callable[[], None]) -> None:
        """`refused` is told of each connection that was closed."""
        super().__init__(opened.family, opened.type, opened.proto, fileno=opened.detach())
        self._places = places
        self._refused = refused

    def accept(self) -> "tuple[socket.socket, Any]":
        """Return the next connection for which there is a place.

        Raises:
            BlockingIOError: none is waiting.
        """
        while True:
            accepted, address = super().accept()
            source = source_of(address[0]) if isinstance(address, tuple) else ""
            if self._places.take(source):
                return _Counted(accepted, partial(self._places.give_back, source)), address
            accepted.close()
            self._refused()


class _Counted(socket.socket):
    """A connection that gives its place back when it is closed."""

    def __init__(self, accepted: socket.socket, give_back: Callable[[], None]) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._give_back: Callable[[], None] | None = give_back

    def close(self) -> None:
        super().close()
        self._leave()

    def detach(self) -> int:
        self._leave()
        return super().detach()

    def _leave(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()
