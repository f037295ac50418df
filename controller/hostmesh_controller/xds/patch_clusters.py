"""CLUSTER patches."""

from collections.abc import Collection
from dataclasses import dataclass

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from hostmesh_controller.xds.patch_merge import apply_merge, merged_any
from hostmesh_controller.xds.patch_set import Patch, PatchSet


@dataclass(frozen=True, slots=True)
class ClusterNames:
    """What a cluster is matched by.

    Attributes:
        name: Istio's name of it, which is ours but for clusters that are asked for by the destination of a connection.
        port: of the service; of an inbound cluster that of the program. None: it has none.
        subset: "" for all of the service.
        services: whose cluster it is; of an inbound one all that its workload stands behind.
    """

    name: str
    port: int | None = None
    subset: str = ""
    services: tuple[str, ...] = ()


def patch_cluster(cluster: Cluster, names: ClusterNames, patches: PatchSet, contexts: Collection[str]) -> bool:
    """Change a cluster in place; return whether it is still there."""
    for patch in patches.of("CLUSTER"):
        if not (patch.is_for(frozenset(contexts)) and _matches(names, patch)):
            continue
        if patch.operation == "REMOVE":
            return False
        if patch.merges and not _merged_transport_socket(cluster, patch):
            apply_merge(patch, cluster)
    return True


def _matches(names: ClusterNames, patch: Patch) -> bool:
    match = patch.cluster
    if match is None:
        return True
    if match.name:
        return match.name == names.name
    return (
        match.subset in {"", names.subset}
        and (not match.service or match.service in names.services)
        and (not match.port_number or match.port_number == names.port)
    )


def _merged_transport_socket(cluster: Cluster, patch: Patch) -> bool:
    """Merge the transport socket of a patch that has one into that of the cluster; then that is all the patch does.

    One of another kind replaces the cluster's; but a cluster that chooses its socket by the endpoint has none to
    replace, and is left as it is.
    """
    value = patch.value
    assert isinstance(value, Cluster)
    if not value.HasField("transport_socket"):
        return False
    theirs = value.transport_socket
    if cluster.transport_socket_matches:
        found = (match.transport_socket for match in cluster.transport_socket_matches)
        ours = next((each for each in found if each.name == theirs.name), None)
        if ours is None:
            return True
    elif cluster.HasField("transport_socket") and cluster.transport_socket.name == theirs.name:
        ours = cluster.transport_socket
    else:
        cluster.transport_socket.CopyFrom(theirs)
        return True
    if ours.HasField("typed_config") and theirs.HasField("typed_config"):
        merged = merged_any(ours.typed_config, theirs.typed_config)
        if merged is not None:
            ours.typed_config.CopyFrom(merged)
    return True
