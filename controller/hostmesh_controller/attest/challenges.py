"""Nonces: made here, good once, for a minute, with one certificate request. Pure.

A nonce carries its own time and seal, so that asking for one costs the controller no memory, however many strangers do.
Only those that were answered are remembered, until they are too old anyway.
"""

import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

LIFE: Final = timedelta(minutes=1)
_TIME_BYTES: Final = 8
_RANDOM_BYTES: Final = 16
_NONCE_BYTES: Final = _TIME_BYTES + _RANDOM_BYTES + 32


class Challenges:
    """Makes nonces and takes them back. `random` returns that many random bytes."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        # Nonces end with the process: whoever waits meanwhile asks again.
        self._secret = random(32)
        self._spent: set[bytes] = set()
        self._spent_before: set[bytes] = set()
        self._since: datetime | None = None

    def make(self, csr_sha256: bytes, now: datetime) -> bytes:
        """Return a nonce for the request of that digest."""
        head = int(now.timestamp() * 1000).to_bytes(_TIME_BYTES) + self._random(_RANDOM_BYTES)
        return head + self._seal(head, csr_sha256)

    def spend(self, nonce: bytes, csr_sha256: bytes, now: datetime) -> str | None:
        """Use a nonce up; return why it is not taken, None if it is."""
        if len(nonce) != _NONCE_BYTES:
            return "nonce: malformed"
        head, seal = nonce[:-32], nonce[-32:]
        if not hmac.compare_digest(seal, self._seal(head, csr_sha256)):
            return "nonce: not made here, or for another request"
        age_s = now.timestamp() - int.from_bytes(head[:_TIME_BYTES]) / 1000
        if not -1 <= age_s <= LIFE.total_seconds():
            return "nonce: too old"
        self._forget(now)
        if nonce in self._spent or nonce in self._spent_before:
            return "nonce: used before"
        self._spent.add(nonce)
        return None

    def _seal(self, head: bytes, csr_sha256: bytes) -> bytes:
        return hmac.digest(self._secret, head + hashlib.sha256(csr_sha256).digest(), "sha256")

    def _forget(self, now: datetime) -> None:
        """Keep what was spent for at least a nonce's life, in two halves, so that nothing has to be searched."""
        # A clock that was set back must not keep everything for ever.
        if self._since is None or not timedelta() <= now - self._since <= 2 * LIFE:
            self._spent_before, self._spent, self._since = self._spent, set(), now
