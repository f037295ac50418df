"""How things are named: service host names, and the names of Envoy's resources.

Users' dashboards and patches match on these names, so they are Istio's wherever Istio has one.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

VIRTUAL_INBOUND: Final = "virtualInbound"
VIRTUAL_OUTBOUND: Final = "virtualOutbound"
DNS_LISTENER: Final = "dns"
PASSTHROUGH: Final = "PassthroughCluster"
BLACK_HOLE: Final = "BlackHoleCluster"
MESH: Final = "mesh"
"""The gateway that stands for the proxies of the hosts."""

ANY_DOMAIN: Final = 1
"""See `domain_closeness`."""
_OUTBOUND: Final = "outbound"
_INBOUND: Final = "inbound"
_TCP: Final = "tcp|"
_PORT_LISTENER: Final = "0.0.0.0_"
MAX_PORT: Final = 65535
_MAX_HEADER_CHARS: Final = 253 + len(".") + len(":65535")
"""Of a host header that can mean something: a DNS name, perhaps with its final dot and a port.

Programs choose it, up to Envoy's 60 KiB, and looking a name up costs the square of its length.
"""


class OutboundName(NamedTuple):
    """What an `outbound|PORT|SUBSET|FQDN` cluster stands for; `subset` is empty for all of the service."""

    port: int
    subset: str
    hostname: str

    def __str__(self) -> str:
        return f"{_OUTBOUND}|{self.port}|{self.subset}|{self.hostname}"

    @property
    def server_name(self) -> str:
        """TLS server name of a mutual TLS connection to this cluster (Istio's form: `|` is not allowed in one)."""
        return f"{_OUTBOUND}_.{self.port}_.{self.subset}_.{self.hostname}"


def host_and_port(host: str, port: int) -> str:
    """Return `HOST:PORT`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TcpName(NamedTuple):
    """An on-demand TCP cluster: named by the destination that the program dialled."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{_TCP}{host_and_port(self.address, self.port)}"


class VirtualHostName(NamedTuple):
    """A virtual host asked for on demand: the route (a port number) and the request's host header, lower case."""

    port: int
    header: str

    def __str__(self) -> str:
        return f"{self.port}/{self.header}"


def parse_outbound(name: str) -> OutboundName | None:
    """Return what an outbound cluster name stands for, or None if it is not one."""
    parts = name.split("|")
    if len(parts) != 4 or parts[0] != _OUTBOUND or not parts[3]:
        return None
    port = parse_port(parts[1])
    return None if port is None else OutboundName(port, parts[2], parts[3])


def parse_tcp(name: str) -> TcpName | None:
    """Return the destination of an on-demand TCP cluster name, or None if it is not one in Envoy's spelling."""
    if not name.startswith(_TCP):
        return None
    text, _, port_text = name[len(_TCP) :].rpartition(":")
    port = parse_port(port_text)
    address = canonical_address(text.removeprefix("[").removesuffix("]"))
    if port is None or address is None:
        return None
    result = TcpName(address, port)
    return result if str(result) == name else None


def parse_virtual_host(name: str) -> VirtualHostName | None:
    """Return the parts of `<port>/<host header>`, or None if it is not of that form or too long to be a host's."""
    port_text, _, header = name.partition("/")
    port = parse_port(port_text)
    return VirtualHostName(port, header) if port is not None and 0 < len(header) <= _MAX_HEADER_CHARS else None


def parse_port(text: str) -> int | None:
    """Return the port number that `text` spells canonically, or None."""
    if not (text.isascii() and text.isdigit()) or text[0] == "0" or len(text) > 5:
        return None
    port = int(text)
    return port if port <= MAX_PORT else None


def inbound_cluster(port: int, address: str = "") -> str:
    """Return the name of the cluster of a program of the host; `address` where another program has the same port."""
    return f"{_INBOUND}|{port}|{address}|"


def parse_inbound(name: str) -> int | None:
    """Return the port of an `inbound|PORT||` cluster name, or None."""
    parts = name.split("|")
    if len(parts) != 4 or parts[0] != _INBOUND or parts[3] or (parts[2] and canonical_address(parts[2]) is None):
        return None
    return parse_port(parts[1])


def port_listener(port: int) -> str:
    return f"{_PORT_LISTENER}{port}"


def parse_port_listener(name: str) -> int | None:
    """Return the port of a `0.0.0.0_PORT` listener name, or None."""
    return parse_port(name[len(_PORT_LISTENER) :]) if name.startswith(_PORT_LISTENER) else None


def service_hostname(name: str, namespace: str, domain: str) -> str:
    return f"{name}.{namespace}.svc.{domain}"


def expand(host: str, namespace: str, domain: str) -> str:
    """Return the full name of a host in a configuration object: a name without a dot is a service beside it."""
    lower = host.lower()
    return lower if "." in lower or lower.startswith("*") else service_hostname(lower, namespace, domain)


def candidates(header_host: str, namespace: str, domain: str) -> tuple[str, ...]:
    """Return the service host names that a request's host (without port) may mean, the likeliest first.

    The exact name; the short forms as seen from `namespace`; then the wildcards that cover it, longest first.
    """
    host = header_host.removesuffix(".")
    result = [host]
    dots = host.count(".")
    if dots == 0:
        result.append(service_hostname(host, namespace, domain))
    elif dots == 1:
        result.append(f"{host}.svc.{domain}")
    elif host.endswith(".svc"):
        result.append(f"{host}.{domain}")
    result.extend(wildcards(host))
    return tuple(result)


def wildcards(host: str) -> tuple[str, ...]:
    """Return the wildcard host names that cover `host`, longest first, `*` last; `*-a.b` is one too."""
    return tuple("*" + host[index:] for index in range(1, len(host) + 1))


def host_matches(pattern: str, host: str) -> bool:
    """Tell whether a name or pattern of the configuration (`*`, `*.example.com`) covers `host`, a name or pattern."""
    return host.endswith(pattern[1:]) if pattern.startswith("*") else pattern == host


def hosts_overlap(one: str, other: str) -> bool:
    """Tell whether one of two names or patterns covers the other."""
    return host_matches(one, other) or host_matches(other, one)


def domain_closeness(domain: str, header_host: str) -> int:
    """Return how closely a domain of Envoy's virtual hosts names a host header, as Envoy chooses among them.

    Exactly, by the longest end, by the longest start, by `*` (ANY_DOMAIN); 0 if it does not.
    """
    if domain == header_host:
        return 1 << 20
    if domain == "*":
        return ANY_DOMAIN
    if domain.startswith("*") and header_host.endswith(domain[1:]):
        return (1 << 10) + len(domain)
    by_start = domain.endswith("*") and header_host.startswith(domain[:-1])
    return ANY_DOMAIN + len(domain) if by_start else 0


def gateway_name(name: str, namespace: str) -> str:
    """Return `mesh`, or the NAMESPACE/NAME of a gateway that an object of `namespace` names."""
    if name == MESH:
        return name
    owner, slash, own = name.rpartition("/")
    if slash:
        return f"{namespace if owner == '.' else owner}/{own}"
    # The old form: NAME.NAMESPACE, perhaps with more behind it.
    own, dot, rest = name.partition(".")
    return f"{rest.partition('.')[0] if dot else namespace}/{own}"


def split_header(header: str) -> tuple[str, int | None]:
    """Return host and port of a host header; the port is None if there is none. Brackets of IPv6 are removed."""
    if header.startswith("["):
        host, _, rest = header[1:].partition("]")
        return host, parse_port(rest.removeprefix(":")) if rest else None
    host, colon, port_text = header.rpartition(":")
    if not colon or ":" in host:
        return header, None
    return host, parse_port(port_text) or 0


@lru_cache(65_536)
def canonical_address(text: str) -> str | None:
    """Return the one spelling of an IP address (that of Envoy's logs too), or None if it is not an address."""
    # Kept: each write checks all addresses of the mesh again, and reading one takes 4 µs.
    try:
        return str(ip_address(text))
    except ValueError:
        return None


def canonical_prefix(text: str) -> str | None:
    """Return an address or CIDR block as `address/length`, or None if it is neither."""
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        return None


def is_within(address: str, blocks: Iterable[str]) -> bool:
    """Tell whether an address ("": it is not known) is in one of some blocks."""
    return bool(address) and any(ip_address(address) in ip_network(each) for each in blocks)


def is_single(prefix: str) -> bool:
    """Tell whether a canonical prefix is one address."""
    network = ip_network(prefix)
    return network.num_addresses == 1


def virtual_address(network: IPv4Network | IPv6Network, index: int) -> str | None:
    """Return the `index`-th address of a virtual range, or None when the range has no such address."""
    return str(network[index]) if 0 <= index < network.num_addresses else None


def is_v6(address: str) -> bool:
    return isinstance(ip_address(address), IPv6Address)
