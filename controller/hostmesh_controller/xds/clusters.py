"""Clusters (CDS): the local program's ports, the fixed ones, and services on demand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import BindConfig, ExtraSourceAddress, SocketAddress
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_api import wire
from hostmesh_controller.mesh.records import Endpoint, Endpoints, NamedEndpoint, Resolution, Service, ServicePort
from hostmesh_controller.mesh.selection import endpoint_port
from hostmesh_controller.model.destination_rule import ClientTls
from hostmesh_controller.names import BLACK_HOLE, PASSTHROUGH, OutboundName, inbound_cluster
from hostmesh_controller.xds import tls
from hostmesh_controller.xds.breakers import circuit_breakers, outlier_detection
from hostmesh_controller.xds.client_tls import origination
from hostmesh_controller.xds.encoding import any_of, duration
from hostmesh_controller.xds.endpoints import DISABLED, TLS_MODE, plaintext_metadata
from hostmesh_controller.xds.policy import Policy
from hostmesh_controller.xds.sources import ads, socket

CONNECT_TIMEOUT_S: Final = 10.0
"""Istio's default."""
FIRST_ENDPOINTS_TIMEOUT_S: Final = 2.0
"""How long a new version of a cluster waits for endpoints before it takes those of the old one.

Envoy does not ask for endpoints that it has. A server that sends them again with the cluster ends the wait at once.
"""
PROTOCOL_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_POLICIES: Final = {
    "ROUND_ROBIN": Cluster.ROUND_ROBIN,
    "RANDOM": Cluster.RANDOM,
    "PASSTHROUGH": Cluster.CLUSTER_PROVIDED,
}


def passthrough() -> Cluster:
    """Return the cluster for destinations that are not of the mesh: wherever the program dialled, as it is."""
    return Cluster(
        name=PASSTHROUGH,
        type=Cluster.ORIGINAL_DST,
        lb_policy=Cluster.CLUSTER_PROVIDED,
        connect_timeout=duration(CONNECT_TIMEOUT_S),
        circuit_breakers=circuit_breakers(None),
    )


def black_hole() -> Cluster:
    """Return the cluster that has no endpoint: what is sent there is closed."""
    return missing(BLACK_HOLE)


def missing(name: str) -> Cluster:
    """Return the cluster of a destination that a route names and that does not exist: every request is answered 503.

    Told that there is no such cluster, Envoy would do the same, but from the second request on only after it has waited
    for one in vain. Such names come from the configuration, so that there are not many.
    """
    return Cluster(name=name, type=Cluster.STATIC, connect_timeout=duration(CONNECT_TIMEOUT_S))


def inbound(port: int, *, ipv6: bool) -> Cluster:
    """Return the cluster of the local program's port: where the caller dialled, from an address told apart by rules.

    Requests keep the HTTP version they came with.
    """
    bind = BindConfig(source_address=SocketAddress(address=wire.INBOUND_SOURCE_V4, port_value=0))
    if ipv6:
        extra = ExtraSourceAddress(address=SocketAddress(address=wire.INBOUND_SOURCE_V6, port_value=0))
        bind.extra_source_addresses.append(extra)
    cluster = Cluster(
        name=inbound_cluster(port),
        type=Cluster.ORIGINAL_DST,
        lb_policy=Cluster.CLUSTER_PROVIDED,
        connect_timeout=duration(CONNECT_TIMEOUT_S),
        upstream_bind_config=bind,
        circuit_breakers=circuit_breakers(None),
    )
    _set_options(cluster, _same_as_downstream())
    return cluster


@dataclass(frozen=True, slots=True)
class Outbound:
    """What an outbound cluster is made from. `http` False: bytes are passed, whatever the port speaks.

    `caller` is the directory of the calling host's certificate.
    """

    name: OutboundName
    service: Service
    port: ServicePort
    policy: Policy
    identities: tuple[str, ...]
    trust_domain: str
    http: bool
    caller: str


def outbound(target: Outbound, endpoints: Sequence[Endpoint]) -> Cluster:
    """Return the cluster of a service's port.

    Args:
        target: which one.
        endpoints: of workloads, used only where the cluster carries its endpoints itself (resolution DNS).
    """
    pool = target.policy.connection_pool
    connect = pool.tcp.connect_timeout if pool and pool.tcp else None
    cluster = Cluster(
        name=str(target.name),
        connect_timeout=duration(connect.total_seconds() if connect else CONNECT_TIMEOUT_S),
        circuit_breakers=circuit_breakers(pool),
    )
    _set_discovery(cluster, target, endpoints)
    _set_transport(cluster, target)
    if target.http:
        _set_http(cluster, target)
    if target.policy.outlier_detection is not None:
        outlier_detection(cluster, target.policy.outlier_detection)
    return cluster


def tcp(address_name: str, target: Outbound, endpoints: Sequence[Endpoint]) -> Cluster:
    """Return the on-demand cluster of a destination that was dialled: the service's, under another name.

    It shares the service's statistics.
    """
    cluster = outbound(target, endpoints)
    cluster.name = address_name
    cluster.alt_stat_name = str(target.name)
    if cluster.HasField("load_assignment"):
        cluster.load_assignment.cluster_name = address_name
    return cluster


