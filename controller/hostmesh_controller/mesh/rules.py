"""Which DestinationRules hold for a service, as one viewer sees it, and by what rules tell callers apart."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from hostmesh_controller.mesh.compiled import export_to, order_of
from hostmesh_controller.mesh.destination_rules import compared_labels
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.table import Table
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.virtual_services import virtual_service_spec
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.names import expand, wildcards

__all__ = [
    "caller_labels",
    "destination_rule_hosts",
    "destination_rule_spec",
    "destination_rules_for",
    "virtual_service_spec",
]


def destination_rule_spec(item: ApiObject) -> DestinationRuleSpec:
    assert isinstance(item.spec, DestinationRuleSpec)
    return item.spec


def destination_rule_hosts(item: ApiObject, domain: str) -> tuple[str, ...]:
    return (expand(destination_rule_spec(item).host, item.key.namespace, domain),)


def caller_labels(item: ApiObject) -> frozenset[str]:
    """Return the keys of the labels by which a VirtualService or DestinationRule tells callers apart."""
    spec: Any = item.spec
    if isinstance(spec, DestinationRuleSpec):
        return compared_labels(item)
    matches = (match for name in ("http", "tls", "tcp") for route in getattr(spec, name, ()) for match in route.match)
    return frozenset(key for match in matches for key in getattr(match, "source_labels", ()))


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
    assert isinstance(spec, DestinationRuleSpec)
    return export_to(spec.export_to, item.key.namespace)
