"""Clusters (CDS): the local program's ports, the fixed ones, and services on demand."""

from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from hostmesh_api.delta import Resource
from hostmesh_controller.model.connection_pool import TcpKeepalive
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.names import BLACK_HOLE, PASSTHROUGH
from hostmesh_controller.xds import cluster_http, cluster_tls, workload_identities
from hostmesh_controller.xds.breakers import circuit_breakers, keepalive, outlier_detection
from hostmesh_controller.xds.cluster_discovery import discover
from hostmesh_controller.xds.cluster_target import Outbound
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.load_balancing import spread

BLACK_HOLE_CONNECT_TIMEOUT_S: Final = 10.0
"""Nothing is ever connected to; Envoy demands a time."""

HTTP_KEEPALIVE: Final = TcpKeepalive.model_validate({"probes": 9, "time": "30s", "interval": "10s"})
"""Where nobody has said anything, for connections that are kept for later requests; ports of raw TCP have none.

A host that lost its power says no farewell. Once it is back it resets what it does not know, but only when something is
sent; without this that is the first request of each connection, up to an hour later. What is idle in a request (a
stream, a WebSocket) lives through two minutes without network.
"""


def passthrough(config: MeshConfigSpec) -> Cluster:
    """Return the cluster for destinations that are not of the mesh: wherever the program dialled, as it is."""
    cluster = Cluster(
        name=PASSTHROUGH,
        type=Cluster.ORIGINAL_DST,
        lb_policy=Cluster.CLUSTER_PROVIDED,
        connect_timeout=duration(config.connect_timeout.total_seconds()),
        circuit_breakers=circuit_breakers(None),
    )
    keepalive(cluster, None, config.tcp_keepalive)
    cluster_http.set_options(cluster, cluster_http.same_as_downstream())
    return cluster


def black_hole() -> Cluster:
    """Return the cluster that has no endpoint: what is sent there is closed."""
    return missing(BLACK_HOLE)


def missing(name: str) -> Cluster:
    """Return the cluster of a destination that a route names and that does not exist: every request is answered 503.

    Told that there is no such cluster, Envoy would do the same, but from the second request on only after it has waited
    for one in vain. Such names come from the configuration, so that there are not many.
    """
    return Cluster(name=name, type=Cluster.STATIC, connect_timeout=duration(BLACK_HOLE_CONNECT_TIMEOUT_S))


def is_missing(resource: Resource) -> bool:
    """Tell whether a cluster stands for a destination that does not exist."""
    return resource.version == encoded(resource.name, missing(resource.name)).version


def outbound(target: Outbound) -> Cluster:
    """Return the cluster of a service's port."""
    policy, config = target.policy, target.config
    pool = policy.connection_pool
    connect = pool.tcp.connect_timeout if pool and pool.tcp else None
    cluster = Cluster(
        name=str(target.name),
        connect_timeout=duration((connect or config.connect_timeout).total_seconds()),
        circuit_breakers=circuit_breakers(pool, policy.retry_budget),
        alt_stat_name=target.stat_name,
    )
    keepalive(cluster, pool, config.tcp_keepalive or (HTTP_KEEPALIVE if target.http else None))
    discover(cluster, target)
    if policy.outlier_detection is not None:
        outlier_detection(cluster, policy.outlier_detection)
    if cluster.lb_policy != Cluster.CLUSTER_PROVIDED:
        spread(cluster, target.spread)
    cluster_tls.secure(cluster, target)
    workload_identities.choose(cluster, target, target.callers)
    if target.http:
        cluster_http.set_http(cluster, target)
    return cluster


def tcp(address_name: str, target: Outbound) -> Cluster:
    """Return the on-demand cluster of a destination that was dialled: the service's, under another name.

    It shares the service's statistics.
    """
    cluster = outbound(target)
    cluster.name = address_name
    cluster.alt_stat_name = target.stat_name or str(target.name)
    if cluster.HasField("load_assignment"):
        cluster.load_assignment.cluster_name = address_name
    return cluster
