"""Outbound listeners: where captured connections of the host's programs go.

`virtualOutbound` takes all of them. A port number on which HTTP is spoken somewhere in the mesh, or whose connections
are told apart by routes, has a listener `0.0.0.0_PORT` to which they are handed over. Chains that must survive other
services' changes hold no list of them: the virtual ranges are one chain that never changes, and every explicit address
has one of its own, since Envoy drains a chain that changes.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain, FilterChainMatch
from envoy.config.listener.v3.listener_pb2 import AdditionalAddress, Listener
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from hostmesh_api import wire
from hostmesh_controller import names
from hostmesh_controller.mesh.records import Service, Settings
from hostmesh_controller.names import BLACK_HOLE, PASSTHROUGH, VIRTUAL_OUTBOUND, OutboundName
from hostmesh_controller.xds import called_by_name, filters
from hostmesh_controller.xds.connections import Way, prefixes_of
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.extension_types import NONE, Extensions
from hostmesh_controller.xds.outbound import Plan
from hostmesh_controller.xds.sources import cidr, socket

DETECTION_TIMEOUT_S: Final = 0.2
"""How long to wait for the first bytes where no protocol is declared: a server that speaks first waits as long."""
PLAIN_HTTP: Final = ("http/1.0", "http/1.1", "h2c")
"""What Envoy's HTTP inspector finds."""


def virtual_outbound(settings: Settings, plan: Plan, more: Extensions = NONE, *, ipv6: bool) -> Listener:
    """Return the listener to which all captured outbound connections are redirected.

    `more` are the filters of extensions that do not tell ports apart: a chain is for all ports of its addresses.
    """
    here = FilterChain(
        name="virtualOutbound-blackhole",
        # Dialled by itself, it would call itself for ever.
        filter_chain_match=FilterChainMatch(destination_port=UInt32Value(value=wire.OUTBOUND_PORT)),
        filters=filters.tcp(BLACK_HOLE),
    )
    dialled = [*more.network, *filters.tcp_to_destination()]
    mesh = _chain("mesh", (str(settings.vip4), str(settings.vip6)), dialled)
    explicit = _explicit(plan.explicit, dialled)
    return Listener(
        name=VIRTUAL_OUTBOUND,
        address=socket("0.0.0.0", wire.OUTBOUND_PORT),  # noqa: S104 - redirects arrive at any of the host's addresses
        additional_addresses=_v6(wire.OUTBOUND_PORT, ipv6=ipv6),
        use_original_dst=BoolValue(value=True),
        filter_chains=[here, mesh, *explicit],
        default_filter_chain=_all_else(plan),
        traffic_direction=TrafficDirection.OUTBOUND,
    )


