"""VirtualServices and DestinationRules, by the hosts they are for."""

from dataclasses import replace

from hostmesh_controller.mesh.rules import caller_labels, destination_rule_hosts, routes_tcp, virtual_service_hosts
from hostmesh_controller.mesh.step import Step, object_dependency
from hostmesh_controller.mesh.table import IndexEdit
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.names import host_matches


def take_rules(step: Step) -> None:
    virtual: IndexEdit[str, ObjectKey] = IndexEdit()
    rules: IndexEdit[str, ObjectKey] = IndexEdit()
    tcp: dict[ObjectKey, ApiObject | None] = {}
    labels: dict[ObjectKey, frozenset[str] | None] = {}
    domain = step.mesh.settings.domain
    for key, before, after in step.before_and_after("VirtualService", "DestinationRule"):
        is_rule = key.kind == "DestinationRule"
        edit = rules if is_rule else virtual
        for item, remove in ((before, True), (after, False)):
            if item is None:
                continue
            for host in destination_rule_hosts(item, domain) if is_rule else virtual_service_hosts(item, domain):
                (edit.remove if remove else edit.add)(host, key)
                _touch_pattern(step, host)
            if not is_rule and routes_tcp(item):
                # Destinations of several weights are filter chains of the hosts' listeners.
                step.touched_hosts.update(step.mesh.hosts)
        labels[key] = (caller_labels(after) if after is not None else None) or None
        step.touched_services.add(object_dependency(key))
        if not is_rule:
            tcp[key] = after if after is not None and routes_tcp(after) else None
    step.mesh = replace(
        step.mesh,
        virtual_services=virtual.apply(step.mesh.virtual_services),
        tcp_routes=step.mesh.tcp_routes.changed(tcp),
        destination_rules=rules.apply(step.mesh.destination_rules),
        caller_labels=step.mesh.caller_labels.changed(labels),
    )


def _touch_pattern(step: Step, pattern: str) -> None:
    step.touched_services.add(pattern)
    for mesh in (step.old, step.mesh):
        step.touched_services.update(item.hostname for item in mesh.services_by_address.get(pattern, ()))
    if pattern.startswith("*"):
        for hostname in step.mesh.services_by_hostname:
            if host_matches(pattern, hostname):
                step.touched_services.add(hostname)
