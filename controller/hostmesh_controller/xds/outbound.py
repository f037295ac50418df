"""What a viewer calls outbound: port numbers with what is spoken on them, addresses, and routes of connections."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hostmesh_controller.mesh.delegates import http_routes, mirrors
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, ServiceId
from hostmesh_controller.mesh.sidecars import OPEN, Beyond, beyond
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.virtual_services import in_order, virtual_service_hosts
from hostmesh_controller.mesh.visibility import View, service_named, view
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.virtual_service import Destination
from hostmesh_controller.names import expand, host_matches
from hostmesh_controller.xds.connections import Ways, destination_cluster, is_tls, tcp_weights, ways

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
"""The port on which hosts can be called that VirtualServices alone have, as in Istio."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the outbound listeners of a viewer are made from.

    `explicit`: services with addresses outside the virtual ranges. `ports`: port numbers that need a listener of their
    own, each with the services on it. `http_ports`: those of them that need the HTTP code. `ways`: ports of services
    whose connections do not simply go to the cluster of the address that was dialled. `beyond`: what happens to all
    other destinations.
    """

    viewer: Viewer
    explicit: tuple[Service, ...]
    ports: Mapping[int, tuple[Service, ...]]
    http_ports: frozenset[int]
    ways: Mapping[Port, Ways]
    beyond: Beyond = OPEN


def plan(mesh: Mesh, viewer: Viewer) -> Plan:
    """Return the plan of a viewer; the same object for as long as nothing it reads is different."""
    seen = view(mesh, viewer)
    routed = _routed(mesh, seen)
    return mesh.memo.get(("plan", viewer), (seen, routed), lambda: _plan(mesh, seen, dict(routed)))


def _plan(mesh: Mesh, seen: View, routed: Mapping[Port, Ways]) -> Plan:
    by_port: dict[int, list[Service]] = {}
    http: set[int] = set()
    found: dict[Port, Ways] = {}
    for service in seen.services:
        for port in service.ports:
            by_port.setdefault(port.number, []).append(service)
            if port.protocol.is_http or port.protocol.is_detected:
                http.add(port.number)
            key = (service.id, port.number)
            own = routed.get(key)
            if own is None and is_tls(port):
                own = ways(mesh, service, port, seen.viewer)
            if own is not None and own.need_chains:
                found[key] = own
    return Plan(
        viewer=seen.viewer,
        explicit=tuple(service for service in seen.services if service.addresses),
        ports={number: tuple(by_port[number]) for number in sorted(http | {number for _, number in found})},
        http_ports=frozenset(http),
        ways=found,
        beyond=beyond(mesh, seen.viewer),
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
        return mesh.memo.get(("ways", seen.viewer, made), (), lambda: made)

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


def mirror_clusters(mesh: Mesh, viewer: Viewer) -> tuple[str, ...]:
    """Return the clusters to which copies of requests go, by name.

    Envoy asks on demand for the cluster of a request, not for those of its copies: these must be there before.
    """
    seen = view(mesh, viewer)

    def make() -> tuple[str, ...]:
        return tuple(sorted({name for item in _rules(mesh, viewer) for name in _mirrors(mesh, seen, item)}))

    return mesh.memo.get(("mirrors", viewer), (seen, mesh.tcp_routes), make)


def _mirrors(mesh: Mesh, seen: View, item: ApiObject) -> Iterator[str]:
    copied = [destination for http in http_routes(mesh, item) for destination in mirrors(http)]
    if not copied:
        return
    ports = {port.number for service in _named(mesh, seen, item) for port in service.ports}
    for destination in copied:
        for number in ports or {HTTP_PORT}:
            yield str(destination_cluster(mesh, destination, number, seen.viewer))


def explicit_prefixes(services: Iterable[Service]) -> tuple[str, ...]:
    return tuple(sorted({prefix for service in services for prefix in service.addresses}))


def destination_hostname(mesh: Mesh, item: ApiObject, destination: Destination) -> str:
    """Return the full name of a destination that a VirtualService names."""
    return expand(destination.host, item.key.namespace, mesh.settings.domain)
