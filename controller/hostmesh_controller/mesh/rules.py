"""Which VirtualServices and DestinationRules hold for a service, as one viewer sees it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from hostmesh_controller.mesh.compiled import export_to, order_of, single_addresses
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.table import Table
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.names import canonical_address, expand, wildcards


def virtual_service_spec(item: ApiObject) -> VirtualServiceSpec:
    assert isinstance(item.spec, VirtualServiceSpec)
    return item.spec


def destination_rule_spec(item: ApiObject) -> DestinationRuleSpec:
    assert isinstance(item.spec, DestinationRuleSpec)
    return item.spec


def virtual_service_hosts(item: ApiObject, domain: str) -> tuple[str, ...]:
    """Return the hosts of a VirtualService by their full names; an IP address stays one."""
    hosts = virtual_service_spec(item).hosts
    return tuple(canonical_address(host) or expand(host, item.key.namespace, domain) for host in hosts)


def destination_rule_hosts(item: ApiObject, domain: str) -> tuple[str, ...]:
    return (expand(destination_rule_spec(item).host, item.key.namespace, domain),)


def routes_tcp(item: ApiObject) -> bool:
    return bool(virtual_service_spec(item).tcp)


def caller_labels(item: ApiObject) -> frozenset[str]:
    """Return the keys of the labels by which a VirtualService or DestinationRule tells callers apart."""
    spec: Any = item.spec
    if isinstance(spec, DestinationRuleSpec):
        selector = getattr(spec, "workload_selector", None)
        return frozenset(selector.match_labels if selector else ())
    matches = (match for name in ("http", "tls", "tcp") for route in getattr(spec, name, ()) for match in route.match)
    return frozenset(key for match in matches for key in getattr(match, "source_labels", ()))


def virtual_service_for(mesh: Mesh, service: Service, viewer: Viewer, *, tcp: bool) -> ApiObject | None:
    """Return the VirtualService whose HTTP or TCP routes hold for a service, or None.

    One that names the service or one of its addresses, or else one of the nearest wildcard; of several the oldest.
    """
    if not mesh.virtual_services:
        return None
    hosts = (service.id.hostname, *single_addresses(service), *wildcards(service.id.hostname))
    for item in _nearest(mesh, mesh.virtual_services, hosts, viewer, lambda item: _has_routes(item, tcp=tcp)):
        return item
    return None


def _has_routes(item: ApiObject, *, tcp: bool) -> bool:
    spec = virtual_service_spec(item)
    return bool(spec.tcp if tcp else spec.http)


def destination_rules_for(mesh: Mesh, service: Service, viewer: Viewer) -> tuple[ApiObject, ...]:
    """Return the DestinationRules for a service, oldest first, all of one namespace.

    Istio's order: the caller's namespace, the service's, the root namespace; in each the nearest host wins.
    """
    if not mesh.destination_rules:
        return ()
    for owner in dict.fromkeys((viewer.namespace, service.id.namespace, mesh.settings.root_namespace)):
        hosts = (service.id.hostname, *wildcards(service.id.hostname))
        found = _nearest(mesh, mesh.destination_rules, hosts, viewer, partial(_is_in, owner))
        if found:
            return found
    return ()


def _is_in(namespace: str, item: ApiObject) -> bool:
    return item.key.namespace == namespace


def _nearest(
    mesh: Mesh,
    index: Table[str, frozenset[ObjectKey]],
    hosts: Iterable[str],
    viewer: Viewer,
    fits: Callable[[ApiObject], bool],
) -> tuple[ApiObject, ...]:
    for host in hosts:
        items = [mesh.objects[key] for key in index.get(host, ())]
        visible = [item for item in items if fits(item) and _exported(item) & {"*", viewer.namespace}]
        if visible:
            return tuple(sorted(visible, key=order_of))
    return ()


def _exported(item: ApiObject) -> frozenset[str]:
    spec = item.spec
    assert isinstance(spec, VirtualServiceSpec | DestinationRuleSpec)
    return export_to(spec.export_to, item.key.namespace)
