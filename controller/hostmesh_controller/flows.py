"""Flows as agents tell of them: which are believed, what they add to what was known, and how much of it is kept.

A host speaks of its own connections, and for nobody else: who lies makes a wrong picture of whom it talks to itself.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from hostmesh_api.v1.hostmesh_pb2 import Flow
from hostmesh_controller.names import canonical_address
from hostmesh_controller.store import FlowKey, FlowRecord, plain

MAX_TOLD: Final = 1000
"""Flows of one report; an agent of this version tells 300 at most."""
MAX_OF_HOST: Final = 4096
"""An agent of this version remembers half as many; the others are not kept."""
MAX_RECORDS: Final = 200_000
"""Of the whole mesh: about 120 MB if all of it is used; a host has some dozens mostly."""
MAX_EPOCH_CHARS: Final = 64
NOT_TOLD_APART: Final = ""
_MAX_PROGRAM_CHARS: Final = 64
_MAX_UNIT_CHARS: Final = 256
_MAX_COUNT: Final = 2**53
_STILL_THERE: Final = timedelta(minutes=5)
"""A flow of which nothing is new but that it is still there is kept this exactly."""


def key_of(flow: Flow, host: str) -> FlowKey | None:
    """Return which flow a host tells of, None if it makes no sense."""
    peer = NOT_TOLD_APART if flow.peer == NOT_TOLD_APART else canonical_address(flow.peer)
    if peer is None or flow.port > 65535 or (flow.port == 0 and peer != NOT_TOLD_APART):
        return None
    program, unit = plain(flow.program, _MAX_PROGRAM_CHARS), plain(flow.unit, _MAX_UNIT_CHARS)
    return FlowKey(host, program, unit, flow.inbound, peer, flow.port)


def added(before: FlowRecord | None, flow: Flow, key: FlowKey, epoch: str, now: datetime) -> FlowRecord:
    """Return what is known of a flow once it was told of again; the same record if nothing is new."""
    told = min(flow.count, _MAX_COUNT)
    last = now - timedelta(seconds=flow.last_seen_s)
    first = min(now - timedelta(seconds=flow.first_seen_s), last)
    if before is None:
        return FlowRecord(key, told, first, last, epoch, told)
    continues = before.epoch == epoch and told >= before.told
    more = told - before.told if continues else told
    if continues and not more and last - before.last_seen < _STILL_THERE:
        return before
    return replace(
        before,
        count=min(before.count + more, _MAX_COUNT),
        first_seen=min(before.first_seen, first),
        last_seen=max(before.last_seen, last),
        epoch=epoch,
        told=told,
    )
