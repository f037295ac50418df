"""How often somebody may do something: a bucket for each, filled steadily. Pure: the clock is an argument."""

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Final

_MAX_KEYS: Final = 100_000
"""Buckets that are kept: 20 MiB. Whoever is forgotten begins with a full one."""
_NOT_PER_HOST: Final = 64
"""Bits of an IPv6 address that a network gets; whoever has one has all addresses of it."""


class Rates:
    """So many times a minute for each key, all of them at once if need be. For one thread."""

    def __init__(self, per_minute: int, max_keys: int = _MAX_KEYS) -> None:
        self._most = float(per_minute)
        self._per_s = per_minute / 60
        self._max_keys = max_keys
        # Those that asked longest ago come first: they are the fullest.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now_s: float, count: int = 1) -> bool:
        """Tell whether the key may do it so many times more, and count them if so.

        Args:
            key: who.
            now_s: of a clock that never goes back.
            count: how many times.
        """
        left, since_s = self._buckets.pop(key, (self._most, now_s))
        left = min(self._most, left + (now_s - since_s) * self._per_s)
        allowed = left >= count
        self._buckets[key] = (left - count if allowed else left, now_s)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return allowed


def source_of(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, the /64 of an IPv6 address; "" for what is no address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> _NOT_PER_HOST << _NOT_PER_HOST))
