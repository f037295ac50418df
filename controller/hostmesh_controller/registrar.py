"""The registrar: the one door through which a change enters the mesh.

    apply, delete ─▶ reviewed ─▶ committed ─▶ pending ─┐
    reports of hosts (joined, ready, left) ─▶ pending ─┴─ a few ms ─▶ mesh.update ─▶ hub.publish

Writes take turns. What was committed is shown to the proxies together with what came within the window, so that a
burst of changes costs each proxy one response. For one event loop; the store and the mesh's arithmetic run in threads.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from hostmesh_api.v1.hostmesh_pb2 import HostReport
from hostmesh_controller import groups, knock, lingering
from hostmesh_controller import mesh as meshes
from hostmesh_controller.changes import Change, Planned, as_if_stored, deletion, with_facts
from hostmesh_controller.checks.world import World
from hostmesh_controller.departures import Departures
from hostmesh_controller.enrolments import Enrolments
from hostmesh_controller.groups import Candidate, Membership, NotAdmittedError
from hostmesh_controller.host_runtimes import FORMERLY, HostRuntimes
from hostmesh_controller.hub import Hub
from hostmesh_controller.impact import Effect, concerned, impact
from hostmesh_controller.key_fetcher import KeyFetcher
from hostmesh_controller.key_sets import KIND as REQUEST_AUTHENTICATION
from hostmesh_controller.lease_keeper import LeaseKeeper
from hostmesh_controller.leases import PanicLimits
from hostmesh_controller.load import Problem
from hostmesh_controller.mesh import Mesh, Settings, Touched, Trust, Update
from hostmesh_controller.mesh.compiled import compile_workload
from hostmesh_controller.mesh.records import WorkloadKey
from hostmesh_controller.mesh.selection import identity_of
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.outbound_http import OutboundHttp
from hostmesh_controller.reports import HostStates, listening_of, report_of, runtime_of
from hostmesh_controller.review import Documents, Review, read_one, read_stored, review, review_deletion
from hostmesh_controller.store import Delete, HostState, Put, Store, StoredObject, StoreError
from hostmesh_controller.unbroken import unbroken
from hostmesh_controller.virtual_addresses import VirtualAddresses

WINDOW_S: Final = 0.008
"""How long a change waits for others: unnoticed by people, long enough to take a storm of reports together."""

LISTENING_INTERVAL: Final = timedelta(seconds=30)
"""How often at most an entry follows what is found on its host: what a host says must not make writes without end."""

LAPSE_CHECK_S: Final = 600
"""How often it is looked whether the certificates of somebody who was expelled have ended."""

_log = structlog.stdlib.get_logger(__name__)

Guard = Callable[[Iterable[tuple[ObjectKey, ApiObject | None]], World], None]
"""Raises what ends a write that the caller must not make: each key with its new object (None: deleted), and what is
stored. It is asked when it is the write's turn, so that nothing changes between the judgement and the write."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a write. Where `review` has errors, nothing was changed."""

    review: Review
    changes: tuple[Change, ...]
    revision: int


class MissingError(Exception):
    """Objects that were to be deleted are not there."""

    def __init__(self, keys: Sequence[ObjectKey]) -> None:
        super().__init__(f"not found: {', '.join(map(str, keys))}")
        self.keys = tuple(keys)


@dataclass(slots=True)
class _Pending:
    """What came since the last publishing."""

    objects: dict[ObjectKey, ApiObject | None] = field(default_factory=dict)
    hosts: set[str] = field(default_factory=set)
    revision: int = 0


