"""Who gets which pages of the cold copy, and when: lazily, behind everything else. No I/O, no clock.

Hosts that see and call alike (`Sight`) share a catalogue: its pages are made once, one service at a time. A change
marks the pages that depend on it as stale and nothing else; `take` and `step` are called by whoever paces this
(`cold_pace`), so that what a change means for the copies of a thousand hosts never comes before what it means for what
they use. A copy goes out when its catalogue is whole. On a host's stream at most one response is in flight, of a few
pages, and it is acknowledged when it is on the host's disk: a slow disk costs nobody else anything.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from hostmesh_api.cold import BUCKETS, CONFIG, ENDPOINTS, PAGE_NAMES, page_name
from hostmesh_api.delta import WILDCARD, Answer, Push, Received, ServerStream
from hostmesh_api.wire import COLD_TYPE
from hostmesh_controller.mesh import Mesh, Touched
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.visibility import View
from hostmesh_controller.xds import cold_pages
from hostmesh_controller.xds.cold_pages import Making, Page, Sight, sight_of

PAGES_AT_ONCE: Final = 16
"""In one response: about 100 KB, which delays what is sent after it by less than a millisecond."""
MAX_CATALOGUES: Final = 256
"""Of 5,000 services each has 2 to 3 MB. Hosts of further viewers have no cold copy, and the log says so."""

_log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True, eq=False)
class ColdStream:
    """The cold part of one host's stream. `wake` asks the transport to write what is due."""

    host: str
    wake: Callable[[], None]
    stream: ServerStream = field(default_factory=lambda: ServerStream(at_most=PAGES_AT_ONCE))
    catalogue: "_Catalogue | None" = None
    turn: bool = False
    """It may send one response."""
    queued: bool = False


@dataclass(slots=True, eq=False)
class _Catalogue:
    """The pages of hosts that see and call alike: the source of their streams."""

    sight: Sight
    streams: dict[ColdStream, None] = field(default_factory=dict)
    pages: dict[str, Page] = field(default_factory=dict)
    stale: dict[str, None] = field(default_factory=lambda: dict.fromkeys(PAGE_NAMES))
    changed: set[str] = field(default_factory=set)
    services: dict[int, tuple[Service, ...]] = field(default_factory=dict)
    signature: tuple[object, ...] = ()
    seen: View | None = None

    def names(self, _type_url: str) -> Iterable[str] | None:
        if len(self.pages) < len(PAGE_NAMES):
            return None
        return [name for name, page in self.pages.items() if page.resource is not None]

    def answer(self, _type_url: str, name: str) -> Answer | None:
        page = self.pages.get(name)
        return Answer(None) if page is None else Answer(page.resource)

    def take(self, mesh: Mesh, touched: "_Pending") -> None:
        """Mark what a change makes stale."""
        signature = cold_pages.signature(mesh, self.sight.viewer)
        whole = touched.everything or not _same(signature, self.signature)
        self.signature = signature
        seen = cold_pages.seen_by(mesh, self.sight.viewer)
        # The same object for as long as no service is different: putting 5,000 into buckets takes 10 ms.
        services = self.services if seen is self.seen else cold_pages.buckets(seen)
        for bucket in range(BUCKETS):
            if whole or _hostnames(services, bucket) != _hostnames(self.services, bucket):
                self.stale |= {page_name(CONFIG, bucket): None, page_name(ENDPOINTS, bucket): None}
        self.seen, self.services = seen, services
        for name, page in self.pages.items():
            names = touched.services if name.startswith(CONFIG) else touched.all_names
            if not page.depends.isdisjoint(names):
                self.stale[name] = None


@dataclass(slots=True)
class _Pending:
    """What has been touched since the catalogues were last told."""

    services: set[str] = field(default_factory=set)
    all_names: set[str] = field(default_factory=set)
    everything: bool = False

    def with_more(self, other: "_Pending") -> "_Pending":
        return _Pending(
            self.services | other.services, self.all_names | other.all_names, self.everything or other.everything
        )


