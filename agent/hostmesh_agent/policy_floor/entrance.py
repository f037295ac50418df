"""Which ports Envoy may listen on, and what callers must show at the listener of captured connections. Pure.

A listener is judged by what it says on the wire. Where that can be read in two ways the stricter one counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hostmesh_agent.listening import ports_of
from hostmesh_agent.wire_fields import inside, merged, number
from hostmesh_api.wire import DNS_PORT, DNS_TCP_PORT, ENVOYS_PORTS, INBOUND_PORT, OUTBOUND_PORT, ROOTS

STRICT: Final = "strict"
PERMISSIVE: Final = "permissive"
BLACK_HOLE: Final = "BlackHoleCluster"
"""Where whoever dials the listener itself gets: a cluster without endpoints."""
OWN_PORTS: Final = frozenset({INBOUND_PORT, OUTBOUND_PORT, DNS_PORT})
_SECOND_PORTS: Final = ENVOYS_PORTS - OWN_PORTS
"""A listener that came for one of them would be looked at by nobody, and captured connections would lead to it."""

# Numbers of fields: envoy/config/listener/v3/listener.proto and listener_components.proto.
_CHAINS: Final = 3
_DEFAULT_CHAIN: Final = 25
_MATCHER: Final = 32
_HANDS_OVER: Final = 4
_DISCOVERED: Final = 5
_CHAIN_DISCOVERY: Final = 36
_MATCH: Final = 1
_FILTERS: Final = 3
_TRANSPORT_SOCKET: Final = 6
_CHAIN_NAME: Final = 7
_DESTINATION_PORT: Final = 8
_VALUE: Final = 1
# base.proto: TransportSocket; listener_components.proto: Filter.
_SOCKET_CONFIG: Final = 3
_FILTER_CONFIG: Final = 4
_TYPE_URL: Final = 1
_ANY_VALUE: Final = 2
# tls.proto, common.proto, secret.proto, config_source.proto
_DOWNSTREAM_TLS: Final = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_COMMON: Final = 1
_REQUIRE_CLIENT_CERTIFICATE: Final = 2
_COMBINED_VALIDATION: Final = 8
_CUSTOM_HANDSHAKER: Final = 13
_DEFAULT_VALIDATION: Final = 1
_FROM_SECRET: Final = 2
_TRUST_CHAIN: Final = 10
_CUSTOM_VALIDATOR: Final = 12
_SOURCE: Final = 2
_FILE: Final = 8
_PATH: Final = 1
_ROOTS_FILE: Final = f"{ROOTS}/sds.json"
"""The agent's own: who could say other roots could let anybody in."""
# tcp_proxy.proto
_TCP_PROXY: Final = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_CLUSTER: Final = 2
_WEIGHTED: Final = 10
_ON_DEMAND: Final = 14
# cluster.proto
_TYPE: Final = 2
_LOAD_ASSIGNMENT: Final = 33
_CUSTOM_TYPE: Final = 38


@dataclass(frozen=True, slots=True)
class Entrance:
    """What the host's owner says; see `config.FloorSettings`."""

    min_mtls: str = ""
    listen_ports: frozenset[int] | None = None
    never: frozenset[int] = frozenset()

    def of_ports(self, ports: frozenset[int], ssh: frozenset[int]) -> str:
        """Return why Envoy must not listen on one of the ports; "" if it may on all."""
        if taken := ports & ssh:
            return f"SSH is served on port {_listed(taken)} of this host: Envoy must not take it"
        if taken := ports & _SECOND_PORTS:
            return f"port {_listed(taken)} is that of this host's other Envoy: the agent alone puts a listener there"
        if DNS_TCP_PORT in ports:
            return f"port {DNS_TCP_PORT} is the agent's own: it answers names over TCP there"
        if taken := ports & self.never:
            return f"this host's owner keeps port {_listed(taken)} from Envoy (floor.never_listen_ports in agent.toml)"
        allowed = self.listen_ports
        if allowed is None:
            if self.min_mtls != STRICT:
                return ""
            allowed = frozenset()
        beyond = ports - allowed - OWN_PORTS
        return f"it listens on port {_listed(beyond)} (allowed with floor.listen_ports in agent.toml)" if beyond else ""

    def of_listener(self, listener: bytes) -> str:
        """Return why the listener of captured connections asks for too little; "" if it does not, or is another one.

        Raises:
            ValueError: it cannot be read.
        """
        if self.min_mtls not in {STRICT, PERMISSIVE} or INBOUND_PORT not in ports_of(listener):
            return ""
        chains = list(_chains(listener))
        if self.min_mtls == STRICT:
            plain = sorted(each.label for each in chains if not (each.is_mutual or each.is_black_hole))
            told = f"takes callers without mutual TLS in the chain {', '.join(plain)}"
        else:
            mutual = {each.port for each in chains if each.is_mutual}
            plain = sorted(each.label for each in chains if not (each.port in mutual or each.is_black_hole))
            told = f"has no mutual TLS at all beside the chain {', '.join(plain)}"
        hands_over = merged(listener, _HANDS_OVER)
        if inside(listener, _CHAIN_DISCOVERY) or inside(listener, _MATCHER) or (hands_over and number(hands_over, 1)):
            plain, told = ["?"], "leaves it open which chain takes a connection"
        return f"it {told} (floor.min_mtls is {self.min_mtls!r} in agent.toml)" if plain else ""

    def of_cluster(self, name: str, cluster: bytes) -> str:
        """Return why a cluster is not what its name stands for; "" if it is.

        Raises:
            ValueError: it cannot be read.
        """
        if self.min_mtls not in {STRICT, PERMISSIVE} or name != BLACK_HOLE:
            return ""
        leads = inside(cluster, _LOAD_ASSIGNMENT) or inside(cluster, _CUSTOM_TYPE) or number(cluster, _TYPE)
        return f"{BLACK_HOLE} leads somewhere (floor.min_mtls is {self.min_mtls!r} in agent.toml)" if leads else ""


