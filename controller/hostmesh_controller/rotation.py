"""The steps by which one root takes another's place, taken with a look at who would be cut off by them.

    step ─▶ who trusts what, who holds what (reports) ─▶ refused, or: disk ─▶ audit log ─▶ HostConfig of every host

For one event loop; disk, store and upstream authorities are waited for in threads.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import structlog
from cryptography import x509

from hostmesh_api.v1.hostmesh_pb2 import HostReport
from hostmesh_controller import authority_roots as steps
from hostmesh_controller.authority import Authority
from hostmesh_controller.authority_roots import Root, RootState, StepError
from hostmesh_controller.mesh import Trust
from hostmesh_controller.metrics import Reading
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.store import CertificateRecord, HostState, StoreError
from hostmesh_controller.trust import HostTrust, holders, host_trust, unacknowledged

RENEW_WITHIN: Final = timedelta(seconds=30)
"""Over which renewals are spread unless the operator says otherwise: 10,000 hosts are 330 signatures a second."""
LOOK_EVERY_S: Final = 10.0
"""How often it is seen whether an intermediate is due, or files have changed."""
_NAMED: Final = 20

_log: Final = structlog.stdlib.get_logger(__name__)


class Registry(Protocol):
    """What the rotation needs of the registrar."""

    def joined_hosts(self) -> Awaitable[Mapping[str, HostState]]: ...
    def take_trust(self, trust: Trust) -> None: ...


class AuditStore(Protocol):
    """What the rotation needs of the store."""

    def certificates(self, host: str) -> list[CertificateRecord]: ...
    def add_event(
        self, action: str, key: ObjectKey, *, actor: str, now: datetime, after: Mapping[str, Any] | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was taken. `offline` are hosts that have not heard of it, and were no reason against it."""

    root: Root
    offline: tuple[str, ...] = ()


def trust_of(authority: Authority) -> Trust:
    """Return what hosts are told to trust and renew."""
    tainted = authority.roots.tainted
    within = max((each.renew_within for each in tainted), default=timedelta())
    return Trust(authority.bundle_pem, tuple(each.fingerprint for each in tainted), within.total_seconds())