class Registrar:
    """Holds what is configured and what hosts report, and keeps the hub's mesh true to both."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        settings: Settings,
        now: Callable[[], datetime],
        keys: KeyFetcher | None = None,
        panic: PanicLimits | None = None,
    ) -> None:
        """`panic` limits the guard against withdrawing hosts; None: its defaults."""
        self._store = store
        self._hub = hub
        self._settings = settings
        self._now = now
        self._states = HostStates(store, self.host_changed, now)
        self._keys = keys or KeyFetcher(OutboundHttp(), store, now)
        self._keys.follow(self._keys_changed)
        self._enrolments = Enrolments(store, self.host_changed, now)
        self._world = World(
            settings.domain,
            settings.root_namespace,
            trust_domain=settings.trust_domain,
            mesh_config=settings.mesh_config,
        )
        self._membership = Membership()
        self._departures = Departures(store, self._states, self._enrolments, self.host_changed, now)
        self._vips = VirtualAddresses(store, settings.domain, settings.vip4.num_addresses)
        self._leases = LeaseKeeper(self.host_changed, self._addresses_of, knock.answers, panic)
        hub.await_callers(self._leases.awaits)
        self._updates: Mapping[str, tuple[Update, ...]] = {}
        self._written: Counter[str] = Counter()
        self._runtimes = HostRuntimes(
            self._states,
            self._enrolments,
            self.registered,
            self._leases,
            lambda host: self._updates.get(host, ()),
            now,
        )
        self._jwks: Mapping[str, str] = {}
        self._revision = 0
        self._pending = _Pending()
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._stale = False
        self._listened_at: dict[str, datetime] = {}
        self._letting_go: asyncio.TimerHandle | None = None

    @property
    def _objects(self) -> Mapping[ObjectKey, ApiObject]:
        return self._world.objects

    @property
    def world(self) -> World:
        """What is configured."""
        return self._world

    @property
    def states(self) -> HostStates:
        """What hosts report."""
        return self._states

    @property
    def enrolments(self) -> Enrolments:
        """Who joined, and who was expelled."""
        return self._enrolments

    @property
    def leases(self) -> LeaseKeeper:
        """Which hosts live."""
        return self._leases

    @property
    def keys(self) -> KeyFetcher:
        """The keys that RequestAuthentications name."""
        return self._keys

    @property
    def revision(self) -> int:
        """The store's newest revision."""
        return self._revision

    @property
    def mesh(self) -> Mesh:
        """The mesh as it is shown to the proxies."""
        return self._hub.mesh

    def written(self, kind: str) -> int:
        """Return how many objects of a kind were written since the start: another number, and some were."""
        return self._written[kind]

    def objects(self, kind: str) -> list[ApiObject]:
        """Return the configured objects of a kind, by key."""
        return [self._objects[key] for key in sorted(self._objects) if key.kind == kind]

    def get(self, key: ObjectKey) -> ApiObject | None:
        """Return a configured object, None if there is none."""
        return self._objects.get(key)

    def registered(self, host: str) -> bool:
        """Tell whether there is a Host object of that name."""
        return ObjectKey("Host", "", host) in self._objects

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses that a Host names; none where there is no such Host."""
        item = self._objects.get(ObjectKey("Host", "", host))
        return item.spec.addresses if item is not None and isinstance(item.spec, HostSpec) else ()

    async def joined_hosts(self) -> Mapping[str, HostState]:
        """Return the state of every registered host that has joined and not left."""
        states = {each.key.name: await self._states.state(each.key.name) for each in self.objects("Host")}
        return {host: state for host, state in states.items() if runtime_of(state).joined}

    async def open(self) -> None:
        """Build the mesh from the store and show it.

        Raises:
            StoreError: the store cannot be read.
            UnreadableError: it holds an object that this version does not understand.
        """
        revision, stored = await asyncio.to_thread(self._store.snapshot)
        self._world = await asyncio.to_thread(self._read_all, stored)
        for key, item in self._objects.items():
            self._membership.note(key, item)
        self._revision = revision
        self._vips.add(await self._vips.allocate(self._objects.values()))
        states = await asyncio.to_thread(self._store.host_states)
        self._runtimes.open(states)
        for name, state in states.items():
            if self._membership.group(name) is not None:
                self._membership.listening[name] = listening_of(report_of(state))
        self._jwks = await self._keys.open(self._request_authentications())
        mesh = await asyncio.to_thread(self._builder())
        self._hub.publish(mesh, Touched(everything=True), revision)

    async def apply(
        self, documents: Documents, *, actor: str, dry_run: bool = False, guard: Guard | None = None
    ) -> Outcome:
        """Create or change objects: all of them, or none if one is refused. Members follow their WorkloadGroups.

        Raises:
            StoreError: nothing was changed.
        """
        # Nobody makes this controller ask a server of keys who may not apply; and others must not wait for one.
        self._ask(guard, documents)
        keyless = () if dry_run or documents.problems else await self._keys.prefetch(documents.objects)
        async with self._writing:
            self._ask(guard, documents)
            outcome = await self._apply(documents, actor, dry_run=dry_run)
        if not keyless or outcome.review.errors:
            return outcome
        return replace(outcome, review=replace(outcome.review, warnings=(*outcome.review.warnings, *keyless)))

    async def _apply(self, documents: Documents, actor: str, *, dry_run: bool = False) -> Outcome:
        planned = await self._planned(documents)
        changes = planned.changes(self._objects)
        if planned.review.errors or dry_run:
            return Outcome(planned.review, changes, self._revision)
        puts = [Put(item.key, item.to_dict()) for item in planned.objects]
        await unbroken(self._commit([*puts, *map(Delete, planned.deletes)], planned.objects, actor))
        return Outcome(planned.review, changes, self._revision)

    def _ask(self, guard: Guard | None, documents: Documents) -> None:
        if guard is not None:
            guard(((each.key, each) for each in documents.objects), self._world)

    async def _planned(self, documents: Documents) -> Planned:
        whole, deletes = self._with_members(documents)
        verdict = await asyncio.to_thread(review, whole, self._world)
        return Planned(tuple(whole.objects), deletes, verdict)

    def _with_members(self, documents: Documents) -> tuple[Documents, tuple[ObjectKey, ...]]:
        """Return documents with the entries of members that follow from them, and those that go."""
        derived = groups.derive(documents.objects, self._objects, self._membership)
        whole = Documents(documents.objects + derived.puts, documents.problems + derived.problems)
        return whole, tuple(derived.deletes)

    async def preview(self, documents: Documents, *, guard: Guard | None = None) -> tuple[Outcome, tuple[Effect, ...]]:
        """Tell what applying documents would change, down to the resources of the proxies that are connected now.

        New services are shown with virtual addresses that are free; which ones they get is decided by applying.
        """
        async with self._writing:
            self._ask(guard, documents)
            planned = await self._planned(documents)
            changes = planned.changes(self._objects)
            outcome = Outcome(planned.review, changes, self._revision)
            if planned.review.errors:
                return outcome, ()
            now, at = self.mesh, self._now()
            changed: dict[ObjectKey, ApiObject | None] = dict.fromkeys(planned.deletes)
            changed |= {item.key: as_if_stored(item, self._objects, at) for item in planned.objects}
            vips = self._vips.guessed(planned.objects, now.vips)
            then, touched = await asyncio.to_thread(meshes.update, now, changed, vips, now.runtime)
            asked = concerned(self._hub, touched)
            return outcome, await asyncio.to_thread(impact, now, then, *asked)

    def membership_problem(self, candidate: Candidate) -> str | None:
        """Return why a host cannot join a group, as far as can be said at once; None if it can."""
        problem = groups.refusal_of(candidate, self._objects)
        if problem is not None or groups.is_member(candidate, self._objects):
            return problem
        documents = read_one(groups.host_document(candidate), "request", "default")
        errors = review(self._with_members(documents)[0], self._world).errors
        return _not_admitted(candidate, errors) if errors else None

    def is_member(self, candidate: Candidate) -> bool:
        """Tell whether the candidate is a member already, and may join again."""
        return groups.is_member(candidate, self._objects)

    async def admit(self, candidate: Candidate, *, actor: str) -> None:
        """Make a host a member of its group: its Host and its WorkloadEntry. A member stays what it is.

        Raises:
            NotAdmittedError: its name, its address or its group forbids it.
            StoreError: nothing was changed.
        """
        async with self._writing:
            problem = groups.refusal_of(candidate, self._objects)
            if problem is not None:
                raise NotAdmittedError(problem)
            if groups.is_member(candidate, self._objects):
                return
            outcome = await self._apply(read_one(groups.host_document(candidate), "request", "default"), actor)
            if outcome.review.errors:
                raise NotAdmittedError(_not_admitted(candidate, outcome.review.errors))

    async def listens(self, host: str, report: HostReport) -> None:
        """Take note of what was found on a host. The entry of a member follows, where its group adopts it by a rule.

        Raises:
            StoreError: nothing was changed, and nothing is noted.
        """
        key = self._membership.group(host)
        if key is None:
            return
        listening, now = listening_of(report), self._now()
        if self._membership.listening.get(host, ()) == listening:
            return
        at = self._listened_at.get(host)
        if at is not None and now - at < LISTENING_INTERVAL:
            return
        async with self._writing:
            group, item = self._objects.get(key), self._objects.get(ObjectKey("Host", "", host))
            if group is None or item is None:
                return
            before = self._membership.listening.get(host, ())
            self._membership.listening[host] = listening
            if not groups.rules_of(group):
                return
            try:
                outcome = await self._apply(Documents((item,), ()), f"host:{host}")
            except StoreError:
                # The next report tries it again.
                self._membership.listening[host] = before
                raise
            self._listened_at[host] = now
        for problem in outcome.review.errors:
            _log.warning("found_ports_not_adopted", host=host, reason=problem.message)

    async def left(self, host: str) -> None:
        """Take note that a host leaves by its own will. A member of a group was made by joining, and ends by leaving.

        Raises:
            StoreError: see `delete`.
        """
        if self._membership.group(host) is None:
            await unbroken(self._departures.left(host))
        else:
            await self.delete([ObjectKey("Host", "", host)], actor=f"host:{host}", ignore_missing=True)

    async def delete(
        self, keys: Sequence[ObjectKey], *, actor: str, ignore_missing: bool = False, guard: Guard | None = None
    ) -> Outcome:
        """Delete objects: all of them, or none if one is missing or must stay.

        A host whose Host object goes is out of the mesh: its stream is cut, its certificates are forgotten, and with a
        member of a group its WorkloadEntry goes. A WorkloadGroup that has members must stay.

        Raises:
            MissingError: an object is not there, and that is not to be ignored.
            StoreError: nothing was changed, or a deleted host was not forgotten; it cannot come back all the same.
        """
        async with self._writing:
            if guard is not None:
                guard(((key, None) for key in keys), self._world)
            missing = [key for key in keys if key not in self._objects]
            if missing and not ignore_missing:
                raise MissingError(missing)
            more, problems = groups.refuse_deletion(keys, self._objects, self._membership)
            keys = [*keys, *more]
            changes = tuple(deletion(key, self._objects) for key in dict.fromkeys(keys))
            if problems:
                return Outcome(Review(errors=tuple(problems)), changes, self._revision)
            verdict = await asyncio.to_thread(review_deletion, keys, self._world)
            await unbroken(self._gone(keys, [each.key for each in changes if each.action == "deleted"], actor))
            return Outcome(verdict, changes, self._revision)

    async def _gone(self, keys: Sequence[ObjectKey], deleted: Sequence[ObjectKey], actor: str) -> None:
        await self._commit([Delete(key) for key in keys], (), actor)
        await self._departures.deleted(deleted, actor)

    async def remove_host(self, host: str, *, actor: str, workloads: bool) -> Outcome:
        """Put a host out of the mesh; see `delete`.

        Args:
            host: its name.
            actor: who does it.
            workloads: delete the WorkloadEntries that are on it, too.

        Raises:
            MissingError: it is not registered.
            StoreError: see `delete`.
        """
        keys = [ObjectKey("Host", "", host)]
        if workloads:
            placed = (ObjectKey("WorkloadEntry", *each.key) for each in self.mesh.workloads_of(host))
            keys += [key for key in placed if key in self._objects]
        return await self.delete(keys, actor=actor)

    def _keys_changed(self, jwks: Mapping[str, str]) -> None:
        self._jwks = jwks
        self._wake.set()

    def _addresses_of(self, host: str) -> tuple[str, ...]:
        found = self.mesh.hosts.get(host)
        return () if found is None else found.addresses

    def _request_authentications(self) -> list[ApiObject]:
        return [item for key, item in self._objects.items() if key.kind == REQUEST_AUTHENTICATION]

    def host_changed(self, host: str) -> None:
        """Take note that what a host reported has changed; called on the event loop."""
        self._pending.hosts.add(host)
        self._wake.set()

    def take_updates(self, updates: Mapping[str, tuple[Update, ...]]) -> None:
        """Tell hosts of other versions, by host; called on the event loop."""
        before, self._updates = self._updates, updates
        for host in before.keys() | updates.keys():
            if before.get(host, ()) != updates.get(host, ()):
                self.host_changed(host)

    def take_mesh_file(self, config: MeshConfigSpec) -> None:
        """Let other mesh-wide settings hold, beneath the MeshConfig object; called on the event loop."""
        if config != self._settings.mesh_config:
            self._take_settings(replace(self._settings, mesh_config=config))

    def take_trust(self, trust: Trust) -> None:
        """Let hosts trust other roots, or renew certificates of some; called on the event loop."""
        if trust != self._settings.trust:
            self._take_settings(replace(self._settings, trust=trust))

    def _take_settings(self, settings: Settings) -> None:
        self._settings = settings
        self._stale = True
        self._wake.set()

    async def run(self) -> None:
        """Publish what comes, until cancelled."""
        while True:
            await self._woken()
            await asyncio.sleep(WINDOW_S)
            self._wake.clear()
            pending, self._pending = self._pending, _Pending()
            await self._publish(pending)
            self._let_go()

    def _let_go(self) -> None:
        """Let hosts stop serving what their callers have heard of; look again while some may not yet."""
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
        if self._hub.let_go():
            self._letting_go = asyncio.get_running_loop().call_later(lingering.LOOK_S, self._let_go)

    async def _woken(self) -> None:
        """Wait for something to publish. Now and then it is looked whether proxies still need to deny somebody."""
        while True:
            try:
                async with asyncio.timeout(LAPSE_CHECK_S):
                    await self._wake.wait()
                return
            except TimeoutError:
                if lapsed := self._runtimes.lapsed():
                    self._pending.hosts.update(lapsed)
                    return

    async def _commit(self, changes: Sequence[Put | Delete], objects: Sequence[ApiObject], actor: str) -> None:
        # Before the commit: a range that is used up refuses the write and changes nothing.
        vips = await self._vips.allocate(objects)
        commit = await asyncio.to_thread(self._store.commit, changes, actor=actor, now=self._now())
        self._revision = commit.revision
        by_key = {item.key: item for item in objects}
        stored = await asyncio.to_thread(lambda: [self._store.get(key) for key in commit.changed_keys])
        committed: dict[ObjectKey, ApiObject | None] = {}
        for key, record in zip(commit.changed_keys, stored, strict=True):
            item = None if record is None or key not in by_key else with_facts(by_key[key], record)
            self._membership.note(key, item)
            if item is None and key.kind == "Host":
                # Before anything is published: the host must not be told to give up what it has.
                self._hub.close(key.name)
            committed[key] = item
            self._written[key.kind] += 1
        before, self._world = self._world, self._world.changed(committed)
        self._pending.objects.update(committed)
        if committed:
            # With the objects: hosts believe what is taken away by the revision that it comes with.
            self._pending.revision = commit.revision
            # Whatever fails from here on: what is committed is shown.
            self._wake.set()
        if any(key.kind == REQUEST_AUTHENTICATION for key in committed):
            self._keys.want(self._request_authentications())
        self._vips.add(vips)
        self._vips.drop((before.objects[key] for key in commit.changed_keys if key in before.objects), self._world)
        await self._vips.release()

    async def _publish(self, pending: _Pending) -> None:
        self._note_former(pending)
        if pending.hosts:
            await self._runtimes.look(pending.hosts)
        vips, runtime, jwks, settings = self._vips.indexes, self._runtimes.table, self._jwks, self._settings
        revision = pending.revision
        try:
            if self._stale:
                # What was written since is in it too.
                revision = self._pending.revision or revision
                mesh, touched = await asyncio.to_thread(self._builder()), Touched(everything=True)
            else:
                mesh, touched = await asyncio.to_thread(meshes.update, self.mesh, pending.objects, vips, runtime, jwks)
        except Exception:
            # Fail static: the proxies keep what they have, and the next change builds everything anew.
            self._stale = True
            self._pending.revision = max(self._pending.revision, revision)
            _log.exception("the mesh could not be built; proxies keep revision %d", self._hub.revision)
            return
        self._stale = settings is not self._settings
        self._hub.publish(mesh, touched, revision or self._hub.revision)
        await self._runtimes.keep(pending.hosts)

    def _note_former(self, pending: _Pending) -> None:
        """Let callers take the identities that workloads have now until their hosts show others."""
        for key, item in pending.objects.items():
            if key.kind != "WorkloadEntry":
                continue
            workload = self.mesh.workloads.get(WorkloadKey(key.namespace, key.name))
            if workload is None or workload.host is None:
                continue
            after = None if item is None else compile_workload(item)
            if after is None or after.service_account != workload.service_account:
                uri = identity_of(workload, self._settings.trust_domain).uri
                self._runtimes.note_former(workload.host, workload.key, uri)
                pending.hosts.add(workload.host)
                later_s = FORMERLY.total_seconds() + 1
                asyncio.get_running_loop().call_later(later_s, self.host_changed, workload.host)

    def _builder(self) -> Callable[[], Mesh]:
        """Return what builds, in a thread, the mesh of all that is known now."""
        objects, vips, runtime = list(self._objects.values()), self._vips.indexes, self._runtimes.table
        return partial(meshes.build, self._settings, objects, vips, runtime, self._jwks)

    def _read_all(self, stored: Sequence[StoredObject]) -> World:
        objects = (with_facts(read_stored(each.key, each.document), each) for each in stored)
        return self._world.changed({item.key: item for item in objects})


def _not_admitted(candidate: Candidate, errors: Iterable[Problem]) -> str:
    reasons = "; ".join(each.message for each in errors)
    return f"host {candidate.name!r} cannot join {candidate.group}: {reasons}"
