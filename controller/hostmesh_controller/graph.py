"""Who talks to whom: observed connections and observed calls, joined with the registry. Pure.

Connections are what hosts see of their own sockets, with or without capture. Calls are what Envoy counts, and tell
who called and whether with mutual TLS. A node is a service where there is one, else a workload, a program of a host, a
host, an identity, or an address outside the mesh.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

from hostmesh_api.call_stats import Security
from hostmesh_api.identity import HostIdentity, WorkloadIdentity, parse_identity
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, Workload, WorkloadKey
from hostmesh_controller.mesh.selection import endpoint_port, identity_of, services_of
from hostmesh_controller.names import canonical_address
from hostmesh_controller.readiness import security_of
from hostmesh_controller.store import CallRecord, FlowRecord

PUBLIC: Final = "others"
"""The node of peers that are not told apart."""


class Kind(StrEnum):
    SERVICE = "service"
    WORKLOAD = "workload"
    PROGRAM = "program"
    HOST = "host"
    IDENTITY = "identity"
    EXTERNAL = "external"


class Node(NamedTuple):
    """One end. `namespace` is "" for what is in none; a program is named `HOST/PROGRAM`."""

    kind: Kind
    namespace: str
    name: str

    @property
    def id(self) -> str:
        return "/".join(part for part in (self.kind.value, self.namespace, self.name) if part)


class EdgeKey(NamedTuple):
    source: Node
    target: Node
    port: int


@dataclass(frozen=True, slots=True)
class Edge:
    """`connections` are those that hosts saw at least, `calls` what Envoy counted; `hosts` are those of both ends.

    `security` is how the calls came, empty where Envoy saw none; `protocol` is the service's, "tcp" where unknown.
    """

    key: EdgeKey
    first_seen: datetime
    last_seen: datetime
    protocol: str = "tcp"
    connections: int = 0
    calls: int = 0
    denied: int = 0
    security: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Listening:
    """A program that listens on a host's port, as its agent reported it."""

    port: int
    program: str
    unit: str


@dataclass(slots=True)
class _Drawing:
    edges: dict[EdgeKey, Edge] = field(default_factory=dict)

    def add(self, edge: Edge) -> None:
        before = self.edges.get(edge.key)
        if before is not None:
            edge = replace(
                before,
                first_seen=min(before.first_seen, edge.first_seen),
                last_seen=max(before.last_seen, edge.last_seen),
                protocol=edge.protocol if before.protocol == "tcp" else before.protocol,
                connections=before.connections + edge.connections,
                calls=before.calls + edge.calls,
                denied=before.denied + edge.denied,
                security=before.security | edge.security,
                hosts=before.hosts | edge.hosts,
            )
        self.edges[edge.key] = edge


def graph(
    mesh: Mesh,
    flows: Iterable[FlowRecord],
    calls: Iterable[CallRecord],
    listening: Mapping[str, tuple[Listening, ...]],
) -> tuple[Edge, ...]:
    """Return the edges, sorted.

    Args:
        mesh: the registry.
        flows: observed connections; those of hosts that are no more registered are left out.
        calls: observed calls.
        listening: what listens on each host.
    """
    registry, drawing = _Registry(mesh, listening), _Drawing()
    known = [each for each in flows if each.key.host in mesh.hosts]
    told = {(each.key.host, each.key.peer, each.key.port) for each in known if not each.key.inbound}
    for each in known:
        if each.key.inbound and registry.is_told_by_caller(each, told):
            continue
        drawing.add(registry.edge_of_flow(each))
    _add_calls(drawing, registry, calls)
    return tuple(drawing.edges[key] for key in sorted(drawing.edges))


def _add_calls(drawing: _Drawing, registry: "_Registry", calls: Iterable[CallRecord]) -> None:
    """Add what Envoy saw: to the connections of the caller's programs with the same port, else as edges of its own."""
    _merge(drawing, registry, calls)
    # A host's closed connections are nobody's: where Envoy calls, they were Envoy's.
    by_envoy = {
        EdgeKey(Node(Kind.HOST, "", host), edge.key.target, edge.key.port)
        for edge in drawing.edges.values()
        if Security.MUTUAL_TLS.value in edge.security
        for host in edge.hosts
    }
    for key in by_envoy & drawing.edges.keys():
        if not drawing.edges[key].calls:
            del drawing.edges[key]