def port_listener(settings: Settings, plan: Plan, port: int, more: Extensions, *, ipv6: bool) -> Listener:
    """Return the listener of a port number on which HTTP is spoken, declared or not, or connections are told apart.

    What is dialled outside the mesh on this number is not looked into, unless it is not simply passed on. Services on
    it that are TCP, or that have not declared what they speak, are told apart by their addresses, and by server names
    where a route asks for them.
    """
    services = plan.ports[port]
    dialled = [*more.network, *filters.tcp_to_destination()]
    lookup = called_by_name.http_lookup(services)
    http = [*more.network, filters.outbound_http(port, (*more.http, *lookup))] if port in plan.http_ports else dialled
    chains = [_chain("mesh", (str(settings.vip4), str(settings.vip6)), http)]
    chains += [chain for service in plan.apart[port] for chain in _service_chains(plan, service, port, http, dialled)]
    chains = _distinct(chains)
    if port in plan.http_ports and (not plan.beyond.is_open or called_by_name.by_host_header(services, port)):
        chains.append(_all_other_http(http))
    listener = Listener(
        name=names.port_listener(port),
        address=socket("0.0.0.0", port),  # noqa: S104 - not bound: the address stands for every destination
        additional_addresses=_v6(port, ipv6=ipv6),
        bind_to_port=BoolValue(value=False),
        filter_chains=chains,
        default_filter_chain=_all_else(plan),
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    if any(chain.filter_chain_match.server_names for chain in chains):
        listener.listener_filters.append(filters.tls_inspector())
    if any(chain.filter_chain_match.application_protocols for chain in chains):
        listener.listener_filters.append(filters.http_inspector())
    if listener.listener_filters:
        listener.listener_filters_timeout.CopyFrom(duration(DETECTION_TIMEOUT_S))
        listener.continue_on_listener_filters_timeout = True
    return listener


def _service_chains(
    plan: Plan, service: Service, port: int, http: Sequence[Filter], dialled: Sequence[Filter]
) -> Iterator[FilterChain]:
    """Yield the chains of a service, the nearest conditions first."""
    found = service.port(port)
    assert found is not None
    name = service.id.hostname
    if found.protocol.is_http:
        if service.addresses:
            yield _chain(name, service.addresses, http)
        return
    ways = plan.ways.get((service.id, port))
    own = str(OutboundName(port, "", name))
    policy = plan.policies.get(own)
    if ways is None and policy is None and port not in plan.http_ports and not service.addresses:
        # On the virtual addresses alone the chain of all of them does the same where there is no HTTP.
        return
    prefixes = prefixes_of(service)
    if found.protocol.is_detected:
        yield _chain(f"{name}:http", prefixes, http, PLAIN_HTTP)
    if ways is None and policy is not None and not found.protocol.is_detected:
        yield _chain(own, prefixes, filters.tcp_weighted(own, ((own, 1),), policy))
        return
    if ways is None:
        yield _chain(name, prefixes if port in plan.http_ports else service.addresses, dialled)
        return
    for index, way in enumerate(ways.special):
        yield _way(plan, f"{own}~{index}", own, way, called_by_name.tls_lookup(service, port))
    only = ways.by_default[0][0] if len(ways.by_default) == 1 else ""
    if not ways.routed and only not in plan.policies:
        shared = {prefix for way in ways.special if way.server_names for prefix in way.prefixes}
        yield _chain(name, [prefix for prefix in prefixes if prefix not in shared], dialled)
    else:
        yield _chain(own, prefixes, filters.tcp_weighted(own, ways.by_default, plan.policies.get(only)))


def _way(plan: Plan, name: str, stat_prefix: str, way: Way, first: Sequence[Filter]) -> FilterChain:
    policy = plan.policies.get(way.to[0][0]) if len(way.to) == 1 else None
    chain = _chain(name, way.prefixes, [*first, *filters.tcp_weighted(stat_prefix, way.to, policy)])
    chain.filter_chain_match.server_names.extend(way.server_names)
    return chain


def _explicit(services: Iterable[Service], to: Sequence[Filter]) -> list[FilterChain]:
    return _distinct(_chain(service.id.hostname, service.addresses, to) for service in services)


def _chain(
    name: str, prefixes: Iterable[str], to: Sequence[Filter], application_protocols: Iterable[str] = ()
) -> FilterChain:
    match = FilterChainMatch(prefix_ranges=map(cidr, prefixes), application_protocols=application_protocols)
    return FilterChain(name=name, filter_chain_match=match, filters=to)


def _distinct(chains: Iterable[FilterChain]) -> list[FilterChain]:
    """Return the chains without conditions that an earlier one already has: Envoy refuses a listener with two."""
    taken: set[tuple[str, str, str]] = set()
    return [chain for chain in chains if _keep_free(chain.filter_chain_match, taken)]


def _keep_free(match: FilterChainMatch, taken: set[tuple[str, str, str]]) -> bool:
    """Take the conditions of a match that are free, remove the others, and tell whether there is any left.

    Conditions are an address block, a server name and an application protocol; "" is any.
    """
    protocols = tuple(match.application_protocols) or ("",)
    blocks = [f"{block.address_prefix}/{block.prefix_len.value}" for block in match.prefix_ranges]
    if not blocks and not match.server_names:
        return False
    names = [
        name
        for name in match.server_names or ("",)
        if any((block, name, each) not in taken for block in blocks or ("",) for each in protocols)
    ]
    kept = [
        position
        for position, block in enumerate(blocks)
        if all((block, name, each) not in taken for name in names for each in protocols)
    ]
    if not names or (blocks and not kept):
        return False
    ranges = [match.prefix_ranges[position] for position in kept]
    taken.update((blocks[at], name, each) for at in kept for name in names for each in protocols)
    if not blocks:
        taken.update(("", name, each) for name in names for each in protocols)
    del match.prefix_ranges[:]
    match.prefix_ranges.extend(ranges)
    if match.server_names:
        del match.server_names[:]
        match.server_names.extend(names)
    return True


def _all_else(plan: Plan) -> FilterChain:
    """Return the chain of connections to what the viewer does not see."""
    to = filters.tcp(PASSTHROUGH)
    if plan.beyond.closed:
        to = filters.tcp(BLACK_HOLE)
    elif plan.beyond.proxy:
        to = filters.tcp_weighted(plan.beyond.proxy, [(plan.beyond.proxy, 1)])
    return FilterChain(name="virtualOutbound-catchall-tcp", filters=to)


def _all_other_http(http: Sequence[Filter]) -> FilterChain:
    """Return the chain of requests to addresses that the viewer does not see, where these are looked into.

    Whom they are for is known by their name alone. What is not for a service is then told so, and not just cut off.
    """
    match = FilterChainMatch(application_protocols=PLAIN_HTTP)
    return FilterChain(name="virtualOutbound-catchall-http", filter_chain_match=match, filters=http)


def _v6(port: int, *, ipv6: bool) -> list[AdditionalAddress]:
    return [AdditionalAddress(address=socket("::", port))] if ipv6 else []
