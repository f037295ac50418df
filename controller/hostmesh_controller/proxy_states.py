"""What operators see of the stream of a connected host."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class RefusedPush:
    """A NACK, as operators see it."""

    at: datetime
    type_url: str
    names: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class TypeState:
    """One type on one stream: how many names are asked for, and when they were last acknowledged."""

    subscribed: int
    held: int
    last_ack_at: datetime | None


@dataclass(frozen=True, slots=True)
class ProxyState:
    """One connected host.

    `settled` is true when everything it is due has been acknowledged or refused; `acked_at` is None before the first
    acknowledgement.
    """

    host: str
    peer: str
    since: datetime
    settled: bool
    acked_at: datetime | None
    types: Mapping[str, TypeState]
    nacks: tuple[RefusedPush, ...]
