"""What a viewer calls outbound: port numbers with what is spoken on them, addresses, and routes of connections."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from hostmesh_controller.mesh.delegates import http_routes, mirrors
from hostmesh_controller.mesh.destination_rules import rule_hosts
from hostmesh_controller.mesh.gateways import NO_GATEWAYS, HostGateways
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, ServiceId
from hostmesh_controller.mesh.sidecars import OPEN, Beyond, beyond, sidecar
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.virtual_services import in_order, virtual_service_hosts
from hostmesh_controller.mesh.visibility import View, service_named, view
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.virtual_service import Destination
from hostmesh_controller.names import OutboundName, expand, host_matches, parse_outbound
from hostmesh_controller.xds.connection_policy import ConnectionPolicy, Policies, connection_policies
from hostmesh_controller.xds.connections import Ways, destination_cluster, is_tls, own_ways, tcp_weights, ways

__all__ = [
    "HTTP_PORT",
    "Plan",
    "destination_hostname",
    "explicit_prefixes",
    "mirror_clusters",
    "plan",
    "tcp_weights",
]

Port = tuple[ServiceId, int]
HTTP_PORT: Final = 80
"""The port on which hosts can be called that VirtualServices alone have, as in Istio.

They have no virtual address: their names would then lead into the mesh on all other ports too, where nobody answers. A
program reaches them as in Istio, by a request with that host header; a ServiceEntry gives a name its address."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the outbound listeners of a viewer are made from.

    `explicit`: services with addresses outside the virtual ranges. `ports`: port numbers that need a listener of their
    own, each with the services on it; `apart`: those of them that may have filter chains of their own. `http_ports`:
    the numbers that need the HTTP code. `ways`: ports of services whose connections do not simply go to the cluster of
    the address that was dialled. `beyond`: what happens to all other destinations. `policies`: how connections to a
    cluster are kept, by its name, where a rule says so.
    """

    viewer: Viewer
    explicit: tuple[Service, ...]
    ports: Mapping[int, tuple[Service, ...]]
    apart: Mapping[int, tuple[Service, ...]]
    http_ports: frozenset[int]
    ways: Mapping[Port, Ways]
    beyond: Beyond = OPEN
    policies: Mapping[str, ConnectionPolicy] = field(default_factory=dict)

    def of_all_ports(self) -> tuple[object, ...]:
        """Return what the listener of all ports is made from."""
        return self.explicit, self.beyond

    def of_port(self, port: int) -> tuple[object, ...]:
        """Return what the listener of a port number is made from."""
        apart = self.apart[port]
        found = tuple(self.ways.get((service.id, port)) for service in apart)
        names = [str(OutboundName(port, "", service.id.hostname)) for service in apart] if self.policies else []
        if self.policies:
            targets = [to for each in found if each for to in (each.by_default, *(way.to for way in each.special))]
            names += [to[0][0] for to in targets if len(to) == 1]
        kept = tuple(self.policies.get(name) for name in names)
        return self.ports[port], apart, port in self.http_ports, found, kept, self.beyond


def plan(mesh: Mesh, viewer: Viewer) -> Plan:
    """Return the plan of a viewer; the same object for as long as nothing it reads is different."""
    seen = view(mesh, viewer)
    routed = _routed(mesh, seen)
    policies = _policies(mesh, seen, routed)
    return mesh.memo.get(("plan", viewer), (seen, routed, policies), lambda: _plan(mesh, seen, dict(routed), policies))


def _policies(mesh: Mesh, seen: View, routed: tuple[tuple[Port, Ways], ...]) -> Policies:
    """Return how connections are kept, for all clusters of which a rule says so; equal is the same object."""

    def make() -> Policies:
        targets = [way.to for _, each in routed for way in each.special] + [each.by_default for _, each in routed]
        names = {to[0][0] for to in targets if len(to) == 1}
        for item in mesh.tcp_rules.values():
            for host in rule_hosts(item, mesh.settings.domain):
                names.update(_own_clusters(_covered(mesh, seen, host)))
        made = connection_policies(mesh, seen.viewer, names) if mesh.tcp_rules else ()
        return mesh.memo.same(("equal policies", seen.viewer), made)

    return mesh.memo.get(("policies", seen.viewer), (seen, routed, mesh.tcp_rules, mesh.destination_rules), make)


def _covered(mesh: Mesh, seen: View, host: str) -> Iterable[Service]:
    if host.startswith("*"):
        return (service for service in seen.services if host_matches(host, service.id.hostname))
    return filter(None, [service_named(mesh, host, seen.viewer)])


def _own_clusters(services: Iterable[Service]) -> Iterator[str]:
    for service in services:
        for port in service.ports:
            # What speaks HTTP, or may do so, is not looked at as a connection.
            if not port.protocol.is_http and not port.protocol.is_detected:
                yield str(OutboundName(port.number, "", service.id.hostname))


@dataclass(frozen=True, slots=True)
class _Ports:
    """What the services of a view say of port numbers, before any route does.

    `ways`: of TLS ports whose connections are told apart by server names. `apart`: services that have filter chains of
    their own whatever routes say: they have addresses, or do not speak HTTP where others do.
    """

    explicit: tuple[Service, ...]
    by_id: Mapping[ServiceId, Service]
    apart: Mapping[int, tuple[Service, ...]]
    by_number: Mapping[int, tuple[Service, ...]]
    http: frozenset[int]
    ways: Mapping[Port, Ways]


def _ports(mesh: Mesh, seen: View) -> _Ports:
    """Return what an edited route leaves as it is: this looks at every service."""

    def make() -> _Ports:
        anywhere = not beyond(mesh, seen.viewer).is_open
        by_number: dict[int, list[Service]] = {}
        others: dict[int, list[Service]] = {}
        http: set[int] = set()
        found: dict[Port, Ways] = {}
        for service in seen.services:
            for port in service.ports:
                by_number.setdefault(port.number, []).append(service)
                if service.addresses or not port.protocol.is_http:
                    others.setdefault(port.number, []).append(service)
                if port.protocol.is_http or port.protocol.is_detected:
                    http.add(port.number)
                elif is_tls(port):
                    own = own_ways(service, port, anywhere=anywhere)
                    if own.need_chains:
                        found[service.id, port.number] = own
        return _Ports(
            explicit=tuple(service for service in seen.services if service.addresses),
            by_id={service.id: service for service in seen.services},
            apart={
                # Those that do not speak HTTP, where others do.
                number: tuple(each for each in others.get(number, ()) if each.addresses or number in http)
                for number in by_number
            },
            by_number={number: tuple(services) for number, services in by_number.items()},
            http=frozenset(http),
            ways=found,
        )

    key = ("planned ports", seen.viewer.namespace, seen.viewer.sidecar)
    return mesh.memo.get(key, (seen.services, sidecar(mesh, seen.viewer)), make)


def _plan(mesh: Mesh, seen: View, routed: Mapping[Port, Ways], policies: Policies) -> Plan:
    ports = _ports(mesh, seen)
    found = {key: each for key, each in {**ports.ways, **routed}.items() if each.need_chains}
    # A cluster whose connections are kept otherwise needs a chain of its own on its port.
    shaped = {name.port for name in map(parse_outbound, dict(policies)) if name is not None and not name.subset}
    chains = {number for _, number in found} | (shaped & ports.by_number.keys())
    numbers = sorted(ports.http | chains)
    apart = {number: ports.by_number[number] if number in shaped else ports.apart[number] for number in numbers}
    for item, number in found:
        if all(service.id != item for service in apart[number]):
            both = (*apart[number], ports.by_id[item])
            apart[number] = tuple(sorted(both, key=lambda service: service.id.hostname))
    return Plan(
        viewer=seen.viewer,
        explicit=ports.explicit,
        ports={number: ports.by_number[number] for number in numbers},
        apart=apart,
        http_ports=ports.http,
        ways=found,
        beyond=beyond(mesh, seen.viewer),
        policies=dict(policies),
    )


def _routed(mesh: Mesh, seen: View) -> tuple[tuple[Port, Ways], ...]:
    """Return the ports for whose connections VirtualServices have routes; equal is the same object."""

    def make() -> tuple[tuple[Port, Ways], ...]:
        services = {service.id: service for item in _rules(mesh, seen.viewer) for service in _named(mesh, seen, item)}
        result: dict[Port, Ways] = {}
        for service in services.values():
            for port in service.ports:
                if not port.protocol.is_http:
                    result[service.id, port.number] = ways(mesh, service, port, seen.viewer)
        made = tuple(sorted(result.items(), key=lambda entry: entry[0]))
        return mesh.memo.same(("equal ways", seen.viewer), made)

    return mesh.memo.get(("routed", seen.viewer), (seen, mesh.tcp_routes), make)


def _rules(mesh: Mesh, viewer: Viewer) -> tuple[ApiObject, ...]:
    return in_order(mesh, mesh.tcp_routes.values(), viewer)


def _named(mesh: Mesh, seen: View, item: ApiObject) -> Iterator[Service]:
    """Yield the services that a VirtualService's hosts name or cover."""
    for host in virtual_service_hosts(item, mesh.settings.domain):
        if host.startswith("*"):
            yield from (service for service in seen.services if host_matches(host, service.id.hostname))
            continue
        service = service_named(mesh, host, seen.viewer)
        if service is not None:
            yield service
        for found in mesh.services_by_address.get(host, ()):
            by_address = service_named(mesh, found.hostname, seen.viewer)
            if by_address is not None and by_address.id == found:
                yield by_address


