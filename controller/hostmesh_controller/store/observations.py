"""Observed calls, watched ports and flows, inside a transaction the caller has begun."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

from sqlalchemy import Connection, Table, and_, bindparam, delete, insert, select

from hostmesh_controller.store import tables
from hostmesh_controller.store.records import CallKey, CallRecord, FlowKey, FlowRecord, PortKey, WatchedPort

_OF_A_CALL = tuple(each.name for each in fields(CallRecord) if each.name not in {"key", "methods"})
_OF_A_FLOW = tuple(each.name for each in fields(FlowRecord) if each.name != "key")


def read_calls(connection: Connection) -> list[CallRecord]:
    return [
        CallRecord(
            CallKey(row.namespace, row.workload, row.port, row.kind, row.caller),
            frozenset(row.methods.split()),
            **{name: getattr(row, name) for name in _OF_A_CALL},
        )
        for row in connection.execute(select(tables.calls))
    ]


def read_watched(connection: Connection) -> list[WatchedPort]:
    return [
        WatchedPort(PortKey(row.namespace, row.workload, row.port), row.host, row.since)
        for row in connection.execute(select(tables.watched_ports))
    ]


def read_flows(connection: Connection) -> list[FlowRecord]:
    return [
        FlowRecord(
            FlowKey(row.host, row.program, row.unit, bool(row.inbound), row.peer, row.port),
            **{name: getattr(row, name) for name in _OF_A_FLOW},
        )
        for row in connection.execute(select(tables.flows))
    ]


def write_flows(connection: Connection, put: Sequence[FlowRecord], drop: Iterable[FlowKey]) -> None:
    """Replace the records of some keys and remove those of others."""
    _remove(connection, tables.flows, [*drop, *(each.key for each in put)])
    rows = [{**each.key._asdict(), **{name: getattr(each, name) for name in _OF_A_FLOW}} for each in put]
    if rows:
        connection.execute(insert(tables.flows), rows)


def write_calls(connection: Connection, put: Sequence[CallRecord], drop: Iterable[CallKey]) -> None:
    """Replace the records of some keys and remove those of others."""
    _remove(connection, tables.calls, [*drop, *(each.key for each in put)])
    rows = [
        {
            **each.key._asdict(),
            "methods": " ".join(sorted(each.methods)),
            **{name: getattr(each, name) for name in _OF_A_CALL},
        }
        for each in put
    ]
    if rows:
        connection.execute(insert(tables.calls), rows)


def write_watched(connection: Connection, put: Sequence[WatchedPort], drop: Iterable[PortKey]) -> None:
    """Replace the records of some ports and remove those of others."""
    _remove(connection, tables.watched_ports, [*drop, *(each.key for each in put)])
    if put:
        rows = [{**each.key._asdict(), "host": each.host, "since": each.since} for each in put]
        connection.execute(insert(tables.watched_ports), rows)


def _remove(connection: Connection, table: Table, keys: Sequence[CallKey | FlowKey | PortKey]) -> None:
    if keys:
        same = and_(*(column == bindparam(f"of_{column.name}") for column in table.primary_key))
        values = [{f"of_{name}": value for name, value in key._asdict().items()} for key in keys]
        connection.execute(delete(table).where(same), values)
