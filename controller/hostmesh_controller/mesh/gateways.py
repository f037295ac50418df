"""Gateways: what a host at the edge of the mesh listens to (`gateway_merge` makes it), and its names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from hostmesh_controller.mesh.records import WorkloadKey
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.gateway import GatewaySpec, Server
from hostmesh_controller.model.listeners import is_http
from hostmesh_controller.model.objects import ApiObject, ObjectKey

ANY_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - a gateway is for callers from anywhere
CREDENTIAL: Final = "kubernetes://"
"""What the name of a stored credential begins with on the way to Envoy (Istio's form)."""
ROOTS_SUFFIX: Final = "-cacert"
"""Of the name of a credential: its CA certificates (Istio's form)."""


class Speech(StrEnum):
    """What is spoken on a gateway's port; servers of different kinds cannot share one."""

    HTTP = "HTTP"
    TLS = "TLS"
    TCP = "TCP"


@dataclass(frozen=True, slots=True)
class Served:
    """One server of a Gateway as a host serves it.

    Attributes:
        gateway: whose server it is.
        server: as written.
        hosts: of the server, lower case, each `host` or `namespace/host`.
        port: where it listens: the server's port, or the target port of a Service before it.
        route: the name of its route table; "" where no HTTP is spoken.
        workload: of which workload of the host it is; None of a host without workloads.
        credentials: names under which Envoy asks for the stored credentials.
        roots: the same for the CA that clients' certificates must come from; "" if it is not stored.
    """

    gateway: ObjectKey
    server: Server
    hosts: tuple[str, ...]
    port: int
    route: str
    workload: WorkloadKey | None
    credentials: tuple[str, ...] = ()
    roots: str = ""

    @property
    def speech(self) -> Speech:
        return speech_of(self.server)

    @property
    def gateway_name(self) -> str:
        """`namespace/name`, as VirtualServices bind to it."""
        return f"{self.gateway.namespace}/{self.gateway.name}"

    @property
    def server_names(self) -> tuple[str, ...]:
        """The hosts without namespaces."""
        return tuple(dict.fromkeys(host.rpartition("/")[2] for host in self.hosts))

    def hosts_for(self, namespace: str) -> tuple[str, ...]:
        """Return the hosts that VirtualServices of a namespace may bind."""
        split = (host.rpartition("/") for host in self.hosts)
        return tuple(host for owner, _, host in split if owner in {"", namespace})


@dataclass(frozen=True, slots=True)
class GatewayPort:
    """A port on which a host listens as gateway. `bind` is "" for all addresses."""

    bind: str
    number: int
    speech: Speech
    servers: tuple[Served, ...]

    @property
    def address(self) -> str:
        return self.bind or ANY_ADDRESS

    @property
    def listener(self) -> str:
        return f"{self.address}_{self.number}"

    @property
    def demands_mesh_tls(self) -> bool:
        """Whether every server of the port takes callers with the mesh's own mutual TLS alone."""
        modes = {served.server.tls.mode if served.server.tls else "" for served in self.servers}
        return modes == {"ISTIO_MUTUAL"}


@dataclass(frozen=True, slots=True)
class HostGateways:
    """All that a host serves as gateway.

    `passed_over` says which servers are not served and why. `stored` holds, by name of a credential, the Secrets that
    it can be: the first that exists counts.
    """

    ports: tuple[GatewayPort, ...] = ()
    passed_over: tuple[str, ...] = ()
    stored: Mapping[str, tuple[ObjectKey, ...]] = field(default_factory=dict)

    def port_of(self, listener: str) -> GatewayPort | None:
        return next((port for port in self.ports if port.listener == listener), None)

    def listens(self, address: str, number: int) -> GatewayPort | None:
        """Return the gateway's port that answers on an address and port of the host, or None."""
        found = (port for port in self.ports if port.number == number and port.bind in {"", address})
        return next(found, None)

    def servers_of(self, route: str) -> tuple[Served, ...]:
        """Return the servers behind a route table."""
        return tuple(served for port in self.ports for served in port.servers if route and served.route == route)

    def gateways(self) -> tuple[ObjectKey, ...]:
        return tuple(dict.fromkeys(served.gateway for port in self.ports for served in port.servers))


NO_GATEWAYS: Final = HostGateways()


def gateway_spec(item: ApiObject) -> GatewaySpec:
    assert isinstance(item.spec, GatewaySpec)
    return item.spec


def credential_name(credential: str, namespace: str) -> str:
    """Return the name under which Envoy asks for a stored credential: `kubernetes://NAME`, as in Istio.

    That is the Secret in the namespace of the host; another namespace is told: `kubernetes://NAMESPACE/NAME`.
    """
    owner, _, name = credential.removeprefix(CREDENTIAL).rpartition("/")
    return f"{CREDENTIAL}{name}" if owner in {"", namespace} else f"{CREDENTIAL}{owner}/{name}"


def route_name(server: Server, bound: int, gateway: ObjectKey) -> str:
    """Return the name of a server's route table, as Istio names it; "" where no HTTP is spoken."""
    bind = f".{server.bind}" if server.bind else ""
    if is_http(server.port.protocol):
        return f"http.{bound}{bind}"
    if terminates_https(server):
        return f"https.{server.port.number}.{server.port.name}.{gateway.name}.{gateway.namespace}{bind}"
    return ""


def terminates_https(server: Server) -> bool:
    """Tell whether TLS ends at the gateway and HTTP is spoken inside of it."""
    return server.port.protocol.upper() == "HTTPS" and server.tls is not None and not server.tls.passes_through


def speech_of(server: Server) -> Speech:
    if is_http(server.port.protocol):
        return Speech.HTTP
    return Speech.TCP if server.tls is None else Speech.TLS


def client_credentials(item: ApiObject) -> frozenset[str]:
    """Return the names of the stored credentials that a DestinationRule calls with, without their namespaces."""
    spec = item.spec
    assert isinstance(spec, DestinationRuleSpec)
    policies: list[Any] = [spec.traffic_policy, *(subset.traffic_policy for subset in spec.subsets)]
    ports = [port for policy in policies if policy is not None for port in policy.port_level_settings]
    settings = (policy.tls for policy in (*policies, *ports) if policy is not None and policy.tls is not None)
    return frozenset(tls.credential_name.rpartition("/")[2] for tls in settings if tls.credential_name)