class Cold:
    """The cold copies of all connected hosts."""

    def __init__(self, mesh: Mesh, max_catalogues: int = MAX_CATALOGUES) -> None:
        self._mesh = mesh
        self._max_catalogues = max_catalogues
        self._catalogues: dict[Sight, _Catalogue] = {}
        self._pending: _Pending | None = None
        self._untold: dict[_Catalogue, _Pending] = {}
        self._making: tuple[_Catalogue, str, Iterator[Page | None]] | None = None
        self._queue: deque[ColdStream] = deque()
        self._refused_sight = False
        self.work: Callable[[], None] = lambda: None
        """Called when there is something to pace."""

    # What the hub tells

    def open(self, host: str, wake: Callable[[], None]) -> ColdStream:
        """Return the cold part of a new stream; nothing is made for it before it asks."""
        return ColdStream(host, wake)

    def close(self, stream: ColdStream) -> None:
        """Forget a stream, and the pages of a viewer that nobody has any more."""
        self._leave(stream)
        stream.turn = False

    def publish(self, mesh: Mesh, touched: Touched) -> None:
        """Take note of another mesh; whom it concerns is asked later."""
        self._mesh = mesh
        if not self._catalogues:
            return
        pending = self._pending or _Pending()
        pending.services |= touched.services
        pending.all_names |= touched.services | touched.endpoints
        pending.everything |= touched.everything
        self._pending = pending
        self.work()

    def receive(self, stream: ColdStream, request: DeltaDiscoveryRequest) -> Received:
        """Take a request for pages; all or none of them can be asked for."""
        if request.resource_names_subscribe:
            del request.resource_names_subscribe[:]
            request.resource_names_subscribe.append(WILDCARD)
        received = stream.stream.receive(request)
        if stream.catalogue is None and stream.stream.has_wildcard(COLD_TYPE):
            self._join(stream)
        self._enqueue(stream)
        return received

    def pushes(self, stream: ColdStream) -> Iterator[Push]:
        """Yield the response that the host has its turn for, if any."""
        if not stream.turn or stream.catalogue is None:
            return
        stream.turn = False
        yield from stream.stream.pushes(stream.catalogue)

    # What paces it asks

    @property
    def has_changed(self) -> bool:
        """Whether there is something for `take`."""
        return self._pending is not None

    def take(self) -> None:
        """Find out what all changes since the last call mean."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        for stream in [each for catalogue in self._catalogues.values() for each in catalogue.streams]:
            known = stream.host in self._mesh.hosts
            if known and stream.catalogue is not None and self._sight(stream) != stream.catalogue.sight:
                self._leave(stream)
                self._join(stream)
        for catalogue in self._catalogues.values():
            known_pending = self._untold.get(catalogue)
            self._untold[catalogue] = pending if known_pending is None else known_pending.with_more(pending)

    def _tell_one(self) -> bool:
        """Tell one catalogue what has changed; False: all of them know."""
        if not self._untold:
            return False
        catalogue, pending = self._untold.popitem()
        if catalogue.streams:
            catalogue.take(self._mesh, pending)
        if self._making is not None and self._making[1] in self._making[0].stale:
            self._making = None
        return True

    def step(self) -> bool:
        """Do a little, a millisecond or two, and return True; False: there is nothing to do.

        That is: look at what has changed for one catalogue, make one service's part of a page, give one host its turn.
        """
        if self._tell_one():
            return True
        if self._making is None:
            self._making = self._next_page()
        if self._making is not None:
            catalogue, name, steps = self._making
            page = _advance(catalogue, name, steps)
            if page is not None:
                self._making = None
                self._made(catalogue, name, page)
            return True
        while self._queue:
            stream = self._queue.popleft()
            stream.queued = False
            if self._is_due(stream):
                stream.turn = True
                stream.wake()
                return True
        return False

    def _next_page(self) -> tuple[_Catalogue, str, Iterator[Page | None]] | None:
        for catalogue in self._catalogues.values():
            if not catalogue.stale:
                continue
            host = next((each.host for each in catalogue.streams if self._stands_for(catalogue, each)), None)
            if host is None:
                # Its hosts have another viewer now, which the next `take` finds out.
                continue
            if not catalogue.signature:
                catalogue.take(self._mesh, _Pending(everything=True))
            name = next(iter(catalogue.stale))
            del catalogue.stale[name]
            kind, _, bucket = name.partition("/")
            making = Making(self._mesh, self._mesh.hosts[host], kind, int(bucket, 16))
            return catalogue, name, making.steps(catalogue.services.get(making.bucket, ()))
        return None

    def _stands_for(self, catalogue: _Catalogue, stream: ColdStream) -> bool:
        return stream.host in self._mesh.hosts and self._sight(stream) == catalogue.sight

    def _made(self, catalogue: _Catalogue, name: str, page: Page) -> None:
        before = catalogue.pages.get(name)
        catalogue.pages[name] = page
        if before is None or _version(before) != _version(page):
            catalogue.changed.add(name)
        if catalogue.stale or len(catalogue.pages) < len(PAGE_NAMES):
            return
        for stream in catalogue.streams:
            stream.stream.mark_listed(COLD_TYPE, catalogue.changed)
            self._enqueue(stream)
        catalogue.changed.clear()

    # Streams and catalogues

    def _sight(self, stream: ColdStream) -> Sight:
        return sight_of(self._mesh, stream.host)

    def _join(self, stream: ColdStream) -> None:
        if stream.host not in self._mesh.hosts:
            return
        sight = self._sight(stream)
        catalogue = self._catalogues.get(sight)
        if catalogue is None:
            if len(self._catalogues) >= self._max_catalogues:
                if not self._refused_sight:
                    _log.warning("more kinds of hosts than cold copies are made for", host=stream.host)
                self._refused_sight = True
                return
            catalogue = self._catalogues[sight] = _Catalogue(sight)
        catalogue.streams[stream] = None
        stream.catalogue = catalogue
        stream.stream.mark_all()
        self._enqueue(stream)
        self.work()

    def _leave(self, stream: ColdStream) -> None:
        catalogue, stream.catalogue = stream.catalogue, None
        if catalogue is None:
            return
        del catalogue.streams[stream]
        if not catalogue.streams:
            self._untold.pop(catalogue, None)
            del self._catalogues[catalogue.sight]
            if self._making is not None and self._making[0] is catalogue:
                self._making = None

    def _is_due(self, stream: ColdStream) -> bool:
        catalogue = stream.catalogue
        return catalogue is not None and not catalogue.stale and stream.stream.due()

    def _enqueue(self, stream: ColdStream) -> None:
        if not stream.queued and self._is_due(stream):
            stream.queued = True
            self._queue.append(stream)
            self.work()


def _advance(catalogue: _Catalogue, name: str, steps: Iterator[Page | None]) -> Page | None:
    try:
        return next(steps)
    except Exception as error:
        # One object that this program stumbles over must not keep the others from everybody.
        _log.error("a page of the cold copy could not be made; hosts keep what they have", page=name, exc_info=error)
        return catalogue.pages.get(name) or Page(None, frozenset())


def _same(left: tuple[object, ...], right: tuple[object, ...]) -> bool:
    return len(left) == len(right) and all(one is other for one, other in zip(left, right, strict=True))


def _hostnames(services: dict[int, tuple[Service, ...]], bucket: int) -> list[object]:
    return [service.id for service in services.get(bucket, ())]


def _version(page: Page) -> str:
    return "" if page.resource is None else page.resource.version
