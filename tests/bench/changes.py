"""What a change costs the whole controller in a large mesh and in a small one.

From the admin API's side (checks, the store and its audit log) over the mesh to what connected hosts are sent; what
hosts report goes the same way. Everything runs in this one thread, so that calls of functions can be counted.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self, TypeVar

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from bench.endpoint import LARGE, SMALL, calls
from bench.figure import Figure
from golden.objects import SETTINGS
from hostmesh_api.delta import ClientStream
from hostmesh_api.v1.hostmesh_pb2 import HostReport, WorkloadLease
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, HOST_CONFIG_TYPE, LISTENER_TYPE, VIRTUAL_HOST_TYPE
from hostmesh_controller.hub import Connection, Hub
from hostmesh_controller.mesh import Mesh, Touched, build
from hostmesh_controller.model import read_document
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.review import Documents
from hostmesh_controller.store.sqlite import open_store

HOSTS: Final = 20
"""Connected ones, which is not what is measured here: `push` does."""
ROUNDS: Final = 20
_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
_NAMESPACE: Final = "shop"
_BATCH: Final = 1_000
_WITHIN_S: Final = 10.0
MORE: Final = 1.3
"""Shards of tables are larger in a large mesh, and are compared entry by entry; all else is the same."""
_NET: Final = "networking.istio.io/v1"
_FIRST: Final = f"reviews-0.{_NAMESPACE}.svc.cluster.local"
_CLUSTER: Final = f"outbound|9080||{_FIRST}"

Document = dict[str, Any]
T = TypeVar("T")


class _InThisThread(ThreadPoolExecutor):
    """Does at once what others do in threads."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(work(*args, **kwargs))
        return future


def _object(api_version: str, kind: str, name: str, spec: Document, namespace: str | None = _NAMESPACE) -> Document:
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def _address(index: int) -> str:
    return f"10.{64 + index // 62_500}.{index // 250 % 250}.{index % 250 + 1}"


def _mesh(count: int) -> Iterable[Document]:
    """Yield as many hosts as services, each with the one workload of its service."""
    for index in range(count):
        name = f"reviews-{index}"
        yield _object("hostmesh.io/v1", "Host", f"h{index}", {"addresses": [_address(index)]}, None)
        ports = [{"name": "http", "port": 9080}, {"name": "tcp", "port": 9000}]
        yield _object("v1", "Service", name, {"selector": {"app": name}, "ports": ports})
        yield _object(_NET, "WorkloadEntry", name, {"address": _address(index), "labels": {"app": name, "env": "live"}})


def endpoint(number: int) -> Document:
    labels = {"app": "reviews-0", "env": "live", "build": str(number)}
    return _object(_NET, "WorkloadEntry", "moved", {"address": f"198.51.100.{number % 250 + 1}", "labels": labels})


def http_route(number: int) -> Document:
    http = {"timeout": f"{number + 1}s", "route": [{"destination": {"host": _FIRST}}]}
    return _object(_NET, "VirtualService", "http", {"hosts": [_FIRST], "http": [http]})


def rule(number: int) -> Document:
    pool = {"tcp": {"maxConnections": number + 1}}
    subsets = [{"name": "a", "labels": {"v": "a"}}, {"name": "b", "labels": {"v": "b"}}]
    spec = {"host": _FIRST, "trafficPolicy": {"connectionPool": pool}, "subsets": subsets}
    return _object(_NET, "DestinationRule", "rule", spec)


def weights(number: int) -> Document:
    parts = (("a", number % 90 + 1), ("b", 99 - number % 90))
    route = [
        {"destination": {"host": _FIRST, "subset": subset, "port": {"number": 9000}}, "weight": weight}
        for subset, weight in parts
    ]
    return _object(_NET, "VirtualService", "tcp", {"hosts": [_FIRST], "tcp": [{"route": route}]})


def service(number: int) -> Document:
    return _object("v1", "Service", f"new-{number}", {"ports": [{"name": "http", "port": 9080}]})


class _Hub(Hub):
    """Tells when it shows something."""

    def __init__(self) -> None:
        super().__init__(build(SETTINGS, (), {}, {}), 0)
        self.shown = asyncio.Event()

    def publish(self, mesh: Mesh, touched: Touched, revision: int) -> None:
        super().publish(mesh, touched, revision)
        self.shown.set()


