"""Whether a port can demand mutual TLS of everybody, by what was seen of its callers.

Nothing seen is not enough: a port is ready when all of its calls were watched for long enough, and none of them came
without the mesh's mutual TLS.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from hostmesh_api.call_stats import Security, chain_of
from hostmesh_controller.callers import Addresses, Whence, addresses_of, whence
from hostmesh_controller.mesh.inbound import InboundPort, inbound_ports, ports_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.peers import PeerPolicy, by_age, compile_policy, mode_of
from hostmesh_controller.mesh.records import Mode, Workload, WorkloadKey
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.observed import host_itself
from hostmesh_controller.store import CallKey, CallRecord, HostState, PortKey, WatchedPort


class State(StrEnum):
    """What STRICT would mean for a port."""

    STRICT = "strict"
    """It demands mutual TLS already."""
    READY = "ready"
    PLAINTEXT = "plaintext"
    """Callers would be refused."""
    UNKNOWN = "unknown"
    """Not watched, or not for long enough."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was observed. `hosts` tells when each joined and reported; after `stale` a silent one is not trusted."""

    calls: Mapping[CallKey, CallRecord]
    ports: Mapping[PortKey, WatchedPort]
    hosts: Mapping[str, HostState]
    stale: timedelta


@dataclass(frozen=True, slots=True)
class PlainCaller:
    """A caller without the mesh's mutual TLS. `own_tls`: with TLS that the program answers for."""

    record: CallRecord
    own_tls: bool
    whence: Whence

    @property
    def refused(self) -> bool:
        """Whether a policy refused every call, so that STRICT would change nothing."""
        return 0 < self.record.count <= self.record.denied


@dataclass(frozen=True, slots=True)
class Readiness:
    """Of one port of a workload. `since` is when all of its calls began to be watched, None: they are not."""

    workload: WorkloadKey
    port: int
    protocol: str
    host: str | None
    mode: Mode
    state: State
    why: str
    since: datetime | None = None
    callers: tuple[PlainCaller, ...] = field(default=())

    @property
    def ready(self) -> bool:
        return self.state in {State.STRICT, State.READY}


def readiness(mesh: Mesh, seen: Seen, now: datetime, window: timedelta) -> list[Readiness]:
    """Judge every port of every workload, by name and number. `window`: how long no plaintext must have been seen."""
    by_port = plaintext_by_port(seen.calls)
    known = addresses_of(mesh)
    result = []
    for workload, port in _ports(mesh):
        key = PortKey(*workload.key, port.number)
        callers = tuple(_callers(mesh, known, workload, by_port.get(key, ())))
        result.append(_judged(mesh, port, seen, callers, now, window))
    result.extend(_outside(mesh))
    return sorted(result, key=lambda each: (each.workload, each.port))


def plaintext_by_port(calls: Mapping[CallKey, CallRecord]) -> Mapping[PortKey, Sequence[CallRecord]]:
    """Return the calls without the mesh's mutual TLS."""
    result: dict[PortKey, list[CallRecord]] = {}
    for key, record in calls.items():
        if security_of(key) is not Security.MUTUAL_TLS:
            result.setdefault(key.of, []).append(record)
    return result


def security_of(key: CallKey) -> Security:
    chain = chain_of(f"|{key.kind}")
    # What this version does not know is not taken for the mesh's mutual TLS.
    return chain.security if chain is not None else Security.PLAINTEXT


def _ports(mesh: Mesh) -> Iterator[tuple[Workload, InboundPort]]:
    for host in sorted(mesh.hosts):
        for port in inbound_ports(mesh, host):
            yield port.workload, port


def _outside(mesh: Mesh) -> Iterator[Readiness]:
    for key, workload in mesh.workloads.items():
        if workload.host is None and workload.owner is None:
            for number, protocol in ports_of(mesh, workload).items():
                why = "no Host of the mesh has its address: nothing is watched or enforced there"
                mode = mesh.mode_of(workload, number)
                yield Readiness(key, number, protocol.value, None, mode, State.UNKNOWN, why)


def _callers(mesh: Mesh, known: Addresses, workload: Workload, records: Iterable[CallRecord]) -> Iterator[PlainCaller]:
    for record in sorted(records, key=lambda each: (each.key.caller, each.key.kind)):
        own_tls = security_of(record.key) is Security.OWN_TLS
        found = whence(mesh, known, record.key.caller, workload, record.key.port)
        yield PlainCaller(record, own_tls, found)