@dataclass(frozen=True, slots=True)
class _Chain:
    """A filter chain. `port` None: for all."""

    label: str
    port: int | None
    is_mutual: bool
    is_black_hole: bool


def _chains(listener: bytes) -> Iterator[_Chain]:
    for chain in (*inside(listener, _CHAINS), *inside(listener, _DEFAULT_CHAIN)):
        port = _port(chain)
        names = [each.decode(errors="replace") for each in inside(chain, _CHAIN_NAME)]
        yield _Chain(
            label=repr(names[-1]) if names else f"for port {port}",
            port=port,
            is_mutual=_is_mutual(chain),
            is_black_hole=port == INBOUND_PORT and _is_black_hole(chain),
        )


def _port(chain: bytes) -> int | None:
    wrapped = merged(merged(chain, _MATCH) or b"", _DESTINATION_PORT)
    return None if wrapped is None else number(wrapped, _VALUE) or 0


def _is_mutual(chain: bytes) -> bool:
    """Tell whether callers must show a certificate, and one that a root vouches for."""
    config = merged(merged(chain, _TRANSPORT_SOCKET) or b"", _SOCKET_CONFIG) or b""
    context = _of_type(config, _DOWNSTREAM_TLS)
    if context is None:
        return False
    required = merged(context, _REQUIRE_CLIENT_CERTIFICATE)
    return required is not None and bool(number(required, _VALUE)) and _is_verified(merged(context, _COMMON) or b"")


def _is_verified(common: bytes) -> bool:
    """Tell whether certificates are held against the roots that the agent keeps, and by nothing else."""
    combined = merged(common, _COMBINED_VALIDATION)
    if combined is None or inside(common, _CUSTOM_HANDSHAKER):
        return False
    default = merged(combined, _DEFAULT_VALIDATION) or b""
    if number(default, _TRUST_CHAIN) or inside(default, _CUSTOM_VALIDATOR):
        return False
    source = merged(merged(combined, _FROM_SECRET) or b"", _SOURCE) or b""
    return [each.decode(errors="replace") for each in inside(merged(source, _FILE) or b"", _PATH)] == [_ROOTS_FILE]


def _is_black_hole(chain: bytes) -> bool:
    filters = inside(chain, _FILTERS)
    if len(filters) != 1 or inside(filters[0], _DISCOVERED):
        return False
    proxy = _of_type(merged(filters[0], _FILTER_CONFIG) or b"", _TCP_PROXY)
    if proxy is None or inside(proxy, _WEIGHTED) or inside(proxy, _ON_DEMAND):
        return False
    return [each.decode(errors="replace") for each in inside(proxy, _CLUSTER)] == [BLACK_HOLE]


def _of_type(packed: bytes, name: str) -> bytes | None:
    """Return what an Any holds if it is of a type and says so once."""
    urls, values = inside(packed, _TYPE_URL), inside(packed, _ANY_VALUE)
    if len(urls) != 1 or len(values) != 1 or urls[0].decode(errors="replace").rpartition("/")[2] != name:
        return None
    return values[0]


def _listed(ports: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(ports)))