def mirror_clusters(mesh: Mesh, host: str) -> tuple[str, ...]:
    """Return the clusters to which a host's Envoy sends copies of requests, by name.

    Envoy asks on demand for the cluster of a request, not for those of its copies: these must be there before.
    """
    viewer = mesh.viewer_of(host)
    seen = view(mesh, viewer)
    served = mesh.gateways.get(host, NO_GATEWAYS)

    def make() -> tuple[str, ...]:
        found = {name for item in _rules(mesh, viewer) for name in _called_copies(mesh, seen, item)}
        return tuple(sorted(found.union(_gateway_copies(mesh, viewer, served))))

    if not mesh.tcp_routes:
        return ()
    return mesh.memo.get(("mirrors", viewer, served is NO_GATEWAYS or host), (seen, mesh.tcp_routes, served), make)


def _called_copies(mesh: Mesh, seen: View, item: ApiObject) -> Iterator[str]:
    ports = {port.number for service in _named(mesh, seen, item) for port in service.ports}
    yield from _copies(mesh, seen.viewer, item, ports or {HTTP_PORT})


def _gateway_copies(mesh: Mesh, viewer: Viewer, served: HostGateways) -> Iterator[str]:
    for server in (server for port in served.ports for server in port.servers):
        items = in_order(mesh, mesh.tcp_routes.values(), viewer, frozenset({server.gateway_name}))
        for item in items:
            yield from _copies(mesh, viewer, item, {server.server.port.number})


def _copies(mesh: Mesh, viewer: Viewer, item: ApiObject, ports: Iterable[int]) -> Iterator[str]:
    """Return the clusters of the copies of requests to any of the ports."""
    copied = [destination for http in http_routes(mesh, item) for destination in mirrors(http)]
    return (str(destination_cluster(mesh, each, number, viewer)) for each in copied for number in ports)


def explicit_prefixes(services: Iterable[Service]) -> tuple[str, ...]:
    return tuple(sorted({prefix for service in services for prefix in service.addresses}))


def destination_hostname(mesh: Mesh, item: ApiObject, destination: Destination) -> str:
    """Return the full name of a destination that a VirtualService names."""
    return expand(destination.host, item.key.namespace, mesh.settings.domain)
