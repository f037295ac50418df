"""Pages of the cold copy (`hostmesh_api.cold`): what a viewer may call, service by service.

What is in them is made by the same constructors as what is sent hot. Left out are the viewer's own things (listeners,
inbound clusters), which every host has anyway; secrets; hosts that only VirtualServices name; and, under a Sidecar,
where routes lead that it does not import.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from envoy.service.discovery.v3.discovery_pb2 import Resource as WireResource

from hostmesh_api import wire
from hostmesh_api.cold import ANY_CALLER, CONFIG, bucket_of, encode_page, page_name, without_leading
from hostmesh_api.delta import Resource
from hostmesh_api.v1.hostmesh_pb2 import ColdContent, ColdResource, ColdService, ColdVirtualHost
from hostmesh_controller.mesh.destination_rules import spec_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.memo import Scratch
from hostmesh_controller.mesh.records import Host, Service, ServicePort
from hostmesh_controller.mesh.step import host_dependency
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import View, view
from hostmesh_controller.names import OutboundName, TcpName, VirtualHostName, is_single, parse_outbound, parse_tcp
from hostmesh_controller.xds import patches, resources
from hostmesh_controller.xds.encoding import is_absent
from hostmesh_controller.xds.of_clusters import dialled_target, for_caller, rules_of
from hostmesh_controller.xds.outbound_identities import outbound_identities

_NAME, _DOMAINS = 1, 2


@dataclass(frozen=True, slots=True)
class Sight:
    """What decides about a host's pages: who looks, and the SPIFFE IDs of its programs that call under their own."""

    viewer: Viewer
    callers: tuple[str, ...] = ()


def sight_of(mesh: Mesh, host: str) -> Sight:
    return Sight(mesh.viewer_of(host), outbound_identities(mesh, mesh.hosts[host]))


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it was made; `depends`: the dependency names of what is in it. None: nobody is in the bucket."""

    resource: Resource | None
    depends: frozenset[str]


@dataclass(slots=True)
class Making:
    """A page under way: `steps` yields after each service, a millisecond or two, so that others have their turn."""

    mesh: Mesh
    host: Host
    kind: str
    bucket: int

    def steps(self, services: tuple[Service, ...]) -> Iterator[Page | None]:
        """Yield None after each service and the page at the end."""
        if not services:
            yield Page(None, frozenset())
            return
        # What is looked at is all there is: kept with what is in use, it would be ten times that.
        mesh = replace(self.mesh, memo=Scratch(self.mesh.memo))
        content, depends = ColdContent(), set[str]()
        for service in services:
            if self.kind == CONFIG:
                content.services.append(_service(mesh, self.host, service, depends))
            else:
                content.endpoints.extend(_endpoints(mesh, self.host, service, depends))
            yield None
        depends.discard(host_dependency(self.host.name))
        if not content.services and not content.endpoints:
            yield Page(None, frozenset(depends))
            return
        yield Page(encode_page(page_name(self.kind, self.bucket), content), frozenset(depends))


def signature(mesh: Mesh, viewer: Viewer) -> tuple[object, ...]:
    """Return objects which being the same, what a viewer's pages are made from beside services is the same."""
    chosen = [*viewer.patches, *([viewer.sidecar] if viewer.sidecar is not None else [])]
    return (mesh.settings, mesh.config, *map(mesh.objects.get, chosen))


def buckets(seen: View) -> dict[int, tuple[Service, ...]]:
    """Return a viewer's services by bucket."""
    found: dict[int, list[Service]] = {}
    for service in seen.services:
        found.setdefault(bucket_of(service.id.hostname), []).append(service)
    return {bucket: tuple(services) for bucket, services in found.items()}


def seen_by(mesh: Mesh, viewer: Viewer) -> View:
    return view(mesh, viewer)


