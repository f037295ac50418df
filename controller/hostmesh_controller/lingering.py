"""What goes on for a moment after it was to stop, until those who use it know. No I/O, no clock.

A port that goes away is called until its callers have heard of it, and a caller refuses an identity of which it has not
heard. So a change that takes a port, or the identity of one, is told to callers first: their host is shown its own
resources as they were, until all who were told have acknowledged, and a moment longer, in which what was accepted
becomes what is used. Callers that do not answer are not waited for.

A controller that has just started does not know its callers yet: they call by what an earlier one told them, so it
waits until those that lived are back. Where a host reported last that it serves something else than the store says, the
change may have been heard by nobody: the host keeps what it has meanwhile.

Envoy is sent clusters before endpoints, and both before routes, as it must be where something comes. So where something
goes, a destination is there as long as a route may lead to it, and who answered is accepted as long as it may be
called.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from hostmesh_api.delta import Resource
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, HOST_CONFIG_TYPE, LISTENER_TYPE
from hostmesh_controller import xds
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.index import NO_ENDPOINTS, Mesh
from hostmesh_controller.mesh.records import Mode, ServiceId
from hostmesh_controller.mesh.selection import identity_of
from hostmesh_controller.model.protocols import Protocol
from hostmesh_controller.names import VIRTUAL_INBOUND, parse_outbound

LONGEST_S: Final = 3.0
"""Who has not acknowledged by then is not waited for: a host must not be kept from its configuration by others."""
GRACE_S: Final = 0.5
"""Envoy acknowledges a cluster before it is warm: tens of milliseconds, more on a busy machine."""
PAST_S: Final = 1.5
"""How long a destination that went away is there still, and who answered is accepted: longer than it takes to replace
the routes and the endpoints."""
LOOK_S: Final = 0.05
"""How often it is looked what may end."""
_KEPT: Final = 16
"""Meshes of the last moments; they share nearly all they consist of."""

Who = TypeVar("Who")


@dataclass(slots=True)
class _Held(Generic[Who]):
    """`mesh` is what the host is shown; `told_s` when all of `callers` had acknowledged, None while they have not.

    `mesh` is None where an earlier controller told the host: it is shown nothing, and keeps what it has. `others` tell
    who of the callers that were awaited has come.
    """

    mesh: Mesh | None
    since_s: float
    callers: set[Who]
    told_s: float | None = None
    others: list[Callable[[], set[Who]]] = field(default_factory=list)

    def is_due(self, now_s: float) -> bool:
        if self.others:
            return False
        return (self.told_s is not None and now_s >= self.told_s + GRACE_S) or now_s >= self.since_s + LONGEST_S


@dataclass(frozen=True, slots=True)
class Ended:
    """What does not linger any more: hosts that did; host, type and name of destinations; names of services."""

    hosts: Iterable[str] = ()
    destinations: Iterable[tuple[str, str, str]] = ()
    services: Iterable[str] = ()


@dataclass(slots=True)
class Lingering(Generic[Who]):
    """`Who` is whoever is told something: a stream. `now_s` tells the time; None: nothing lingers.

    `awaits` tells whether callers may come that know only what an earlier controller told them.
    """

    now_s: Callable[[], float] | None
    awaits: Callable[[], bool] = lambda: False
    _held: dict[str, _Held[Who]] = field(default_factory=dict)
    _past: deque[tuple[Mesh, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """What was shown, and until when."""
    _used: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Host, type and name of what was answered from the past, and until when that is."""
    _identities_until_s: float = 0.0

    # What is published

    def published(self, before: Mesh, mesh: Mesh) -> Mesh:
        """Take note that one mesh is shown after another; return it with those whom callers take still."""
        if self.now_s is None or mesh is before:
            return mesh
        now_s = self.now_s()
        if len(self._past) == _KEPT:
            # Rather none of those between than the one that callers may still go by.
            self._past.pop()
        self._past.append((before, now_s))
        former = _former_identities(before, mesh)
        if former != before.former_identities:
            self._identities_until_s = now_s + PAST_S
        return mesh if former == mesh.former_identities else replace(mesh, former_identities=former)

    def hold(
        self, hosts: Iterable[str], before: Mesh, after: Mesh, callers: Callable[[], set[Who]], *, awaited: bool
    ) -> None:
        """Let those hosts go on as they were that lose what is called there, until the callers have acknowledged.

        `callers` is asked only where somebody loses something: nearly all changes take nothing from anybody. `awaited`
        is what `awaits` says.
        """
        if self.now_s is None:
            return
        now_s, told = self.now_s(), None
        # Those of thousands of hosts need not be looked through for that.
        for host in self._held.keys() & set(hosts) if _serve_the_same(before, after) else hosts:
            is_unheard = awaited and host not in before.hosts and _shows_another(after, host)
            if is_unheard or _takes_away(self.shown(host, before), after, host):
                told = callers() if told is None else told
                if not told and not awaited:
                    return
                held = self._held.setdefault(host, _Held(None if is_unheard else before, now_s, set()))
                held.callers |= told
                held.told_s = None
                if awaited:
                    held.others.append(callers)

    # What is answered

    def holds(self, host: str) -> bool:
        """Tell whether a host goes on as it was: it has not what was written last, whatever it has acknowledged."""
        return host in self._held

    def shown(self, host: str, mesh: Mesh) -> Mesh:
        """Return the mesh of which a host is shown what it serves, `mesh` unless it lingers."""
        held = self._held.get(host)
        return mesh if held is None or held.mesh is None else held.mesh

    def keeps(self, host: str, type_url: str, name: str) -> bool:
        """Tell whether a host that has a resource is told nothing of it."""
        held = self._held.get(host)
        return held is not None and held.mesh is None and _is_served(type_url, name)

    def names(self, mesh: Mesh, host: str, type_url: str) -> tuple[str, ...]:
        """Return the names of `*`: what a host serves is there as long as it is served."""
        listed, before = xds.wildcard(mesh, host, type_url), self.shown(host, mesh)
        if self.keeps(host, type_url, VIRTUAL_INBOUND):
            return tuple(dict.fromkeys((*listed, VIRTUAL_INBOUND)))
        if before is mesh:
            return listed
        served = (each for each in xds.wildcard(before, host, type_url) if _is_served(type_url, each))
        return tuple(dict.fromkeys((*listed, *served)))

    def resource(self, mesh: Mesh, host: str, type_url: str, name: str) -> Resource | None:
        """Return what a host gets for a name: what it serves, or a destination, as it was if that lingers."""
        if _is_served(type_url, name):
            return xds.resource(self.shown(host, mesh), host, type_url, name)
        now = xds.resource(mesh, host, type_url, name)
        if not self._past or not _is_destination(type_url, name) or not _is_nothing(now):
            return now
        for past, until_s in self._meshes():
            before = xds.resource(past, host, type_url, name)
            if not _is_nothing(before):
                self._used[host, type_url, name] = until_s
                return before
        return now

    def lingers(self, host: str, type_url: str, name: str) -> bool:
        """Tell whether what a host was answered is not what it gets in the end."""
        return (host, type_url, name) in self._used or (host in self._held and _is_served(type_url, name))

    def _meshes(self) -> Iterator[tuple[Mesh, float]]:
        """Yield what was shown lately, the newest first, and until when it may be answered from."""
        now_s = 0.0 if self.now_s is None else self.now_s()
        return ((mesh, shown_s + PAST_S) for mesh, shown_s in reversed(self._past) if now_s < shown_s + PAST_S)

    # What ends

    def goes_on(self, mesh: Mesh) -> bool:
        """Tell whether something lingers."""
        return bool(self._held or self._used or mesh.former_identities)

    def end(self, mesh: Mesh, is_told: Callable[[Who], bool]) -> Ended:
        """Forget and return what need not linger any more."""
        if self.now_s is None:
            return Ended()
        now_s, awaited = self.now_s(), bool(self._held) and self.awaits()
        # A change that takes something from many hosts has the same callers for each.
        asks = set() if awaited else {callers for held in self._held.values() for callers in held.others}
        came = {callers: callers() for callers in asks}
        for held in self._held.values():
            if held.others and not awaited:
                held.callers.update(*(came[callers] for callers in held.others))
                # They have had no time to answer yet.
                held.others, held.since_s = [], now_s
            held.callers = {each for each in held.callers if not is_told(each)}
            if held.told_s is None and not held.callers and not held.others:
                held.told_s = now_s
        hosts = [host for host, held in self._held.items() if held.is_due(now_s)]
        for host in hosts:
            del self._held[host]
        while self._past and now_s >= self._past[0][1] + PAST_S:
            self._past.popleft()
        used = [each for each, until_s in self._used.items() if now_s >= until_s]
        for each in used:
            del self._used[each]
        services = {item.hostname for item in mesh.former_identities} if now_s >= self._identities_until_s else set()
        return Ended(hosts, sorted(used), sorted(services))


