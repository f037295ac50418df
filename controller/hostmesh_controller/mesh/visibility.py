"""What a viewer sees of the mesh: which object a host name means to it, and which port numbers it can call."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from hostmesh_controller.mesh.compiled import blocks
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, ServiceId
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.names import canonical_address


@dataclass(frozen=True, slots=True)
class View:
    """The services a viewer sees, by host name, one for each."""

    viewer: Viewer
    services: tuple[Service, ...]


def sees(service: Service, viewer: Viewer) -> bool:
    return "*" in service.export_to or viewer.namespace in service.export_to


def view(mesh: Mesh, viewer: Viewer) -> View:
    """Return what a viewer sees; the same object for as long as no service is different."""

    def make() -> View:
        found = (service_named(mesh, hostname, viewer) for hostname in sorted(mesh.services_by_hostname))
        return View(viewer, tuple(service for service in found if service is not None))

    return mesh.memo.get(("view", viewer), (mesh.services,), make)


def service_named(mesh: Mesh, hostname: str, viewer: Viewer) -> Service | None:
    """Return the service that a host name means to a viewer: its own before others', then the oldest."""
    ids = mesh.services_by_hostname.get(hostname)
    return None if ids is None else _first(mesh, ids, viewer)


def service_at(mesh: Mesh, address: str, port: int, viewer: Viewer) -> Service | None:
    """Return the visible service that has an address (canonical) and a port; the longest prefix wins."""
    exact = [item for item in mesh.services_by_address.get(address, ()) if mesh.services[item].port(port)]
    if exact:
        return _first(mesh, exact, viewer)
    found = [
        (ip_network(block).prefixlen, service)
        for block, service in _blocks(mesh)
        if ip_address(address) in ip_network(block) and service.port(port) and sees(service, viewer)
    ]
    longest = max((length for length, _ in found), default=0)
    return _first(mesh, [service.id for length, service in found if length == longest], viewer)


def service_for_header(mesh: Mesh, hosts: Iterable[str], port: int, viewer: Viewer) -> Service | None:
    """Return the first service with the port among the candidates of a host header; literal addresses count."""
    for host in hosts:
        address = canonical_address(host)
        found = service_at(mesh, address, port, viewer) if address else service_named(mesh, host, viewer)
        if found is not None and found.port(port):
            return found
    return None


def _first(mesh: Mesh, ids: Iterable[ServiceId], viewer: Viewer) -> Service | None:
    visible = [service for service in (mesh.services[item] for item in ids) if sees(service, viewer)]
    return min(visible, key=lambda item: (item.id.namespace != viewer.namespace, item.order, item.id), default=None)


def _blocks(mesh: Mesh) -> tuple[tuple[str, Service], ...]:
    def make() -> tuple[tuple[str, Service], ...]:
        return tuple((block, service) for service in mesh.services.values() for block in blocks(service))

    return mesh.memo.get("blocks", (mesh.services,), make)