def _service(mesh: Mesh, host: Host, service: Service, depends: set[str]) -> ColdService:
    viewer = mesh.viewer_of(host.name)
    result = ColdService(hostname=service.id.hostname, hosts=host_headers(mesh, viewer, service))
    for port in filter(speaks_http, service.ports):
        name = str(VirtualHostName(port.number, service.id.hostname))
        made = _made(mesh, host, wire.VIRTUAL_HOST_TYPE, name, depends)
        if made is not None and not is_absent(made):
            rest = without_leading(_content(made), (_NAME, _DOMAINS))
            result.virtual_hosts.append(ColdVirtualHost(port=port.number, rest=rest))
    _append(result.clusters, _clusters(mesh, host, service, depends))
    return result


def _made(mesh: Mesh, host: Host, type_url: str, name: str, depends: set[str]) -> Resource | None:
    depends.update(resources.dependencies(mesh, host.name, type_url, name))
    return resources.resource(mesh, host.name, type_url, name)


def _clusters(mesh: Mesh, host: Host, service: Service, depends: set[str]) -> Iterator[tuple[str, bytes]]:
    viewer, callers = mesh.viewer_of(host.name), outbound_identities(mesh, host)
    for name in cluster_names(mesh, viewer, service):
        depends.update(resources.dependencies(mesh, host.name, wire.CLUSTER_TYPE, name))
        dialled = parse_tcp(name)
        target = parse_outbound(name) if dialled is None else dialled_target(mesh, viewer, dialled)
        made = None if target is None else for_caller(mesh, viewer, ANY_CALLER, target, dialled, callers)
        if made is not None and viewer.patches:
            made = patches.patched(mesh, host, wire.CLUSTER_TYPE, name, made)
        if made is not None:
            yield name, _content(made)


def _endpoints(mesh: Mesh, host: Host, service: Service, depends: set[str]) -> list[ColdResource]:
    found: list[tuple[str, bytes]] = []
    for name in cluster_names(mesh, mesh.viewer_of(host.name), service):
        made = _made(mesh, host, wire.ENDPOINT_TYPE, name, depends)
        if made is not None:
            found.append((name, _content(made)))
    result: list[ColdResource] = []
    _append(result, iter(found))
    return result


def speaks_http(port: ServicePort) -> bool:
    """Tell whether requests to a port are looked into, so that Envoy asks for virtual hosts."""
    return port.protocol.is_http or port.protocol.is_detected


def cluster_names(mesh: Mesh, viewer: Viewer, service: Service) -> Iterator[str]:
    """Yield the clusters that Envoy may ask for when a service is called."""
    rules = rules_of(mesh, service, viewer)
    subsets = dict.fromkeys(subset.name for rule in rules for subset in spec_of(rule).subsets)
    for port in service.ports:
        for subset in ("", *subsets):
            yield str(OutboundName(port.number, subset, service.id.hostname))
        if not port.protocol.is_http:
            yield from (str(TcpName(address, port.number)) for address in _addresses(service))


def _addresses(service: Service) -> tuple[str, ...]:
    explicit = (each.partition("/")[0] for each in service.addresses if is_single(each))
    return (*filter(None, (service.vip4, service.vip6)), *explicit)


def host_headers(mesh: Mesh, viewer: Viewer, service: Service) -> list[str]:
    """Return the host headers that mean a service, without ports; see `names.candidates`."""
    hostname, suffix = service.id.hostname, f".svc.{mesh.settings.domain}"
    found = [hostname]
    short = hostname.removesuffix(suffix)
    name, dot, namespace = short.partition(".")
    if short != hostname and dot and "." not in namespace:
        spelled = [f"{short}.svc", short, *([name] if namespace == viewer.namespace else [])]
        # One that is a service's own name means that one.
        found += [each for each in spelled if each not in mesh.services_by_hostname]
    return [*found, *_addresses(service)]


def _content(made: Resource) -> bytes:
    return WireResource.FromString(made.body).resource.value


class _Sequence(Protocol):
    def extend(self, values: Iterable[ColdResource], /) -> None: ...


def _append(to: _Sequence, named: Iterator[tuple[str, bytes]]) -> None:
    """Append resources; those that differ in their names alone are one."""
    by_rest: dict[bytes, list[str]] = {}
    for name, content in named:
        by_rest.setdefault(without_leading(content, (_NAME,)), []).append(name)
    to.extend(ColdResource(names=names, rest=rest) for rest, names in by_rest.items())
