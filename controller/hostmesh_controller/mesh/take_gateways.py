"""Gateways: which hosts serve what at the edge, which VirtualServices are bound to them, and who uses which Secret."""

from dataclasses import replace

from hostmesh_controller.mesh.gateway_merge import gateways_of
from hostmesh_controller.mesh.gateways import NO_GATEWAYS, HostGateways, client_credentials
from hostmesh_controller.mesh.step import Step, object_dependency
from hostmesh_controller.mesh.table import IndexEdit
from hostmesh_controller.mesh.virtual_services import gateways_of as gateways_named
from hostmesh_controller.mesh.virtual_services import virtual_service_spec
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.names import MESH


def take_gateways(step: Step) -> None:
    _take_hosts(step)
    _take_bound(step)
    _take_credentials(step)
    for key, _, _ in step.before_and_after("Gateway", "Secret"):
        step.touched_services.add(object_dependency(key))


def _take_hosts(step: Step) -> None:
    if step.has_changed("Gateway"):
        concerned = set(step.mesh.hosts) | set(step.old.gateways)
    elif step.mesh.of_kind("Gateway"):
        concerned = set(step.touched_hosts) | _behind_changed_services(step)
    else:
        return
    found: dict[str, HostGateways | None] = {}
    for name in concerned:
        host = step.mesh.hosts.get(name)
        before = step.old.gateways.get(name, NO_GATEWAYS)
        now = gateways_of(step.mesh, host) if host is not None else NO_GATEWAYS
        if now != before:
            found[name] = now if now is not NO_GATEWAYS else None
            _touch(step, name, before, now)
    step.mesh = replace(step.mesh, gateways=step.mesh.gateways.changed(found))


def _behind_changed_services(step: Step) -> set[str]:
    """Return the gateways' hosts whose ports a Service may lead elsewhere now; they are few, where services are not."""
    return set(step.old.gateways) if step.services else set()


def _touch(step: Step, name: str, before: HostGateways, now: HostGateways) -> None:
    step.touched_hosts.add(name)
    # The ports of a gateway are called without the mesh's mutual TLS, those of other programs with it.
    step.recheck.update(step.mesh.workloads_by_host.get(name, ()))
    for key in (*before.gateways(), *now.gateways()):
        step.touched_services.add(object_dependency(key))
    for each in (before, now):
        for secrets in each.stored.values():
            step.touched_services.update(map(object_dependency, secrets))


def _take_bound(step: Step) -> None:
    """Index VirtualServices by the gateways they are bound to, and touch whoever serves these."""
    bound: IndexEdit[str, ObjectKey] = IndexEdit()
    touched: set[str] = set()
    connections: set[str] = set()
    for key, before, after in step.before_and_after("VirtualService"):
        for item, gone in ((before, True), (after, False)):
            if item is None:
                continue
            for gateway in gateways_named(item) - {MESH}:
                bound.note(gateway, key, gone=gone)
                touched.add(gateway)
                if _routes_connections(item):
                    connections.add(gateway)
    step.mesh = replace(step.mesh, bound=bound.apply(step.mesh.bound))
    for gateway in touched:
        namespace, _, name = gateway.partition("/")
        step.touched_services.add(object_dependency(ObjectKey("Gateway", namespace, name)))
    if connections:
        # Routes of connections are filter chains of listeners.
        for host, served in step.mesh.gateways.items():
            names = {f"{key.namespace}/{key.name}" for key in served.gateways()}
            if names & connections:
                step.touched_hosts.add(host)


def _routes_connections(item: ApiObject) -> bool:
    spec = virtual_service_spec(item)
    return bool(spec.tcp or spec.tls)


def _take_credentials(step: Step) -> None:
    """Index DestinationRules by the Secrets they name."""
    edit: IndexEdit[str, ObjectKey] = IndexEdit()
    for key, before, after in step.before_and_after("DestinationRule"):
        for item, gone in ((before, True), (after, False)):
            for name in client_credentials(item) if item is not None else ():
                edit.note(name, key, gone=gone)
    step.mesh = replace(step.mesh, credential_users=edit.apply(step.mesh.credential_users))