def _set_discovery(cluster: Cluster, target: Outbound, endpoints: Sequence[Endpoint]) -> None:
    balancer = target.policy.load_balancer
    simple = balancer.simple if balancer else None
    resolution = target.service.resolution
    if resolution is Resolution.NONE or simple == "PASSTHROUGH":
        cluster.type = Cluster.ORIGINAL_DST
        cluster.lb_policy = Cluster.CLUSTER_PROVIDED
        return
    cluster.lb_policy = _POLICIES.get(simple or "", Cluster.LEAST_REQUEST)
    if resolution is Resolution.STATIC:
        cluster.type = Cluster.EDS
        cluster.eds_cluster_config.eds_config.CopyFrom(ads(FIRST_ENDPOINTS_TIMEOUT_S))
        return
    cluster.type = Cluster.STRICT_DNS if resolution is Resolution.DNS else Cluster.LOGICAL_DNS
    cluster.dns_lookup_family = Cluster.V4_PREFERRED
    cluster.respect_dns_ttl = True
    cluster.load_assignment.cluster_name = cluster.name
    named = [_named(item, target.port) for item in target.service.named_endpoints]
    cluster.load_assignment.endpoints.add(lb_endpoints=[*named, *map(_placed, endpoints)])


def _named(item: NamedEndpoint, port: ServicePort) -> LbEndpoint:
    number = endpoint_port(port, item.ports) or port.number
    message = LbEndpoint(metadata=plaintext_metadata())
    message.endpoint.address.CopyFrom(socket(item.address, number))
    if item.weight != 1:
        message.load_balancing_weight.CopyFrom(UInt32Value(value=item.weight))
    return message


def _placed(item: Endpoint) -> LbEndpoint:
    message = LbEndpoint(metadata=None if item.tls else plaintext_metadata())
    message.endpoint.address.CopyFrom(socket(item.address, item.port))
    return message


def in_mesh(service: Service, endpoints: Endpoints) -> bool:
    """Tell whether a service's workloads are reached with the mesh's mutual TLS by default.

    Also true while it has no workload yet: then all its endpoints are marked as plaintext, and the first one that is
    not marked is never called in the clear, in whatever order the updates come.
    """
    return not service.external and (service.resolution is Resolution.STATIC or bool(endpoints.identities))


def _set_transport(cluster: Cluster, target: Outbound) -> None:
    client: ClientTls | None = target.policy.tls
    mode = client.mode if client else None
    if client is not None and mode in {"SIMPLE", "MUTUAL"}:
        cluster.transport_socket.CopyFrom(origination(client, target.name.hostname, http2=_is_http2(target)))
        return
    wanted = mode == "ISTIO_MUTUAL" or (mode is None and in_mesh(target.service, Endpoints({}, target.identities)))
    if not wanted:
        return
    accepted = tuple(sorted({*target.identities, *target.service.subject_alt_names}))
    if client is not None and client.subject_alt_names:
        accepted = client.subject_alt_names
    server_name = client.sni if client is not None and client.sni else target.name.server_name
    cluster.transport_socket.CopyFrom(
        tls.upstream(target.caller, accepted or (tls.nobody(target.trust_domain),), server_name, _offer(target))
    )
    match = cluster.transport_socket_matches.add(name=f"{TLS_MODE}-{DISABLED}", transport_socket=tls.plaintext())
    match.match.update({TLS_MODE: DISABLED})


def _is_http2(target: Outbound) -> bool:
    return target.http and target.port.protocol.is_http2


def _offer(target: Outbound) -> tuple[str, ...]:
    if not target.http:
        return tls.OFFER_TCP
    if target.port.protocol.is_detected:
        return tls.OFFER_DETECTED
    return tls.OFFER_HTTP2 if target.port.protocol.is_http2 else tls.OFFER_HTTP1


def _set_http(cluster: Cluster, target: Outbound) -> None:
    options = HttpProtocolOptions()
    if target.port.protocol.is_detected:
        options = _same_as_downstream()
    elif target.port.protocol.is_http2:
        options.explicit_http_config.http2_protocol_options.CopyFrom(Http2ProtocolOptions())
    http = target.policy.connection_pool.http if target.policy.connection_pool else None
    if http is not None and http.idle_timeout is not None:
        options.common_http_protocol_options.idle_timeout.CopyFrom(duration(http.idle_timeout.total_seconds()))
    if http is not None and http.max_requests_per_connection:
        maximum = UInt32Value(value=http.max_requests_per_connection)
        options.common_http_protocol_options.max_requests_per_connection.CopyFrom(maximum)
    if options.ByteSize():
        if options.WhichOneof("upstream_protocol_options") is None:
            options.explicit_http_config.http_protocol_options.CopyFrom(Http1ProtocolOptions())
        _set_options(cluster, options)


def _same_as_downstream() -> HttpProtocolOptions:
    options = HttpProtocolOptions()
    options.use_downstream_protocol_config.http_protocol_options.CopyFrom(Http1ProtocolOptions())
    options.use_downstream_protocol_config.http2_protocol_options.CopyFrom(Http2ProtocolOptions())
    return options


def _set_options(cluster: Cluster, options: HttpProtocolOptions) -> None:
    cluster.typed_extension_protocol_options[PROTOCOL_OPTIONS].CopyFrom(any_of(options))
