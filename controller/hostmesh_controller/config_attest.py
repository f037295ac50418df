"""The table [attest] of controller.toml: how hosts prove who they are, and what may follow from it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

_REATTEST_WITHIN: Final = timedelta(days=30)
_MOST: Final = timedelta(days=366)


class Reader(Protocol):
    """What is needed of the reader of the file."""

    def duration(self, path: str, default: timedelta, most: timedelta) -> timedelta: ...


@dataclass(frozen=True, slots=True)
class Attestation:
    """`reattest_within` is how long after its certificate's end a host may come back by its key alone; zero: never."""

    reattest_within: timedelta = _REATTEST_WITHIN


def attestation(reader: Reader) -> Attestation:
    """Read [attest]."""
    return Attestation(reattest_within=reader.duration("attest.reattest_within", _REATTEST_WITHIN, _MOST))
