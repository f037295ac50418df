"""What Envoy or the agent refused lately, as it is told to people."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

_KEPT: Final = 20


class Refusal(NamedTuple):
    """Something Envoy or the agent refused."""

    at: datetime
    type_url: str
    name: str
    message: str


def with_refusal(known: Iterable[Refusal], refusal: Refusal) -> list[Refusal]:
    """Return the newest refusals. What is offered again and refused again is there once, with its last time."""
    others = [each for each in known if each[1:] != refusal[1:]]
    return [*others, refusal][-_KEPT:]
