"""Calls that block, made at once in threads of their own, with one bound for all: also calls that have none."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class InTime(Generic[Key, Value]):
    """Calls by a key each. `until` (of time.monotonic) is when nobody waits for them any more."""

    def __init__(self, until: float) -> None:
        self._until = until
        self._ended: SimpleQueue[tuple[Key, Value | Exception]] = SimpleQueue()
        self._pending = 0

    def start(self, key: Key, call: Callable[[], Value]) -> None:
        """Make a call. One that does not end in time is left to itself, and keeps no process from ending."""

        def make() -> None:
            found: Value | Exception
            try:
                found = call()
            except Exception as error:
                found = error
            self._ended.put((key, found))

        self._pending += 1
        try:
            threading.Thread(target=make, daemon=True).start()
        except RuntimeError as error:  # there are too many already
            self._ended.put((key, OSError(str(error))))

    def ended(self, until: float | None = None) -> Iterator[tuple[Key, Value | OSError]]:
        """Yield what the calls return, or the OSError that they raise, as they end; also of those started meanwhile.

        `until`: wait no longer this time. Raises whatever else a call raises.
        """
        until = self._until if until is None else min(until, self._until)
        while self._pending:
            try:
                key, found = self._ended.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                return
            self._pending -= 1
            if isinstance(found, Exception) and not isinstance(found, OSError):
                raise found
            yield key, found
