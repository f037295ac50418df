"""Which endpoints a host gets for the name of a cluster."""

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh import merging
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Resolution
from hostmesh_controller.names import parse_outbound, parse_tcp
from hostmesh_controller.xds import endpoints
from hostmesh_controller.xds.localities import grouped, place_of, spread_of
from hostmesh_controller.xds.of_clusters import dependencies as cluster_dependencies
from hostmesh_controller.xds.of_clusters import dialled_target, keys_of, rules_of, service_port
from hostmesh_controller.xds.policy import policy_for, subset_labels


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    return cluster_dependencies(mesh, host, name)


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return the endpoints of an outbound or of an on-demand TCP cluster, as the caller's place makes them.

    Each cluster has endpoints of its own name, though they may be the same ones: Envoy does not ask again for a name
    that it knows, and a second cluster would wait in vain for the first answer.
    """
    viewer = mesh.viewer_of(host.name)
    dialled = parse_tcp(name)
    outbound = parse_outbound(name) if dialled is None else dialled_target(mesh, viewer, dialled)
    found = service_port(mesh, viewer, outbound) if outbound else None
    if outbound is None or found is None or found[0].resolution is not Resolution.STATIC:
        return None
    service = found[0]
    rules = rules_of(mesh, service, viewer)
    labels = subset_labels(rules, outbound.subset)
    if labels is None:
        return None
    spread = spread_of(policy_for(rules, outbound.subset, outbound.port), mesh.config)
    place = place_of(viewer, spread)
    of_service = merging.endpoints_of(mesh, service)

    def make() -> Resource:
        chosen = endpoints.endpoints_of(of_service, outbound.port, labels)
        return endpoints.assignment(name, grouped(chosen, spread, place))

    # Callers of one place share the bytes, whatever else they see.
    key = (
        wire.ENDPOINT_TYPE,
        name,
        outbound,
        service.id,
        keys_of(rules),
        place.locality,
        frozenset(place.labels.items()),
    )
    return mesh.memo.get(key, (of_service, rules), make)