class World:
    """A controller without its ports: the registrar with a store in a file, the hub, and hosts connected to it."""

    def __init__(self, services: int) -> None:
        self._stack = ExitStack()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_InThisThread(1))
        self._store = open_store(Path(self._stack.enter_context(TemporaryDirectory(prefix="hostmesh-bench-"))) / "db")
        self._hub = _Hub()
        self._connections: list[Connection] = []
        self._registrar = Registrar(self._store, self._hub, SETTINGS, lambda: datetime.now(UTC))
        self._wait(self._registrar.open())
        self._hub.shown.clear()
        self._publishing = self._loop.create_task(self._registrar.run())
        documents = list(_mesh(services))
        for at in range(0, len(documents), _BATCH):
            self.apply(*documents[at : at + _BATCH])
        self._wait(self._registrar.states.joined("h0"))
        self._shown()
        self._connections = [self._connect(f"h{index}") for index in range(HOSTS)]
        self.apply(endpoint(0), rule(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._publishing.cancel()
        self._loop.run_until_complete(asyncio.gather(self._publishing, return_exceptions=True))
        self._store.close()
        self._loop.close()
        self._stack.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def _connect(self, host: str) -> Connection:
        connection = self._hub.connect(host, "peer", _NOW, lambda: None)
        for type_url, names in (
            (HOST_CONFIG_TYPE, ["self"]),
            (CLUSTER_TYPE, ["*", _CLUSTER]),
            (ENDPOINT_TYPE, [_CLUSTER]),
            (LISTENER_TYPE, ["*"]),
            (VIRTUAL_HOST_TYPE, [f"9080/{_FIRST}"]),
        ):
            asked = DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names)
            self._hub.receive(connection, asked, _NOW)
        return connection

    def apply(self, *documents: Document) -> list[tuple[str, str]]:
        """Apply documents, and return type and name of what hosts were sent for it."""
        made = tuple(item for document in documents for item in (read_document(document, _NAMESPACE)[0],) if item)
        outcome = self._wait(self._registrar.apply(Documents(made), actor="bench"))
        assert len(made) == len(documents), "a document of the benchmark is refused"
        assert not outcome.review.errors, outcome.review.errors[0]
        return self._shown()

    def kept(self) -> int:
        """Return how many results the mesh keeps."""
        return len(self._hub.mesh.memo)

    def report(self, number: int) -> list[tuple[str, str]]:
        """Let the first host report that its workload is ready for mutual TLS, every other time that it is not."""
        ready = frozenset({(_NAMESPACE, "reviews-0")} if number % 2 else ())
        report = HostReport()
        lease = WorkloadLease(namespace=_NAMESPACE, name="reviews-0", ready=bool(ready), captured_ports=[9000, 9080])
        report.leases.append(lease)
        self._wait(self._registrar.states.reported("h0", report, ready))
        return self._shown()

    def _shown(self) -> list[tuple[str, str]]:
        self._wait(asyncio.wait_for(self._hub.shown.wait(), _WITHIN_S))
        self._hub.shown.clear()
        sent: list[tuple[str, str]] = []
        for connection in self._connections:
            for push in self._hub.pushes(connection):
                sent += [(push.type_url, name) for name in push.names]
                self._hub.receive(connection, ClientStream.ack(push.type_url, push.nonce), _NOW)
        return sent


@dataclass(frozen=True, slots=True)
class Change:
    """A change of which each number makes another one; `most` is how much more it may cost among more services."""

    what: str
    make: Callable[[World, int], list[tuple[str, str]]]
    most: float = MORE


CHANGES: Final = (
    Change("an endpoint's address", lambda world, number: world.apply(endpoint(number))),
    Change("a report of readiness", World.report),
    Change("a VirtualService's HTTP route", lambda world, number: world.apply(http_route(number))),
    Change("a DestinationRule", lambda world, number: world.apply(rule(number))),
    Change("weights of a TCP route", lambda world, number: world.apply(weights(number)), most=4),
    Change("one Service more", lambda world, number: world.apply(service(number)), most=15),
)
"""A viewer has one plan of its ports, which is checked against the one before: so a route of connections looks at all
services of its port. One Service more is in the table of names that each host's Envoy has."""


def cpu_s(change: Callable[[int], object]) -> float:
    """Return the processor time of one change, the least of many."""
    best = float("inf")
    for number in range(2, ROUNDS + 2):
        start = time.process_time()
        change(number)
        best = min(best, time.process_time() - start)
    return best


def changes() -> Sequence[Figure]:
    """Measure each kind of change in both meshes, by the calls of functions that it takes."""
    result: list[Figure] = []
    with World(SMALL) as small, World(LARGE) as large:
        for change in CHANGES:
            made = [partial(change.make, world) for world in (small, large)]
            took = [cpu_s(each) * 1e3 for each in made]
            counts = [calls(partial(each, ROUNDS + 2)) for each in made]
            detail = f"{took[0]:.1f} and {took[1]:.1f} ms of CPU; {counts[0]} and {counts[1]} calls of functions"
            what = f"{change.what}, in the whole controller: {LARGE} services against {SMALL}"
            result.append(Figure(what, counts[1] / counts[0], "times", change.most, detail))
    return result
