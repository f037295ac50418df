"""Which virtual host a host gets for `PORT/HOST-HEADER`, and what it depends on."""

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Service
from hostmesh_controller.mesh.rules import virtual_service_for, virtual_service_spec
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import service_for_header, service_named
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.names import (
    VirtualHostName,
    candidates,
    canonical_address,
    parse_virtual_host,
    split_header,
)
from hostmesh_controller.xds import routes
from hostmesh_controller.xds.encoding import absent
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.outbound import destination_hostname


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    parsed = parse_virtual_host(name)
    if parsed is None:
        return ()
    viewer = mesh.viewer_of(host)
    service = _service_of_header(mesh, viewer, parsed)
    meanings = _meanings(mesh, viewer, split_header(parsed.header)[0])
    if service is None:
        return meanings
    item = virtual_service_for(mesh, service, viewer, tcp=False)
    return (*meanings, service.id.hostname, *_destinations(mesh, item))


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return the virtual host of a name; one that does not exist is a resource that says so (see `absent`)."""
    viewer = mesh.viewer_of(host.name)
    parsed = parse_virtual_host(name)
    service = _service_of_header(mesh, viewer, parsed) if parsed else None
    if parsed is None or service is None:
        return absent(name)
    item = virtual_service_for(mesh, service, viewer, tcp=False)
    # A destination without a port has the port of its service.
    named = (service_named(mesh, hostname, viewer) for hostname in _destinations(mesh, item))

    def make() -> Resource:
        return encoded(name, routes.virtual_host(mesh, viewer, parsed, service, item), aliases=(name,))

    key = (wire.VIRTUAL_HOST_TYPE, name, viewer, service.id, item.key if item else None)
    return mesh.memo.get(key, (service, item, *named), make)


def _destinations(mesh: Mesh, item: ApiObject | None) -> tuple[str, ...]:
    """Return the host names to which a VirtualService's HTTP routes send requests."""
    https = virtual_service_spec(item).http if item else ()
    return tuple(destination_hostname(mesh, item, each.destination) for http in https for each in http.route if item)


def _service_of_header(mesh: Mesh, viewer: Viewer, name: VirtualHostName) -> Service | None:
    host, port = split_header(name.header)
    if port not in {None, name.port}:
        return None
    return service_for_header(mesh, _meanings(mesh, viewer, host), name.port, viewer)


def _meanings(mesh: Mesh, viewer: Viewer, host: str) -> tuple[str, ...]:
    address = canonical_address(host)
    return (address,) if address else candidates(host, viewer.namespace, mesh.settings.domain)
