"""How a cluster chooses an endpoint, and what a request is hashed by."""

from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import RuntimeDouble
from envoy.config.route.v3.route_components_pb2 import RouteAction
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.wrappers_pb2 import UInt64Value

from hostmesh_controller.model.destination_rule import ConsistentHash, HttpCookie, LoadBalancer, ZoneAwareLbSetting
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.localities import Spread
from hostmesh_controller.xds.policy import Policy

_AGGRESSION: Final = 1.0
_MINIMUM_PERCENT: Final = 10.0
_RUNTIME_KEY: Final = "hostmesh.slow_start.aggression"
"""Envoy demands a name under which its value could be overridden; nothing overrides it."""
_RING_SIZE: Final = 1024


def choose(cluster: Cluster, balancer: LoadBalancer | None) -> None:
    """Set how an endpoint is chosen. PASSTHROUGH is not for here: such a cluster has no endpoints to choose from."""
    simple = balancer.simple if balancer else None
    if simple == "RANDOM":
        cluster.lb_policy = Cluster.RANDOM
    elif simple == "ROUND_ROBIN":
        cluster.lb_policy = Cluster.ROUND_ROBIN
        warming = _slow_start(balancer)
        if warming is not None:
            cluster.round_robin_lb_config.slow_start_config.CopyFrom(warming)
    else:
        cluster.lb_policy = Cluster.LEAST_REQUEST
        warming = _slow_start(balancer)
        if warming is not None:
            cluster.least_request_lb_config.slow_start_config.CopyFrom(warming)
    if balancer is not None and balancer.consistent_hash is not None:
        _set_hash(cluster, balancer.consistent_hash)


def _slow_start(balancer: LoadBalancer | None) -> Cluster.SlowStartConfig | None:
    if balancer is None:
        return None
    warmup = balancer.warmup
    if warmup is not None:
        aggression = _AGGRESSION if warmup.aggression is None else warmup.aggression
        minimum = _MINIMUM_PERCENT if warmup.minimum_percent is None else warmup.minimum_percent
        return Cluster.SlowStartConfig(
            slow_start_window=duration(warmup.duration.total_seconds()),
            aggression=RuntimeDouble(default_value=aggression, runtime_key=_RUNTIME_KEY),
            min_weight_percent=Percent(value=minimum),
        )
    if balancer.warmup_duration_secs is not None:
        return Cluster.SlowStartConfig(slow_start_window=duration(balancer.warmup_duration_secs.total_seconds()))
    return None


def _set_hash(cluster: Cluster, settings: ConsistentHash) -> None:
    cluster.ClearField("round_robin_lb_config")
    cluster.ClearField("least_request_lb_config")
    if settings.maglev is not None:
        cluster.lb_policy = Cluster.MAGLEV
        if settings.maglev.table_size:
            cluster.maglev_lb_config.table_size.CopyFrom(UInt64Value(value=settings.maglev.table_size))
        return
    cluster.lb_policy = Cluster.RING_HASH
    if settings.ring_hash is None:
        size = settings.minimum_ring_size or _RING_SIZE
    else:
        size = settings.ring_hash.minimum_ring_size or 0
    if size:
        cluster.ring_hash_lb_config.minimum_ring_size.CopyFrom(UInt64Value(value=size))


def spread(cluster: Cluster, how: Spread | None) -> None:
    """Tell a cluster what the weights and priorities of its localities mean."""
    if how is None:
        return
    if isinstance(how.setting, ZoneAwareLbSetting):
        zones = cluster.common_lb_config.zone_aware_lb_config
        zones.SetInParent()
        if not how.enabled:
            zones.routing_enabled.CopyFrom(Percent(value=0))
        if how.setting.min_cluster_size is not None:
            zones.min_cluster_size.CopyFrom(UInt64Value(value=how.setting.min_cluster_size))
    elif how.weighted:
        cluster.common_lb_config.locality_weighted_lb_config.SetInParent()


def hash_policies(policy: Policy) -> list[RouteAction.HashPolicy]:
    """Return what a route that leads to a destination hashes; nothing where its endpoints are not chosen by a hash."""
    settings = policy.load_balancer.consistent_hash if policy.load_balancer else None
    if settings is None:
        return []
    result = RouteAction.HashPolicy()
    if settings.http_header_name is not None:
        result.header.header_name = settings.http_header_name
    elif settings.http_cookie is not None:
        _set_cookie(result.cookie, settings.http_cookie)
    elif settings.use_source_ip:
        result.connection_properties.source_ip = True
    elif settings.http_query_parameter_name is not None:
        result.query_parameter.name = settings.http_query_parameter_name
    else:
        return []
    return [result]


def _set_cookie(wire: RouteAction.HashPolicy.Cookie, cookie: HttpCookie) -> None:
    wire.name = cookie.name
    wire.path = cookie.path or ""
    if cookie.ttl is not None:
        wire.ttl.CopyFrom(duration(cookie.ttl.total_seconds()))
    for attribute in cookie.attributes:
        wire.attributes.add(name=attribute.name, value=attribute.value or "")
