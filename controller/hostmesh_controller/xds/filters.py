"""Network and HTTP filters that listeners are put together from."""

from collections.abc import Iterable, Sequence
from typing import Final

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions
from envoy.config.core.v3.substitution_format_string_pb2 import SubstitutionFormatString
from envoy.config.listener.v3.listener_components_pb2 import Filter, ListenerFilter, ListenerFilterChainMatchPredicate
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.common.set_filter_state.v3.value_pb2 import FilterStateValue
from envoy.extensions.filters.http.cors.v3.cors_pb2 import Cors
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.on_demand.v3.on_demand_pb2 import OnDemand, OnDemandCds
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2 import HttpInspector
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst
from envoy.extensions.filters.listener.original_src.v3.original_src_pb2 import OriginalSrc
from envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2 import TlsInspector
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy.extensions.filters.network.set_filter_state.v3.set_filter_state_pb2 import Config as SetFilterState
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.type.v3.hash_policy_pb2 import HashPolicy
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_api.call_stats import LASTING_S
from hostmesh_api.wire import CLIENT_MARK
from hostmesh_controller.names import BLACK_HOLE
from hostmesh_controller.xds.call_log import http_calls, tcp_calls
from hostmesh_controller.xds.connection_policy import ConnectionPolicy, shape
from hostmesh_controller.xds.encoding import any_of, duration
from hostmesh_controller.xds.sources import ads

CORS: Final = "envoy.filters.http.cors"
GATEWAY_SERVER: Final = "istio-envoy"
"""What a gateway calls itself in the header `server` (Istio's word)."""
FAULT: Final = "envoy.filters.http.fault"
ON_DEMAND_TIMEOUT_S: Final = 5.0
"""Envoy's own default. The agent answers from its cold copy long before when the controller is away."""


def network_filter(name: str, config: Message) -> Filter:
    return Filter(name=name, typed_config=any_of(config))


def http_filter(name: str, config: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=any_of(config))


def tcp(cluster: str) -> list[Filter]:
    """Return the filters that pass a connection on to a cluster that is always there."""
    return [network_filter("envoy.filters.network.tcp_proxy", _tcp_proxy(cluster))]


def inbound_tcp(cluster: str, *, mutual_tls: bool) -> list[Filter]:
    """Return the filters that pass a connection on to a program of the host, and count who calls it."""
    proxy = _tcp_proxy(cluster)
    proxy.access_log.append(tcp_calls(mutual_tls=mutual_tls))
    proxy.access_log_options.access_log_flush_interval.CopyFrom(duration(LASTING_S))
    return [network_filter("envoy.filters.network.tcp_proxy", proxy)]


def tcp_to_destination() -> list[Filter]:
    """Return the filters that pass a connection on to the cluster named by the address that the program dialled."""
    name = FilterStateValue(
        object_key="envoy.tcp_proxy.cluster",
        format_string=SubstitutionFormatString(
            text_format_source=DataSource(inline_string="tcp|%DOWNSTREAM_LOCAL_ADDRESS%")
        ),
    )
    proxy = _tcp_proxy(BLACK_HOLE, "outbound_tcp")
    proxy.on_demand.CopyFrom(_tcp_on_demand())
    proxy.hash_policy.append(_by_source())
    return [
        network_filter("envoy.filters.network.set_filter_state", SetFilterState(on_new_connection=[name])),
        network_filter("envoy.filters.network.tcp_proxy", proxy),
    ]


def tcp_weighted(
    stat_prefix: str, weights: Sequence[tuple[str, int]], policy: ConnectionPolicy | None = None
) -> list[Filter]:
    """Return the filters that spread connections over on-demand clusters by weight; without any they are closed."""
    if not weights:
        return tcp(BLACK_HOLE)
    proxy = TcpProxy(stat_prefix=stat_prefix, idle_timeout=duration(0), on_demand=_tcp_on_demand())
    proxy.hash_policy.append(_by_source())
    if policy is not None:
        shape(proxy, policy)
    if len(weights) == 1:
        proxy.cluster = weights[0][0]
    else:
        for cluster, weight in weights:
            proxy.weighted_clusters.clusters.add(name=cluster, weight=weight)
    return [network_filter("envoy.filters.network.tcp_proxy", proxy)]


def _by_source() -> HashPolicy:
    # It counts only in clusters that choose an endpoint by a hash. Of a connection there is nothing else to hash.
    return HashPolicy(source_ip=HashPolicy.SourceIp())


def _tcp_proxy(cluster: str, stat_prefix: str = "") -> TcpProxy:
    # Envoy would cut connections that are idle for an hour; without the mesh nobody would.
    return TcpProxy(stat_prefix=stat_prefix or cluster, cluster=cluster, idle_timeout=duration(0))


def _tcp_on_demand() -> TcpProxy.OnDemand:
    return TcpProxy.OnDemand(odcds_config=ads(), timeout=duration(ON_DEMAND_TIMEOUT_S))


def outbound_http(port: int, more: Iterable[HttpFilter] = (), *, table: str = "") -> Filter:
    """Return the HTTP code of an outbound port: routes and clusters are asked for at their first use.

    That comes first: all other filters then see the route. After them `more`, filters of extensions. `table` names the
    routes where they are not those of the port.
    """
    manager = _http_manager(f"outbound_0.0.0.0_{port}")
    manager.rds.CopyFrom(Rds(config_source=ads(), route_config_name=table or str(port)))
    manager.forward_client_cert_details = HttpConnectionManager.SANITIZE
    manager.http_filters.extend(_routing(more))
    return network_filter("envoy.filters.network.http_connection_manager", manager)


