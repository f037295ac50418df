"""What agents say of their hosts: kept, and told on where it changes what other hosts are sent.

A silent agent changes nothing: an endpoint is never taken away because a stream, an agent or the controller was gone.
"""

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

import grpc
import structlog

from hostmesh_api.v1.hostmesh_pb2 import HostFacts, HostReport, ReportResponse, WorkloadLease
from hostmesh_api.v1.hostmesh_pb2_grpc import ReportingServicer as ReportingBase
from hostmesh_api.wire import ADDRESS_STAYS
from hostmesh_controller.adoption_rules import Listens
from hostmesh_controller.clones import sighting
from hostmesh_controller.following import Advice, Whereabouts
from hostmesh_controller.load_steps import LEVELS, STEP_S, accepted
from hostmesh_controller.mesh import HostRuntime, Mesh
from hostmesh_controller.names import canonical_address
from hostmesh_controller.observations import Observations
from hostmesh_controller.peers import Context, Peers, peer_address
from hostmesh_controller.quarantine import Quarantine
from hostmesh_controller.store import HostState, StoreError

REPORTS_PER_S: Final = 2
"""Of the whole fleet, while nothing changes; what changed on a host is reported at once.

A report costs 0.5 ms of CPU among others, and more where it comes alone: gRPC then wakes several threads for it. 1,000
hosts that report each 10 s would take at least 5 % of a core, for load figures that nobody looks at.
"""
MIN_INTERVAL_S: Final = 10
MAX_INTERVAL_S: Final = 600
WRITE_INTERVAL: Final = timedelta(minutes=10)
"""An unchanged host is written this often: 2,000 hosts are 3 small writes a second, of 1 ms each."""

MAX_ADDRESSES: Final = 256
MAX_SOCKETS: Final = 2048
MAX_LEASES: Final = 1024
MAX_PORTS: Final = 1024
MAX_PROBES: Final = 32
MAX_PROBLEMS: Final = 64
MAX_GAPS: Final = 2
MAX_UPDATES: Final = 4
MAX_ROOTS: Final = 32
MAX_CERTIFICATES: Final = 2 * MAX_LEASES
MAX_TEXT_CHARS: Final = 1024
MAX_DISKS: Final = 64
MAX_INTERFACES: Final = 64
MAX_INTERFACE_ADDRESSES: Final = 64
MAX_LABELS: Final = 64
MAX_LABEL_CHARS: Final = 317
"""A prefix of 253, a slash, a name of 63."""
_PLACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""A region or a zone: nothing that would part a locality, or match as a pattern."""
MAX_CPUS: Final = 4096
"""A host's word for its cores decides how much it is called: not without a bound."""

Workload = tuple[str, str]
"""Namespace and name."""

_log: Final = structlog.get_logger(__name__)


class StateStore(Protocol):
    """What host states need of the store."""

    def put_host_state(self, host: str, state: HostState) -> None: ...
    def host_states(self) -> Mapping[str, HostState]: ...


