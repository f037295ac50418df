"""What a host calls by: which of its resources a change of what can be called has made others.

Hosts with equal viewers call by the same listeners, so this is asked once for all of them.
"""

from collections.abc import Iterator

from hostmesh_api.wire import CLUSTER_TYPE, HOST_CONFIG_NAME, HOST_CONFIG_TYPE, LISTENER_TYPE
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import view
from hostmesh_controller.names import DNS_LISTENER, VIRTUAL_OUTBOUND, port_listener
from hostmesh_controller.xds import gateway_listeners, rate_limits
from hostmesh_controller.xds.of_listeners import planned_for
from hostmesh_controller.xds.outbound import Plan, mirror_clusters, plan
from hostmesh_controller.xds.sidecar_egress import bound_listeners, captured_prefixes

Name = tuple[str, str]
"""Type URL and name of a resource."""


def called_by(before: Mesh, after: Mesh, host: str) -> tuple[frozenset[Name], bool]:
    """Return names of a host's resources that may be others, or there no longer, because others can be called.

    The host must see as the same viewer in both. The second value tells whether they are those of all such hosts.
    """
    viewer = after.viewer_of(host)
    # The older one is asked for first: then it is still kept.
    found = {*_listeners(before, after, viewer)}
    copied = [mirror_clusters(mesh, host) for mesh in (before, after)]
    found.update((CLUSTER_TYPE, name) for name in {*copied[0]} ^ {*copied[1]})
    at_the_edge = host in before.gateways or host in after.gateways
    if at_the_edge:
        # They share port numbers with calls, and lead to whatever services there are.
        found.update(
            (LISTENER_TYPE, name) for mesh in (before, after) for name in gateway_listeners.wildcard(mesh, host)
        )
    return frozenset(found), not at_the_edge


def standing_clusters(mesh: Mesh, host: str) -> tuple[str, ...]:
    """Return the clusters of services that a host gets without asking for them: nobody else asks on its behalf."""
    found = mesh.hosts.get(host)
    return () if found is None else (*mirror_clusters(mesh, host), *rate_limits.services_of(mesh, found))


def _listeners(before: Mesh, after: Mesh, viewer: Viewer) -> Iterator[Name]:
    services = [view(mesh, viewer).services for mesh in (before, after)]
    plans = [plan(mesh, viewer) for mesh in (before, after)]
    bound = [bound_listeners(mesh, viewer) for mesh in (before, after)]
    if services[0] is not services[1]:
        yield LISTENER_TYPE, DNS_LISTENER
    if plans[0] is not plans[1]:
        for name in _of_plans(before, after, *plans):
            yield LISTENER_TYPE, name
    captured = [
        (made.of_all_ports(), captured_prefixes(mesh, viewer))
        for mesh, made in zip((before, after), plans, strict=True)
    ]
    if captured[0] != captured[1]:
        yield HOST_CONFIG_TYPE, HOST_CONFIG_NAME
    if bound[0] != bound[1]:
        yield from ((LISTENER_TYPE, each.name) for some in bound for each in some)


def _of_plans(before: Mesh, after: Mesh, old: Plan, new: Plan) -> Iterator[str]:
    if old.of_all_ports() != new.of_all_ports():
        yield VIRTUAL_OUTBOUND
    for port in old.ports.keys() | new.ports.keys():
        both = port in old.ports and port in new.ports
        if not both or planned_for(before, old, port) is not planned_for(after, new, port):
            yield port_listener(port)
