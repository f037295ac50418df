"""Circuit breakers, keep-alive and outlier detection, with Istio's defaults."""

from collections.abc import Iterable
from typing import Final

from envoy.config.cluster.v3.circuit_breaker_pb2 import CircuitBreakers
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.cluster.v3.outlier_detection_pb2 import OutlierDetection as WireOutlierDetection
from envoy.config.common.matcher.v3.matcher_pb2 import HttpHeadersMatch, MatchPredicate
from envoy.config.route.v3.route_components_pb2 import HeaderMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_controller.model.destination_rule import (
    ConnectionPool,
    HttpSettings,
    OutlierDetection,
    RetryBudget,
    TcpKeepalive,
    TcpSettings,
)
from hostmesh_controller.xds.encoding import duration, length_delimited

UNLIMITED: Final = 2**32 - 1
"""Envoy's own limit of 1,024 would turn requests away that succeed without the mesh."""
_RETRY_PERCENT: Final = 20.0
_RETRY_CONCURRENCY: Final = 3
_BUDGET_INTERVAL: Final = 3
"""The field's number: Envoy has it, the messages of xds-protos do not have it yet."""


def circuit_breakers(pool: ConnectionPool | None, budget: RetryBudget | None = None) -> CircuitBreakers:
    tcp = (pool.tcp if pool else None) or TcpSettings()
    http = (pool.http if pool else None) or HttpSettings()
    limits = CircuitBreakers.Thresholds(
        max_connections=_limit(tcp.max_connections),
        max_pending_requests=_limit(http.http1_max_pending_requests),
        max_requests=_limit(http.http2_max_requests),
        max_retries=_limit(http.max_retries),
        # What is left is told in Envoy's statistics (`remaining_pending`, …), where Istio's users look for it.
        track_remaining=True,
    )
    if budget is not None:
        percent = _RETRY_PERCENT if budget.percent is None else budget.percent
        limits.retry_budget.budget_percent.CopyFrom(Percent(value=percent))
        concurrency = budget.min_retry_concurrency or _RETRY_CONCURRENCY
        limits.retry_budget.min_retry_concurrency.CopyFrom(UInt32Value(value=concurrency))
        if budget.budget_interval is not None:
            interval = duration(budget.budget_interval.total_seconds()).SerializeToString()
            limits.retry_budget.MergeFromString(length_delimited(_BUDGET_INTERVAL, interval))
    return CircuitBreakers(thresholds=[limits])


def _limit(value: int | None) -> UInt32Value:
    # Zero is "not set" in Istio's API.
    return UInt32Value(value=value or UNLIMITED)


def keepalive(cluster: Cluster, pool: ConnectionPool | None, default: TcpKeepalive | None) -> None:
    """Turn on TCP keep-alive if the mesh or the rule has it; each part that the rule sets is the rule's."""
    tcp = pool.tcp if pool else None
    for settings in (default, tcp.tcp_keepalive if tcp else None):
        if settings is None:
            continue
        wire = cluster.upstream_connection_options.tcp_keepalive
        wire.SetInParent()
        if settings.probes:
            wire.keepalive_probes.CopyFrom(UInt32Value(value=settings.probes))
        if settings.time is not None:
            wire.keepalive_time.CopyFrom(UInt32Value(value=int(settings.time.total_seconds())))
        if settings.interval is not None:
            wire.keepalive_interval.CopyFrom(UInt32Value(value=int(settings.interval.total_seconds())))


def outlier_detection(cluster: Cluster, settings: OutlierDetection) -> None:
    """Make the cluster leave out endpoints that fail, and keep calling all of them only where Istio says so."""
    wire = WireOutlierDetection(
        # Success rates are Envoy's own idea; Istio's API counts errors.
        enforcing_success_rate=UInt32Value(value=0),
        split_external_local_origin_errors=settings.split_external_local_origin_errors,
    )
    errors = settings.consecutive_5xx_errors
    if errors is None and settings.consecutive_errors:
        errors = settings.consecutive_errors
    if errors is not None:
        wire.consecutive_5xx.CopyFrom(UInt32Value(value=errors))
        wire.enforcing_consecutive_5xx.CopyFrom(UInt32Value(value=100 if errors else 0))
    if settings.consecutive_gateway_errors is not None:
        gateway = settings.consecutive_gateway_errors
        wire.consecutive_gateway_failure.CopyFrom(UInt32Value(value=gateway))
        wire.enforcing_consecutive_gateway_failure.CopyFrom(UInt32Value(value=100 if gateway else 0))
    if settings.split_external_local_origin_errors:
        _local_origin(wire, settings.consecutive_local_origin_failures)
    if settings.interval is not None:
        wire.interval.CopyFrom(duration(settings.interval.total_seconds()))
    if settings.base_ejection_time is not None:
        wire.base_ejection_time.CopyFrom(duration(settings.base_ejection_time.total_seconds()))
    if settings.max_ejection_percent:
        wire.max_ejection_percent.CopyFrom(UInt32Value(value=settings.max_ejection_percent))
    else:
        # Envoy's default of 10 % is nobody where there are fewer than ten, and failover between localities waits for
        # the first to be left out. Older Envoys left one out in any case, and Istio's documentation counts on it.
        wire.always_eject_one_host.value = True
    cluster.outlier_detection.CopyFrom(wire)
    # Envoy would call all endpoints again once fewer than half are left; Istio's default is never.
    minimum = Percent(value=float(settings.min_health_percent or 0))
    cluster.common_lb_config.healthy_panic_threshold.CopyFrom(minimum)


def _local_origin(wire: WireOutlierDetection, failures: int | None) -> None:
    wire.enforcing_local_origin_success_rate.CopyFrom(UInt32Value(value=0))
    if failures:
        wire.consecutive_local_origin_failure.CopyFrom(UInt32Value(value=failures))
        wire.enforcing_consecutive_local_origin_failure.CopyFrom(UInt32Value(value=100))


def failures(codes: Iterable[int]) -> MatchPredicate | None:
    """Return the predicate for answers with one of the status codes; None for none, which leaves 500 to 599."""
    rules = [
        MatchPredicate(
            http_response_headers_match=HttpHeadersMatch(
                headers=[HeaderMatcher(name=":status", string_match=StringMatcher(exact=str(code)))]
            )
        )
        for code in codes
    ]
    if len(rules) < 2:
        return rules[0] if rules else None
    return MatchPredicate(or_match=MatchPredicate.MatchSet(rules=rules))
