"""Which virtual host a host gets for `PORT/HOST-HEADER`, and what it depends on."""

from dataclasses import dataclass

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Service
from hostmesh_controller.mesh.sidecars import beyond
from hostmesh_controller.mesh.step import BLOCKS, BY_NAME
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.virtual_services import http_candidates, virtual_service_hosts, virtual_services_of
from hostmesh_controller.mesh.visibility import destination_named, service_for_header
from hostmesh_controller.model.domains import is_partial_wildcard
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.names import (
    VirtualHostName,
    candidates,
    canonical_address,
    parse_virtual_host,
    split_header,
    wildcards,
)
from hostmesh_controller.xds.called_by_name import by_host_header, passed_on
from hostmesh_controller.xds.encoding import absent
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.outbound import HTTP_PORT, plan
from hostmesh_controller.xds.routes import (
    service_inputs,
    virtual_host,
    virtual_service_dependencies,
    virtual_service_inputs,
)
from hostmesh_controller.xds.sidecar_beyond import beyond_virtual_host
from hostmesh_controller.xds.sidecar_egress import SocketHost, socket_host


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a host header stands for: a service, or a host that VirtualServices alone have; and whose routes may hold.

    `names` are the dependency names by which it was found, `hostname` the one that it has ("": there is no such host).
    """

    service: Service | None
    items: tuple[ApiObject, ...]
    names: tuple[str, ...]
    hostname: str = ""


def meant_hostname(mesh: Mesh, viewer: Viewer, name: VirtualHostName) -> str:
    """Return the host of a service or a VirtualService that a host header stands for; "" where there is none."""
    return _meaning(mesh, viewer, name).hostname


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    by_socket = socket_host(mesh, mesh.viewer_of(host), name)
    if by_socket is not None:
        return _socket_dependencies(mesh, mesh.viewer_of(host), by_socket)
    parsed = parse_virtual_host(name)
    if parsed is None:
        return ()
    meaning = _meaning(mesh, mesh.viewer_of(host), parsed)
    # One of a partial wildcard is told of by the whole one above it (`take_rules`): there are few of these.
    names = (each for each in meaning.names if not is_partial_wildcard(each))
    routes = (each for item in meaning.items for each in virtual_service_dependencies(mesh, item))
    # What happens to a name that nobody has depends on whether others are told apart by their names.
    return (*names, *routes, *((BY_NAME,) if meaning.service is None and not meaning.items else ()))


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return the virtual host of a name; one that does not exist is a resource that says so (see `absent`)."""
    viewer = mesh.viewer_of(host.name)
    by_socket = socket_host(mesh, viewer, name)
    if by_socket is not None:
        return _of_socket(mesh, viewer, name, by_socket)
    parsed = parse_virtual_host(name)
    if parsed is None:
        return absent(name)
    meaning = _meaning(mesh, viewer, parsed)
    if meaning.service is None and not meaning.items:
        return _unknown(mesh, viewer, parsed)
    parts = [service_inputs(mesh, viewer, meaning.service)]
    parts += [virtual_service_inputs(mesh, viewer, item) for item in meaning.items]
    inputs = tuple(each for _, made_from in parts for each in made_from)

    def make() -> Resource | None:
        found = virtual_host(mesh, viewer, parsed, meaning.service, meaning.items)
        return None if found is None else encoded(name, found, aliases=(name,))

    key = (wire.VIRTUAL_HOST_TYPE, name, viewer, tuple(key for key, _ in parts))
    return mesh.memo.get(key, inputs, make) or _unknown(mesh, viewer, parsed)


def _of_socket(mesh: Mesh, viewer: Viewer, name: str, found: SocketHost) -> Resource:
    """Return the virtual host of a header that came by a Unix socket."""
    header = VirtualHostName(found.port, name.rpartition("/")[2])
    made = beyond_virtual_host(header, beyond(mesh, viewer))
    if found.service is not None:
        made = virtual_host(mesh, viewer, header, found.service, http_candidates(mesh, found.service, viewer)) or made
    if made is None:
        return absent(name)
    made.name = name
    return encoded(name, made, aliases=(name,))


def _socket_dependencies(mesh: Mesh, viewer: Viewer, found: SocketHost) -> tuple[str, ...]:
    if found.service is None:
        return found.hosts
    hostname = found.service.id.hostname
    items = http_candidates(mesh, found.service, viewer)
    routes = (each for item in items for each in virtual_service_dependencies(mesh, item))
    return (*found.hosts, hostname, *wildcards(hostname), *routes)


def _unknown(mesh: Mesh, viewer: Viewer, parsed: VirtualHostName) -> Resource:
    found = beyond_virtual_host(parsed, beyond(mesh, viewer))
    if found is None and by_host_header(plan(mesh, viewer).ports.get(parsed.port, ()), parsed.port):
        found = passed_on(parsed)
    name = str(parsed)
    return absent(name) if found is None else encoded(name, found, aliases=(name,))


def _meaning(mesh: Mesh, viewer: Viewer, name: VirtualHostName) -> _Meaning:
    host, port = split_header(name.header)
    address = canonical_address(host)
    hosts = (address,) if address else candidates(host, viewer.namespace, mesh.settings.domain)
    if port == 0:  # What is behind the colon is no port. Which one it is does not count, as in Istio.
        return _Meaning(None, (), hosts)
    names: dict[str, None] = dict.fromkeys((*hosts, BLOCKS) if address else hosts)
    for each in hosts:
        service = service_for_header(mesh, (each,), name.port, viewer)
        if service is not None:
            names |= dict.fromkeys((service.id.hostname, *wildcards(service.id.hostname)))
            return _Meaning(service, http_candidates(mesh, service, viewer), tuple(names), service.id.hostname)
        found = virtual_services_of(mesh, each, viewer)
        names |= {other: None for item in found for other in virtual_service_hosts(item, mesh.settings.domain)}
        items = tuple(item for item in found if _serves(mesh, viewer, item, name.port))
        if items:
            return _Meaning(None, items, tuple(names), each)
    return _Meaning(None, (), tuple(names))


def _serves(mesh: Mesh, viewer: Viewer, item: ApiObject, port: int) -> bool:
    """Tell whether hosts of a VirtualService that are no services can be called on a port: where its services are."""
    if port == HTTP_PORT:
        return True
    hosts = virtual_service_hosts(item, mesh.settings.domain)
    found = (destination_named(mesh, host, viewer) for host in hosts)
    ports = (service.port(port) for service in found if service is not None)
    return any(each is not None and (each.protocol.is_http or each.protocol.is_detected) for each in ports)