def _merge(drawing: _Drawing, registry: "_Registry", calls: Iterable[CallRecord]) -> None:
    programs: dict[tuple[Node, int], list[EdgeKey]] = {}
    for key in drawing.edges:
        if key.source.kind is Kind.PROGRAM:
            programs.setdefault((key.target, key.port), []).append(key)
    for each in calls:
        found = registry.edge_of_call(each)
        if found is None:
            continue
        here = registry.hosts_of_caller(each.key.caller)
        same = [
            key
            for key in programs.get((found.key.target, found.key.port), ())
            if key.source.name.partition("/")[0] in here
        ]
        # Which of several programs of a host called, Envoy does not know.
        drawing.add(replace(found, key=same[0]) if len(same) == 1 and found.key not in drawing.edges else found)


class _Registry:
    """The mesh, as ends of connections are looked up in it."""

    def __init__(self, mesh: Mesh, listening: Mapping[str, tuple[Listening, ...]]) -> None:
        self._mesh = mesh
        self._listening = listening
        self._by_vip = {vip: each for each in mesh.services.values() for vip in (each.vip4, each.vip6) if vip}
        self._networks = [
            (ip_network(block), each)
            for each in mesh.services.values()
            for block in each.addresses
            if canonical_address(block.partition("/")[0]) is not None
        ]
        self._hosts = {
            canonical_address(address) or address: host.name
            for host in mesh.hosts.values()
            for address in host.addresses
        }
        self._ports: dict[str, Mapping[int, Workload]] = {}
        self._by_identity: dict[str, list[Workload]] = {}
        for workload in mesh.workloads.values():
            uri = identity_of(workload, mesh.settings.trust_domain).uri
            self._by_identity.setdefault(uri, []).append(workload)

    def is_told_by_caller(self, flow: FlowRecord, told: set[tuple[str, str, int]]) -> bool:
        """Tell whether the other end, a host, tells of the same connections: it knows the program, too."""
        caller = self._hosts.get(flow.key.peer)
        addresses = (canonical_address(each) or each for each in self._mesh.hosts[flow.key.host].addresses)
        return caller is not None and any((caller, address, flow.key.port) in told for address in addresses)

    def edge_of_flow(self, flow: FlowRecord) -> Edge:
        key = flow.key
        if key.inbound:
            target, port, protocol = self._on_host(key.host, key.port, _name(key.program, key.unit))
            source, hosts = self._peer(key.peer), {key.host, self._hosts.get(key.peer, key.host)}
        else:
            source = self._program(key.host, key.program, key.unit)
            target, port, protocol = self._destination(key.peer, key.port)
            hosts = {key.host, self._hosts.get(key.peer, key.host)}
        return Edge(
            EdgeKey(source, target, port),
            flow.first_seen,
            flow.last_seen,
            protocol,
            connections=flow.count,
            hosts=frozenset(hosts),
        )

    def edge_of_call(self, call: CallRecord) -> Edge | None:
        key = call.key
        workload = self._mesh.workloads.get(WorkloadKey(key.namespace, key.workload))
        if workload is None:
            return None
        target, port, protocol = self._workload(workload, key.port)
        hosts = self.hosts_of_caller(key.caller) | ({workload.host} if workload.host else set())
        return Edge(
            EdgeKey(self._caller(key.caller), target, port),
            call.first_seen,
            call.last_seen,
            "http" if call.methods and protocol == "tcp" else protocol,
            calls=call.count,
            denied=call.denied,
            security=frozenset({security_of(key).value}),
            hosts=frozenset(hosts),
        )

    def hosts_of_caller(self, caller: str) -> set[str]:
        """Return the hosts on which a caller may be: a SPIFFE ID or an address."""
        if not caller.startswith("spiffe://"):
            host = self._hosts.get(caller)
            return {host} if host else set()
        identity = _identity(caller)
        if isinstance(identity, HostIdentity):
            return {identity.host}
        return {each.host for each in self._by_identity.get(caller, ()) if each.host}

    def _caller(self, caller: str) -> Node:
        if not caller.startswith("spiffe://"):
            return self._peer(caller)
        identity = _identity(caller)
        if isinstance(identity, HostIdentity):
            return Node(Kind.HOST, "", identity.host)
        nodes = {self._of_workload(each) for each in self._by_identity.get(caller, ())}
        if len(nodes) == 1:
            return nodes.pop()
        if identity is None:
            return Node(Kind.IDENTITY, "", caller)
        return Node(Kind.IDENTITY, identity.namespace, identity.service_account)

    def _peer(self, address: str) -> Node:
        if not address:
            return Node(Kind.EXTERNAL, "", PUBLIC)
        host = self._hosts.get(address)
        if host is not None:
            return Node(Kind.HOST, "", host)
        found = self._outside(address)
        return self._of_workload(found) if found is not None else Node(Kind.EXTERNAL, "", address)

    def _outside(self, address: str) -> Workload | None:
        """Return the only workload at an address that is no host's."""
        keys = sorted(self._mesh.workloads_by_address.get(address, ()))
        return self._mesh.workloads[keys[0]] if len(keys) == 1 else None

    def _destination(self, address: str, port: int) -> tuple[Node, int, str]:
        if not address:
            return Node(Kind.EXTERNAL, "", PUBLIC), port, "tcp"
        service = self._service_at(address)
        if service is not None:
            return _service_node(service), port, _protocol(service, port)
        host = self._hosts.get(address)
        if host is not None:
            return self._on_host(host, port, "")
        workload = self._outside(address)
        return self._workload(workload, port) if workload is not None else (self._peer(address), port, "tcp")

    def _service_at(self, address: str) -> Service | None:
        found = self._by_vip.get(address)
        if found is None and self._networks:
            ip = ip_address(address)
            found = next((each for block, each in self._networks if ip in block), None)
        return found

    def _on_host(self, host: str, port: int, program: str) -> tuple[Node, int, str]:
        workload = self._ports_of(host).get(port)
        if workload is not None:
            return self._workload(workload, port)
        listens = next(
            (_name(each.program, each.unit) for each in self._listening.get(host, ()) if each.port == port), ""
        )
        name = program or listens
        return (Node(Kind.PROGRAM, "", f"{host}/{name}") if name else Node(Kind.HOST, "", host)), port, "tcp"

    def _program(self, host: str, program: str, unit: str) -> Node:
        """Return the workload whose port the program serves, else the program itself."""
        name = _name(program, unit)
        ports = self._ports_of(host)
        for each in self._listening.get(host, ()) if name else ():
            if (each.program, each.unit) == (program, unit) and each.port in ports:
                return self._of_workload(ports[each.port])
        return Node(Kind.PROGRAM, "", f"{host}/{name}") if name else Node(Kind.HOST, "", host)

    def _ports_of(self, host: str) -> Mapping[int, Workload]:
        if host not in self._ports:
            self._ports[host] = {each.number: each.workload for each in inbound_ports(self._mesh, host)}
        return self._ports[host]

    def _workload(self, workload: Workload, port: int) -> tuple[Node, int, str]:
        """Return what a workload's port is called as: the port of its service, where there is one."""
        for service in services_of(self._mesh, workload):
            for each in service.ports:
                if endpoint_port(each, workload.ports) == port:
                    return _service_node(service), each.number, each.protocol.value.lower()
        return self._of_workload(workload), port, "tcp"

    def _of_workload(self, workload: Workload) -> Node:
        service = next(iter(services_of(self._mesh, workload)), None)
        if service is not None:
            return _service_node(service)
        return Node(Kind.WORKLOAD, workload.key.namespace, workload.key.name)


def _service_node(service: Service) -> Node:
    name = service.id.source.name if service.id.source.kind == "Service" else service.id.hostname
    return Node(Kind.SERVICE, service.id.namespace, name)


def _protocol(service: Service, port: int) -> str:
    found = service.port(port)
    return found.protocol.value.lower() if found is not None else "tcp"


def _name(program: str, unit: str) -> str:
    return unit or program


def _identity(caller: str) -> WorkloadIdentity | HostIdentity | None:
    try:
        return parse_identity(caller)
    except ValueError:
        return None
