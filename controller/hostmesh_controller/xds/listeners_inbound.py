"""The inbound listener: connections to the ports of the host's workloads.

Every port has its own chains: mutual TLS with the workload's own certificate; where the policy allows it, plaintext,
and a program's own TLS, which is passed on as it is. Ports that are not declared are not captured, so a connection that
matches no chain was not meant for any workload: it is closed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from envoy.config.core.v3.base_pb2 import TrafficDirection, TransportSocket
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain, FilterChainMatch, ListenerFilter
from envoy.config.listener.v3.listener_pb2 import AdditionalAddress, Listener
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from hostmesh_api import wire
from hostmesh_api.call_stats import port_of
from hostmesh_controller.mesh.inbound import InboundPort
from hostmesh_controller.mesh.records import Mode
from hostmesh_controller.mesh.selection import identity_of
from hostmesh_controller.model.protocols import Protocol
from hostmesh_controller.model.server_tls import ServerTls
from hostmesh_controller.names import BLACK_HOLE, VIRTUAL_INBOUND, inbound_cluster
from hostmesh_controller.xds import filters, tls
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.http_extensions import Extensions
from hostmesh_controller.xds.listeners_outbound import PLAIN_HTTP
from hostmesh_controller.xds.route_retries import inbound_retry_policy
from hostmesh_controller.xds.sidecar_tls import from_files
from hostmesh_controller.xds.sources import cidr, socket
from hostmesh_controller.xds.tls import Trust

PEEK_TIMEOUT_S: Final = 2.0
"""How long to wait for a caller's first bytes; a plaintext caller that waits for the server to speak is let in then."""
_TLS: Final = "tls"
_RAW: Final = "raw_buffer"


def virtual_inbound(
    ports: Sequence[InboundPort],
    trust: Trust,
    more: Callable[[InboundPort], Extensions],
    *,
    ipv6: bool,
    not_transparent: frozenset[int] | None = None,
) -> Listener:
    """Return the listener to which captured inbound connections are redirected.

    Args:
        ports: of all workloads of the host, by number.
        trust: whose identities are let in.
        more: the filters of extensions for a port.
        ipv6: the host has IPv6.
        not_transparent: of which ports the program sees Envoy's address; None: of all.
    """
    off = None if not_transparent is None else filters.ports_predicate(not_transparent)
    clients = [] if not_transparent is None else [filters.client_address(off)]
    return Listener(
        name=VIRTUAL_INBOUND,
        address=socket("0.0.0.0", wire.INBOUND_PORT),  # noqa: S104 - callers dial any of the host's addresses
        additional_addresses=[AdditionalAddress(address=socket("::", wire.INBOUND_PORT))] if ipv6 else [],
        use_original_dst=BoolValue(value=False),
        filter_chains=[_here(), *(chain for port in ports for chain in _chains(port, trust, more(port)))],
        listener_filters=[filters.original_destination(), *clients, *_inspectors(ports)],
        listener_filters_timeout=duration(PEEK_TIMEOUT_S),
        continue_on_listener_filters_timeout=True,
        traffic_direction=TrafficDirection.INBOUND,
    )


def bound_name(port: InboundPort) -> str:
    """Return the name of the listener of a port on which Envoy itself listens: Istio's."""
    return f"{port.bind}_{port.number}"


def bound_listener(port: InboundPort, trust: Trust, more: Extensions) -> Listener:
    """Return the listener of a port on which Envoy itself listens, as a Sidecar asks for: nothing is captured."""
    return Listener(
        name=bound_name(port),
        address=socket(port.bind.strip("[]"), port.number),
        filter_chains=_chains(port, trust, more),
        listener_filters=_inspectors([port]),
        listener_filters_timeout=duration(PEEK_TIMEOUT_S),
        continue_on_listener_filters_timeout=True,
        traffic_direction=TrafficDirection.INBOUND,
    )


def _inspectors(ports: Sequence[InboundPort]) -> list[ListenerFilter]:
    # Where mutual TLS is off nothing has to be looked at, and a server that speaks first is not held up. Unless another
    # workload has the number too: inspectors know ports, and not addresses.
    read = {
        port.number
        for port in ports
        if port.mode is not Mode.DISABLE or port.protocol.is_detected or port.own_tls is not None
    }
    unread = {port.number for port in ports} - read
    looked_into = {port.number for port in ports if port.protocol.is_detected}
    result = [filters.tls_inspector(filters.ports_predicate(unread))]
    if looked_into:
        only = filters.negated(filters.ports_predicate(looked_into))
        result.append(filters.http_inspector(only))
    return result


