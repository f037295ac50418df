"""What HTTP a cluster speaks, and for how long it keeps connections."""

from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions, KeepaliveSettings
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_controller.model.destination_rule import ConnectionPool
from hostmesh_controller.xds.breakers import failures
from hostmesh_controller.xds.cluster_target import Outbound
from hostmesh_controller.xds.encoding import any_of, duration

PROTOCOL_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def set_http(cluster: Cluster, target: Outbound) -> None:
    """Set the version of HTTP, the bounds of connections, and whose name TLS asks for."""
    options = HttpProtocolOptions()
    pool = target.policy.connection_pool
    if target.uses_client_protocol:
        options = same_as_downstream()
    elif target.is_http2:
        options.explicit_http_config.http2_protocol_options.CopyFrom(_http2(pool))
    elif target.port.protocol.is_detected:
        options = same_as_downstream()
    bound(options, pool)
    _set_names(options, target)
    codes = (
        target.policy.outlier_detection.outlier_detection_http_error_codes if target.policy.outlier_detection else ()
    )
    matcher = failures(codes)
    if matcher is not None:
        options.outlier_detection.error_matcher.CopyFrom(matcher)
    set_spoken(cluster, options)


def _http2(pool: ConnectionPool | None) -> Http2ProtocolOptions:
    result, http = Http2ProtocolOptions(), pool.http if pool else None
    if http is not None and http.max_concurrent_streams:
        result.max_concurrent_streams.CopyFrom(UInt32Value(value=http.max_concurrent_streams))
    if http is not None and http.http2_keep_alive is not None:
        pings = http.http2_keep_alive
        result.connection_keepalive.CopyFrom(
            KeepaliveSettings(
                interval=duration(pings.interval.total_seconds()), timeout=duration(pings.timeout.total_seconds())
            )
        )
    return result


def bound(options: HttpProtocolOptions, pool: ConnectionPool | None) -> None:
    """Set for how long and for how many requests connections are kept."""
    http, tcp = (pool.http, pool.tcp) if pool else (None, None)
    idle = http.idle_timeout if http else None
    if idle is None and tcp is not None:
        idle = tcp.idle_timeout
    if idle is not None:
        options.common_http_protocol_options.idle_timeout.CopyFrom(duration(idle.total_seconds()))
    if tcp is not None and tcp.max_connection_duration is not None:
        longest = duration(tcp.max_connection_duration.total_seconds())
        options.common_http_protocol_options.max_connection_duration.CopyFrom(longest)
    if http is not None and http.max_requests_per_connection:
        maximum = UInt32Value(value=http.max_requests_per_connection)
        options.common_http_protocol_options.max_requests_per_connection.CopyFrom(maximum)


def _set_names(options: HttpProtocolOptions, target: Outbound) -> None:
    """Ask for the name that the request is for, and demand it of the certificate, where the rule has no other."""
    client = target.policy.tls
    if client is None or client.mode not in {"SIMPLE", "MUTUAL"} or client.sni:
        return
    options.upstream_http_protocol_options.auto_sni = True
    if not client.subject_alt_names and target.verifies:
        options.upstream_http_protocol_options.auto_san_validation = True


def same_as_downstream() -> HttpProtocolOptions:
    """Return the options that keep the version of HTTP that the caller speaks."""
    options = HttpProtocolOptions()
    options.use_downstream_protocol_config.http_protocol_options.CopyFrom(Http1ProtocolOptions())
    options.use_downstream_protocol_config.http2_protocol_options.CopyFrom(Http2ProtocolOptions())
    return options


def set_spoken(cluster: Cluster, options: HttpProtocolOptions) -> None:
    """Set the options of a cluster that speaks HTTP/1.1 if they say nothing else.

    Without any there are none: what EnvoyFilters of old merge in (`http2_protocol_options`) counts then, as in Istio.
    """
    if options.ByteSize():
        if options.WhichOneof("upstream_protocol_options") is None:
            options.explicit_http_config.http_protocol_options.CopyFrom(Http1ProtocolOptions())
        set_options(cluster, options)


def set_options(cluster: Cluster, options: HttpProtocolOptions) -> None:
    cluster.typed_extension_protocol_options[PROTOCOL_OPTIONS].CopyFrom(any_of(options))