def gateway_http(stat_prefix: str, table: str, more: Iterable[HttpFilter] = (), *, trusted_proxies: int = 0) -> Filter:
    """Return the HTTP code of a gateway, whose callers are strangers: it tells their addresses and their certificates.

    What they say of either themselves is dropped, but for the addresses that the last `trusted_proxies` told. `table`
    is the name of its routes, `more` are filters of extensions.
    """
    manager = _http_manager(stat_prefix)
    manager.rds.CopyFrom(Rds(config_source=ads(), route_config_name=table))
    manager.use_remote_address.value = True
    manager.xff_num_trusted_hops = trusted_proxies
    manager.server_name = GATEWAY_SERVER
    manager.server_header_transformation = HttpConnectionManager.OVERWRITE
    manager.forward_client_cert_details = HttpConnectionManager.SANITIZE_SET
    manager.set_current_client_cert_details.CopyFrom(
        HttpConnectionManager.SetCurrentClientCertDetails(subject=BoolValue(value=True), cert=True, dns=True, uri=True)
    )
    manager.http_filters.extend(_routing(more))
    return network_filter("envoy.filters.network.http_connection_manager", manager)


def on_demand(name: str = "envoy.filters.http.on_demand") -> HttpFilter:
    """Return the filter that waits for the route and the cluster of a request that nobody asked for yet."""
    return http_filter(name, OnDemand(odcds=OnDemandCds(source=ads(), timeout=duration(ON_DEMAND_TIMEOUT_S))))


def _routing(more: Iterable[HttpFilter]) -> list[HttpFilter]:
    return [
        on_demand(),
        *more,
        http_filter(FAULT, HTTPFault()),
        http_filter(CORS, Cors()),
        _router(),
    ]


def inbound_http(port: int, route: RouteConfiguration, more: Iterable[HttpFilter] = (), *, mutual_tls: bool) -> Filter:
    """Return the HTTP code of an inbound port.

    The program learns its caller from x-forwarded-client-cert, which therefore comes from us or from nobody: what a
    caller sends under that name is dropped.
    """
    manager = _http_manager(f"inbound_0.0.0.0_{port}")
    manager.route_config.CopyFrom(route)
    if mutual_tls:
        manager.forward_client_cert_details = HttpConnectionManager.SANITIZE_SET
        details = HttpConnectionManager.SetCurrentClientCertDetails(uri=True, subject=BoolValue(value=True))
        manager.set_current_client_cert_details.CopyFrom(details)
    else:
        manager.forward_client_cert_details = HttpConnectionManager.SANITIZE
    manager.http_filters.extend([*more, _router()])
    manager.access_log.append(http_calls(mutual_tls=mutual_tls))
    manager.access_log_options.access_log_flush_interval.CopyFrom(duration(LASTING_S))
    return network_filter("envoy.filters.network.http_connection_manager", manager)


def _http_manager(stat_prefix: str) -> HttpConnectionManager:
    return HttpConnectionManager(
        stat_prefix=stat_prefix,
        use_remote_address=BoolValue(value=False),
        normalize_path=BoolValue(value=True),
        server_header_transformation=HttpConnectionManager.PASS_THROUGH,
        http_protocol_options=Http1ProtocolOptions(accept_http_10=True),
        upgrade_configs=[HttpConnectionManager.UpgradeConfig(upgrade_type="websocket")],
        # Envoy's default would end a stream that is silent for 5 minutes.
        stream_idle_timeout=duration(0),
    )


def _router() -> HttpFilter:
    return http_filter("envoy.filters.http.router", Router())


def original_destination() -> ListenerFilter:
    return ListenerFilter(name="envoy.filters.listener.original_dst", typed_config=any_of(OriginalDst()))


def client_address(off: ListenerFilterChainMatchPredicate | None = None) -> ListenerFilter:
    """Return the filter with which Envoy's connection to the program comes from the client's address."""
    config = any_of(OriginalSrc(mark=CLIENT_MARK))
    return ListenerFilter(name="envoy.filters.listener.original_src", typed_config=config, filter_disabled=off)


def tls_inspector(off: ListenerFilterChainMatchPredicate | None = None) -> ListenerFilter:
    config = any_of(TlsInspector())
    return ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=config, filter_disabled=off)


def http_inspector(off: ListenerFilterChainMatchPredicate | None = None) -> ListenerFilter:
    config = any_of(HttpInspector())
    return ListenerFilter(name="envoy.filters.listener.http_inspector", typed_config=config, filter_disabled=off)


def ports_predicate(ports: Iterable[int]) -> ListenerFilterChainMatchPredicate | None:
    """Return the predicate for connections to one of the ports, or None if there is no port."""
    rules = []
    for port in sorted(ports):
        rule = ListenerFilterChainMatchPredicate()
        rule.destination_port_range.start = port
        rule.destination_port_range.end = port + 1
        rules.append(rule)
    if len(rules) < 2:
        return rules[0] if rules else None
    predicate = ListenerFilterChainMatchPredicate()
    predicate.or_match.rules.extend(rules)
    return predicate


def negated(predicate: ListenerFilterChainMatchPredicate | None) -> ListenerFilterChainMatchPredicate:
    """Return the predicate for everything else; everything at all for None."""
    if predicate is None:
        return ListenerFilterChainMatchPredicate(any_match=True)
    result = ListenerFilterChainMatchPredicate()
    result.not_match.CopyFrom(predicate)
    return result