class RootRotation:
    """Takes the steps.

    Args:
        authority: keeps the roots.
        registry: knows the hosts, and sends them what to trust.
        store: keeps the audit log.
        connected: returns the hosts that have a stream now.
        changed: is called after the roots changed.
        now: aware time.
    """

    def __init__(
        self,
        authority: Authority,
        registry: Registry,
        store: AuditStore,
        connected: Callable[[], Iterable[str]],
        changed: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        self._authority = authority
        self._registry = registry
        self._store = store
        self._connected = connected
        self._changed = changed
        self._now = now
        self._stepping = asyncio.Lock()
        self._look = asyncio.Event()

    @property
    def authority(self) -> Authority:
        return self._authority

    async def hosts(self) -> list[HostTrust]:
        """Return what is known of every host that has joined."""
        joined = await self._registry.joined_hosts()
        connected, roots, now = frozenset(self._connected()), self._authority.roots, self._now()
        found = []
        for host, state in joined.items():
            report = HostReport.FromString(state.report)
            records = [] if report.HasField("trust") else await asyncio.to_thread(self._store.certificates, host)
            found.append(host_trust(host, report, records, roots, now, connected=host in connected))
        return found

    async def prepare(self, *, actor: str) -> Taken:
        """Have every host trust a new root.

        Raises:
            StepError: not now; says why.
            AuthorityError: disk or upstream refuse.
        """
        async with self._stepping:
            root = await asyncio.to_thread(self._authority.prepare, self._now())
            return await self._taken("ca.prepare", root, actor)

    async def activate(self, *, actor: str, force: bool) -> Taken:
        """Let the prepared root sign.

        Raises:
            StepError: not now, or a connected host does not trust it yet and that is not to be ignored.
            AuthorityError: the disk refuses.
        """
        async with self._stepping:
            now = self._now()
            root = self._authority.would(lambda roots: steps.activate(roots, now))
            waiting, offline = unacknowledged(await self.hosts(), root.fingerprint)
            if waiting and not force:
                msg = (
                    f"{_named(waiting)} {_have(waiting)} not acknowledged root {root.id} yet: wait for the new bundle "
                    "to get there, see `hostmesh proxy list` for what is wrong, or activate with --force "
                    "(they then may fail to verify new certificates)"
                )
                raise StepError(msg)
            await asyncio.to_thread(self._authority.activate, now)
            return await self._taken("ca.activate", self._authority.roots.active, actor, offline)

    async def taint(self, root_id: str | None, *, actor: str, within: timedelta = RENEW_WITHIN) -> Taken:
        """Have every certificate of an old root renewed at once.

        Raises:
            StepError: not now.
            AuthorityError: the disk refuses.
        """
        async with self._stepping:
            root = await asyncio.to_thread(self._authority.taint, root_id, self._now(), within)
            return await self._taken("ca.taint", root, actor)

    async def revoke(self, root_id: str | None, *, actor: str, force: bool, compromised: bool) -> Taken:
        """Take a root from all bundles.

        Raises:
            StepError: not now, or hosts have certificates of it and that is not to be ignored.
            AuthorityError: the disk refuses.
        """
        async with self._stepping:
            now = self._now()
            root = self._authority.would(lambda roots: steps.revoke(roots, root_id, now, compromised=compromised))
            hosts = await self.hosts()
            held = holders(hosts, root.fingerprint)
            if held and not force:
                raise StepError(_still_held(root, [each for each in hosts if each.host in held]))
            revoked = await asyncio.to_thread(self._authority.revoke, root.id, now, compromised=compromised)
            return await self._taken("ca.revoke", revoked, actor, held)

    def look_again(self) -> None:
        """See soon whether there is another intermediate to sign with."""
        self._look.set()

    async def run(self) -> None:
        """Keep the intermediate fresh, until cancelled."""
        asked = False
        while True:
            self._look.clear()
            before = self._authority.roots
            await asyncio.to_thread(self._authority.tend, self._now(), at_once=asked)
            if self._authority.roots is not before:
                prepared = self._authority.roots.prepared
                if prepared is not None and prepared not in before.items:
                    await self._taken("ca.prepare", prepared, "upstream")
                else:
                    self._tell()
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._look.wait()
                asked = True
            except TimeoutError:
                asked = False

    async def _taken(self, action: str, root: Root, actor: str, offline: Iterable[str] = ()) -> Taken:
        """Tell of a step. It is done, whether or not the store can write it down: then the log alone has it."""
        self._tell()
        _log.info(action.replace(".", "_"), root=root.id, state=root.state, actor=actor)
        key = ObjectKey("Root", "", root.id)
        after = {"fingerprint": root.fingerprint, "state": root.state.value, "compromised": root.compromised}
        try:
            await asyncio.to_thread(self._store.add_event, action, key, actor=actor, now=self._now(), after=after)
        except StoreError as error:
            _log.error("audit_not_written", action=action, root=root.id, actor=actor, error=str(error))
        return Taken(root, tuple(offline))

    def _tell(self) -> None:
        self._registry.take_trust(trust_of(self._authority))
        self._changed()


def readings(authority: Authority) -> Iterable[Reading]:
    """What is told at a scrape."""
    prefix = "hostmesh_controller_ca"
    roots = authority.roots
    ends: dict[tuple[str, ...], float] = {
        (each.id, each.state.value): _end(each) for each in roots.items if each.trusted
    }
    states: dict[tuple[str, ...], float] = {
        (state.value,): float(sum(each.state is state for each in roots.items)) for state in RootState
    }
    yield Reading(f"{prefix}_roots", "Roots by state.", ("state",), states)
    yield Reading(f"{prefix}_root_not_after_seconds", "When a root ends.", ("root", "state"), ends)
    until = authority.signing_until.timestamp()
    yield Reading(f"{prefix}_intermediate_not_after_seconds", "When what signs ends.", (), {(): until})
    failing = float(bool(authority.problem))
    yield Reading(f"{prefix}_intermediate_failing", "1 while a due intermediate cannot be had.", (), {(): failing})


def _end(root: Root) -> float:
    return x509.load_pem_x509_certificate(root.certificate_pem.encode()).not_valid_after_utc.timestamp()


def _still_held(root: Root, hosts: Iterable[HostTrust]) -> str:
    told = [
        f"{each.host} ({each.certificates[root.fingerprint]}, until {each.until[root.fingerprint]:%Y-%m-%d %H:%M} UTC"
        f"{'' if each.connected else ', offline'})"
        for each in hosts
    ]
    return (
        f"certificates of root {root.id} are still in use at {_named(told)}: wait until they are renewed or have "
        "ended, or revoke with --force (nobody trusts them then; a host that is away gets new ones when it comes back)"
    )


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _have(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"
