"""VirtualServices and DestinationRules, by the hosts they are for, and whom a change of one concerns."""

from dataclasses import replace

from hostmesh_controller.mesh.compiled import EVERYWHERE
from hostmesh_controller.mesh.delegates import http_routes, mirrors
from hostmesh_controller.mesh.destination_rules import rule_hosts, shapes_connections
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.rules import caller_labels
from hostmesh_controller.mesh.step import Step, object_dependency
from hostmesh_controller.mesh.table import IndexEdit
from hostmesh_controller.mesh.virtual_services import (
    MESH_ONLY,
    exported,
    gateways_of,
    has_connection_routes,
    may_have_mirrors,
    virtual_service_hosts,
    virtual_service_spec,
)
from hostmesh_controller.model.domains import is_partial_wildcard
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.names import host_matches


def take_rules(step: Step) -> None:
    labels: dict[ObjectKey, frozenset[str] | None] = {}
    for key, _, after in step.before_and_after("VirtualService", "DestinationRule"):
        labels[key] = (caller_labels(after) if after is not None else None) or None
        step.touched_services.add(object_dependency(key))
    step.mesh = replace(step.mesh, caller_labels=step.mesh.caller_labels.changed(labels))
    _take_virtual_services(step)
    _take_destination_rules(step)


def _take_virtual_services(step: Step) -> None:
    by_host: IndexEdit[str, ObjectKey] = IndexEdit()
    listed: dict[ObjectKey, ApiObject | None] = {}
    for key, before, after in step.before_and_after("VirtualService"):
        for item, edit in ((before, by_host.remove), (after, by_host.add)):
            if item is None:
                continue
            for host in virtual_service_hosts(item, step.mesh.settings.domain):
                edit(host, key)
                _touch(step, host)
                if has_connection_routes(item) and host.startswith("*"):
                    _touch_covered(step, host)
        listed[key] = after if after is not None and (has_connection_routes(after) or may_have_mirrors(after)) else None
        _touch_viewers(step, before, after)
    step.mesh = replace(
        step.mesh,
        virtual_services=by_host.apply(step.mesh.virtual_services),
        tcp_routes=step.mesh.tcp_routes.changed(listed),
    )


def _touch_viewers(step: Step, before: ApiObject | None, after: ApiObject | None) -> None:
    """Touch the callers whose listeners or standing clusters are made from a VirtualService, if that is different."""
    parts = [(item, _beyond_virtual_hosts(mesh, item)) for mesh, item in ((step.old, before), (step.mesh, after))]
    if parts[0][1] == parts[1][1]:
        return
    seen = frozenset(
        name for item, part in parts if item is not None and part is not None for name in exported(step.mesh, item)
    )
    viewers = step.old.viewers
    step.touched_callers.update(
        viewers if seen & EVERYWHERE else (host for host, each in viewers.items() if each.namespace in seen)
    )


def _beyond_virtual_hosts(mesh: Mesh, item: ApiObject | None) -> object:
    """Return all of a VirtualService that becomes more than virtual hosts, None for nothing."""
    if item is None:
        return None
    spec = virtual_service_spec(item)
    copies = tuple(destination for http in http_routes(mesh, item) for destination in mirrors(http))
    for_mesh = not gateways_of(item).isdisjoint(MESH_ONLY)
    # Of gateways' connections `take_gateways` tells.
    if not copies and not (for_mesh and has_connection_routes(item)):
        return None
    created = item.metadata.creation_timestamp
    return spec.hosts, spec.gateways, spec.export_to, spec.tcp, spec.tls, copies, created


def _take_destination_rules(step: Step) -> None:
    by_host: IndexEdit[str, ObjectKey] = IndexEdit()
    shaping: dict[ObjectKey, ApiObject | None] = {}
    for key, before, after in step.before_and_after("DestinationRule"):
        if any(item is not None and shapes_connections(item) for item in (before, after)):
            # Such connections have filter chains of their own.
            step.touched_callers.update(step.old.viewers)
        shaping[key] = after if after is not None and shapes_connections(after) else None
        for item, edit in ((before, by_host.remove), (after, by_host.add)):
            for host in rule_hosts(item, step.mesh.settings.domain) if item is not None else ():
                edit(host, key)
                _touch(step, host)
                if host.startswith("*"):
                    _touch_covered(step, host)
    step.mesh = replace(
        step.mesh,
        destination_rules=by_host.apply(step.mesh.destination_rules),
        tcp_rules=step.mesh.tcp_rules.changed(shaping),
    )


def _touch(step: Step, host: str) -> None:
    step.touched_services.add(host)
    if is_partial_wildcard(host):
        # Names depend on the wildcards of whole labels that cover them; one of these covers all that this one does.
        _, dot, rest = host.partition(".")
        step.touched_services.add(f"*{dot}{rest}")
    for mesh in (step.old, step.mesh):
        step.touched_services.update(item.hostname for item in mesh.services_by_address.get(host, ()))


def _touch_covered(step: Step, pattern: str) -> None:
    # What is named by a service depends on it alone, not on each of the patterns that cover it.
    step.touched_services.update(each for each in step.mesh.services_by_hostname if host_matches(pattern, each))
