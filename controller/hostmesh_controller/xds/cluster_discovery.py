"""Where a cluster's endpoints come from: the stream, DNS, or the caller's own dialling."""

from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.extensions.clusters.dynamic_forward_proxy.v3.cluster_pb2 import ClusterConfig
from envoy.extensions.common.dynamic_forward_proxy.v3.dns_cache_pb2 import DnsCacheConfig

from hostmesh_controller.mesh.records import Resolution
from hostmesh_controller.xds.cluster_target import Outbound
from hostmesh_controller.xds.encoding import any_of, duration
from hostmesh_controller.xds.endpoints import load_assignment
from hostmesh_controller.xds.load_balancing import choose
from hostmesh_controller.xds.sources import ads

FIRST_ENDPOINTS_TIMEOUT_S: Final = 2.0
"""How long a new version of a cluster waits for endpoints before it takes those of the old one.

Envoy does not ask for endpoints that it has. A server that sends them again with the cluster ends the wait at once.
"""
DNS_JITTER_S: Final = 0.1
"""Istio's default: so that a fleet does not look a name up all at once."""
DYNAMIC_CACHE: Final = "hostmesh"
"""All names that callers choose themselves are looked up into one cache, which listeners and clusters share."""


def discover(cluster: Cluster, target: Outbound) -> None:
    """Set where the endpoints come from, and how one of them is chosen."""
    resolution = target.service.resolution
    if resolution is Resolution.DYNAMIC_DNS:
        cluster.lb_policy = Cluster.CLUSTER_PROVIDED
        cluster.cluster_type.name = "envoy.clusters.dynamic_forward_proxy"
        tls = target.policy.tls
        verified = tls is not None and tls.mode in {"SIMPLE", "MUTUAL"} and not tls.insecure_skip_verify and not tls.sni
        config = ClusterConfig(dns_cache_config=dynamic_cache(), allow_insecure_cluster_options=not verified)
        cluster.cluster_type.typed_config.CopyFrom(any_of(config))
        return
    if target.is_passthrough:
        cluster.type = Cluster.ORIGINAL_DST
        cluster.lb_policy = Cluster.CLUSTER_PROVIDED
        return
    choose(cluster, target.policy.load_balancer)
    if resolution is Resolution.STATIC:
        cluster.type = Cluster.EDS
        cluster.eds_cluster_config.eds_config.CopyFrom(ads(FIRST_ENDPOINTS_TIMEOUT_S))
        return
    cluster.type = Cluster.STRICT_DNS if resolution is Resolution.DNS else Cluster.LOGICAL_DNS
    cluster.dns_lookup_family = Cluster.V4_PREFERRED
    cluster.dns_refresh_rate.CopyFrom(duration(target.config.dns_refresh_rate.total_seconds()))
    cluster.dns_jitter.CopyFrom(duration(DNS_JITTER_S))
    cluster.respect_dns_ttl = True
    assignment = load_assignment(cluster.name, target.groups, renamed=False)
    cluster.load_assignment.CopyFrom(ClusterLoadAssignment.FromString(assignment))


def dynamic_cache() -> DnsCacheConfig:
    """Return where names that callers choose are looked up; the same in each listener and cluster that uses it."""
    return DnsCacheConfig(name=DYNAMIC_CACHE, dns_lookup_family=Cluster.V4_PREFERRED)
