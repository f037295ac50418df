"""The store on any database that SQLAlchemy speaks to: each method is one transaction."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError, StatementError

from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.store import attested, enrolments, objects, observations, runtime, secrets
from hostmesh_controller.store.records import (
    ApiTokenRecord,
    AuditQuery,
    AuditRecord,
    CallKey,
    CallRecord,
    CertificateRecord,
    Commit,
    Delete,
    Document,
    EnrolmentRecord,
    FlowKey,
    FlowRecord,
    HostState,
    InstanceRecord,
    JwksRecord,
    Lineage,
    PendingRecord,
    PortKey,
    Put,
    RefusedWrite,
    RolloutRecord,
    StoredObject,
    StoreError,
    TokenRecord,
    WatchedPort,
)

WRITE: Final = "hostmesh_write"
"""Execution option of connections whose transaction will write: the engine takes the lock at its start."""

_TURN_S: Final = 60
"""How long a thread waits for those before it; each takes milliseconds."""


class SqlStore:
    """A Store (see there) over an engine whose database has the current tables.

    Args:
        engine: whose transactions are at least snapshots, and serialized where the option WRITE is set.
        name: what errors call the database.
        explain: turns a database error into a sentence for the operator.
    """

    def __init__(self, engine: Engine, name: str, explain: Callable[[SQLAlchemyError], str]) -> None:
        self._engine = engine
        self._name = name
        self._explain = explain
        # Threads of this process queue here, in order; the database's own lock is polled, and unfair.
        self._writing = threading.Lock()
        self._certificate_epochs: Counter[str] = Counter()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if not self._writing.acquire(timeout=_TURN_S):
            raise StoreError(f"{self._name}: no turn to write within {_TURN_S} s: the disk is too slow or stuck")
        try:
            with self._errors(), self._engine.connect() as connection:
                writer = connection.execution_options(**{WRITE: True})
                with writer.begin():
                    yield writer
        finally:
            self._writing.release()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            if isinstance(error, StatementError) and isinstance(error.orig, ValueError):
                raise error.orig from None  # a value that cannot be stored: the caller's mistake, not the database's
            raise StoreError(f"{self._name}: {self._explain(error)}") from error

    def revision(self) -> int:
        with self._read() as connection:
            return objects.read_revision(connection)

    def lineage(self) -> Lineage:
        with self._read() as connection:
            return objects.read_lineage(connection)

    def begin_lineage(self, action: str, *, now: datetime, after: Document) -> Lineage:
        with self._write() as connection:
            objects.write_event(
                connection, action, ObjectKey("Store", "", "mesh"), actor="controller", now=now, after=after
            )
            return objects.begin_lineage(connection)

    def objects(self, kind: str | None = None, namespace: str | None = None) -> list[StoredObject]:
        with self._read() as connection:
            return objects.read_objects(connection, kind, namespace)

    def snapshot(self) -> tuple[int, list[StoredObject]]:
        with self._read() as connection:
            return objects.read_revision(connection), objects.read_objects(connection)

    def get(self, key: ObjectKey) -> StoredObject | None:
        with self._read() as connection:
            found = objects.read_objects(connection, *key)
        return found[0] if found else None

    def commit(self, changes: Sequence[Put | Delete], *, actor: str, now: datetime) -> Commit:
        with self._write() as connection:
            return objects.write_changes(connection, changes, actor=actor, now=now)

    def audit(
        self,
        limit: int = 100,
        *,
        key: ObjectKey | None = None,
        before_id: int | None = None,
        query: AuditQuery | None = None,
    ) -> list[AuditRecord]:
        with self._read() as connection:
            return objects.read_audit(connection, limit, query or AuditQuery(key, before_id))

    def deny(self, denial: RefusedWrite, now: datetime) -> None:
        with self._write() as connection:
            objects.write_denial(connection, denial, now)

    def prune_audit(self, before: datetime, keep: int) -> int:
        with self._write() as connection:
            return objects.prune_audit(connection, before, keep)

    def add_event(
        self, action: str, key: ObjectKey, *, actor: str, now: datetime, after: Document | None = None
    ) -> None:
        with self._write() as connection:
            objects.write_event(connection, action, key, actor=actor, now=now, after=after)

    def add_token(self, token: TokenRecord) -> None:
        with self._write() as connection:
            secrets.write_token(connection, token)

    def redeem_token(self, digest: bytes, now: datetime, redeemer: str) -> TokenRecord | None:
        with self._write() as connection:
            return secrets.redeem(connection, digest, now, redeemer)

    def tokens(self) -> list[TokenRecord]:
        with self._read() as connection:
            return secrets.read_tokens(connection)

    def revoke_token(self, token_id: str, now: datetime, actor: str = "") -> bool:
        with self._write() as connection:
            return secrets.revoke_token(connection, token_id, now, actor)

    def add_certificate(self, certificate: CertificateRecord) -> None:
        with self._write() as connection:
            secrets.write_certificate(connection, certificate)
        self._certificate_epochs[certificate.host] += 1

    def certificates(self, host: str) -> list[CertificateRecord]:
        with self._read() as connection:
            return secrets.read_certificates(connection, host)

    def certificates_epoch(self, host: str) -> int:
        return self._certificate_epochs[host]

    def forget_host(self, host: str) -> None:
        with self._write() as connection:
            secrets.forget_certificates(connection, host)
        self._certificate_epochs[host] += 1

    def enrolments(self) -> list[EnrolmentRecord]:
        with self._read() as connection:
            return enrolments.read_enrolments(connection)

    def put_enrolment(
        self, record: EnrolmentRecord, *, action: str = "", actor: str = "", at: datetime
    ) -> EnrolmentRecord:
        with self._write() as connection:
            if action:
                enrolments.write_enrolment_event(connection, record, action, actor, at)
            return enrolments.write_enrolment(connection, record)

    def extend_enrolment(self, enrolment: str, not_after: datetime) -> bool:
        with self._write() as connection:
            return enrolments.extend_enrolment(connection, enrolment, not_after)

    def drop_enrolments(self, ids: Collection[str]) -> None:
        with self._write() as connection:
            enrolments.drop_enrolments(connection, ids)

    def pending(self) -> list[PendingRecord]:
        with self._read() as connection:
            return attested.read_pending(connection)

    def put_pending(self, entry: PendingRecord) -> None:
        with self._write() as connection:
            attested.write_pending(connection, entry)

    def decide_pending(self, entry_id: str, decision: str, actor: str, now: datetime) -> PendingRecord | None:
        with self._write() as connection:
            return attested.decide(connection, entry_id, decision, actor, now)

    def drop_pending(self, ids: Sequence[str]) -> None:
        with self._write() as connection:
            attested.drop_pending(connection, ids)

    def claim_instance(self, instance: InstanceRecord) -> InstanceRecord:
        with self._write() as connection:
            return attested.claim(connection, instance)

    def forget_instances(self, host: str) -> None:
        with self._write() as connection:
            attested.forget_instances(connection, host)

    def put_host_state(self, host: str, state: HostState) -> None:
        with self._write() as connection:
            runtime.write_host_state(connection, host, state)

    def host_states(self) -> Mapping[str, HostState]:
        with self._read() as connection:
            return runtime.read_host_states(connection)

    def drop_host_state(self, host: str) -> None:
        with self._write() as connection:
            runtime.drop_host_state(connection, host)

    def calls(self) -> list[CallRecord]:
        with self._read() as connection:
            return observations.read_calls(connection)

    def watched_ports(self) -> list[WatchedPort]:
        with self._read() as connection:
            return observations.read_watched(connection)

    def put_observations(
        self,
        calls: Sequence[CallRecord] = (),
        ports: Sequence[WatchedPort] = (),
        *,
        calls_gone: Iterable[CallKey] = (),
        ports_gone: Iterable[PortKey] = (),
    ) -> None:
        with self._write() as connection:
            observations.write_calls(connection, calls, calls_gone)
            observations.write_watched(connection, ports, ports_gone)

    def flows(self) -> list[FlowRecord]:
        with self._read() as connection:
            return observations.read_flows(connection)

    def put_flows(self, flows: Sequence[FlowRecord], gone: Iterable[FlowKey] = ()) -> None:
        with self._write() as connection:
            observations.write_flows(connection, flows, gone)

    def vips(self) -> Mapping[str, int]:
        with self._read() as connection:
            return runtime.read_vips(connection)

    def allocate_vips(self, fqdns: Iterable[str]) -> Mapping[str, int]:
        with self._write() as connection:
            return runtime.allocate_vips(connection, fqdns)

    def release_vips(self, fqdns: Iterable[str]) -> None:
        with self._write() as connection:
            runtime.release_vips(connection, fqdns)

    def jwks(self) -> list[JwksRecord]:
        with self._read() as connection:
            return runtime.read_jwks(connection)

    def put_jwks(self, record: JwksRecord) -> None:
        with self._write() as connection:
            runtime.write_jwks(connection, record)

    def drop_jwks(self, urls: Iterable[str]) -> None:
        with self._write() as connection:
            runtime.drop_jwks(connection, urls)

    def rollouts(self) -> list[RolloutRecord]:
        with self._read() as connection:
            return runtime.read_rollouts(connection)

    def put_rollout(self, record: RolloutRecord) -> None:
        with self._write() as connection:
            runtime.write_rollout(connection, record)

    def drop_rollout(self, name: str) -> None:
        with self._write() as connection:
            runtime.drop_rollout(connection, name)

    def add_api_token(self, token: ApiTokenRecord, actor: str = "") -> None:
        with self._write() as connection:
            secrets.write_api_token(connection, token, actor)

    def find_api_token(self, digest: bytes) -> ApiTokenRecord | None:
        with self._read() as connection:
            return secrets.find_api_token(connection, digest)

    def note_api_token_use(self, token_id: str, now: datetime) -> None:
        with self._write() as connection:
            secrets.note_api_token_use(connection, token_id, now)

    def api_tokens(self) -> list[ApiTokenRecord]:
        with self._read() as connection:
            return secrets.read_api_tokens(connection)

    def revoke_api_token(self, token_id: str, now: datetime, actor: str = "") -> bool:
        with self._write() as connection:
            return secrets.revoke_api_token(connection, token_id, now, actor)

    def close(self) -> None:
        self._engine.dispose()
