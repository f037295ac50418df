"""The promise every store keeps, whatever is below it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from hostmesh_controller.model.objects import ObjectKey
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
    TokenRecord,
    WatchedPort,
)


class Store(Protocol):
    """The controller's state: synchronous, safe to call from any thread (servers use asyncio.to_thread).

    A method that returns has made its change durable; one that raises has changed nothing. Every method raises
    StoreError where the database cannot be used.
    """

    def revision(self) -> int:
        """Return the number of the last commit that changed objects; 0 for an empty store."""
        ...

    def lineage(self) -> Lineage:
        """Return the history that the revisions count."""
        ...

    def begin_lineage(self, action: str, *, now: datetime, after: Document) -> Lineage:
        """Let another history begin, since this one did not lead to what is there; the audit log says `action`."""
        ...

    def objects(self, kind: str | None = None, namespace: str | None = None) -> list[StoredObject]:
        """Return the objects, all or of one kind and/or namespace, sorted by key."""
        ...

    def snapshot(self) -> tuple[int, list[StoredObject]]:
        """Return the revision and all objects as of that revision, read together."""
        ...

    def get(self, key: ObjectKey) -> StoredObject | None:
        """Return the object, or None if there is none."""
        ...

    def commit(self, changes: Sequence[Put | Delete], *, actor: str, now: datetime) -> Commit:
        """Make all the changes or none, under one new revision, with an audit record for each.

        Of several changes to one key the last counts. A Put equal to what is stored and a Delete of what is not there
        change nothing; if nothing changes there is no new revision.
        """
        ...

    def add_token(self, token: TokenRecord) -> None:
        """Keep a new join token.

        Raises:
            ValueError: its id or digest is already there.
        """
        ...

    def redeem_token(self, digest: bytes, now: datetime, redeemer: str) -> TokenRecord | None:
        """Use a join token: of all who try, as many as it is for get the record (as redeemed); None for all others.

        None also if it is unknown, revoked, or expired at `now`.
        """
        ...

    def tokens(self) -> list[TokenRecord]:
        """Return all join tokens, used and expired ones too, oldest first."""
        ...

    def revoke_token(self, token_id: str, now: datetime, actor: str = "") -> bool:
        """Make a join token useless; `actor` does it. False if there is none of that id that could still be used."""
        ...

    def add_certificate(self, certificate: CertificateRecord) -> None:
        """Remember an issued certificate, by its serial. Those of its host that ended long ago are forgotten."""
        ...

    def certificates(self, host: str) -> list[CertificateRecord]:
        """Return the certificates issued to the host and its workloads, oldest first."""
        ...

    def certificates_epoch(self, host: str) -> int:
        """Return a number that is another one once the host's certificates changed, so that they can be kept till then.

        It is in memory: asking neither waits nor fails, and it means nothing to another process.
        """
        ...

    def forget_host(self, host: str) -> None:
        """Drop the host's certificate records; its runtime state stays (see drop_host_state)."""
        ...

    def enrolments(self) -> list[EnrolmentRecord]:
        """Return the enrolments of all hosts, oldest first."""
        ...

    def put_enrolment(
        self, record: EnrolmentRecord, *, action: str = "", actor: str = "", at: datetime
    ) -> EnrolmentRecord:
        """Keep an enrolment, new or changed; with an `action` also an audit record of it.

        `certificates_end` of one that is there is the store's own: what is kept is returned.
        """
        ...

    def extend_enrolment(self, enrolment: str, not_after: datetime) -> bool:
        """Take note that a certificate of the enrolment lasts until then.

        False if it is denied, ended or unknown: then nothing may be issued under it.
        """
        ...

    def drop_enrolments(self, ids: Collection[str]) -> None:
        """Forget enrolments."""
        ...

    def pending(self) -> list[PendingRecord]:
        """Return the hosts that wait for approval, those decided about too, oldest first."""
        ...

    def put_pending(self, entry: PendingRecord) -> None:
        """Keep an entry, in place of one with its id."""
        ...

    def decide_pending(self, entry_id: str, decision: str, actor: str, now: datetime) -> PendingRecord | None:
        """Decide about a host that waits, once; None if there is none of that id, or somebody was quicker."""
        ...

    def drop_pending(self, ids: Sequence[str]) -> None:
        """Forget entries."""
        ...

    def claim_instance(self, instance: InstanceRecord) -> InstanceRecord:
        """Make the machine this host's, if it is nobody's; return whose it is. Of all who try, one gets it."""
        ...

    def forget_instances(self, host: str) -> None:
        """Let the machines of a host join anew, as anybody."""
        ...

    def put_host_state(self, host: str, state: HostState) -> None:
        """Replace the host's runtime state."""
        ...

    def host_states(self) -> Mapping[str, HostState]:
        """Return the runtime state of every host that has one, by host."""
        ...

    def drop_host_state(self, host: str) -> None:
        """Drop the host's runtime state, if there is any."""
        ...

    def calls(self) -> list[CallRecord]:
        """Return all observed calls, in no order."""
        ...

    def watched_ports(self) -> list[WatchedPort]:
        """Return all ports that are watched, in no order."""
        ...

    def put_observations(
        self,
        calls: Sequence[CallRecord] = (),
        ports: Sequence[WatchedPort] = (),
        *,
        calls_gone: Iterable[CallKey] = (),
        ports_gone: Iterable[PortKey] = (),
    ) -> None:
        """Keep observed calls and watched ports, in place of what was kept of them, and drop others."""
        ...

    def flows(self) -> list[FlowRecord]:
        """Return all observed flows, in no order."""
        ...

    def put_flows(self, flows: Sequence[FlowRecord], gone: Iterable[FlowKey] = ()) -> None:
        """Keep observed flows, in place of what was kept of them, and drop others."""
        ...

    def vips(self) -> Mapping[str, int]:
        """Return the index of the virtual address of each fully qualified name."""
        ...

    def allocate_vips(self, fqdns: Iterable[str]) -> Mapping[str, int]:
        """Return the index of each name, giving one to the names that have none.

        An index starts from a hash of the name, so it is likely the same in a rebuilt store; it stays with the name
        until release_vips.

        Raises:
            StoreError: the range is used up.
        """
        ...

    def release_vips(self, fqdns: Iterable[str]) -> None:
        """Give back the indexes of names that exist no more."""
        ...

    def jwks(self) -> list[JwksRecord]:
        """Return the last good keys of each URL."""
        ...

    def put_jwks(self, record: JwksRecord) -> None:
        """Replace the keys of a URL."""
        ...

    def drop_jwks(self, urls: Iterable[str]) -> None:
        """Drop the keys of URLs, if there are any."""
        ...

    def rollouts(self) -> list[RolloutRecord]:
        """Return how far each rollout is, by name."""
        ...

    def put_rollout(self, record: RolloutRecord) -> None:
        """Keep how far a rollout is, in place of what was kept of it."""
        ...

    def drop_rollout(self, name: str) -> None:
        """Forget a rollout, if there is one of that name."""
        ...

    def add_api_token(self, token: ApiTokenRecord, actor: str = "") -> None:
        """Keep a new API token.

        Raises:
            ValueError: its id or digest is already there.
        """
        ...

    def find_api_token(self, digest: bytes) -> ApiTokenRecord | None:
        """Return the API token of that digest unless it was revoked. Whether it has expired is the caller's to see."""
        ...

    def note_api_token_use(self, token_id: str, now: datetime) -> None:
        """Keep when an API token was last used."""
        ...

    def api_tokens(self) -> list[ApiTokenRecord]:
        """Return all API tokens, revoked ones too, oldest first."""
        ...

    def revoke_api_token(self, token_id: str, now: datetime, actor: str = "") -> bool:
        """Make an API token useless. False if there is none of that id that could still be used."""
        ...

    def audit(
        self,
        limit: int = 100,
        *,
        key: ObjectKey | None = None,
        before_id: int | None = None,
        query: AuditQuery | None = None,
    ) -> list[AuditRecord]:
        """Return the newest audit records first, at most `limit`: those that the query asks for.

        `key` and `before_id` are a query of these two.
        """
        ...

    def deny(self, denial: RefusedWrite, now: datetime) -> None:
        """Keep in the audit log that a write was refused."""
        ...

    def prune_audit(self, before: datetime, keep: int) -> int:
        """Delete audit records from before a moment, and the oldest beyond `keep`; return how many."""
        ...

    def add_event(
        self, action: str, key: ObjectKey, *, actor: str, now: datetime, after: Document | None = None
    ) -> None:
        """Write down in the audit log what is no object's change: a root activated, a host forgotten."""
        ...

    def close(self) -> None:
        """Let go of files and connections; calling anything afterwards is a mistake."""
        ...
