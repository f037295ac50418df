"""Hosts' state, virtual addresses and fetched keys, inside a transaction the caller has begun."""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from sqlalchemy import Connection, delete, insert, select

from hostmesh_controller.store import tables
from hostmesh_controller.store.records import HostState, JwksRecord, RolloutRecord, StoreError

_KEYS_PER_QUERY = 900
LAST_VIP = 65534
"""Of the 65536 addresses of each range the first and the last are kept back: some stacks take them for broadcast."""


def write_host_state(connection: Connection, host: str, state: HostState) -> None:
    """Replace the host's runtime state."""
    drop_host_state(connection, host)
    connection.execute(
        insert(tables.hosts).values(
            host=host,
            joined_at=state.joined_at,
            left_at=state.left_at,
            last_report_at=state.last_report_at,
            report=state.report,
            ready=json.dumps(sorted(state.ready)),
            silent_at=state.silent_at,
        )
    )


def read_host_states(connection: Connection) -> dict[str, HostState]:
    """Return the runtime state of every host that has one."""
    return {
        row.host: HostState(
            row.joined_at,
            row.left_at,
            row.last_report_at,
            row.report,
            frozenset((namespace, workload) for namespace, workload in json.loads(row.ready)),
            row.silent_at,
        )
        for row in connection.execute(select(tables.hosts))
    }


def drop_host_state(connection: Connection, host: str) -> None:
    """Drop the host's runtime state."""
    connection.execute(delete(tables.hosts).where(tables.hosts.c.host == host))


def read_vips(connection: Connection) -> dict[str, int]:
    """Return the index of the virtual address of each name."""
    return {row.fqdn: row.position for row in connection.execute(select(tables.vips))}


def allocate_vips(connection: Connection, fqdns: Iterable[str]) -> dict[str, int]:
    """Return the index of each name, giving one to those that have none; see Store.allocate_vips."""
    wanted = sorted(set(fqdns))
    known = read_vips(connection)
    new = choose_vips([fqdn for fqdn in wanted if fqdn not in known], known)
    if new:
        rows = [{"fqdn": fqdn, "position": position} for fqdn, position in new.items()]
        connection.execute(insert(tables.vips), rows)
    return {fqdn: known[fqdn] if fqdn in known else new[fqdn] for fqdn in wanted}


def choose_vips(fqdns: Iterable[str], known: Mapping[str, int]) -> dict[str, int]:
    """Return a free index for each name: from a hash of the name upwards, round the end of the range.

    Raises:
        StoreError: more names than indexes.
    """
    taken = set(known.values())
    chosen: dict[str, int] = {}
    for fqdn in fqdns:
        if len(taken) >= LAST_VIP:
            raise StoreError(f"all {LAST_VIP} virtual addresses are given out: remove services that are not used")
        position = int.from_bytes(blake2b(fqdn.encode(), digest_size=8).digest()) % LAST_VIP + 1
        while position in taken:
            position = position % LAST_VIP + 1
        taken.add(position)
        chosen[fqdn] = position
    return chosen


def release_vips(connection: Connection, fqdns: Iterable[str]) -> None:
    """Give back the indexes of names that exist no more."""
    gone = sorted(set(fqdns))
    for start in range(0, len(gone), _KEYS_PER_QUERY):
        connection.execute(delete(tables.vips).where(tables.vips.c.fqdn.in_(gone[start : start + _KEYS_PER_QUERY])))


def read_jwks(connection: Connection) -> list[JwksRecord]:
    """Return the last good keys of each URL."""
    rows = connection.execute(select(tables.jwks).order_by(tables.jwks.c.url))
    return [JwksRecord(row.url, row.document, row.source, row.etag, row.fetched_at) for row in rows]


def write_jwks(connection: Connection, record: JwksRecord) -> None:
    """Replace the keys of a URL."""
    drop_jwks(connection, [record.url])
    connection.execute(
        insert(tables.jwks).values(
            url=record.url,
            document=record.text,
            source=record.source,
            etag=record.etag,
            fetched_at=record.fetched_at,
        )
    )


def drop_jwks(connection: Connection, urls: Iterable[str]) -> None:
    """Drop the keys of URLs."""
    gone = sorted(set(urls))
    for start in range(0, len(gone), _KEYS_PER_QUERY):
        connection.execute(delete(tables.jwks).where(tables.jwks.c.url.in_(gone[start : start + _KEYS_PER_QUERY])))


def read_rollouts(connection: Connection) -> list[RolloutRecord]:
    """Return how far each rollout is."""
    rows = connection.execute(select(tables.rollouts).order_by(tables.rollouts.c.name))
    return [RolloutRecord(row.name, row.uid, row.progress) for row in rows]


def write_rollout(connection: Connection, record: RolloutRecord) -> None:
    """Replace what is kept of a rollout."""
    drop_rollout(connection, record.name)
    connection.execute(insert(tables.rollouts).values(name=record.name, uid=record.uid, progress=record.progress))


def drop_rollout(connection: Connection, name: str) -> None:
    """Forget a rollout."""
    connection.execute(delete(tables.rollouts).where(tables.rollouts.c.name == name))
