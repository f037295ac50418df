"""EnvoyFilter: the operator's own changes, made to finished resources.

What each kind of patch does is in `patch_listeners`, `patch_filters`, `patch_routes` and `patch_clusters`. Patches are
written for Istio's names: here it is told what a resource is called there, and which context it belongs to.
"""

from collections.abc import Iterator
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.message import Message

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.gateways import NO_GATEWAYS
from hostmesh_controller.mesh.inbound import bound_ports, inbound_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.selection import endpoint_port, services_of
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.names import DNS_LISTENER, VIRTUAL_INBOUND, parse_inbound, parse_outbound, parse_tcp
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.listeners_inbound import bound_name
from hostmesh_controller.xds.messages import message_of
from hostmesh_controller.xds.of_clusters import dialled_target, service_port
from hostmesh_controller.xds.patch_clusters import ClusterNames, patch_cluster
from hostmesh_controller.xds.patch_listeners import TARGETS as LISTENER_TARGETS
from hostmesh_controller.xds.patch_listeners import patch_listener
from hostmesh_controller.xds.patch_routes import TARGETS as ROUTE_TARGETS
from hostmesh_controller.xds.patch_routes import patch_routes
from hostmesh_controller.xds.patch_set import GATEWAY, INBOUND, OUTBOUND, PatchSet, patches_of
from hostmesh_controller.xds.patch_virtual_hosts import patched_virtual_host

_TARGETS: Final = {
    wire.LISTENER_TYPE: (*LISTENER_TARGETS, *ROUTE_TARGETS),
    wire.CLUSTER_TYPE: ("CLUSTER",),
    wire.ROUTE_TYPE: ROUTE_TARGETS,
    wire.VIRTUAL_HOST_TYPE: ROUTE_TARGETS,
    wire.EXTENSION_TYPE: ("EXTENSION_CONFIG",),
}
"""What concerns a type of resource; the routes of what comes in are inside of its listener."""
_ADDED: Final = {wire.LISTENER_TYPE: "LISTENER", wire.CLUSTER_TYPE: "CLUSTER"}


def added(mesh: Mesh, host: Host, type_url: str) -> tuple[str, ...]:
    """Return the names of resources that EnvoyFilters add to what a host gets by wildcard."""
    viewer = mesh.viewer_of(host.name)
    if not viewer.patches or type_url not in _ADDED:
        return ()
    return tuple(name for name, _ in _additions(mesh, host, patches_of(mesh, viewer), type_url))


def patched(mesh: Mesh, host: Host, type_url: str, name: str, made: Resource | None) -> Resource | None:
    """Return a resource (None: there is none of that name) as the EnvoyFilters of the host leave it.

    It is the same object for all hosts that see the same, as long as what it is made from is.
    """
    viewer = mesh.viewer_of(host.name)
    patches = patches_of(mesh, viewer)
    if not patches.has(*_TARGETS.get(type_url, ())):
        return made
    if type_url == wire.VIRTUAL_HOST_TYPE:
        return patched_virtual_host(mesh, viewer, name, made, patches)
    addition = _addition(mesh, host, type_url, name, made, patches)
    if addition is not None or made is None:
        return addition
    contexts = contexts_of(mesh, host, type_url, name)
    if not contexts:
        return made
    where = _cluster_names(mesh, host, viewer, name) if type_url == wire.CLUSTER_TYPE else None
    key = ("patched", type_url, name, viewer, contexts, where)

    def make() -> Resource | None:
        message = message_of(made)
        if message is None or not _apply(mesh, host, message, patches, contexts, where):
            return made if message is None else None
        result = encoded(name, message)
        return made if result.version == made.version else result

    # The inbound listener is made for its host alone, and anew each time.
    return make() if name == VIRTUAL_INBOUND else mesh.memo.get(key, (made, patches), make)


