"""Which filter chain takes a connection: Envoy's own order of criteria, without going back.

Source: Envoy's api-v3/config/listener/v3/listener_components.proto, FilterChainMatch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from envoy.config.core.v3.address_pb2 import CidrRange
from envoy.config.listener.v3.listener_components_pb2 import FilterChain, FilterChainMatch
from envoy.config.listener.v3.listener_pb2 import Listener


@dataclass(frozen=True, slots=True)
class Connection:
    """What a listener knows of a connection. `application_protocols` is what was negotiated or found by looking."""

    address: str
    port: int
    server_name: str = ""
    transport_protocol: str = "raw_buffer"
    application_protocols: tuple[str, ...] = ()
    source: str = ""


def chain_for(listener: Listener, connection: Connection) -> FilterChain | None:
    """Return the chain that takes a connection, the default one if no other does; None: it is closed."""
    left: Sequence[FilterChain] = listener.filter_chains
    for narrow in (_by_port, _by_address, _by_server_name, _by_transport, _by_protocol, _by_source):
        left = narrow(left, connection)
    if left:
        return left[0]
    return listener.default_filter_chain if listener.HasField("default_filter_chain") else None


def _by_port(chains: Sequence[FilterChain], connection: Connection) -> Sequence[FilterChain]:
    return _exact_or_open(
        chains,
        lambda match: match.HasField("destination_port"),
        lambda match: match.destination_port.value == connection.port,
    )


def _by_address(chains: Sequence[FilterChain], connection: Connection) -> Sequence[FilterChain]:
    return _longest(chains, lambda match: match.prefix_ranges, connection.address)


def _by_source(chains: Sequence[FilterChain], connection: Connection) -> Sequence[FilterChain]:
    return _longest(chains, lambda match: match.source_prefix_ranges, connection.source)


def _by_server_name(chains: Sequence[FilterChain], connection: Connection) -> Sequence[FilterChain]:
    wanted = connection.server_name.lower()
    labels = wanted.split(".")
    names = (wanted, *("*." + ".".join(labels[index:]) for index in range(1, len(labels)))) if wanted else ()
    for name in names:
        found = [chain for chain in chains if name in chain.filter_chain_match.server_names]
        if found:
            return found
    return [chain for chain in chains if not chain.filter_chain_match.server_names]


def _by_transport(chains: Sequence[FilterChain], connection: Connection) -> Sequence[FilterChain]:
    return _exact_or_open(
        chains,
        lambda match: bool(match.transport_protocol),
        lambda match: match.transport_protocol == connection.transport_protocol,
    )


def _by_protocol(chains: Sequence[FilterChain], connection: Connection) -> Sequence[FilterChain]:
    for protocol in connection.application_protocols:
        found = [chain for chain in chains if protocol in chain.filter_chain_match.application_protocols]
        if found:
            return found
    return [chain for chain in chains if not chain.filter_chain_match.application_protocols]


def _exact_or_open(
    chains: Sequence[FilterChain], asks: Callable[[FilterChainMatch], bool], holds: Callable[[FilterChainMatch], bool]
) -> Sequence[FilterChain]:
    exact = [chain for chain in chains if asks(chain.filter_chain_match) and holds(chain.filter_chain_match)]
    return exact or [chain for chain in chains if not asks(chain.filter_chain_match)]


def _longest(
    chains: Sequence[FilterChain], ranges: Callable[[FilterChainMatch], Iterable[CidrRange]], address: str
) -> Sequence[FilterChain]:
    lengths = [(_length(ranges(chain.filter_chain_match), address), chain) for chain in chains]
    best = max((length for length, _ in lengths), default=-1)
    if best >= 0:
        return [chain for length, chain in lengths if length == best]
    return [chain for chain in chains if not list(ranges(chain.filter_chain_match))]


def _length(ranges: Iterable[CidrRange], address: str) -> int:
    """Return the length of the longest prefix that covers the address, -1 if none does."""
    if not address:
        return -1
    found = (ip_network(f"{each.address_prefix}/{each.prefix_len.value}", strict=False) for each in ranges)
    return max((each.prefixlen for each in found if ip_address(address) in each), default=-1)
