"""Who is connected, what each host asked for, and whom a change of the mesh concerns. No I/O.

The hub owns one `ServerStream` per connected host. It keeps an index from service to those who asked for something
that depends on it, so that a change touches the streams it concerns and no other; a stream whose names turn out to
have the same content is sent nothing.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from hostmesh_api.delta import PUSH_ORDER, WILDCARD, Answer, Nack, Push, Resource, ServerStream, Source
from hostmesh_api.origin import Origin, origin_field
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    COLD_TYPE,
    CONFIRMATION_NAME,
    CONFIRMATION_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
)
from hostmesh_controller import xds
from hostmesh_controller.cold import Cold, ColdStream
from hostmesh_controller.lingering import Lingering
from hostmesh_controller.mesh import Mesh, Touched, host_dependency
from hostmesh_controller.proxy_states import ProxyState, RefusedPush, TypeState

MAX_NAMES: Final = 50_000
"""Names one host may ask for: ten times the largest mesh we promise, so that one agent cannot exhaust memory."""
MAX_NAME_CHARS: Final = 16 * 2**20
"""All names of one host together, for the same reason: 300 for each."""
MAX_TYPES: Final = 16
"""Types one host may ask for; an Envoy has about ten."""
MAX_TYPE_CHARS: Final = 256

MAX_ANSWERS: Final = 200_000
"""Answers that are kept for others to ask for: peers choose the names, and a mesh may stand still for weeks."""
_MAX_KEPT_NAME_CHARS: Final = 1024
"""A longer name is nobody else's."""

_KEPT_NACKS: Final = 20
_KEPT_NACK_CHARS: Final = 4096
_KEPT_NACK_NAMES: Final = 100
_KEPT_FAULTS: Final = 1000

_log = structlog.stdlib.get_logger(__name__)

Key = tuple[str, str]
"""Type URL and name of a resource."""


class TooManyNamesError(Exception):
    """The peer asked for more names or types than a host may."""


@dataclass(slots=True)
class Counts:
    """Totals since start, by type URL."""

    pushes: Counter[str] = field(default_factory=Counter)
    push_bytes: Counter[str] = field(default_factory=Counter)
    acks: Counter[str] = field(default_factory=Counter)
    nacks: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """What could not be made: a mistake of this program."""


@dataclass(slots=True, eq=False)
class Connection:
    """One stream of one host. `wake` asks the transport to write what is due; `closed` asks it to end."""

    host: str
    peer: str
    since: datetime
    wake: Callable[[], None]
    source: Source
    cold: ColdStream
    written: set[str] = field(default_factory=lambda: set(PUSH_ORDER))
    """Types of which nothing was sent yet since the stream began or a write concerned the host: what operators wrote
    explains the next response."""
    confirmation: Resource | None = None
    """That an operator wants what the host's agent holds back, for as long as it does."""
    stream: ServerStream = field(default_factory=ServerStream)
    closed: bool = False
    watched: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    standing: frozenset[Key] = frozenset()
    """Those of `watched` that the host has without asking for them."""
    name_chars: int = 0
    """Of all names in `watched`."""
    last_ack_at: dict[str, datetime] = field(default_factory=dict)
    nacks: deque[RefusedPush] = field(default_factory=lambda: deque(maxlen=_KEPT_NACKS))


@dataclass(frozen=True, slots=True)
class _HostView:
    """The mesh as one host may see it: the source of its stream.

    It looks at the mesh that is shown at the moment of each answer: a transport waits between two pushes, and one
    made from the mesh before would take the mark off a change that came meanwhile.
    """

    hub: "Hub"
    host: str

    def names(self, type_url: str) -> Iterable[str] | None:
        return self.hub.names(self.host, type_url)

    def answer(self, type_url: str, name: str) -> Answer | None:
        return self.hub.answer(self.host, type_url, name)


def _settle(connection: Connection) -> None:
    """What comes after all that a write meant for the host is not explained by it any more.

    A stream begins with one type after the other: of what was not asked for yet nothing has come.
    """
    if connection.written and connection.stream.idle():
        connection.written.difference_update(connection.stream.types())


