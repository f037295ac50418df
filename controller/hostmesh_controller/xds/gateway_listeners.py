"""Listeners of gateways: real ports of the host, where callers from anywhere connect.

A port number that the host's own programs call in the mesh too is one listener: Envoy hands a captured connection to
the listener of its port number, bound or not. There the virtual and explicit addresses of services keep their chains,
and the gateway's take the rest; or, on a host that captures everything, the host's own addresses.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.core.v3.socket_option_pb2 import SocketOption
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain, FilterChainMatch
from envoy.config.listener.v3.listener_pb2 import AdditionalAddress, Listener

from hostmesh_api.delta import Resource
from hostmesh_api.identity import parse_identity
from hostmesh_controller.mesh.gateways import NO_GATEWAYS, GatewayPort, Served, Speech, terminates_https
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.selection import identity_of
from hostmesh_controller.mesh.sidecars import captures_all
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import view
from hostmesh_controller.xds import filters, gateway_tls, listeners_outbound
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.gateway_connections import by_server_name, connection_filters
from hostmesh_controller.xds.gateway_passthrough import passthrough_chains
from hostmesh_controller.xds.host_config import outbound_identity
from hostmesh_controller.xds.http_extensions import Direction, Extensions, Traffic, extensions
from hostmesh_controller.xds.listener_settings import settled
from hostmesh_controller.xds.outbound import Plan, plan
from hostmesh_controller.xds.sources import cidr, socket
from hostmesh_controller.xds.tls import trust_of

HANDSHAKE_TIMEOUT_S: Final = 15.0
"""How long a client may take over its handshake (Istio's number)."""
PEEK_TIMEOUT_S: Final = 2.0
"""How long first bytes are waited for on a port that the host's programs call too: a server there may speak first."""
KEPT_ALIVE: Final = SocketOption(
    description="SOL_SOCKET SO_KEEPALIVE", level=1, name=9, int_value=1, state=SocketOption.STATE_PREBIND
)
"""Finds strangers that are gone; and it tells Envoy to open a socket where the same listener had none before.

A listener of the host's own calls that becomes a gateway's keeps its name and address, and unless it has other socket
options, Envoy goes on without a socket (observed with 1.40).
"""
LOOPBACK: Final = ("127.0.0.0/8", "::1/128")


def wildcard(mesh: Mesh, host: str) -> tuple[str, ...]:
    """Return the names of the listeners that a host has as gateway."""
    return tuple(port.listener for port in mesh.gateways.get(host, NO_GATEWAYS).ports)


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return a gateway's listener; None if the name is none's, or if nothing has a route there.

    Then a listener for the host's own programs may have the name.
    """
    port = mesh.gateways.get(host.name, NO_GATEWAYS).port_of(name)
    if port is None:
        return None
    made = listener(mesh, host, port)
    return None if made is None else encoded(name, settled(made, mesh.config))


def listener(mesh: Mesh, host: Host, port: GatewayPort) -> Listener | None:
    """Return the listener of a gateway's port, or None if no server of it has a filter chain: a route is missing."""
    viewer, ipv6 = mesh.viewer_of(host.name), mesh.runtime_of(host.name).ipv6
    made = (
        chain for served in port.servers for chain in _chains(mesh, host, viewer, served, _more(mesh, host, served))
    )
    chains = list(_distinct(made))
    if not chains:
        return None
    result = Listener(
        name=port.listener,
        address=socket(port.address, port.number),
        additional_addresses=_also_v6(port, ipv6=ipv6),
        socket_options=[KEPT_ALIVE],
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    if any(chain.filter_chain_match.server_names or chain.HasField("transport_socket") for chain in chains):
        result.listener_filters.append(filters.tls_inspector())
    called = None if port.bind else _called(mesh, plan(mesh, viewer), port.number, host, ipv6=ipv6)
    if called is not None:
        _share(result, called, host, chains, captures=captures_all(mesh, host))
    result.filter_chains.extend(chains)
    return result


def _more(mesh: Mesh, host: Host, served: Served) -> Extensions:
    workload = mesh.workloads.get(served.workload) if served.workload else None
    return extensions(mesh, host, Traffic(Direction.GATEWAY, served.port, workload))


def _also_v6(port: GatewayPort, *, ipv6: bool) -> list[AdditionalAddress]:
    return [AdditionalAddress(address=socket("::", port.number))] if ipv6 and not port.bind else []


def _called(mesh: Mesh, planned: Plan, number: int, host: Host, *, ipv6: bool) -> Listener | None:
    """Return the listener that captured connections to a number would meet without the gateway, if any can come."""
    if number in planned.ports:
        more = extensions(mesh, host, Traffic(Direction.OUTBOUND, number))
        return listeners_outbound.port_listener(mesh.settings, planned, number, more, ipv6=ipv6)
    seen = view(mesh, planned.viewer)
    dialled = mesh.memo.get(
        ("ports", planned.viewer), (seen,), lambda: {port.number for each in seen.services for port in each.ports}
    )
    if not captures_all(mesh, host) and number not in dialled:
        return None
    whole = listeners_outbound.virtual_outbound(mesh.settings, planned, ipv6=ipv6)
    dialled_here = [chain for chain in whole.filter_chains if not chain.filter_chain_match.HasField("destination_port")]
    del whole.filter_chains[:]
    whole.filter_chains.extend(dialled_here)
    return whole


def _share(result: Listener, called: Listener, host: Host, chains: Iterable[FilterChain], *, captures: bool) -> None:
    """Put the chains of the host's own calls into a gateway's listener."""
    result.filter_chains.extend(called.filter_chains)
    names = {each.name for each in result.listener_filters}
    result.listener_filters.extend(each for each in called.listener_filters if each.name not in names)
    if result.listener_filters:
        result.listener_filters_timeout.CopyFrom(duration(PEEK_TIMEOUT_S))
        result.continue_on_listener_filters_timeout = True
    if captures:
        own = [*map(cidr, host.addresses), *map(cidr, LOOPBACK)]
        for chain in chains:
            chain.filter_chain_match.prefix_ranges.extend(own)
        result.default_filter_chain.CopyFrom(called.default_filter_chain)


def _chains(mesh: Mesh, host: Host, viewer: Viewer, served: Served, more: Extensions) -> Iterator[FilterChain]:
    tls = served.server.tls
    if served.speech is Speech.HTTP:
        yield _http(mesh, served, more)
    elif tls is None:
        to = connection_filters(mesh, viewer, served)
        if to:
            yield FilterChain(filters=[*more.tcp, *to])
    elif tls.mode == "AUTO_PASSTHROUGH":
        yield from passthrough_chains(mesh, viewer, served.server_names)
    elif tls.mode == "PASSTHROUGH":
        for each in by_server_name(mesh, viewer, served):
            yield _by_name(each.server_names, [*more.tcp, *each.to])
    else:
        chain = _http(mesh, served, more) if terminates_https(served.server) else FilterChain()
        if not chain.filters:
            to = connection_filters(mesh, viewer, served)
            chain.filters.extend([*more.tcp, *to] if to else [])
        if chain.filters:
            chain.filter_chain_match.CopyFrom(_by_name(served.server_names, ()).filter_chain_match)
            trust = trust_of(mesh.settings, mesh.config)
            chain.transport_socket.CopyFrom(gateway_tls.downstream(served, _slug(mesh, host, served), trust))
            chain.transport_socket_connect_timeout.CopyFrom(duration(HANDSHAKE_TIMEOUT_S))
            yield chain


def _slug(mesh: Mesh, host: Host, served: Served) -> str:
    """Return the directory of the certificate of the workload that is the gateway."""
    workload = mesh.workloads.get(served.workload) if served.workload else None
    if workload is None:
        return parse_identity(outbound_identity(mesh, host)).slug
    return identity_of(workload, mesh.settings.trust_domain).slug


def _http(mesh: Mesh, served: Served, more: Extensions) -> FilterChain:
    bind = served.server.bind or "0.0.0.0"  # noqa: S104 - as its listener is named
    named = served.server.name if terminates_https(served.server) else ""
    stat_prefix = named or f"outbound_{bind}_{served.port}"
    trusted = mesh.config.default_config.gateway_topology.num_trusted_proxies
    http = filters.gateway_http(stat_prefix, served.route, more.http, trusted_proxies=trusted)
    return FilterChain(filters=[*more.network, http])


def _by_name(server_names: Iterable[str], to: Iterable[Filter]) -> FilterChain:
    names = sorted(server_names)
    # Envoy has no pattern for every name: none is then asked for.
    return FilterChain(filter_chain_match=FilterChainMatch(server_names=[] if "*" in names else names), filters=to)


def _distinct(chains: Iterable[FilterChain]) -> Iterator[FilterChain]:
    """Yield chains without server names that an earlier one has: Envoy refuses a listener with two."""
    taken: set[tuple[str, tuple[str, ...]]] = set()
    for chain in chains:
        protocols = tuple(chain.filter_chain_match.application_protocols)
        names = list(chain.filter_chain_match.server_names) or [""]
        free = [name for name in names if (name, protocols) not in taken]
        taken.update((name, protocols) for name in free)
        if free and free != names:
            del chain.filter_chain_match.server_names[:]
            chain.filter_chain_match.server_names.extend(free)
        if free:
            yield chain