def _is_served(type_url: str, name: str) -> bool:
    """Tell whether a resource says how a host serves others, and not how it calls them."""
    if type_url == LISTENER_TYPE:
        return name == VIRTUAL_INBOUND
    # Agents keep the clusters of ports that went away as long as connections use them.
    return type_url == HOST_CONFIG_TYPE


def _is_destination(type_url: str, name: str) -> bool:
    """Tell whether a resource is a destination of routes, or its endpoints."""
    return type_url in {CLUSTER_TYPE, ENDPOINT_TYPE} and parse_outbound(name) is not None


def _is_nothing(resource: Resource | None) -> bool:
    return resource is None or xds.is_missing(resource)


def _shows_another(mesh: Mesh, host: str) -> bool:
    """Tell whether a host reported last that it serves something else than it shall: another identity, a port more."""
    runtime = mesh.runtime.get(host)
    if runtime is None or not runtime.joined:
        return False
    ports = [port for port in inbound_ports(mesh, host) if not port.bind]
    shall = {(port.workload.key, identity_of(port.workload, mesh.settings.trust_domain).uri) for port in ports}
    known = {workload for workload, _ in runtime.presented}
    if any(workload in known for workload, _ in shall - runtime.presented):
        return True
    return not (runtime.captured or frozenset()) <= {port.number for port in ports}


