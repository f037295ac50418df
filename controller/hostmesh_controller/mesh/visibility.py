"""What a viewer sees of the mesh: which object a host name means to it, and which port numbers it can call."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from operator import attrgetter
from typing import Any

from hostmesh_controller.mesh.compiled import blocks
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.merging import whole
from hostmesh_controller.mesh.records import Service, ServiceId
from hostmesh_controller.mesh.sidecars import Scope, scope, sidecar
from hostmesh_controller.mesh.table import Table
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.names import canonical_address


@dataclass(frozen=True, slots=True)
class View:
    """The services a viewer sees, by host name, one for each."""

    viewer: Viewer
    services: tuple[Service, ...]


def exported(service: Service, viewer: Viewer) -> bool:
    """Tell whether a service is shown to a viewer's namespace: then a route may send requests there."""
    return "*" in service.export_to or viewer.namespace in service.export_to


def seen(mesh: Mesh, service: Service, viewer: Viewer) -> Service | None:
    """Return a service as a viewer's programs can call it: with the ports that its Sidecar imports, None if none."""
    if not exported(service, viewer):
        return None
    imported = scope(mesh, viewer)
    return service if imported is None else _imported(mesh, service, imported)


def _imported(mesh: Mesh, service: Service, imported: Scope) -> Service | None:
    ports = tuple(imported.as_spoken(port) for port in service.ports if imported.takes_port(service, port))
    if ports == service.ports:
        return service if ports or imported.takes(service.id.namespace, service.id.hostname) else None
    if not ports:
        return None
    # Kept, so that it is the same object as long as the service is: what is made from it is then kept too.
    return mesh.memo.get(("imported", service.id, ports), (service,), lambda: replace(service, ports=ports))


def view(mesh: Mesh, viewer: Viewer) -> View:
    """Return what a viewer sees; the same object for as long as no service is different."""
    found, spec = _services(mesh, viewer), sidecar(mesh, viewer)
    return mesh.memo.get(("view", viewer), (found, spec), lambda: View(viewer, found))


def _services(mesh: Mesh, viewer: Viewer) -> tuple[Service, ...]:
    """Return the services that viewers of a namespace see who have the same Sidecar.

    What changed of the mesh's services is looked at, not each of them.
    """

    def make(earlier: tuple[Any, ...], known: tuple[Service, ...] | None) -> tuple[Service, ...]:
        if known is None or earlier[1] is not spec:
            known, hostnames = (), set(mesh.services_by_hostname)
        else:
            before: Table[ServiceId, Service] = earlier[0]
            hostnames = {item.hostname for item in before.differing(mesh.services)}
        new = [service_named(mesh, hostname, viewer) for hostname in hostnames]
        same = [service for service in known if service.id.hostname not in hostnames]
        return tuple(sorted((*same, *filter(None, new)), key=attrgetter("id.hostname")))

    spec = sidecar(mesh, viewer)
    return mesh.memo.step(("seen services", viewer.namespace, viewer.sidecar), (mesh.services, spec), make)


def service_named(mesh: Mesh, hostname: str, viewer: Viewer) -> Service | None:
    """Return the service that a host name means to a viewer's programs: its own before others', then the oldest."""
    ids = mesh.services_by_hostname.get(hostname)
    return None if ids is None else _first(mesh, ids, viewer)


def destination_named(mesh: Mesh, hostname: str, viewer: Viewer) -> Service | None:
    """Return the service that a host name means as a destination of a route.

    A Sidecar restricts what programs call; where a route that holds for them leads is not restricted by it.
    """
    ids = mesh.services_by_hostname.get(hostname, frozenset())
    shown = [whole(mesh, mesh.services[item]) for item in ids if exported(mesh.services[item], viewer)]
    return seen_first(shown, viewer)


def service_at(mesh: Mesh, address: str, port: int, viewer: Viewer) -> Service | None:
    """Return the visible service that has an address (canonical) and a port; the longest prefix wins."""
    exact = [item for item in mesh.services_by_address.get(address, ()) if mesh.services[item].port(port)]
    if exact:
        first = _first(mesh, exact, viewer)
        return first if first is not None and first.port(port) else None
    found = [
        (ip_network(block).prefixlen, service)
        for block, service in _blocks(mesh)
        if ip_address(address) in ip_network(block) and _seen_on(mesh, service, port, viewer)
    ]
    longest = max((length for length, _ in found), default=0)
    return _first(mesh, [service.id for length, service in found if length == longest], viewer)


def _seen_on(mesh: Mesh, service: Service, port: int, viewer: Viewer) -> bool:
    found = seen(mesh, service, viewer)
    return found is not None and found.port(port) is not None


def service_for_header(mesh: Mesh, hosts: Iterable[str], port: int, viewer: Viewer) -> Service | None:
    """Return the first service with the port among the candidates of a host header; literal addresses count."""
    for host in hosts:
        address = canonical_address(host)
        found = service_at(mesh, address, port, viewer) if address else service_named(mesh, host, viewer)
        if found is not None and found.port(port):
            return found
    return None


def _first(mesh: Mesh, ids: Iterable[ServiceId], viewer: Viewer) -> Service | None:
    found = (seen(mesh, whole(mesh, mesh.services[item]), viewer) for item in ids)
    return seen_first([service for service in found if service is not None], viewer)


def seen_first(services: Iterable[Service], viewer: Viewer) -> Service | None:
    """Return the one of several services of a name: the viewer's namespace's own, then the oldest."""
    return min(services, key=lambda item: (item.id.namespace != viewer.namespace, item.order, item.id), default=None)


def _blocks(mesh: Mesh) -> tuple[tuple[str, Service], ...]:
    def make() -> tuple[tuple[str, Service], ...]:
        return tuple((block, service) for service in mesh.services.values() for block in blocks(service))

    return mesh.memo.get("blocks", (mesh.services,), make)
