"""The rollouts at work: looks at the hosts, lets `rollout.plan` decide, keeps that, and tells the hosts.

What is decided is in the store before a host hears of it, so that a controller that ends forgets nobody.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import structlog

from hostmesh_api.v1.hostmesh_pb2 import HostReport
from hostmesh_controller.artifacts import Mirror, MirrorError, Signed
from hostmesh_controller.hub import Hub
from hostmesh_controller.mesh import Update
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.rollout import RolloutSpec
from hostmesh_controller.proxy_states import RefusedPush
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.rollout import document, plan, steering, turns, waiting
from hostmesh_controller.rollout.health import Seen
from hostmesh_controller.rollout.look import seen_of
from hostmesh_controller.rollout.progress import Mark, Order, Progress, Stage, Touched, order_for
from hostmesh_controller.rollout.steering import NotNowError
from hostmesh_controller.store import HostState, RolloutRecord, Store, StoreError

KIND: Final = "Rollout"
LOOK_S: Final = 1.0
REPORT_S: Final = 5
"""How often a host reports that was told another version."""
HEARD_WITHIN_S: Final = 60.0
"""A host that was told another version and has not reported for so long is silent, be it that its stream stands."""

_log: Final = structlog.stdlib.get_logger(__name__)


class UnknownRolloutError(Exception):
    """There is no Rollout of that name."""


@dataclass(frozen=True, slots=True)
class View:
    """A rollout as operators see it. `problems`: what keeps hosts from getting the version; `versions`: by host."""

    name: str
    spec: RolloutSpec
    progress: Progress
    total: int
    problems: tuple[str, ...]
    reasons: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(slots=True)
class _Kept:
    uid: str
    progress: Progress
    wants: frozenset[str] = frozenset()
    total: int = 0
    problems: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)


class RolloutKeeper:
    """Keeps all rollouts. For one event loop."""

    def __init__(
        self, store: Store, registrar: Registrar, hub: Hub, mirror: Mirror, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._registrar = registrar
        self._hub = hub
        self._mirror = mirror
        self._now = now
        self._kept: dict[str, _Kept] = {}
        self._objects: dict[str, ApiObject] = {}
        self._written = self._revision = -1
        self._known = (-1, -1)
        """Of which Hosts, and after how many joins, it was looked at last."""
        self._hosts: list[ApiObject] = []
        self._read: dict[str, tuple[HostState, HostReport]] = {}
        self._turn = asyncio.Lock()
        self._began = now().timestamp()

    async def open(self) -> None:
        """Take what is kept, and tell the hosts what they were told before. Raises StoreError."""
        for record in await asyncio.to_thread(self._store.rollouts):
            try:
                progress = steering.taken_up(document.read(record.progress), self._now().timestamp())
                self._kept[record.name] = _Kept(record.uid, progress)
            except (ValueError, KeyError, TypeError) as error:
                # A controller without this rollout is better than none: it begins anew, with its canary.
                _log.error("what is kept of a rollout cannot be read", rollout=record.name, error=str(error))
        if self._kept:
            await self.look()

    async def run(self) -> None:
        """Look until cancelled. Without a rollout a look is a comparison of two numbers."""
        while True:
            news = self._registrar.written(KIND) != self._written or (self._kept and self._now_known() != self._known)
            if news or self._in_hand():
                try:
                    await self.look()
                except StoreError as error:
                    _log.error("rollouts stand still", error=str(error))
            await asyncio.sleep(LOOK_S)

    def _now_known(self) -> tuple[int, int]:
        return self._registrar.written("Host"), self._registrar.states.joins

    def _in_hand(self) -> bool:
        return any(
            kept.progress.stage is Stage.RUNNING
            or kept.progress.marked(Mark.RETURNING)
            or (kept.progress.stage is Stage.DONE and (kept.progress.absent or kept.progress.in_hand))
            for kept in self._kept.values()
        )

    def report_s(self, host: str) -> int | None:
        """Return how often a host is to report for the sake of a rollout; None: as all others."""
        for kept in self._kept.values():
            touched = kept.progress.hosts.get(host)
            if touched is not None and not touched.settled and touched.mark is not Mark.RETURNED:
                return REPORT_S
        return None

    async def look(self) -> None:
        """Let every rollout go on as far as it may now.

        Raises:
            StoreError: what was decided cannot be kept, and no host was told.
        """
        async with self._turn:
            self._take_objects()
            # Before anything is forgotten: what a rollout that is deleted has told is not for an older one to tell.
            await self._leave()
            for name in [each for each in self._kept if each not in self._objects]:
                await asyncio.to_thread(self._store.drop_rollout, name)
                del self._kept[name]
            specs = {name: self._spec(item) for name, item in sorted(self._objects.items())}
            seen = {name: await self._look_at(name, spec) for name, spec in specs.items()}
            for name, spec in specs.items():
                await self._advance(name, spec, seen[name])
            await self._leave()
            for name, spec in specs.items():
                await self._sign(spec, self._kept[name])
            if not self._kept:
                self._read.clear()
            self._tell()

    def _take_objects(self) -> None:
        written, revision = self._registrar.written(KIND), self._registrar.revision
        self._known = self._now_known()
        if written != self._written:
            self._objects = {each.key.name: each for each in self._registrar.objects(KIND)}
            self._written = written
        if self._objects and revision != self._revision:
            self._hosts = self._registrar.objects("Host")
            self._revision = revision

    def _spec(self, item: ApiObject) -> RolloutSpec:
        assert isinstance(item.spec, RolloutSpec)
        return item.spec

    async def _look_at(self, name: str, spec: RolloutSpec) -> dict[str, Seen]:
        uid = self._objects[name].metadata.uid or name
        kept = self._kept.get(name)
        if kept is None or kept.uid != uid:
            now = self._now().timestamp()
            kept = self._kept[name] = _Kept(uid, Progress(spec.version, component=spec.component, began=now))
        seen = await self._see(spec, kept)
        kept.wants = plan.wants(spec, seen, kept.progress)
        return seen

    async def _leave(self) -> None:
        """Leave to newer rollouts the hosts that they have told."""
        for name in sorted(self._kept):
            progress = turns.left(name, {other: each.progress for other, each in self._kept.items()})
            await self._take(name, self._kept[name], progress)

    async def _advance(self, name: str, spec: RolloutSpec, seen: Mapping[str, Seen]) -> None:
        kept = self._kept[name]
        wants = {other: each.wants for other, each in self._kept.items()}
        others = turns.held(name, {other: each.progress for other, each in self._kept.items()}, wants)
        progress = plan.step(spec, seen, kept.progress, self._now().timestamp(), others)
        await self._take(name, kept, progress)
        kept.problems = (*kept.problems, *waiting.problems(spec, seen, progress, others))
        kept.total = len(kept.progress.hosts) + sum(
            each.selected and host not in kept.progress.hosts and each.version != spec.version
            for host, each in seen.items()
        )
        kept.versions = {host: each.version for host, each in seen.items()}
        kept.reasons = {host: each.reason for host, each in seen.items() if each.reason}

    async def _take(self, name: str, kept: _Kept, progress: Progress) -> None:
        before = kept.progress
        if progress == before:
            return
        await asyncio.to_thread(self._store.put_rollout, RolloutRecord(name, kept.uid, document.write(progress)))
        kept.progress = progress
        if (progress.stage, progress.wave, progress.reason) != (before.stage, before.wave, before.reason):
            await self._note(name, f"rollout.{progress.stage}", progress, "controller")

    async def _note(self, name: str, action: str, progress: Progress, actor: str) -> None:
        after = {"version": progress.version, "wave": progress.wave, "hosts": len(progress.hosts)}
        if progress.reason:
            after["reason"] = progress.reason
        say = _log.error if progress.stage is Stage.HALTED else _log.info
        say(action, rollout=name, actor=actor, **after)
        key = ObjectKey(KIND, "", name)
        await asyncio.to_thread(self._store.add_event, action, key, actor=actor, now=self._now(), after=after)

    # What is seen

    async def _see(self, spec: RolloutSpec, kept: _Kept) -> dict[str, Seen]:
        wanted = spec.hosts.match_labels.items()
        signed: dict[str, Signed | None] = {}
        problems: set[str] = set()
        seen: dict[str, Seen] = {}
        for item in self._hosts:
            host = item.key.name
            selected = wanted <= item.metadata.labels.items()
            if host not in kept.progress.hosts and not selected:
                continue
            state = await self._registrar.states.state(host)
            report = self._report(host, state)
            machine = report.facts.machine
            if machine and machine not in signed and spec.source == "mirror":
                signed[machine] = await self._signed(spec, machine, problems)
            fits = spec.source != "mirror" or signed.get(machine) is not None
            seen[host] = self._seen(host, state, report, spec, kept, fits=fits, selected=selected)
        if not seen:
            problems.add(_nobody(spec))
        kept.problems = tuple(sorted(problems))
        return seen

    def _seen(
        self,
        host: str,
        state: HostState,
        report: HostReport,
        spec: RolloutSpec,
        kept: _Kept,
        *,
        fits: bool,
        selected: bool,
    ) -> Seen:
        touched = kept.progress.hosts.get(host)
        heard = 0.0 if state.last_report_at is None else state.last_report_at.timestamp()
        within_s = max(HEARD_WITHIN_S, 3.0 * self._registrar.states.interval_s() if touched is None else 0.0)
        alive = self._hub.is_connected(host) and self._now().timestamp() - heard <= within_s
        refuses, nacks = "", self._hub.nacks(host)
        refused = tuple(sorted({mark for each in nacks for mark in _marks(each)}))
        joined = 0.0 if state.joined_at is None else state.joined_at.timestamp()
        if touched is not None:
            alive = alive and heard >= touched.since
            refuses, refused = _refused_since(nacks, touched), touched.refused
        order = order_for(kept.progress, host)
        # While this controller was away nobody was absent.
        absent_s = self._now().timestamp() - max(heard, self._began)
        return seen_of(
            report,
            spec,
            kept.uid,
            order,
            alive=alive,
            fits=fits,
            refuses=refuses,
            refused=refused,
            absent_s=absent_s,
            selected=selected,
            joined_anew=touched is not None and joined > touched.since,
        )

    def _report(self, host: str, state: HostState) -> HostReport:
        """Return the last report of a host, which is read once."""
        found = self._read.get(host)
        if found is None or found[0] is not state:
            found = self._read[host] = (state, HostReport.FromString(state.report))
        return found[1]

    async def _signed(self, spec: RolloutSpec, machine: str, problems: set[str]) -> Signed | None:
        try:
            return await asyncio.to_thread(self._mirror.signed, spec.component, spec.version, machine)
        except MirrorError as error:
            problems.add(str(error))
            return None

    # What is told

    async def _sign(self, spec: RolloutSpec, kept: _Kept) -> None:
        """Make what the hosts are told. A manifest that is gone from the mirror stays as it was told."""
        updates: dict[str, Update] = {}
        of_machine: dict[str, Signed | None] = {}
        for host in kept.progress.hosts:
            order = order_for(kept.progress, host)
            assert order is not None
            before = kept.updates.get(host)
            if before is not None and _tells(before, order):
                updates[host] = before
                continue
            machine = self._report(host, await self._registrar.states.state(host)).facts.machine
            if machine not in of_machine and spec.source == "mirror":
                of_machine[machine] = await self._signed(spec, machine, set())
            signed = of_machine.get(machine) or Signed(b"", b"")
            updates[host] = Update(
                component=spec.component,
                version=order.version,
                manifest=signed.manifest,
                signature=signed.signature,
                rollout=kept.uid,
                attempt=order.attempt,
                back=order.back,
                settled=order.settled,
                source="" if spec.source == "mirror" else spec.source,
            )
        kept.updates = updates

    def _tell(self) -> None:
        # Of several that told a host a version of one component, the last one counts: all others are over.
        last: dict[str, dict[str, tuple[bool, float, Update]]] = {}
        for _, kept in sorted(self._kept.items()):
            in_hand = kept.progress.in_hand
            for host, update in kept.updates.items():
                found = host in in_hand, kept.progress.hosts[host].since, update
                before = last.setdefault(host, {}).get(update.component)
                if before is None or found[:2] > before[:2]:
                    last[host][update.component] = found
        told = {host: tuple(update for _, (_, _, update) in sorted(each.items())) for host, each in last.items()}
        self._registrar.take_updates(told)

    # What operators ask for

    def views(self) -> list[View]:
        """Return all rollouts, by name."""
        found = sorted(self._objects.keys() & self._kept.keys())
        return [self.view(name) for name in found]

    def view(self, name: str) -> View:
        """Return one rollout. Raises UnknownRolloutError."""
        item, kept = self._objects.get(name), self._kept.get(name)
        if item is None or kept is None:
            raise UnknownRolloutError(name)
        assert isinstance(item.spec, RolloutSpec)
        return View(name, item.spec, kept.progress, kept.total, kept.problems, kept.reasons, kept.versions)

    def why_not_gone(self, name: str) -> str:
        """Return why a Rollout must stay; "" if it may be deleted."""
        kept = self._kept.get(name)
        if kept is None:
            return ""
        many = _many_at_work(kept.progress)
        if not many:
            return ""
        if kept.progress.stage is Stage.ABORTED:
            return (
                f"{many} of its hosts have not gone back yet: see hostmesh rollout status {name}; another "
                f"hostmesh rollout abort {name} lets those try again that could not"
            )
        return (
            f"{many} of its hosts have the version and nobody would call them back: end it first "
            f"(hostmesh rollout abort {name}), or let it come to its end"
        )

    def why_not_changed(self, name: str, before: RolloutSpec, after: RolloutSpec) -> str:
        """Return why a Rollout's component and source must stay; "" if it may be changed like that."""
        if (before.component, before.source) == (after.component, after.source):
            return ""
        kept = self._kept.get(name)
        many = 0 if kept is None else _many_at_work(kept.progress)
        if not many:
            return ""
        return (
            f"{many} of its hosts are told a version of {before.component} and would not be called back: end it first "
            f"(hostmesh rollout abort {name}), or apply another Rollout"
        )

    async def ask(self, name: str, verb: str, actor: str) -> View:
        """Pause, resume or abort a rollout.

        Raises:
            UnknownRolloutError: there is none.
            NotNowError: it cannot be done now.
            StoreError: nothing was changed.
        """
        await self.look()
        async with self._turn:
            view = self.view(name)
            kept, now = self._kept[name], self._now().timestamp()
            if verb == "pause":
                progress = steering.paused(kept.progress)
            elif verb == "resume":
                progress = steering.resumed(kept.progress, now)
                if view.spec.paused:
                    raise NotNowError("the Rollout itself says spec.paused: apply it without that, and then resume")
            elif verb == "abort":
                progress = steering.aborted(kept.progress, now)
            else:
                raise NotNowError(f"a rollout does not {verb}")
            if progress != kept.progress:
                await asyncio.to_thread(
                    self._store.put_rollout, RolloutRecord(name, kept.uid, document.write(progress))
                )
                kept.progress = progress
                await self._note(name, f"rollout.{verb}", progress, actor)
        await self.look()
        return self.view(name)


