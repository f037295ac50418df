"""Which VirtualServices a gateway's server takes its routes from, and for which hosts."""

from hostmesh_controller.mesh.gateways import Served
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.virtual_services import in_order, virtual_service_spec
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.names import expand, host_matches


def bound_virtual_services(mesh: Mesh, gateway: str, viewer: Viewer) -> tuple[ApiObject, ...]:
    """Return the VirtualServices that are bound to a gateway (`namespace/name`) and exported to a viewer, in order."""
    items = (mesh.objects[key] for key in mesh.bound.get(gateway, ()))
    return in_order(mesh, items, viewer, frozenset({gateway}))


def shared_hosts(served: Served, item: ApiObject, domain: str) -> tuple[str, ...]:
    """Return the hosts that a server and a VirtualService have in common: the narrower of two patterns."""
    own = [expand(host, item.key.namespace, domain) for host in virtual_service_spec(item).hosts]
    result: dict[str, None] = {}
    for host in served.hosts_for(item.key.namespace):
        for other in own:
            if host_matches(other, host):
                result[host] = None
            elif host_matches(host, other):
                result[other] = None
    return tuple(result)
