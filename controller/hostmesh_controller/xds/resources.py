"""The heart: which resource a host gets for a type and a name, and what its content depends on.

What is the same for many hosts is built once: results are kept while the records they are made from are the same.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_api.v1 import hostmesh_pb2 as pb
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.step import EXPULSIONS, host_dependency
from hostmesh_controller.names import VIRTUAL_INBOUND
from hostmesh_controller.xds import (
    capture,
    gateway_passthrough,
    of_clusters,
    of_endpoints,
    of_extensions,
    of_listeners,
    of_routes,
    of_secrets,
    of_virtual_hosts,
    patches,
)
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.host_config import host_config
from hostmesh_controller.xds.outbound import plan


def _nothing(_mesh: Mesh, _host: str, _name: str = "") -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class _Type:
    """How one type of resource is served. `shared`: it follows from the host's viewer alone."""

    make: Callable[[Mesh, Host, str], Resource | None]
    dependencies: Callable[[Mesh, str, str], tuple[str, ...]] = _nothing
    wildcard: Callable[[Mesh, str], tuple[str, ...]] = _nothing
    shared: bool = False


def knows_host(mesh: Mesh, host: str) -> bool:
    """Tell whether there is a Host of that name; others get nothing."""
    return host in mesh.hosts


def wildcard(mesh: Mesh, host: str, type_url: str) -> tuple[str, ...]:
    """Return the names that a host gets without asking for them by name; none for types that are on demand only."""
    found, kind = mesh.hosts.get(host), _TYPES.get(type_url)
    if found is None or kind is None:
        return ()
    return tuple(dict.fromkeys((*kind.wildcard(mesh, host), *patches.added(mesh, found, type_url))))


def resource(mesh: Mesh, host: str, type_url: str, name: str) -> Resource | None:
    """Return what a host gets for a name, or None if there is no such thing for it.

    A virtual host that does not exist is a resource all the same: one that holds its alias alone, because Envoy answers
    404 on it at once, and waits where it is told that the resource was removed. But where Envoy has a virtual host of
    that name, it keeps that: then the name must be removed first. A cluster that a route names and that does not exist
    has no endpoints.
    """
    found, kind = mesh.hosts.get(host), _TYPES.get(type_url)
    if found is None or kind is None:
        return None
    made = kind.make(mesh, found, name)
    return patches.patched(mesh, found, type_url, name, made) if mesh.viewer_of(host).patches else made


def audience(mesh: Mesh, host: str, type_url: str) -> Hashable | None:
    """Return what hosts have in common that get the same resources of a type; None where each has its own."""
    kind = _TYPES.get(type_url)
    return mesh.viewer_of(host) if kind is not None and kind.shared and knows_host(mesh, host) else None


def dependencies(mesh: Mesh, host: str, type_url: str, name: str) -> tuple[str, ...]:
    """Return the names whose change can change a resource, as `Touched.services` and `Touched.endpoints` hold them.

    Host names of services (existing or not), addresses, configuration objects (`object_dependency`), and the host's own
    view. They hold until one of them is touched: ask again then. Of resources that are a host's own (listeners, inbound
    clusters, HostConfig) `Touched.hosts` tells too. For endpoints (EDS) both sets count, for all other types
    `Touched.services` alone.
    """
    kind = _TYPES.get(type_url)
    return tuple(dict.fromkeys((host_dependency(host), *(kind.dependencies(mesh, host, name) if kind else ()))))


def confirmation(content: str) -> Resource:
    """Return what tells an agent to take what it holds back; with other content it is another one."""
    name = wire.CONFIRMATION_NAME
    made = encoded(name, pb.Confirmation())
    return Resource(name, content, made.body)


def _host_config(mesh: Mesh, host: Host, name: str) -> Resource | None:
    if name != wire.HOST_CONFIG_NAME:
        return None
    inbound = resource(mesh, host.name, wire.LISTENER_TYPE, VIRTUAL_INBOUND)
    version = inbound.version if inbound else ""
    return encoded(name, host_config(mesh, host, plan(mesh, mesh.viewer_of(host.name)), version))


def _cluster(mesh: Mesh, host: Host, name: str) -> Resource | None:
    passed_on = gateway_passthrough.parse_server_name(name) is not None
    return gateway_passthrough.cluster(mesh, host, name) if passed_on else of_clusters.resource(mesh, host, name)


def _endpoints(mesh: Mesh, host: Host, name: str) -> Resource | None:
    passed_on = gateway_passthrough.parse_server_name(name) is not None
    return gateway_passthrough.endpoints(mesh, host, name) if passed_on else of_endpoints.resource(mesh, host, name)


def _cluster_dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    return gateway_passthrough.cluster_dependencies(mesh, host, name) or of_clusters.dependencies(mesh, host, name)


def _config_dependencies(mesh: Mesh, host: str, _name: str) -> tuple[str, ...]:
    found = mesh.hosts.get(host)
    return (EXPULSIONS, *(capture.dependencies(mesh, found) if found is not None else ()))


def _own_config(_mesh: Mesh, _host: str) -> tuple[str, ...]:
    return (wire.HOST_CONFIG_NAME,)


_TYPES: Final[Mapping[str, _Type]] = MappingProxyType(
    {
        wire.HOST_CONFIG_TYPE: _Type(_host_config, _config_dependencies, wildcard=_own_config),
        wire.LISTENER_TYPE: _Type(of_listeners.resource, of_listeners.dependencies, of_listeners.wildcard),
        wire.CLUSTER_TYPE: _Type(_cluster, _cluster_dependencies, of_clusters.wildcard),
        wire.ENDPOINT_TYPE: _Type(_endpoints, _cluster_dependencies, shared=True),
        wire.ROUTE_TYPE: _Type(of_routes.resource, of_routes.dependencies),
        wire.SECRET_TYPE: _Type(of_secrets.resource, of_secrets.dependencies),
        wire.EXTENSION_TYPE: _Type(of_extensions.resource, of_extensions.dependencies),
        wire.VIRTUAL_HOST_TYPE: _Type(of_virtual_hosts.resource, of_virtual_hosts.dependencies, shared=True),
    }
)
WILDCARD_TYPES: Final = (wire.LISTENER_TYPE, wire.CLUSTER_TYPE, wire.HOST_CONFIG_TYPE)
"""Types of which a host gets some resources without asking for them by name."""
