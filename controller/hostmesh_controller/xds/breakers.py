"""Circuit breakers and outlier detection, with Istio's defaults."""

from typing import Final

from envoy.config.cluster.v3.circuit_breaker_pb2 import CircuitBreakers
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.cluster.v3.outlier_detection_pb2 import OutlierDetection as WireOutlierDetection
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_controller.model.destination_rule import ConnectionPool, HttpSettings, OutlierDetection, TcpSettings
from hostmesh_controller.xds.encoding import duration

UNLIMITED: Final = 2**32 - 1
"""Envoy's own limit of 1,024 would turn requests away that succeed without the mesh."""


def circuit_breakers(pool: ConnectionPool | None) -> CircuitBreakers:
    tcp = (pool.tcp if pool else None) or TcpSettings()
    http = (pool.http if pool else None) or HttpSettings()
    limits = CircuitBreakers.Thresholds(
        max_connections=_limit(tcp.max_connections),
        max_pending_requests=_limit(http.http1_max_pending_requests),
        max_requests=_limit(http.http2_max_requests),
        max_retries=_limit(http.max_retries),
    )
    return CircuitBreakers(thresholds=[limits])


def _limit(value: int | None) -> UInt32Value:
    # Zero is "not set" in Istio's API.
    return UInt32Value(value=value or UNLIMITED)


def outlier_detection(cluster: Cluster, settings: OutlierDetection) -> None:
    """Make the cluster leave out endpoints that fail, and keep calling all of them only where Istio says so."""
    wire = WireOutlierDetection(
        # Success rates are Envoy's own idea; Istio's API counts errors.
        enforcing_success_rate=UInt32Value(value=0),
        split_external_local_origin_errors=settings.split_external_local_origin_errors,
    )
    consecutive = settings.consecutive_5xx_errors
    if consecutive is None and settings.consecutive_errors:
        consecutive = settings.consecutive_errors
    if consecutive is not None:
        wire.consecutive_5xx.CopyFrom(UInt32Value(value=consecutive or 5))
        wire.enforcing_consecutive_5xx.CopyFrom(UInt32Value(value=100 if consecutive else 0))
    if settings.consecutive_gateway_errors is not None:
        gateway = settings.consecutive_gateway_errors
        wire.consecutive_gateway_failure.CopyFrom(UInt32Value(value=gateway or 5))
        wire.enforcing_consecutive_gateway_failure.CopyFrom(UInt32Value(value=100 if gateway else 0))
    if settings.split_external_local_origin_errors and settings.consecutive_local_origin_failures:
        local = settings.consecutive_local_origin_failures
        wire.consecutive_local_origin_failure.CopyFrom(UInt32Value(value=local))
        wire.enforcing_consecutive_local_origin_failure.CopyFrom(UInt32Value(value=100))
    if settings.interval is not None:
        wire.interval.CopyFrom(duration(settings.interval.total_seconds()))
    if settings.base_ejection_time is not None:
        wire.base_ejection_time.CopyFrom(duration(settings.base_ejection_time.total_seconds()))
    if settings.max_ejection_percent:
        wire.max_ejection_percent.CopyFrom(UInt32Value(value=settings.max_ejection_percent))
    cluster.outlier_detection.CopyFrom(wire)
    # Envoy would call all endpoints again once fewer than half are left; Istio's default is never.
    minimum = Percent(value=float(settings.min_health_percent or 0))
    cluster.common_lb_config.healthy_panic_threshold.CopyFrom(minimum)
