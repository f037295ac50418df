"""CLUSTER patches."""

from collections.abc import Collection
from dataclasses import dataclass

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from hostmesh_controller.xds.cluster_http import PROTOCOL_OPTIONS
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.patch_merge import apply_merge, merge_extension
from hostmesh_controller.xds.patch_set import Patch, PatchSet
from hostmesh_controller.xds.tls import OFFER_HTTP1, OFFER_HTTP2


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
    patched = False
    for patch in patches.of("CLUSTER"):
        if not (patch.is_for(frozenset(contexts)) and _matches(names, patch)):
            continue
        if patch.operation == "REMOVE":
            return False
        if patch.merges and not _merged_transport_socket(cluster, patch):
            apply_merge(patch, cluster)
        patched = True
    if patched and _speaks_http2(cluster):
        _offer_http2(cluster)
    return True


def _speaks_http2(cluster: Cluster) -> bool:
    options = HttpProtocolOptions()
    if PROTOCOL_OPTIONS in cluster.typed_extension_protocol_options:
        cluster.typed_extension_protocol_options[PROTOCOL_OPTIONS].Unpack(options)
        return options.explicit_http_config.HasField("http2_protocol_options")
    return cluster.HasField("http2_protocol_options")


def _offer_http2(cluster: Cluster) -> None:
    """Offer HTTP/2 in the mesh's own TLS where a patch made the cluster speak it: in Istio a filter of its does."""
    context = UpstreamTlsContext()
    if cluster.transport_socket.typed_config.Unpack(context) and _offers(context) == OFFER_HTTP1:
        context.common_tls_context.alpn_protocols[:] = OFFER_HTTP2
        cluster.transport_socket.typed_config.CopyFrom(any_of(context))


def _offers(context: UpstreamTlsContext) -> tuple[str, ...]:
    return tuple(context.common_tls_context.alpn_protocols)


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
        # The mesh's own TLS is not among the matches here: it is what endpoints without a mark are called with.
        found = (cluster.transport_socket, *(match.transport_socket for match in cluster.transport_socket_matches))
        ours = next((each for each in found if each.name == theirs.name), None)
        if ours is None:
            return True
    elif cluster.HasField("transport_socket") and cluster.transport_socket.name == theirs.name:
        ours = cluster.transport_socket
    else:
        cluster.transport_socket.CopyFrom(theirs)
        return True
    merge_extension(ours, theirs)
    return True
