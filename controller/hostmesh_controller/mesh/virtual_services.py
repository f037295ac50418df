"""Which VirtualServices hold for a host, as one viewer sees it.

Istio's search: what is exported to the viewer's own namespace alone goes first, then what is exported to chosen
namespaces, then what is public; in each the oldest. A name goes before wildcards, of which the longest counts.
"""

from collections.abc import Iterable
from typing import Final

from hostmesh_controller.mesh.compiled import age_of, single_addresses
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.sidecars import Scope, scope
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.exports import export_to
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.names import MESH, canonical_address, expand, gateway_name, wildcards

MESH_ONLY: Final = frozenset({MESH})
"""The gateway names that stand for the hosts' own proxies."""


def virtual_service_spec(item: ApiObject) -> VirtualServiceSpec:
    assert isinstance(item.spec, VirtualServiceSpec)
    return item.spec


def virtual_service_hosts(item: ApiObject, domain: str) -> tuple[str, ...]:
    """Return the hosts of a VirtualService by their full names; an IP address stays one. A delegate has none."""
    hosts = virtual_service_spec(item).hosts
    return tuple(canonical_address(host) or expand(host, item.key.namespace, domain) for host in hosts)


def gateways_of(item: ApiObject) -> frozenset[str]:
    """Return the gateways that a VirtualService is for, `mesh` where it names none."""
    names = virtual_service_spec(item).gateways
    return frozenset(gateway_name(name, item.key.namespace) for name in names) or MESH_ONLY


def exported(mesh: Mesh, item: ApiObject) -> frozenset[str]:
    """Return the namespaces that may see a VirtualService, or `*`."""
    values = virtual_service_spec(item).export_to or mesh.config.default_virtual_service_export_to
    return export_to(values, item.key.namespace)


def is_visible(mesh: Mesh, item: ApiObject, namespace: str) -> bool:
    return bool(exported(mesh, item) & {"*", namespace})


def in_order(
    mesh: Mesh, items: Iterable[ApiObject], viewer: Viewer, gateways: frozenset[str] = MESH_ONLY
) -> tuple[ApiObject, ...]:
    """Return those that are for one of the gateways and visible, in the order in which they win."""
    imported = scope(mesh, viewer) if gateways == MESH_ONLY else None
    found: list[tuple[int, tuple[float, str, str], ApiObject]] = []
    for item in items:
        seen = exported(mesh, item)
        if not seen & {"*", viewer.namespace} or not gateways_of(item) & gateways:
            continue
        if imported is not None and not _is_imported(mesh, item, imported):
            continue
        rank = 2 if "*" in seen else 0 if item.key.namespace == viewer.namespace else 1
        found.append((rank, age_of(item), item))
    return tuple(entry[-1] for entry in sorted(found, key=lambda entry: entry[:-1]))


def _is_imported(mesh: Mesh, item: ApiObject, imported: Scope) -> bool:
    hosts = virtual_service_hosts(item, mesh.settings.domain)
    return any(imported.takes(item.key.namespace, host) for host in hosts)


def virtual_services_of(
    mesh: Mesh, host: str, viewer: Viewer, gateways: frozenset[str] = MESH_ONLY
) -> tuple[ApiObject, ...]:
    """Return the VirtualServices with this very host (a full name or a pattern)."""
    keys = mesh.virtual_services.get(host)
    return in_order(mesh, (mesh.objects[key] for key in keys), viewer, gateways) if keys else ()


def http_candidates(mesh: Mesh, service: Service, viewer: Viewer) -> tuple[ApiObject, ...]:
    """Return the VirtualServices of a service: the first that has HTTP routes for the caller and the port holds.

    Those that name the service, or one of its addresses; else the one of the nearest wildcard.
    """
    if not mesh.virtual_services:
        return ()
    for host in (service.id.hostname, *single_addresses(service)):
        found = virtual_services_of(mesh, host, viewer)
        if found:
            return found
    for host in wildcards(service.id.hostname):
        found = virtual_services_of(mesh, host, viewer)
        if found:
            return found[:1]
    return ()


def connection_rules(mesh: Mesh, service: Service, viewer: Viewer) -> tuple[ApiObject, ...]:
    """Return the VirtualServices whose tcp and tls routes may hold for a service, in the order in which they win.

    As in Istio a name does not go before a wildcard here.
    """
    if not mesh.tcp_routes:
        return ()
    hosts = (service.id.hostname, *single_addresses(service), *wildcards(service.id.hostname))
    keys = {key for host in hosts for key in mesh.virtual_services.get(host, ()) if key in mesh.tcp_routes}
    return in_order(mesh, (mesh.objects[key] for key in keys), viewer)


def has_connection_routes(item: ApiObject) -> bool:
    spec = virtual_service_spec(item)
    return bool(spec.tcp or spec.tls)


def may_have_mirrors(item: ApiObject) -> bool:
    """Tell whether requests may be copied; delegates may do it, which are not looked at."""
    https = virtual_service_spec(item).http
    return any(http.mirror is not None or http.mirrors or http.delegate is not None for http in https)