class Hub:
    """The connected hosts and the mesh they are shown."""

    def __init__(
        self,
        mesh: Mesh,
        revision: int,
        *,
        max_names: int = MAX_NAMES,
        max_name_chars: int = MAX_NAME_CHARS,
        max_answers: int = MAX_ANSWERS,
        now_s: Callable[[], float] | None = None,
    ) -> None:
        """`now_s` tells the time, for what lingers (see `lingering`); None: nothing does."""
        self._mesh = mesh
        self._revision = revision
        self._max_names = max_names
        self._max_name_chars = max_name_chars
        self._max_answers = max_answers
        self._connections: dict[str, Connection] = {}
        self._watchers: dict[str, dict[Connection, set[Key]]] = {}
        self._answers: dict[tuple[Hashable, str, str], Answer] = {}
        """What was answered from this mesh, by audience, type and name."""
        self._depends: dict[tuple[Hashable, str, str], tuple[str, ...]] = {}
        """What such an answer depends on."""
        self._faulty: set[Key] = set()
        """What could not be made from this mesh, and was told."""
        self._origin_of: Callable[[int], Origin] | None = None
        self._origin_fields = b"", b""
        """What each response says of the state of the store that it was made from: if nobody wrote it, and else."""
        self.counts = Counts()
        self.cold = Cold(mesh)
        self._lingering: Lingering[Connection] = Lingering(now_s)

    @property
    def mesh(self) -> Mesh:
        """The mesh that is being shown."""
        return self._mesh

    @property
    def revision(self) -> int:
        """The store's revision of that mesh."""
        return self._revision

    def tell_origin(self, origin_of: Callable[[int], Origin]) -> None:
        """Say with each response from now on what `origin_of` makes of its revision."""
        self._origin_of = origin_of
        origin = origin_of(self._revision)
        self._origin_fields = origin_field(origin), origin_field(origin._replace(is_written=True))

    def await_callers(self, awaits: Callable[[Callable[[str], bool]], bool]) -> None:
        """Let `awaits` tell whether hosts that lived before this controller started may still be on their way.

        It is given what tells whether a host is here, and has said what it calls: agents ask for all clusters at once.
        """
        self._lingering.awaits = lambda: awaits(self._has_said)

    def _has_said(self, host: str) -> bool:
        connection = self._connections.get(host)
        return connection is not None and connection.stream.has_wildcard(CLUSTER_TYPE)

    def connect(self, host: str, peer: str, now: datetime, wake: Callable[[], None]) -> Connection:
        """Open a stream for a host; an older stream of the same host is closed, since only one can be the live one."""
        self.close(host)
        connection = Connection(host, peer, now, wake, _HostView(self, host), self.cold.open(host, wake))
        self._connections[host] = connection
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Forget a stream whose transport has ended."""
        connection.closed = True
        self.cold.close(connection.cold)
        for key in list(connection.watched):
            self._unwatch(connection, key)
        if self._connections.get(connection.host) is connection:
            del self._connections[connection.host]

    def is_connected(self, host: str) -> bool:
        """Tell whether a host has a stream."""
        return host in self._connections

    def close(self, host: str) -> bool:
        """End the stream of a host, if it has one."""
        connection = self._connections.get(host)
        if connection is None:
            return False
        self.disconnect(connection)
        connection.wake()
        return True

    def names(self, host: str, type_url: str) -> tuple[str, ...] | None:
        """Return what a host gets by wildcard now; None if that cannot be told: then it keeps what it has."""
        try:
            return self._lingering.names(self._mesh, host, type_url)
        except Exception as error:
            self._fault(host, type_url, WILDCARD, error)
            return None

    def answer(self, host: str, type_url: str, name: str) -> Answer | None:
        """Return what a host gets for a name now; None if it cannot be made: then the host keeps what it has.

        One object that this program stumbles over must not keep everything else from everybody.
        """
        if type_url == CONFIRMATION_TYPE:
            connection = self._connections.get(host)
            given = None if connection is None else connection.confirmation
            return None if given is None else Answer(given)
        if self._lingering.keeps(host, type_url, name) and self._has(host, type_url, name):
            return None
        try:
            audience = xds.audience(self._mesh, host, type_url)
            if audience is None:
                return Answer(self._lingering.resource(self._mesh, host, type_url, name))
            # A change of a shared service asks this once for each proxy: 1 µs, where finding the resource takes 15.
            key = (audience, type_url, name)
            known = self._answers.get(key)
            if known is None:
                known = Answer(self._lingering.resource(self._mesh, host, type_url, name))
                if self._lingering.lingers(host, type_url, name):
                    return known
                if len(self._answers) >= self._max_answers:
                    self._answers.clear()
                if len(name) <= _MAX_KEPT_NAME_CHARS:
                    self._answers[key] = known
        except Exception as error:
            self._fault(host, type_url, name, error)
            return None
        return known

    def _has(self, host: str, type_url: str, name: str) -> bool:
        connection = self._connections.get(host)
        return connection is not None and name in connection.stream.held(type_url)

    def _fault(self, host: str, type_url: str, name: str, error: Exception) -> None:
        self.counts.faults[type_url] += 1
        if (type_url, name) not in self._faulty and len(self._faulty) < _KEPT_FAULTS:
            self._faulty.add((type_url, name))
            _log.error(
                "a resource could not be made; proxies keep what they have",
                host=host,
                type_url=type_url,
                name=name,
                exc_info=error,
            )

    def receive(self, connection: Connection, request: DeltaDiscoveryRequest, now: datetime) -> bool:
        """Take a request from a host; return whether something may be due to it now.

        Raises:
            TooManyNamesError: the host asks for more than `max_names`, or else more than a host may; nothing of the
                request was taken.
        """
        self._check_size(connection, request)
        is_cold = request.type_url == COLD_TYPE
        received = self.cold.receive(connection.cold, request) if is_cold else connection.stream.receive(request)
        type_url = received.type_url
        if received.acked is not None:
            self.counts.acks[type_url] += 1
            connection.last_ack_at[type_url] = now
        if received.nacked is not None:
            self._refused(connection, received.nacked, now)
        if is_cold:
            # When it is sent is not for the transport to say.
            return False
        for name in received.subscribed:
            if name != WILDCARD:
                self._watch(connection, (type_url, name))
        for name in received.unsubscribed:
            self._unwatch(connection, (type_url, name))
        if type_url == CONFIRMATION_TYPE and CONFIRMATION_NAME in received.unsubscribed:
            # What was confirmed is over; the next loss is another one.
            connection.confirmation = None
        if WILDCARD in received.subscribed or received.unsubscribed:
            self._stand(connection)
        _settle(connection)
        return connection.stream.due()

    def _check_size(self, connection: Connection, request: DeltaDiscoveryRequest) -> None:
        """Refuse a request that would make the host cost too much, before it costs anything."""
        host, type_url = connection.host, request.type_url
        if len(type_url) > MAX_TYPE_CHARS or not connection.stream.has_room(type_url, MAX_TYPES):
            msg = f"host {host!r} asks for more than {MAX_TYPES} types of resources, or for one that is none"
            raise TooManyNamesError(msg)
        names = [name for name in request.resource_names_subscribe if (type_url, name) not in connection.watched]
        count = max(len(connection.watched) + len(names), len(request.initial_resource_versions))
        if count > self._max_names:
            raise TooManyNamesError(f"host {host!r} asks for more than {self._max_names} resources")
        if connection.name_chars + sum(map(len, names)) > self._max_name_chars:
            raise TooManyNamesError(
                f"host {host!r} asks for names of more than {self._max_name_chars} characters together"
            )

    def _refused(self, connection: Connection, nack: Nack, now: datetime) -> None:
        self.counts.nacks[nack.type_url] += 1
        names, message = nack.names[:_KEPT_NACK_NAMES], nack.message[:_KEPT_NACK_CHARS]
        connection.nacks.append(RefusedPush(now, nack.type_url, names, message))

    def pushes(self, connection: Connection) -> Iterator[Push]:
        """Yield what is due to a host now; the transport writes each."""
        for push in connection.stream.pushes(connection.source):
            self.counts.pushes[push.type_url] += 1
            self.counts.push_bytes[push.type_url] += len(push.data)
            origin = self._origin_fields[push.type_url in connection.written]
            connection.written.discard(push.type_url)
            # It was made just now, from the mesh that is shown. A field more is as good behind the others.
            yield push._replace(data=push.data + origin)
        _settle(connection)
        for push in self.cold.pushes(connection.cold):
            self.counts.pushes[push.type_url] += 1
            self.counts.push_bytes[push.type_url] += len(push.data)
            yield push

    def confirm(self, host: str, now: datetime) -> bool:
        """Tell a host's agent to take what it holds back; False if it is not connected, or holds nothing back."""
        connection = self._connections.get(host)
        if connection is None or not connection.stream.has_asked(CONFIRMATION_TYPE, CONFIRMATION_NAME):
            return False
        connection.confirmation = xds.confirmation(now.isoformat())
        connection.stream.mark(CONFIRMATION_TYPE, (CONFIRMATION_NAME,))
        connection.wake()
        return True

    def publish(self, mesh: Mesh, touched: Touched, revision: int) -> None:
        """Show another mesh; wake the hosts that `touched` concerns."""
        if mesh is not self._mesh:
            self._answers = {}
            self._depends = {}
            self._faulty = set()
        before, is_another = self._mesh, revision != self._revision
        mesh = self._lingering.published(before, mesh)
        self._mesh, self._revision = mesh, revision
        if is_another and self._origin_of is not None:
            self.tell_origin(self._origin_of)
        self.cold.publish(mesh, touched)
        concerned: set[Connection] = set()
        for connection in self._wholly_concerned(touched):
            self._mark_whole(connection)
            concerned.add(connection)
        concerned |= self._mark_callers(before, touched)
        again: dict[tuple[Connection, Key], None] = {}
        for service in touched.services:
            again |= dict.fromkeys(self._mark(service, concerned, endpoints_only=False))
        for service in touched.endpoints - touched.services:
            self._mark(service, concerned, endpoints_only=True)
        # Once for each, however many of the names are touched that it depends on.
        for connection, key in again:
            self._watch(connection, key)
        awaited = self._lingering.awaits()
        if awaited:
            # Those that come later must not take first what callers will hear of later still.
            hosts: Iterable[str] = mesh.hosts if touched.everything else touched.hosts
        else:
            hosts = [each.host for each in self._wholly_concerned(touched)]
        self._lingering.hold(hosts, before, mesh, lambda: self._who_calls(touched), awaited=awaited)
        for connection in concerned:
            if is_another:
                connection.written = set(PUSH_ORDER)
            connection.wake()

    def _who_calls(self, touched: Touched) -> set[Connection]:
        """Return those who asked for something that has changed."""
        names = self._watchers if touched.everything else touched.services | touched.endpoints
        return {each for name in names for each in self._watchers.get(name, ())}

    def let_go(self) -> bool:
        """Show what lingered as it is now, where that is due; tell whether something lingers still."""
        ended = self._lingering.end(self._mesh, lambda each: each.closed or each.stream.idle())
        concerned: set[Connection] = set()
        for connection in (self._connections[host] for host in ended.hosts if host in self._connections):
            self._mark_whole(connection)
            connection.written = set(PUSH_ORDER)
            concerned.add(connection)
        for host, type_url, name in ended.destinations:
            if host in self._connections:
                self._connections[host].stream.mark(type_url, (name,))
                # That it goes was written, and is told late.
                self._connections[host].written.add(type_url)
                concerned.add(self._connections[host])
        if ended.services:
            self._mesh, self._answers = replace(self._mesh, former_identities={}), {}
            for service in ended.services:
                self._mark(service, concerned, endpoints_only=False)
        for connection in concerned:
            connection.wake()
        return self._lingering.goes_on(self._mesh)

    def _mark_whole(self, connection: Connection) -> None:
        connection.stream.mark_all()
        self._stand(connection)
        for key in list(connection.watched):
            self._watch(connection, key)

    def _mark_callers(self, before: Mesh, touched: Touched) -> set[Connection]:
        """Mark what hosts call by, and return those of whom something may be due."""
        if touched.everything:
            return set()
        concerned: set[Connection] = set()
        known: dict[Hashable, frozenset[Key]] = {}
        for host in touched.callers & self._connections.keys():
            connection, viewer = self._connections[host], self._mesh.viewer_of(host)
            try:
                names = known.get(viewer)
                if names is None or host in before.gateways or host in self._mesh.gateways:
                    names, shared = xds.called_by(before, self._mesh, host)
                    known |= {viewer: names} if shared else {}
            except Exception as error:
                self._fault(host, LISTENER_TYPE, WILDCARD, error)
                self._mark_whole(connection)
                concerned.add(connection)
                continue
            self._stand(connection)
            for type_url, name in names:
                connection.stream.mark_listed(type_url, (name,))
            if names:
                concerned.add(connection)
        return concerned

    def _wholly_concerned(self, touched: Touched) -> list[Connection]:
        if touched.everything:
            return list(self._connections.values())
        return [self._connections[host] for host in touched.hosts if host in self._connections]

    def wholly_concerned(self, touched: Touched) -> list[str]:
        """Return the connected hosts that may also get what they do not have now."""
        callers = (host for host in touched.callers if host in self._connections)
        return [*(each.host for each in self._wholly_concerned(touched)), *callers]

    def concerned(self, touched: Touched) -> Iterator[tuple[str, str, str]]:
        """Yield host, type and name of what `publish` would look at, of the names that hosts have now."""
        for host in self.wholly_concerned(touched):
            for type_url in xds.WILDCARD_TYPES:
                names = xds.wildcard(self._mesh, host, type_url)
                yield from ((host, type_url, name) for name in names)
        for connection in self._wholly_concerned(touched):
            yield from ((connection.host, *key) for key in connection.watched)
        for service in touched.services | touched.endpoints:
            for connection, keys in self._watchers.get(service, {}).items():
                for type_url, name in keys:
                    if service in touched.services or type_url == ENDPOINT_TYPE:
                        yield connection.host, type_url, name

    def _mark(self, service: str, concerned: set[Connection], *, endpoints_only: bool) -> list[tuple[Connection, Key]]:
        """Mark what depends on a name, and return it."""
        found: list[tuple[Connection, Key]] = []
        for connection, keys in self._watchers.get(service, {}).items():
            for key in keys:
                if endpoints_only and key[0] != ENDPOINT_TYPE:
                    continue
                connection.stream.mark(key[0], key[1:])
                concerned.add(connection)
                found.append((connection, key))
        return found

    def _watch(self, connection: Connection, key: Key) -> None:
        try:
            depends = self._dependencies(connection.host, key)
        except Exception as error:
            self._fault(connection.host, *key, error)
            depends = connection.watched.get(key, ())
        if connection.watched.get(key) == depends:
            return
        self._unwatch(connection, key)
        connection.watched[key] = depends
        connection.name_chars += len(key[1])
        for service in depends:
            self._watchers.setdefault(service, {}).setdefault(connection, set()).add(key)

    def _dependencies(self, host: str, key: Key) -> tuple[str, ...]:
        """Return what a name depends on; of names that mean the same to many hosts it is looked up once."""
        audience = xds.audience(self._mesh, host, key[0])
        if audience is None:
            return xds.dependencies(self._mesh, host, *key)
        own = host_dependency(host)
        others = self._depends.get((audience, *key))
        if others is None:
            others = tuple(each for each in xds.dependencies(self._mesh, host, *key) if each != own)
            if len(self._depends) >= self._max_answers:
                self._depends.clear()
            if len(key[1]) <= _MAX_KEPT_NAME_CHARS:
                self._depends[audience, *key] = others
        return (own, *others)

    def _stand(self, connection: Connection) -> None:
        """Watch what a host has without asking for it, where others' changes can make it another."""
        now: frozenset[Key] = frozenset()
        try:
            if connection.stream.has_wildcard(CLUSTER_TYPE):
                names = xds.standing_clusters(self._mesh, connection.host)
                now = frozenset((CLUSTER_TYPE, name) for name in names)
        except Exception as error:
            self._fault(connection.host, CLUSTER_TYPE, WILDCARD, error)
            return
        held = connection.stream.held(CLUSTER_TYPE)
        # One that is not listed any more is still there for whoever calls it: Envoy does not ask for what it has.
        now |= {key for key in connection.standing if key[1] in held}
        for key in connection.standing - now:
            if not connection.stream.has_asked(*key):
                self._unwatch(connection, key)
        connection.standing = now
        for key in now:
            self._watch(connection, key)

    def _unwatch(self, connection: Connection, key: Key) -> None:
        depends = connection.watched.pop(key, None)
        if depends is None:
            return
        connection.name_chars -= len(key[1])
        for service in depends:
            watchers = self._watchers.get(service, {})
            keys = watchers.get(connection, set())
            keys.discard(key)
            if not keys:
                watchers.pop(connection, None)
            if not watchers:
                self._watchers.pop(service, None)

    def converged(self, revision: int) -> Mapping[str, bool]:
        """Tell for each connected host whether it has acknowledged all that `revision` means for it."""
        shown = self._revision >= revision
        return {host: shown and self._is_settled(each) for host, each in self._connections.items()}

    def _is_settled(self, connection: Connection) -> bool:
        """Tell whether a host has acknowledged all that is meant for it, and nothing of its own is kept back."""
        return connection.stream.idle() and not self._lingering.holds(connection.host)

    def proxies(self) -> list[ProxyState]:
        """Return the state of every connected host, by name."""
        return [self._state(self._connections[host]) for host in sorted(self._connections)]

    def nacks(self, host: str) -> tuple[RefusedPush, ...]:
        """Return what a connected host has lately refused on its stream; nothing of one that is not connected."""
        found = self._connections.get(host)
        return () if found is None else tuple(found.nacks)

    def answers_kept(self) -> int:
        """Return how many answers are kept for others who may ask for the same."""
        return len(self._answers)

    def connected(self) -> int:
        """Return how many hosts are connected."""
        return len(self._connections)

    def _state(self, connection: Connection) -> ProxyState:
        types = {
            type_url: TypeState(len(names), len(connection.stream.held(type_url)), connection.last_ack_at.get(type_url))
            for type_url, names in connection.stream.subscriptions()
        }
        return ProxyState(
            host=connection.host,
            peer=connection.peer,
            since=connection.since,
            settled=self._is_settled(connection),
            acked_at=max(connection.last_ack_at.values(), default=None),
            types=types,
            nacks=tuple(connection.nacks),
        )
