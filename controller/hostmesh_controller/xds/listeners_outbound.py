"""Outbound listeners: where captured connections of the host's programs go.

`virtualOutbound` takes all of them and hands those whose port number speaks HTTP somewhere in the mesh over to the
`0.0.0.0_PORT` listener. Chains that must survive other services' changes hold no list of them: the virtual ranges are
one chain that never changes, and every explicit address has one of its own, since Envoy drains a chain that changes.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain, FilterChainMatch
from envoy.config.listener.v3.listener_pb2 import AdditionalAddress, Listener
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from hostmesh_api import wire
from hostmesh_controller.mesh.records import Service, Settings
from hostmesh_controller.names import BLACK_HOLE, PASSTHROUGH, VIRTUAL_OUTBOUND, OutboundName, port_listener
from hostmesh_controller.xds import filters
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.http_extensions import Extensions
from hostmesh_controller.xds.outbound import Plan, Weights, prefixes_of
from hostmesh_controller.xds.sources import cidr, socket

DETECTION_TIMEOUT_S: Final = 0.2
"""How long to wait for the first bytes where no protocol is declared: a server that speaks first waits as long."""
PLAIN_HTTP: Final = ("http/1.0", "http/1.1", "h2c")
"""What Envoy's HTTP inspector finds."""


def virtual_outbound(settings: Settings, plan: Plan, *, ipv6: bool) -> Listener:
    """Return the listener to which all captured outbound connections are redirected."""
    here = FilterChain(
        name="virtualOutbound-blackhole",
        # Dialled by itself, it would call itself for ever.
        filter_chain_match=FilterChainMatch(destination_port=UInt32Value(value=wire.OUTBOUND_PORT)),
        filters=filters.tcp(BLACK_HOLE),
    )
    mesh = _chain("mesh", (str(settings.vip4), str(settings.vip6)), filters.tcp_to_destination())
    explicit = _explicit(plan.explicit, filters.tcp_to_destination())
    http = plan.http_ports.keys()
    weighted = [_weighted(*item, with_port=True) for item in plan.weighted if item[1] not in http]
    return Listener(
        name=VIRTUAL_OUTBOUND,
        address=socket("0.0.0.0", wire.OUTBOUND_PORT),  # noqa: S104 - redirects arrive at any of the host's addresses
        additional_addresses=_v6(wire.OUTBOUND_PORT, ipv6=ipv6),
        use_original_dst=BoolValue(value=True),
        filter_chains=[here, mesh, *explicit, *weighted],
        default_filter_chain=_passthrough(),
        traffic_direction=TrafficDirection.OUTBOUND,
    )


def port_http(settings: Settings, plan: Plan, port: int, more: Extensions, *, ipv6: bool) -> Listener:
    """Return the listener of a port number on which HTTP is spoken, declared or not.

    What is dialled outside the mesh on this number is never looked into. Services on it that are TCP, or that have not
    declared what they speak, are told apart by their addresses.
    """
    services = plan.http_ports[port]
    http = filters.outbound_http(port, more.http)
    chains = [_chain("mesh", (str(settings.vip4), str(settings.vip6)), [http])]
    detected = False
    for service in services:
        found = service.port(port)
        assert found is not None
        weights = next((w for item, number, w in plan.weighted if (item, number) == (service, port)), None)
        if found.protocol.is_http:
            if service.addresses:
                chains.append(_chain(service.id.hostname, service.addresses, [http]))
            continue
        if found.protocol.is_detected:
            detected = True
            chains.append(_chain(f"{service.id.hostname}:http", prefixes_of(service), [http], PLAIN_HTTP))
        if weights is not None:
            chains.append(_weighted(service, port, weights, with_port=False))
        else:
            chains.append(_chain(service.id.hostname, prefixes_of(service), filters.tcp_to_destination()))
    listener = Listener(
        name=port_listener(port),
        address=socket("0.0.0.0", port),  # noqa: S104 - not bound: the address stands for every destination
        additional_addresses=_v6(port, ipv6=ipv6),
        bind_to_port=BoolValue(value=False),
        filter_chains=_distinct(chains),
        default_filter_chain=_passthrough(),
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    if detected:
        listener.listener_filters.append(filters.http_inspector())
        listener.listener_filters_timeout.CopyFrom(duration(DETECTION_TIMEOUT_S))
        listener.continue_on_listener_filters_timeout = True
    return listener


def _explicit(services: Iterable[Service], to: Sequence[Filter]) -> list[FilterChain]:
    return _distinct(_chain(service.id.hostname, service.addresses, to) for service in services)


def _weighted(service: Service, port: int, weights: Weights, *, with_port: bool) -> FilterChain:
    own = str(OutboundName(port, "", service.id.hostname))
    chain = _chain(own, prefixes_of(service), filters.tcp_weighted(own, weights))
    if with_port:
        chain.filter_chain_match.destination_port.CopyFrom(UInt32Value(value=port))
    return chain


def _chain(
    name: str, prefixes: Iterable[str], to: Sequence[Filter], application_protocols: Iterable[str] = ()
) -> FilterChain:
    match = FilterChainMatch(prefix_ranges=map(cidr, prefixes), application_protocols=application_protocols)
    return FilterChain(name=name, filter_chain_match=match, filters=to)


def _distinct(chains: Iterable[FilterChain]) -> list[FilterChain]:
    """Return the chains without prefixes that an earlier one already takes: Envoy refuses a listener with two."""
    taken: set[tuple[str, int, tuple[str, ...]]] = set()
    result: list[FilterChain] = []
    for chain in chains:
        protocols = tuple(chain.filter_chain_match.application_protocols)
        free = []
        for block in chain.filter_chain_match.prefix_ranges:
            key = (block.address_prefix, block.prefix_len.value, protocols)
            if key not in taken:
                taken.add(key)
                free.append(block)
        if free:
            del chain.filter_chain_match.prefix_ranges[:]
            chain.filter_chain_match.prefix_ranges.extend(free)
            result.append(chain)
    return result


def _passthrough() -> FilterChain:
    return FilterChain(name="virtualOutbound-catchall-tcp", filters=filters.tcp(PASSTHROUGH))


def _v6(port: int, *, ipv6: bool) -> list[AdditionalAddress]:
    return [AdditionalAddress(address=socket("::", port))] if ipv6 else []