def _serve_the_same(before: Mesh, after: Mesh) -> bool:
    """Tell whether nothing is another from which follows what hosts serve."""
    return all(
        getattr(before, each) is getattr(after, each)
        for each in ("workloads", "services", "policies", "inbound_sidecars", "gateways", "settings")
    )


def _takes_away(before: Mesh, after: Mesh, host: str) -> bool:
    """Tell whether a host loses something that is called there."""
    if before is after or host not in before.hosts or host not in after.hosts:
        return False
    then, now = _served(before, host), _served(after, host)
    return any(served != now.get(port) for port, served in then.items())


def _served(mesh: Mesh, host: str) -> Mapping[tuple[int, str], tuple[str, Protocol, bool]]:
    """Return, for each captured port, what callers must know of it: who answers, what is spoken, and whether in TLS."""
    trust_domain = mesh.settings.trust_domain
    return {
        (port.number, port.workload.address): (
            identity_of(port.workload, trust_domain).uri,
            port.protocol,
            port.mode is Mode.DISABLE,
        )
        for port in inbound_ports(mesh, host)
        if not port.bind
    }


def _former_identities(before: Mesh, after: Mesh) -> Mapping[ServiceId, tuple[str, ...]]:
    """Return who answered for a service a moment ago and does not any more."""
    found = dict(before.former_identities)
    for item in before.endpoints.differing(after.endpoints):
        known = before.endpoints.get(item, NO_ENDPOINTS).identities
        found[item] = tuple(sorted({*known, *found.get(item, ())}))
    gone = {item: frozenset(found[item]) - {*after.endpoints.get(item, NO_ENDPOINTS).identities} for item in found}
    return {item: tuple(sorted(left)) for item, left in gone.items() if left and item in after.services}
