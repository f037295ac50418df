"""Durations as Go and Istio write them."""

import re
from datetime import timedelta
from decimal import Decimal

_UNITS_US = {"ns": Decimal("0.001"), "us": Decimal(1), "µs": Decimal(1), "μs": Decimal(1)} | {
    "ms": Decimal(1_000),
    "s": Decimal(1_000_000),
    "m": Decimal(60_000_000),
    "h": Decimal(3_600_000_000),
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_TEXT = re.compile(rf"(?:{_PART.pattern})+")
_MAX_US = Decimal((2**63 - 1) // 10**9 * 10**6 - 1)
"""Go counts nanoseconds in 64 bits, and so does Envoy, which refuses the last second that begins in them."""
_MAX_LENGTH = 64


class Duration(timedelta):
    """A length of time that remembers how it was written.

    Equal and ordered as a timedelta (so `90s` equals `1m30s`); `str()` is the text, for writing it back.
    """

    __slots__ = ("is_whole_ms", "text")
    text: str
    is_whole_ms: bool

    def __new__(cls, text: str) -> "Duration":
        """Read Go's form: numbers with units, such as `1.5s`, `100ms`, `1h2m`, or a bare `0`.

        Raises:
            ValueError: `text` is not such a form, is negative, or is longer than Go can count (292 years).
        """
        if text == "0":
            microseconds = Decimal(0)
        elif len(text) > _MAX_LENGTH or not _TEXT.fullmatch(text):
            raise ValueError(f"{text!r} is not a duration: write it like 1.5s, 100ms or 1h2m")
        else:
            microseconds = sum((Decimal(n) * _UNITS_US[unit] for n, unit in _PART.findall(text)), Decimal(0))
        if microseconds > _MAX_US:
            raise ValueError(f"{text!r} is longer than the 292 years a duration may have")
        duration = super().__new__(cls, microseconds=int(microseconds))
        duration.text = text
        duration.is_whole_ms = microseconds % _UNITS_US["ms"] == 0
        return duration

    def at_least_1ms(self) -> "Duration":
        """Return itself.

        Raises:
            ValueError: it is shorter than 1 ms.
        """
        if self < timedelta(milliseconds=1):
            raise ValueError(f"{self.text!r} is too short: at least 1ms is needed")
        return self

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Duration({self.text!r})"

    def __reduce__(self) -> tuple[type["Duration"], tuple[str]]:
        return Duration, (self.text,)