@dataclass(slots=True)
class _Entry:
    """`matters` is what others are told of `state`; `written_at` is None until its host's report was written.

    `trust` is what its report says of roots and certificates: nobody else is told, and it must outlive a restart.
    """

    state: HostState
    matters: tuple[object, ...]
    trust: bytes = b""
    written_at: datetime | None = None
    level: int = 0
    """Of free CPU, as it counts, and since when."""
    level_at: datetime | None = None
    unwritten: bool = False
    """The store refused what is here; it is tried again with the next report."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class HostStates:
    """Run-time state of hosts, in memory and, less often, in the store. For one event loop.

    `on_change(host)` is called after the store knows, when a host joined or left, or its ready or healthy workloads,
    captured ports or addresses changed. Where the store cannot take a report, as on a full disk, callers are told all
    the same: who waited for it would be called though it is not well. A restart then goes on from an older report
    until the host has reported anew.
    """

    def __init__(self, store: StateStore, on_change: Callable[[str], None], now: Callable[[], datetime]) -> None:
        self._store = store
        self._on_change = on_change
        self._now = now
        self._entries: dict[str, _Entry] | None = None
        self._loading = asyncio.Lock()
        self.joins = 0
        """How often a host has joined since the start."""

    async def joined(self, host: str) -> None:
        """Begin anew with a host: nothing that was said of it before counts."""
        now = self._now()
        await self._replace(host, lambda _: HostState(joined_at=now))
        self.joins += 1

    async def left(self, host: str) -> None:
        """Keep when the host left; its workloads are outside the mesh again."""
        now = self._now()
        await self._replace(host, lambda before: replace(before, left_at=now, ready=frozenset()))

    async def silent(self, host: str, *, silent: bool) -> None:
        """Keep that a host is withdrawn because it seems to be dead, or that it is back: it outlives a restart."""
        entry = await self._entry(host)
        async with entry.lock:
            if (entry.state.silent_at is not None) is not silent:
                state = replace(entry.state, silent_at=self._now() if silent else None)
                await self._write(host, state)
                entry.state, entry.unwritten = state, False

    async def reported(self, host: str, report: HostReport, ready: frozenset[Workload]) -> None:
        """Take a report that was bounded before (`bounded`), whether the store can take it or not.

        Raises:
            StoreError: what is known of hosts cannot be read.
        """
        entry = await self._entry(host)
        async with entry.lock:
            now = self._now()
            level = _level(entry, report.load.free_eighths, now)
            if level != report.load.free_eighths:
                report.load.free_eighths = level
            state = replace(
                entry.state, last_report_at=now, report=report.SerializeToString(deterministic=True), ready=ready
            )
            matters = _what_matters(ready, report, now)
            changed = matters != entry.matters
            trust = _trust_of(report)
            due = entry.written_at is None or now - entry.written_at >= WRITE_INTERVAL or trust != entry.trust
            if changed or due or entry.unwritten:
                await self._write_if_it_can(host, entry, state)
            entry.state, entry.matters, entry.trust = state, matters, trust
        if changed:
            self._on_change(host)

    async def state(self, host: str) -> HostState:
        """Return the newest state, which may be newer than the store's; an empty one for an unknown host."""
        entry = (await self._loaded()).get(host)
        return HostState() if entry is None else entry.state

    def interval_s(self) -> int:
        """Return how often a host should report while nothing changes: the more hosts there are, the less."""
        hosts = len(self._entries or ())
        return min(max(hosts // REPORTS_PER_S, MIN_INTERVAL_S), MAX_INTERVAL_S)

    def forget(self, host: str) -> None:
        """Drop what is in memory, after the store dropped the host's state."""
        if self._entries is not None:
            self._entries.pop(host, None)

    async def _replace(self, host: str, change: Callable[[HostState], HostState]) -> None:
        entry = await self._entry(host)
        async with entry.lock:
            state = change(entry.state)
            await self._write(host, state)
            entry.state, entry.matters, entry.written_at = state, _matters_of(state), self._now()
            entry.unwritten = False
            entry.trust = _trust_of(HostReport.FromString(state.report))
        self._on_change(host)

    async def _write(self, host: str, state: HostState) -> None:
        await asyncio.to_thread(self._store.put_host_state, host, state)

    async def _write_if_it_can(self, host: str, entry: _Entry, state: HostState) -> None:
        try:
            await self._write(host, state)
        except StoreError as error:
            if not entry.unwritten:
                _log.error("report_not_written", host=host, error=str(error))
            entry.unwritten = True
        else:
            entry.written_at, entry.unwritten = self._now(), False

    async def _loaded(self) -> dict[str, _Entry]:
        if self._entries is None:
            async with self._loading:
                if self._entries is None:
                    states = await asyncio.to_thread(self._store.host_states)
                    self._entries = {name: _new_entry(state) for name, state in states.items()}
        return self._entries

    async def _entry(self, host: str) -> _Entry:
        """Return what is kept of a host; from now on it is one of those that share the reports."""
        entries = await self._loaded()
        entry = entries.get(host)
        if entry is None:
            entry = entries[host] = _new_entry(HostState())
        return entry


async def _nobody_asks(_host: str, _report: HostReport) -> None:
    """Take a report for nothing."""


async def _nobody_follows(_where: Whereabouts) -> Advice:
    """Let every address stay."""
    return Advice()


class ReportingServicer(ReportingBase):
    """Report, on the port with mutual TLS."""

    def __init__(
        self,
        states: HostStates,
        peers: Peers,
        workloads_of: Callable[[str], frozenset[Workload]],
        now: Callable[[], datetime],
        quarantine: Quarantine,
        observations: Observations | None = None,
        mesh: Callable[[], Mesh] | None = None,
        listens: Callable[[str, HostReport], Awaitable[None]] = _nobody_asks,
        heard: Callable[[str, str], None] = lambda _host, _envoy: None,
        is_at: Callable[[Whereabouts], Awaitable[Advice]] = _nobody_follows,
        report_s: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        """`workloads_of` returns (namespace, name) of the workloads that the registry places on a host.

        `observations` keeps the calls that are reported, of a `mesh`; None: nobody wants them. `listens` takes a host's
        report for the programs that were found on it; raises StoreError. `heard` is told of each report, and of the
        state of Envoy in it. `is_at` is told where a host is, and raises StoreError. `report_s` is how often a host is
        to report at least; None: as all others.
        """
        self._states = states
        self._peers = peers
        self._workloads_of = workloads_of
        self._now = now
        self._quarantine = quarantine
        self._observations = observations
        self._mesh = mesh
        self._listens = listens
        self._heard = heard
        self._is_at = is_at
        self._report_s = report_s

    async def Report(self, request: HostReport, context: Context) -> ReportResponse:  # noqa: N802 - gRPC's name
        caller = await self._peers.host_of(context)
        report = bounded(request)
        ready = ready_workloads(report, self._workloads_of(caller.host), self._now())
        address = peer_address(context.peer())
        seen = sighting(request.agent, request.facts.boot_id, request.machine, address)
        try:
            await self._quarantine.seen(caller.host, seen)
            where = whereabouts(caller.host, address, report, await self._states.state(caller.host))
            await self._states.reported(caller.host, report, ready)
        except StoreError as error:
            _log.error("report_not_kept", host=caller.host, error=str(error))
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the controller's store fails: its operator must see its log"
            )
        self._heard(caller.host, report.envoy.state)
        advice = await self._followed(where, report)
        memory = ""
        if self._observations is not None and self._mesh is not None:
            self._observations.reported(caller.host, request, self._mesh())
            memory = self._observations.memory
        interval_s = self._states.interval_s()
        return ReportResponse(
            interval_s=min(interval_s, advice.again_s or interval_s, self._report_s(caller.host) or interval_s),
            calls_memory=memory,
            flows_memory=memory,
            address_problem=advice.problem[:MAX_TEXT_CHARS],
        )

    async def _followed(self, where: Whereabouts, report: HostReport) -> Advice:
        """Let what is configured follow a report. Where it cannot be written the next report, soon, tries it again."""
        advice = Advice()
        try:
            advice = await self._is_at(where)
            await self._listens(where.host, report)
        except StoreError as error:
            _log.error("report_not_followed", host=where.host, error=str(error))
            return replace(advice, again_s=MIN_INTERVAL_S)
        return advice


def _new_entry(state: HostState) -> _Entry:
    report = HostReport.FromString(state.report)
    return _Entry(state, _matters_of(state), _trust_of(report), state.last_report_at, report.load.free_eighths)


def _level(entry: _Entry, told: int, now: datetime) -> int:
    """Return the level of free CPU that counts after a report, and keep it."""
    still_s = (now - entry.level_at).total_seconds() if entry.level_at else LEVELS * STEP_S
    level = accepted(entry.level, told, still_s)
    if level != entry.level:
        entry.level, entry.level_at = level, now
    return level


def _trust_of(report: HostReport) -> bytes:
    return report.trust.SerializeToString(deterministic=True)


def _matters_of(state: HostState) -> tuple[object, ...]:
    return _what_matters(state.ready, HostReport.FromString(state.report), state.last_report_at)


def _what_matters(ready: frozenset[Workload], report: HostReport, at: datetime | None) -> tuple[object, ...]:
    """Return what others are told of a host. From the message: reading its bytes again cost as much as all the rest."""
    facts = report.facts
    whole = (
        bool(report.withdrawn),
        frozenset(facts.addresses),
        _locality(report),
        facts.cpus,
        report.load.free_eighths,
    )
    served = _certified(report, at), _presented(report), _captured_ports(report)
    return ready, *served, _healthy(report), *whole


def _healthy(report: HostReport) -> frozenset[Workload]:
    """Return the workloads of which the agent does not say that they are unhealthy.

    One of which it says nothing at all is not among them: a new one counts once its probe has succeeded. One that has
    a lease and no probe yet, because the agent has not heard of it, goes on as it was.
    """
    unhealthy = WorkloadLease.UNHEALTHY
    return frozenset((each.namespace, each.name) for each in report.leases if each.health != unhealthy)


def healthy_workloads(state: HostState) -> frozenset[Workload]:
    """Return the workloads whose programs are well, as far as the agent last knew."""
    return _healthy(HostReport.FromString(state.report))


def _captured_ports(report: HostReport) -> frozenset[int]:
    return frozenset(port for lease in report.leases for port in lease.captured_ports)


def _certified(report: HostReport, at: datetime | None) -> frozenset[Workload]:
    """Return the workloads whose certificate was in place when the report came; on which ports is not said by that.

    A workload that gets another port is not ready until that one is served too. Its other ports are served throughout.
    """
    at_s = at.timestamp() if at is not None else 0.0
    return frozenset((each.namespace, each.name) for each in report.leases if each.certificate_not_after > at_s)


def _presented(report: HostReport) -> frozenset[tuple[Workload, str]]:
    """Return under which SPIFFE ID each workload is served, as far as its agent says."""
    return frozenset(((each.namespace, each.name), each.presented) for each in report.leases if each.presented)


def ready_workloads(report: HostReport, placed: frozenset[Workload], now: datetime) -> frozenset[Workload]:
    """Return those of the workloads placed on the host for which its agent vouches that mutual TLS is served."""
    now_s = now.timestamp()
    vouched = {
        (lease.namespace, lease.name)
        for lease in report.leases
        # 0: the agent does not say. A certificate that has ended cannot be served, whatever the agent believes.
        if lease.ready and (lease.certificate_not_after == 0 or lease.certificate_not_after > now_s)
    }
    return frozenset(vouched) & placed


def addresses_of(state: HostState) -> frozenset[str]:
    """Return the host's addresses as it last reported them, in canonical form."""
    return frozenset(HostReport.FromString(state.report).facts.addresses)


def whereabouts(host: str, seen: str, report: HostReport, before: HostState) -> Whereabouts:
    """Return where a host is that is seen at an address (canonical) and reports; `before` is what was known of it."""
    # Its own word outlives a restart of this controller, which knows its last report alone.
    astray = any(each.code == ADDRESS_STAYS for each in report.alarms)
    return Whereabouts(host, seen, frozenset(report.facts.addresses), addresses_of(before), astray)


def report_of(state: HostState) -> HostReport:
    """Return the host's last report; an empty one before the first."""
    return HostReport.FromString(state.report)


def listening_of(report: HostReport) -> tuple[Listens, ...]:
    """Return which programs listen where others may reach them, sorted."""
    found = {
        Listens(each.port, each.program, each.unit)
        for each in report.listening
        if not each.container and not each.address.startswith("127.") and each.address != "::1"
    }
    return tuple(sorted(found))


def has_ipv6(state: HostState) -> bool:
    """Tell whether the host last reported an IPv6 address that others can reach."""
    parsed = (ipaddress.ip_address(each) for each in addresses_of(state))
    return any(each.version == 6 and not (each.is_link_local or each.is_loopback) for each in parsed)


def runtime_of(state: HostState) -> HostRuntime:
    """Return what the mesh needs to know of a host's state."""
    joined = state.joined_at is not None and (state.left_at is None or state.left_at < state.joined_at)
    report = report_of(state)
    return HostRuntime(
        joined=joined,
        ready=state.ready if joined else frozenset(),
        certified=_certified(report, state.last_report_at) if joined else frozenset(),
        presented=_presented(report) if joined else frozenset(),
        ipv6=has_ipv6(state),
        captured=_captured_ports(report) if joined else frozenset(),
        healthy=_healthy(report) if joined else frozenset(),
        withdrawn=joined and bool(report.withdrawn),
        locality=_locality(report) if joined else "",
        cpus=min(report.facts.cpus, MAX_CPUS),
        free_eighths=report.load.free_eighths,
    )


def bounded(report: HostReport) -> HostReport:
    """Return a copy with lists and texts cut to their limits and only valid addresses, in canonical form.

    A host with too many sockets is still a host: it is cut, not refused.
    """
    copy = HostReport()
    copy.CopyFrom(report)
    # What this version does not know has no bounds here, and would be kept.
    copy.DiscardUnknownFields()
    # Kept elsewhere, and not with each report again.
    copy.ClearField("calls")
    copy.ClearField("flows")
    del copy.listening[MAX_SOCKETS:]
    _bound_facts(copy.facts)
    del copy.leases[MAX_LEASES:]
    copy.withdrawn = copy.withdrawn[:MAX_TEXT_CHARS]
    del copy.capture.gaps[MAX_GAPS:]
    for said in (copy.capture.missing, copy.capture.refused):
        said[:] = [text[:MAX_TEXT_CHARS] for text in said[:MAX_PROBLEMS]]
    copy.problems[:] = [text[:MAX_TEXT_CHARS] for text in copy.problems[:MAX_PROBLEMS]]
    del copy.alarms[MAX_PROBLEMS:]
    del copy.updates[MAX_UPDATES:]
    if copy.capture.drift:
        copy.capture.drift[:] = [text[:MAX_TEXT_CHARS] for text in copy.capture.drift[:MAX_PROBLEMS]]
    if copy.HasField("trust"):
        copy.trust.roots[:] = [text[:MAX_TEXT_CHARS] for text in copy.trust.roots[:MAX_ROOTS]]
        del copy.trust.certificates[MAX_CERTIFICATES:]
    for lease in copy.leases:
        del lease.captured_ports[MAX_PORTS:]
        del lease.probes[MAX_PROBES:]
        for probe in lease.probes:
            probe.name, probe.reason = probe.name[:MAX_TEXT_CHARS], probe.reason[:MAX_TEXT_CHARS]
    addresses = sorted(filter(None, map(_canonical, copy.facts.addresses[:MAX_ADDRESSES])))
    copy.facts.addresses[:] = addresses
    facts = (copy.facts, copy.facts.cloud, *copy.facts.disks, *copy.facts.interfaces)
    capture = (copy.capture, *copy.capture.gaps)
    for message in (
        *facts,
        copy.envoy,
        *capture,
        *copy.listening,
        *copy.leases,
        *copy.trust.certificates,
        *copy.alarms,
        *copy.updates,
    ):
        if message.ByteSize() <= MAX_TEXT_CHARS:
            continue  # no text in it can be longer; looking at each field was a third of our part of a report
        for descriptor, value in message.ListFields():
            if isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
                setattr(message, descriptor.name, value[:MAX_TEXT_CHARS])
    return copy


def _bound_facts(facts: HostFacts) -> None:
    """Cut lists of facts. Nobody but people reads them: what is no address is left out, and no label is too long."""
    del facts.disks[MAX_DISKS:]
    del facts.interfaces[MAX_INTERFACES:]
    for each in facts.interfaces:
        each.addresses[:] = [text for text in each.addresses[:MAX_INTERFACE_ADDRESSES] if _is_prefixed(text)]
    for key in sorted(facts.labels)[MAX_LABELS:]:
        del facts.labels[key]
    for key, value in list(facts.labels.items()):
        if len(key) > MAX_LABEL_CHARS or len(value) > MAX_LABEL_CHARS:
            del facts.labels[key]


def _is_prefixed(text: str) -> bool:
    address, _, length = text.partition("/")
    return canonical_address(address) is not None and (not length or (length.isascii() and length.isdigit()))


def _locality(report: HostReport) -> str:
    """Return where the host's cloud says that it is, `region/zone`; "" where there is none, or it is no such name."""
    cloud = report.facts.cloud
    if not _PLACE.fullmatch(cloud.region):
        return ""
    return f"{cloud.region}/{cloud.zone}" if _PLACE.fullmatch(cloud.zone) else cloud.region


def _canonical(address: str) -> str:
    """Return the address in the one form that compares, or "" if it is none."""
    return canonical_address(address.partition("%")[0]) or ""