def contexts_of(mesh: Mesh, host: Host, type_url: str, name: str) -> frozenset[str]:
    """Return as what a resource is patched; empty: it is not (the answers to DNS are nothing that Istio has).

    A host that is a gateway calls others as such and as any other, with the same clusters.
    """
    gateways = mesh.gateways.get(host.name, NO_GATEWAYS)
    match type_url:
        case wire.LISTENER_TYPE if name == DNS_LISTENER:
            return frozenset()
        case wire.LISTENER_TYPE if name == VIRTUAL_INBOUND or name in _bound_inbound(mesh, host):
            return frozenset({INBOUND})
        case wire.LISTENER_TYPE:
            return frozenset({GATEWAY if gateways.port_of(name) is not None else OUTBOUND})
        case wire.ROUTE_TYPE:
            return frozenset({GATEWAY if gateways.servers_of(name) else OUTBOUND})
        case wire.CLUSTER_TYPE if parse_inbound(name) is not None:
            return frozenset({INBOUND})
        case _:
            return frozenset({OUTBOUND, GATEWAY} if gateways.ports else {OUTBOUND})


def _bound_inbound(mesh: Mesh, host: Host) -> frozenset[str]:
    return frozenset(map(bound_name, bound_ports(mesh, host.name)))


def _apply(
    mesh: Mesh, host: Host, message: Message, patches: PatchSet, contexts: frozenset[str], where: ClusterNames | None
) -> bool:
    """Change a message in place; return whether it is still there. Its name stays: Envoy asked for it by that."""
    assert isinstance(message, Listener | Cluster | RouteConfiguration)
    name = message.name
    match message:
        case Listener():
            there = patch_listener(message, patches, contexts)
        case Cluster():
            assert where is not None
            there = patch_cluster(message, where, patches, contexts)
        case RouteConfiguration():
            servers = mesh.gateways.get(host.name, NO_GATEWAYS).servers_of(name)
            patch_routes(message, patches, contexts, {served.server.port.number for served in servers})
            there = True
    message.name = name
    return there


def _addition(
    mesh: Mesh, host: Host, type_url: str, name: str, made: Resource | None, patches: PatchSet
) -> Resource | None:
    """Return what an EnvoyFilter adds under a name that nothing else has."""
    if type_url == wire.EXTENSION_TYPE:
        found = [each for each in _extension_configs(patches) if each.name == name]
        return encoded(name, found[-1]) if found else made
    outbound = parse_outbound(name) if type_url == wire.CLUSTER_TYPE else None
    # A cluster of a service that does not exist is there and empty.
    free = made is None or (outbound is not None and service_port(mesh, mesh.viewer_of(host.name), outbound) is None)
    if not free:
        return None
    message = dict(_additions(mesh, host, patches, type_url)).get(name)
    return None if message is None else encoded(name, message)


def _extension_configs(patches: PatchSet) -> Iterator[TypedExtensionConfig]:
    for patch in patches.of("EXTENSION_CONFIG"):
        if patch.operation == "ADD" and isinstance(patch.value, TypedExtensionConfig):
            yield patch.value


def _additions(mesh: Mesh, host: Host, patches: PatchSet, type_url: str) -> Iterator[tuple[str, Message]]:
    gateway = bool(mesh.gateways.get(host.name, NO_GATEWAYS).ports)
    contexts = frozenset({INBOUND, OUTBOUND, GATEWAY} if gateway else {INBOUND, OUTBOUND})
    for patch in patches.of(_ADDED.get(type_url, "")):
        if patch.operation == "ADD" and patch.adds_in(contexts):
            assert isinstance(patch.value, Listener | Cluster)
            if patch.value.name:
                yield patch.value.name, patch.value


def _cluster_names(mesh: Mesh, host: Host, viewer: Viewer, name: str) -> ClusterNames:
    inbound = parse_inbound(name)
    if inbound is not None:
        return ClusterNames(name, inbound, services=_inbound_services(mesh, host, inbound))
    dialled = parse_tcp(name)
    outbound = parse_outbound(name) if dialled is None else dialled_target(mesh, viewer, dialled)
    if outbound is None:
        return ClusterNames(name)
    return ClusterNames(str(outbound), outbound.port, outbound.subset, (outbound.hostname,))


def _inbound_services(mesh: Mesh, host: Host, number: int) -> tuple[str, ...]:
    """Return the host names of the services that lead to a port of the host."""
    found: dict[str, None] = {}
    for port in inbound_ports(mesh, host.name):
        if port.number == number:
            for service in services_of(mesh, port.workload):
                targets = (endpoint_port(each, port.workload.ports) for each in service.ports)
                if number in targets:
                    found[service.id.hostname] = None
    return tuple(found)
