"""How often strangers may ask: each address, and all together. Pure.

Buckets that fill with time: an address may ask a burst at once, and then a few times a second. Whoever asks more is
told to wait before anything is computed for them.
"""

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

MAX_ADDRESSES: Final = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` at once, `per_s` in the long run."""

    per_s: float
    burst: float


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float


class Pace:
    """Counts attempts, at the rate of each address and that of all together."""

    def __init__(self, each: Rate, together: Rate) -> None:
        self._each = each
        self._together = together
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._total = _Bucket(together.burst, 0.0)

    def allows(self, address: str, now_s: float) -> bool:
        """Count an attempt and tell whether it may go on; `now_s` never goes back."""
        key = source_of(address)
        bucket = self._buckets.get(key)
        if bucket is None:
            # The one that was quiet for longest makes room; it has filled up long since, or all are strangers.
            if len(self._buckets) >= MAX_ADDRESSES:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(self._each.burst, now_s)
        self._buckets.move_to_end(key)
        # An address that asks too often takes nothing from the others.
        return _take(bucket, self._each, now_s) and _take(self._total, self._together, now_s)


def _take(bucket: _Bucket, rate: Rate, now_s: float) -> bool:
    bucket.left = min(rate.burst, bucket.left + (now_s - bucket.at_s) * rate.per_s)
    bucket.at_s = now_s
    if bucket.left < 1:
        return False
    bucket.left -= 1
    return True


def source_of(address: str) -> str:
    """Return what counts as one address: an IPv6 host has a whole network of them."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return ""
    return address if parsed.version == 4 else str(ip_network((parsed, 64), strict=False))
