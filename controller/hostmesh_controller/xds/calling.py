"""What a host calls by: which of its resources a change of what can be called has made others.

Hosts with equal viewers call by the same listeners, so this is asked once for all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hostmesh_api.wire import CLUSTER_TYPE, HOST_CONFIG_NAME, HOST_CONFIG_TYPE, LISTENER_TYPE
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import view
from hostmesh_controller.names import DNS_LISTENER, VIRTUAL_OUTBOUND, port_listener
from hostmesh_controller.xds import gateway_listeners
from hostmesh_controller.xds.of_clusters import asked_by_filters
from hostmesh_controller.xds.of_listeners import planned_for
from hostmesh_controller.xds.outbound import Plan, mirror_clusters, plan
from hostmesh_controller.xds.sidecar_egress import Bound, bound_listeners, captured_prefixes

Name = tuple[str, str]
"""Type URL and name of a resource."""


def called_by(before: Mesh, after: Mesh, host: str) -> tuple[frozenset[Name], bool]:
    """Return names of a host's resources that may be others, or there no longer, because others can be called.

    The host must see as the same viewer in both. The second value tells whether they are those of all such hosts.
    """
    viewer = after.viewer_of(host)
    # All of the older one first: then it is still kept.
    old, new = (_calls(mesh, viewer, host) for mesh in (before, after))
    found = {(LISTENER_TYPE, name) for name in _listeners(before, after, old, new)}
    found |= {(CLUSTER_TYPE, name) for name in {*old.copied} ^ {*new.copied}}
    if old.captured != new.captured:
        found.add((HOST_CONFIG_TYPE, HOST_CONFIG_NAME))
    at_the_edge = host in before.gateways or host in after.gateways
    if at_the_edge:
        # They share port numbers with calls, and lead to whatever services there are.
        found |= {(LISTENER_TYPE, name) for mesh in (before, after) for name in gateway_listeners.wildcard(mesh, host)}
    return frozenset(found), not at_the_edge


@dataclass(frozen=True, slots=True)
class _Calls:
    """What the resources of a caller are made from."""

    services: tuple[Service, ...]
    plan: Plan
    bound: tuple[Bound, ...]
    captured: tuple[object, ...]
    copied: tuple[str, ...]


def _calls(mesh: Mesh, viewer: Viewer, host: str) -> _Calls:
    planned = plan(mesh, viewer)
    return _Calls(
        services=view(mesh, viewer).services,
        plan=planned,
        bound=tuple(bound_listeners(mesh, viewer)),
        captured=(planned.of_all_ports(), tuple(captured_prefixes(mesh, viewer))),
        copied=mirror_clusters(mesh, host),
    )


def standing_clusters(mesh: Mesh, host: str) -> tuple[str, ...]:
    """Return the clusters of services that a host gets without asking for them: nobody else asks on its behalf."""
    return (*mirror_clusters(mesh, host), *asked_by_filters(mesh, host)) if host in mesh.hosts else ()


def _listeners(before: Mesh, after: Mesh, old: _Calls, new: _Calls) -> Iterator[str]:
    if old.services is not new.services:
        yield DNS_LISTENER
    if old.bound != new.bound:
        yield from (each.name for each in (*old.bound, *new.bound))
    if old.plan is new.plan:
        return
    if old.plan.of_all_ports() != new.plan.of_all_ports():
        yield VIRTUAL_OUTBOUND
    for port in old.plan.ports.keys() | new.plan.ports.keys():
        both = port in old.plan.ports and port in new.plan.ports
        if not both or planned_for(before, old.plan, port) is not planned_for(after, new.plan, port):
            yield port_listener(port)
