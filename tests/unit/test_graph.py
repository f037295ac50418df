"""Who talks to whom: flows that hosts tell of, kept within bounds, joined with the registry and with calls."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import pki
from golden import objects
from hostmesh_api.v1.hostmesh_pb2 import Flow, HostReport, ObservedFlows
from hostmesh_controller import flow_memory
from hostmesh_controller.cli.graph import dot, mermaid
from hostmesh_controller.flow_memory import FlowMemory
from hostmesh_controller.flows import MAX_OF_HOST
from hostmesh_controller.graph import Edge, Listening, graph
from hostmesh_controller.load import load_documents
from hostmesh_controller.mesh import HostRuntime, Mesh, build, update
from hostmesh_controller.store import CallKey, CallRecord, FlowKey, FlowRecord
from hostmesh_controller.store.sql import SqlStore
from hostmesh_controller.store.sqlite import open_store

START = pki.now()
OBJECTS = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: web}
spec: {addresses: [10.0.0.1, "fd00::1"]}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: db}
spec: {addresses: [10.0.0.2]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db-1, namespace: shop}
spec: {address: 10.0.0.2, labels: {app: db}, serviceAccount: db, ports: {tcp: 5432}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {ports: [{port: 5000, name: tcp, targetPort: 5432}], selector: {app: db}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-1, namespace: shop}
spec: {address: 10.0.0.1, labels: {app: web}, serviceAccount: web, ports: {http: 80}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: old, namespace: shop}
spec: {address: 10.0.0.77, labels: {app: legacy}}
"""


def mesh_of(text: str, runtime: Mapping[str, HostRuntime] | None = None) -> Mesh:
    found, problems = load_documents(text, "test.yaml")
    assert not problems
    return objects.mesh_of(list(found), runtime)


@pytest.fixture
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


def flow(host: str, peer: str, port: int, program: str = "", *, inbound: bool = False, count: int = 1) -> FlowRecord:
    return FlowRecord(FlowKey(host, program, "", inbound, peer, port), count, START, START, "e", count)


def call(caller: str, kind: str = "mtls") -> CallRecord:
    key = CallKey("shop", "db-1", 5432, kind, caller)
    return CallRecord(key, frozenset(), 7, 0, START, START, "db", "e", 7, 0)


def drawn(mesh: Mesh, flows: list[FlowRecord], calls: tuple[CallRecord, ...] = (), **listening: Any) -> list[Edge]:
    return list(graph(mesh, flows, calls, listening))


def lines(edges: list[Edge]) -> set[tuple[str, str, int]]:
    return {(each.key.source.id, each.key.target.id, each.key.port) for each in edges}


def test_an_address_and_port_is_the_service_of_the_workload_there_under_the_services_port(mesh: Mesh) -> None:
    (edge,) = drawn(mesh, [flow("web", "10.0.0.2", 5432, "app")])
    assert lines([edge]) == {("program/web/app", "service/shop/db", 5000)}
    assert (edge.protocol, set(edge.hosts), set(edge.security)) == ("tcp", {"web", "db"}, set())


def test_a_virtual_address_is_its_service(mesh: Mesh) -> None:
    (service,) = mesh.services.values()
    assert service.vip4 is not None
    edges = drawn(mesh, [flow("web", service.vip4, 5000, "app")])
    assert lines(edges) == {("program/web/app", "service/shop/db", 5000)}


def test_a_program_that_serves_a_workloads_port_is_that_workload(mesh: Mesh) -> None:
    edges = drawn(mesh, [flow("db", "10.0.0.1", 9, "postgres")], db=(Listening(5432, "postgres", ""),))
    assert lines(edges) == {("service/shop/db", "host/web", 9)}


def test_what_nobody_registered_is_the_program_that_listens_or_an_address(mesh: Mesh) -> None:
    found = drawn(
        mesh,
        [
            flow("web", "10.0.0.2", 6379, "app"),
            flow("web", "192.0.2.9", 443, "app"),
            flow("web", "10.0.0.77", 8, "app"),
        ],
        db=(Listening(6379, "redis", "redis.service"),),
    )
    assert lines(found) == {
        ("program/web/app", "program/db/redis.service", 6379),
        ("program/web/app", "external/192.0.2.9", 443),
        ("program/web/app", "workload/shop/old", 8),
    }


def test_two_hosts_that_tell_of_the_same_connections_make_one_edge_by_the_callers_word(mesh: Mesh) -> None:
    both = [flow("web", "10.0.0.2", 6379, "app", count=3), flow("db", "10.0.0.1", 6379, "redis", inbound=True, count=4)]
    (edge,) = drawn(mesh, both, db=(Listening(6379, "redis", ""),))
    assert (lines([edge]), edge.connections) == ({("program/web/app", "program/db/redis", 6379)}, 3)
    assert lines(drawn(mesh, both[1:])) == {("host/web", "program/db/redis", 6379)}


def test_calls_tell_of_the_security_of_connections_that_were_seen(mesh: Mesh) -> None:
    caller = "spiffe://cluster.local/ns/shop/sa/web"
    (edge,) = drawn(mesh, [flow("web", "10.0.0.2", 5432, "app")], (call(caller),))
    assert (edge.key.source.id, set(edge.security), edge.calls) == ("program/web/app", {"mutual-tls"}, 7)


def test_a_call_without_a_connection_that_was_seen_is_an_edge_of_the_callers_workload(mesh: Mesh) -> None:
    (edge,) = drawn(mesh, [], (call("spiffe://cluster.local/ns/shop/sa/web"),))
    assert lines([edge]) == {("workload/shop/web-1", "service/shop/db", 5000)}
    (plain,) = drawn(mesh, [], (call("192.0.2.9", "plaintext"),))
    assert (plain.key.source.id, set(plain.security)) == ("external/192.0.2.9", {"plaintext"})
    (stranger,) = drawn(mesh, [], (call("spiffe://cluster.local/ns/x/sa/y"),))
    assert stranger.key.source.id == "identity/x/y"


