"""How much may be asked of a service at once, and when an endpoint that fails is left alone."""

from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.route_fields import MillisecondDuration
from hostmesh_controller.model.schema import (
    AnyDuration,
    Count,
    Flag,
    Integer,
    Spec,
    Unsigned,
    fault,
    given,
)


def _zero_or_ms(value: Duration) -> Duration:
    if not value.is_whole_ms:
        raise fault("duration", f"{value.text!r} is neither 0s nor whole milliseconds")
    return value


_MAX_PROBES: Final = 127
_MAX_PAUSE: Final = timedelta(seconds=32767)
"""Linux takes no more (include/net/tcp.h): Envoy would close every connection that it cannot set this for."""


def _kernel_counts(value: int) -> int:
    if value > _MAX_PROBES:
        raise fault("value", f"{value} is more than the {_MAX_PROBES} that Linux counts: no connection could be made")
    return value


def _kernel_waits(value: Duration) -> Duration:
    if value >= _MAX_PAUSE + timedelta(seconds=1):
        longest = int(_MAX_PAUSE.total_seconds())
        raise fault("duration", f"{value.text!r} is more than the {longest}s of Linux: no connection could be made")
    return value


KeepaliveDuration = Annotated[MillisecondDuration, AfterValidator(_kernel_waits)]


class TcpKeepalive(Spec):
    """Probes of a connection that is idle. None is the kernel's own setting; no part set turns probes on with these."""

    probes: Annotated[Unsigned, AfterValidator(_kernel_counts)] | None = None
    time: KeepaliveDuration | None = None
    interval: KeepaliveDuration | None = None


class TcpSettings(Spec):
    """Limits of connections. None is Istio's default: 2^32 - 1 connections, 10 s to connect. Idle timeout 0 is none."""

    max_connections: Count | None = None
    connect_timeout: MillisecondDuration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: MillisecondDuration | None = None
    idle_timeout: Annotated[AnyDuration, AfterValidator(_zero_or_ms)] | None = None


class Http2KeepAlive(Spec):
    """HTTP/2 pings, and how long an answer may take."""

    interval: MillisecondDuration
    timeout: MillisecondDuration


class HttpSettings(Spec):
    """Limits of requests. None is Istio's default: no limit, and an idle timeout of 1 h."""

    http1_max_pending_requests: Count | None = None
    http2_max_requests: Count | None = None
    max_requests_per_connection: Count | None = None
    max_retries: Count | None = None
    idle_timeout: MillisecondDuration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] | None = None
    use_client_protocol: Flag = False
    max_concurrent_streams: Count | None = None
    http2_keep_alive: Http2KeepAlive | None = Field(default=None, alias="http2KeepAlive")

    @model_validator(mode="after")
    def _one_protocol(self) -> "HttpSettings":
        if self.h2_upgrade_policy == "UPGRADE" and self.use_client_protocol:
            raise fault("one-of", "useClientProtocol cannot be set beside h2UpgradePolicy UPGRADE", "useClientProtocol")
        return self


class ConnectionPool(Spec):
    """Circuit breakers."""

    tcp: TcpSettings | None = None
    http: HttpSettings | None = None

    @model_validator(mode="after")
    def _something(self) -> "ConnectionPool":
        if not given(self, "tcp", "http"):
            raise fault("empty", "give tcp or http")
        return self


class OutlierDetection(Spec):
    """When an endpoint that fails is left out for a while. None is Istio's default.

    `outlier_detection_http_error_codes` are what counts as a failure, instead of all of 500 to 599.
    """

    consecutive_5xx_errors: Unsigned | None = Field(default=None, alias="consecutive5xxErrors")
    consecutive_errors: Integer | None = None
    consecutive_gateway_errors: Unsigned | None = None
    consecutive_local_origin_failures: Unsigned | None = None
    split_external_local_origin_errors: Flag = False
    interval: MillisecondDuration | None = None
    base_ejection_time: MillisecondDuration | None = None
    max_ejection_percent: Annotated[Integer, Field(ge=0, le=100)] | None = None
    min_health_percent: Annotated[Integer, Field(ge=0, le=100)] | None = None
    outlier_detection_http_error_codes: tuple[Annotated[Integer, Field(ge=100, le=599)], ...] = ()

    @model_validator(mode="after")
    def _local_failures_are_told_apart(self) -> "OutlierDetection":
        if self.consecutive_local_origin_failures and not self.split_external_local_origin_errors:
            message = "set splitExternalLocalOriginErrors: true, or local failures are not counted by themselves"
            raise fault("one-of", message, "consecutiveLocalOriginFailures")
        return self