def _judged(
    mesh: Mesh, port: InboundPort, seen: Seen, callers: tuple[PlainCaller, ...], now: datetime, window: timedelta
) -> Readiness:
    key = PortKey(*port.workload.key, port.number)
    host = port.workload.host or ""
    since = _since(port, key, host, seen)
    recent = tuple(each for each in callers if now - each.record.last_seen < window and not each.refused)
    state, why = _state(mesh, port, seen, since, recent, now, window)
    return Readiness(
        port.workload.key, port.number, port.protocol.value, host, port.mode, state, why, since, recent or callers
    )


def _since(port: InboundPort, key: PortKey, host: str, seen: Seen) -> datetime | None:
    # Where Envoy itself listens it sees all calls for as long as its host is watched at all.
    watched = seen.ports.get(host_itself(host) if port.bind else key)
    state = seen.hosts.get(host, HostState())
    if watched is None or watched.host != host or state.joined_at is None:
        return None
    return max(watched.since, state.joined_at)


def _state(
    mesh: Mesh,
    port: InboundPort,
    seen: Seen,
    since: datetime | None,
    recent: tuple[PlainCaller, ...],
    now: datetime,
    window: timedelta,
) -> tuple[State, str]:
    host = port.workload.host or ""
    reported = seen.hosts.get(host, HostState()).last_report_at
    if port.mode is Mode.STRICT:
        return State.STRICT, "mutual TLS is demanded already"
    if recent:
        return State.PLAINTEXT, _counted(recent)
    if port.mode is Mode.DISABLE:
        return (
            State.UNKNOWN,
            "mutual TLS is turned off here (mode DISABLE): make it PERMISSIVE first",
        )
    if not mesh.runtime_of(host).joined:
        return State.UNKNOWN, f"the agent of {host} has not joined"
    if since is None:
        return State.UNKNOWN, "not watched: its agent has not said that it captures and counts the port's calls"
    if reported is None or now - reported > seen.stale:
        return State.UNKNOWN, f"not watched since {_text(reported)}: the agent of {host} is silent"
    if now - since < window:
        return State.UNKNOWN, f"watched since {_text(since)} only: less than {_span(window)}"
    return State.READY, f"no plaintext for {_span(window)}; watched since {_text(since)}"


def _counted(recent: tuple[PlainCaller, ...]) -> str:
    calls = sum(each.record.count for each in recent)
    last = max(each.record.last_seen for each in recent)
    return f"{len(recent)} caller(s) without mutual TLS, {calls} call(s), last {_text(last)}"


def _text(moment: datetime | None) -> str:
    return "ever" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def refused_by(mesh: Mesh, seen: Seen, items: Iterable[ApiObject]) -> Iterator[tuple[ApiObject, str]]:
    """Yield, of PeerAuthentications that are about to be applied, which callers that were seen would be refused."""
    changed = [(item, compile_policy(item)) for item in items if item.key.kind == "PeerAuthentication"]
    if not changed:
        return
    after = _with(mesh.policies, changed)
    root, known = mesh.settings.root_namespace, addresses_of(mesh)
    for key, records in sorted(plaintext_by_port(seen.calls).items()):
        workload = mesh.workloads.get(WorkloadKey(key.namespace, key.workload))
        if workload is None or mesh.mode_of(workload, key.port) is Mode.STRICT:
            continue
        if mode_of(after, root, workload, key.port) is not Mode.STRICT:
            continue
        found = [each for each in _callers(mesh, known, workload, records) if not each.refused]
        if found:
            item = next((item for item, policy in changed if policy.namespace == key.namespace), changed[0][0])
            names = ", ".join(_name(each) for each in found[:3]) + (" and others" if len(found) > 3 else "")
            last = _text(max(each.record.last_seen for each in found))
            place = f"{key.namespace}/{key.workload} port {key.port}"
            yield item, f"refuses callers of {place} that were seen without mutual TLS: {names}; last {last}"


def _with(
    policies: Mapping[str, tuple[PeerPolicy, ...]], changed: Iterable[tuple[ApiObject, PeerPolicy]]
) -> Mapping[str, tuple[PeerPolicy, ...]]:
    result = dict(policies)
    for item, policy in changed:
        others = [each for each in result.get(policy.namespace, ()) if each.order.name != item.key.name]
        # One that is there already keeps its age.
        old = next((each for each in result.get(policy.namespace, ()) if each.order.name == item.key.name), policy)
        aged = PeerPolicy(policy.namespace, old.order, policy.labels, policy.mode, policy.ports)
        result[policy.namespace] = by_age([*others, aged])
    return result


def _name(caller: PlainCaller) -> str:
    address = caller.record.key.caller or "callers that are not told apart"
    return address if caller.whence.host is None else f"{address} (host {caller.whence.host})"
