"""Which endpoints a host gets for the name of a cluster."""

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Resolution
from hostmesh_controller.mesh.rules import destination_rules_for
from hostmesh_controller.names import parse_outbound, parse_tcp
from hostmesh_controller.xds import endpoints
from hostmesh_controller.xds.of_clusters import dependencies as cluster_dependencies
from hostmesh_controller.xds.of_clusters import dialled_target, service_port
from hostmesh_controller.xds.policy import subset_labels


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    return cluster_dependencies(mesh, host, name)


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return the endpoints of an outbound or of an on-demand TCP cluster.

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
    rules = destination_rules_for(mesh, service, viewer) if outbound.subset else ()
    labels = subset_labels(rules, outbound.subset)
    if labels is None:
        return None
    of_service = mesh.endpoints_of(service)

    def make() -> Resource:
        return endpoints.assignment(name, endpoints.endpoints_of(of_service, outbound.port, labels))

    key = (wire.ENDPOINT_TYPE, name, outbound, service.id, tuple(rule.key for rule in rules))
    return mesh.memo.get(key, (of_service, *rules), make)
