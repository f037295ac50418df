"""The queue of hosts that wait for an operator: bounded, fair, and of short memory. Pure.

An entry is bound to the key of the request: what the operator sees and approves is a fingerprint, and nobody else's.
Nobody pushes anybody out. Each address has few places, and those who prove nothing have half of them all, so that
strangers leave room for hosts whose evidence is good.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from hostmesh_controller.rates import source_of
from hostmesh_controller.store import PendingRecord

MAX_ENTRIES: Final = 256
MAX_OF_ADDRESS: Final = 8
LIFE: Final = timedelta(hours=24)
"""Since the host last asked."""
APPROVED_LIFE: Final = timedelta(hours=1)
"""An approval is for a host that waits now."""


class FullError(Exception):
    """There is no place for another; the message is for the peer."""


def expired(entry: PendingRecord, now: datetime) -> bool:
    """Tell whether an entry counts no more."""
    if entry.decision == "approved" and entry.decided_at is not None:
        return now - entry.decided_at > APPROVED_LIFE
    return now - entry.seen_at > LIFE


def find(entries: Sequence[PendingRecord], wanted: PendingRecord, now: datetime) -> PendingRecord | None:
    """Return the entry of a host that asks again: the same name, attestor and key."""
    same = (wanted.host, wanted.attestor, wanted.key_sha256)
    return next(
        (each for each in entries if (each.host, each.attestor, each.key_sha256) == same and not expired(each, now)),
        None,
    )


def require_place(entries: Sequence[PendingRecord], wanted: PendingRecord, now: datetime) -> None:
    """Raise FullError unless there is a place for an entry that is not there yet."""
    living = [each for each in entries if not expired(each, now)]
    if len(living) >= MAX_ENTRIES:
        raise FullError("too many hosts wait for approval: try again later, or ask the operator to look")
    source = source_of(wanted.address)
    if sum(source_of(each.address) == source for each in living) >= MAX_OF_ADDRESS:
        raise FullError("too many hosts of this address wait for approval: the operator must decide about them")
    unproven = sum(each.attestor == wanted.attestor for each in living)
    if wanted.attestor == "key_alone" and unproven >= MAX_ENTRIES // 2:
        raise FullError("too many unknown hosts wait for approval: try again later, or ask the operator to look")