def test_connections_of_nobody_where_envoy_calls_were_envoys(mesh: Mesh) -> None:
    flows, calls = [flow("web", "10.0.0.2", 5432)], (call("spiffe://cluster.local/ns/shop/sa/web"),)
    assert lines(drawn(mesh, flows)) == {("host/web", "service/shop/db", 5000)}
    assert lines(drawn(mesh, flows, calls)) == {("workload/shop/web-1", "service/shop/db", 5000)}


def test_a_host_that_is_no_more_registered_tells_nothing(mesh: Mesh) -> None:
    assert drawn(mesh, [flow("gone", "10.0.0.2", 5432, "app")]) == []


EVIL = 'a"];b -> c;\\N<img src=x>`|]--> %%{init}\x1b[2J\u202e'


def test_names_that_hosts_make_up_are_text_in_drawings() -> None:
    nodes = [{"id": f"program/h/{EVIL}", "kind": "program"}, {"id": "host/h", "kind": "host"}]
    edge = {"source": nodes[0]["id"], "target": "host/h", "port": 1, "protocol": "tcp", "security": []}
    answer = {"nodes": nodes, "edges": [edge]}
    drawing = dot(answer)
    assert len(drawing.splitlines()) == 7
    inside = drawing.splitlines()[3].partition('label="')[2].rpartition('", shape')[0]
    assert inside.count('"') == inside.count('\\"')
    assert "\\\\N" in inside
    assert "\x1b" not in drawing + mermaid(answer)
    assert "\u202e" not in drawing + mermaid(answer)
    label = mermaid(answer).splitlines()[1].partition('["')[2].rpartition('"]')[0]
    assert not set('"<>|`[]%{}') & set(label)


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    made = open_store(tmp_path / "store.sqlite")
    yield made
    made.close()


def told(*flows: Flow, epoch: str = "e") -> HostReport:
    return HostReport(flows=ObservedFlows(epoch=epoch, flows=flows))


async def test_flows_are_summed_over_epochs_written_and_read_again(store: SqlStore) -> None:
    clock = Clock()
    memory = FlowMemory(store, clock, timedelta(days=30))
    one = Flow(program="app", peer="10.0.0.2", port=5432, count=3)
    memory.reported("web", told(one))
    memory.reported("web", told(one))
    memory.reported("web", told(Flow(program="app", peer="10.0.0.2", port=5432, count=5)))
    memory.reported("web", told(one, epoch="after a restart"))
    await memory.write(everything=True)
    again = FlowMemory(store, clock, timedelta(days=30))
    await again.open()
    assert [(key.host, each.count) for key, each in again.flows.items()] == [("web", 8)]
    assert dict(again.flows) == dict(memory.flows)
    clock.now += timedelta(days=31)
    for _ in range(flow_memory._WRITES_OF_PRUNING):
        await again.write()
    assert not again.flows
    assert not store.flows()


@pytest.mark.parametrize(
    "nonsense",
    [
        Flow(peer="nobody", port=1),
        Flow(peer="10.0.0.1;", port=1),
        Flow(peer="10.0.0.1", port=70000),
        Flow(peer="10.0.0.1", port=0),
    ],
)
def test_what_makes_no_sense_is_not_kept(nonsense: Flow, store: SqlStore) -> None:
    memory = FlowMemory(store, Clock(), timedelta(days=30))
    memory.reported("web", told(nonsense))
    assert not memory.flows


def test_a_host_that_makes_up_flows_is_bounded_and_takes_no_room_of_others(store: SqlStore) -> None:
    memory = FlowMemory(store, Clock(), timedelta(days=30))
    for batch in range(6):
        many = [Flow(program=f"p{batch}-{index}", peer="10.0.0.1", port=1, count=1) for index in range(1000)]
        memory.reported("evil", told(*many))
    assert len(memory.flows) == MAX_OF_HOST
    memory.reported("web", told(Flow(program="\x1b[2Jx" * 100, unit="y" * 9999, peer="10.0.0.1", port=1)))
    (key,) = [key for key in memory.flows if key.host == "web"]
    assert (len(key.program), len(key.unit), "\x1b" in key.program) == (64, 256, False)


def test_a_host_that_reports_another_place_moves_with_its_endpoints() -> None:
    mesh = mesh_of(OBJECTS, runtime={"db": HostRuntime(joined=True)})
    after, touched = update(mesh, {}, mesh.vips, {"db": HostRuntime(joined=True, locality="eu/eu-1")})
    (service,) = after.services.values()
    (member,) = after.endpoints_of(service).members.values()
    assert (member.endpoints[5000].locality, after.viewer_of("db").locality) == ("eu/eu-1", "eu/eu-1")
    assert service.id.hostname in touched.endpoints
    settings = replace(after.settings, reported_locality=False)
    (member,) = (
        build(settings, after.objects.values(), after.vips, after.runtime).endpoints_of(service).members.values()
    )
    assert member.endpoints[5000].locality == ""


def test_runtime_of_a_host_says_where_it_is_only_where_nothing_is_declared() -> None:
    declared = OBJECTS.replace("10.0.0.2]}", "10.0.0.2], locality: r1/z1}")
    for text, place in ((OBJECTS, "eu/eu-1"), (declared, "r1/z1")):
        mesh = mesh_of(text, runtime={"db": HostRuntime(joined=True, locality="eu/eu-1")})
        (service,) = mesh.services.values()
        (member,) = mesh.endpoints_of(service).members.values()
        assert member.endpoints[5000].locality == place
        assert mesh.viewer_of("db").locality == place