def _here() -> FilterChain:
    """Return the chain for whoever dials the listener itself. Without any chain Envoy refuses a listener."""
    return FilterChain(
        name="virtualInbound-blackhole",
        filter_chain_match=FilterChainMatch(destination_port=UInt32Value(value=wire.INBOUND_PORT)),
        filters=filters.tcp(BLACK_HOLE),
    )


def _chains(port: InboundPort, trust: Trust, more: Extensions) -> list[FilterChain]:
    if port.own_tls is not None:
        return [_own_tls(port, port.own_tls, more)]
    result: list[FilterChain] = []
    if port.mode is not Mode.DISABLE:
        result.extend(_mutual_tls(port, trust, more))
    if port.mode is not Mode.STRICT:
        result.extend(_plaintext(port, more))
        result.append(_chain(port, "own-tls", _tcp(port, more), transport=_TLS))
    return result


def _own_tls(port: InboundPort, settings: ServerTls, more: Extensions) -> FilterChain:
    """Return the chain that ends TLS for the program with certificates in files, as a Sidecar asks for."""
    to = _http(port, more, mutual_tls=False) if port.protocol.is_http else _tcp(port, more)
    return _chain(port, "tls", to, transport=_TLS, socket_=from_files(settings))


def _http(port: InboundPort, more: Extensions, *, mutual_tls: bool) -> list[Filter]:
    return [*more.network, filters.inbound_http(port.number, _route(port), more.http, mutual_tls=mutual_tls)]


def _mutual_tls(port: InboundPort, trust: Trust, more: Extensions) -> list[FilterChain]:
    slug = identity_of(port.workload, trust.domain).slug
    as_http = tls.downstream(slug, trust, tls.SERVE_HTTP)
    as_tcp = tls.downstream(slug, trust, tls.SERVE_TCP)
    http, tcp = _http(port, more, mutual_tls=True), _tcp(port, more, mutual_tls=True)
    if port.protocol.is_detected:
        # The caller passes on whatever version its program speaks: it is found out again, and nothing is negotiated.
        as_any_http = tls.downstream(slug, trust, ())
        return [
            _chain(port, "mtls-http", http, transport=_TLS, protocols=tls.MESH_HTTP, socket_=as_any_http),
            _chain(port, "mtls", tcp, transport=_TLS, protocols=tls.SERVE_TCP, socket_=as_tcp),
        ]
    if port.protocol.is_http:
        return [_chain(port, "mtls", http, transport=_TLS, protocols=tls.MESH_ANY, socket_=as_http)]
    return [_chain(port, "mtls", tcp, transport=_TLS, protocols=tls.MESH_ANY, socket_=as_tcp)]


def _plaintext(port: InboundPort, more: Extensions) -> list[FilterChain]:
    http = _http(port, more, mutual_tls=False)
    if port.protocol.is_detected:
        return [
            _chain(port, "plaintext-http", http, transport=_RAW, protocols=PLAIN_HTTP),
            _chain(port, "plaintext", _tcp(port, more), transport=_RAW),
        ]
    return [_chain(port, "plaintext", http if port.protocol.is_http else _tcp(port, more), transport=_RAW)]


def _tcp(port: InboundPort, more: Extensions, *, mutual_tls: bool = False) -> list[Filter]:
    return [*more.tcp, *filters.inbound_tcp(port.cluster, mutual_tls=mutual_tls)]


def _chain(
    port: InboundPort,
    kind: str,
    to: Sequence[Filter],
    *,
    transport: str,
    protocols: Iterable[str] = (),
    socket_: TransportSocket | None = None,
) -> FilterChain:
    return FilterChain(
        # Whoever counts calls tells ports and security by this name.
        name=f"{port_of(port.workload.address, port.number, shared=port.shared)}|{kind}",
        filter_chain_match=FilterChainMatch(
            destination_port=UInt32Value(value=port.number),
            prefix_ranges=[cidr(port.workload.address)] if port.shared else [],
            transport_protocol=transport,
            application_protocols=protocols,
        ),
        filters=to,
        transport_socket=socket_,
    )


def _route(port: InboundPort) -> RouteConfiguration:
    name = inbound_cluster(port.number)
    # Streams of gRPC may not be begun anew.
    retries = None if port.protocol is Protocol.GRPC else inbound_retry_policy(port.retries)
    action = RouteAction(cluster=port.cluster, timeout=duration(0), retry_policy=retries)
    route = Route(name="default", match=RouteMatch(prefix="/"), route=action)
    return RouteConfiguration(
        name=name,
        virtual_hosts=[VirtualHost(name=f"inbound|http|{port.number}", domains=["*"], routes=[route])],
        validate_clusters=BoolValue(value=False),
    )