def _many_at_work(progress: Progress) -> int:
    return sum(progress.hosts[host].mark is not Mark.RETURNED for host in progress.in_hand)


def _tells(update: Update, order: Order) -> bool:
    theirs = update.version, update.attempt, update.back, update.settled
    return theirs == (order.version, order.attempt, order.back, order.settled)


def _refused_since(nacks: tuple[RefusedPush, ...], touched: Touched) -> str:
    """Say what a host has refused since it was told, and had not refused before; "" for nothing."""
    before = set(touched.refused)
    for each in nacks:
        if each.at.timestamp() >= touched.since and before.isdisjoint(_marks(each)):
            return each.message[:200]
    return ""


def _marks(nack: RefusedPush) -> tuple[str, str]:
    """Return what tells a refusal again: what was refused, and why; a new stream may put more names into one push."""
    return _mark(nack.type_url, nack.names), _mark(nack.type_url, nack.message)


def _mark(*what: object) -> str:
    return hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest()


def _nobody(spec: RolloutSpec) -> str:
    labels = ", ".join(f"{name}: {value}" for name, value in spec.hosts.match_labels.items())
    return (
        f"no Host has the labels {{{labels}}} (metadata.labels of the Host, not of its workloads)"
        if labels
        else "there is no Host"
    )
