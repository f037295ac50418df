"""Which ports of a host are captured inbound, whose they are, what they speak and what they demand."""

from dataclasses import dataclass

from hostmesh_controller.mesh.gateways import NO_GATEWAYS
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.ingress import ingress_of, is_bound, pool_of
from hostmesh_controller.mesh.records import Mode, Workload
from hostmesh_controller.mesh.selection import endpoint_port, services_of
from hostmesh_controller.model.connection_pool import ConnectionPool
from hostmesh_controller.model.http_actions import InboundRetries
from hostmesh_controller.model.protocols import Protocol, entry_protocol
from hostmesh_controller.model.server_tls import ServerTls
from hostmesh_controller.model.sidecar import IngressListener
from hostmesh_controller.names import inbound_cluster


@dataclass(frozen=True, slots=True)
class InboundPort:
    """A port on which a workload of the host serves.

    Attributes:
        number: under which it is called.
        protocol: what is spoken there, once TLS has ended.
        workload: whose it is.
        mode: what is demanded of callers.
        shared: another workload has this number on another address.
        listener: the Sidecar's, None where services say that the workload listens there.
        pool: bounds of the connections to the program.
        retries: how often a request is tried again at the program; None is Istio's default.
    """

    number: int
    protocol: Protocol
    workload: Workload
    mode: Mode
    shared: bool
    listener: IngressListener | None = None
    pool: ConnectionPool | None = None
    retries: InboundRetries | None = None

    @property
    def cluster(self) -> str:
        """The cluster of the program. It is the number's; where two workloads have it, each may have its own."""
        own = self.shared and (self.pool is not None or self.endpoint)
        return inbound_cluster(self.number, self.workload.address if own else "")

    @property
    def endpoint(self) -> str:
        """Where the program listens, as a Sidecar writes it; "" is the address that the caller used."""
        return self.listener.default_endpoint if self.listener is not None else ""

    @property
    def bind(self) -> str:
        """The address on which Envoy itself listens; "" where connections to the program are captured."""
        if self.listener is None or not is_bound(self.listener):
            return ""
        return self.listener.bind or self.workload.address

    @property
    def own_tls(self) -> ServerTls | None:
        """The TLS that Envoy ends for the program, instead of the mesh's."""
        return self.listener.tls if self.listener is not None and self.mode is Mode.DISABLE else None


def inbound_ports(mesh: Mesh, host: str) -> tuple[InboundPort, ...]:
    """Return the ports of all workloads of a host, by number and address.

    Where two workloads claim one port of one address, the first by name has it; but an endpoint that a ServiceEntry
    lists never takes one from a WorkloadEntry, whose callers would no longer know who answers. A gateway's ports are
    Envoy's own: they are not captured.
    """
    gateways = mesh.gateways.get(host, NO_GATEWAYS)
    claims: dict[tuple[int, str], tuple[Workload, Protocol]] = {}
    for workload in sorted(mesh.workloads_of(host), key=lambda item: item.owner is not None):
        for number, protocol in ports_of(mesh, workload).items():
            if gateways.listens(workload.address, number) is None:
                claims.setdefault((number, workload.address), (workload, protocol))
    numbers = [number for number, _ in claims]
    return tuple(
        _port(mesh, number, workload, protocol, shared=numbers.count(number) > 1)
        for (number, _), (workload, protocol) in sorted(claims.items(), key=lambda claim: claim[0])
    )


def _port(mesh: Mesh, number: int, workload: Workload, protocol: Protocol, *, shared: bool) -> InboundPort:
    listener = (ingress_of(mesh, workload) or {}).get(number)
    return InboundPort(
        number,
        protocol,
        workload,
        mesh.mode_of(workload, number),
        shared,
        listener,
        pool_of(mesh, workload, number),
        mesh.config.default_inbound_http_retry_policy,
    )


def captured_ports(mesh: Mesh, host: str) -> tuple[int, ...]:
    """Return the numbers of a host's ports whose connections are captured."""
    return tuple(sorted({port.number for port in inbound_ports(mesh, host) if not port.bind}))


def strict_ports(mesh: Mesh, host: str) -> tuple[int, ...]:
    """Return the numbers of a host's captured ports that demand mutual TLS on each of its addresses."""
    captured = [port for port in inbound_ports(mesh, host) if not port.bind]
    lenient = {port.number for port in captured if port.mode is not Mode.STRICT}
    return tuple(sorted({port.number for port in captured} - lenient))


def bound_ports(mesh: Mesh, host: str) -> tuple[InboundPort, ...]:
    """Return the ports of a host on which Envoy itself listens. Asked for each listener: most hosts have none."""
    if not any(key in mesh.inbound_sidecars for key in mesh.workloads_by_host.get(host, ())):
        return ()
    return tuple(port for port in inbound_ports(mesh, host) if port.bind)


def ports_of(mesh: Mesh, workload: Workload) -> dict[int, Protocol]:
    """Return the numbers on which a workload listens and what each speaks.

    Those that its Sidecar lists, if it lists any: no other is served inbound then. Else the ports of the services it
    stands behind (the oldest service decides on the protocol), and those that a
    WorkloadEntry declares itself, whose name tells the protocol.
    """
    listeners = ingress_of(mesh, workload)
    if listeners is not None:
        return {number: _spoken(listener) for number, listener in sorted(listeners.items())}
    result: dict[int, Protocol] = {}
    for service in services_of(mesh, workload):
        for port in service.ports if not service.external else ():
            number = endpoint_port(port, workload.ports)
            if number is not None:
                result.setdefault(number, port.protocol)
    # What a ServiceEntry says of its endpoints is for its own ports, and only of the mesh if the ServiceEntry is.
    for name, number in sorted(workload.ports.items()) if workload.owner is None else ():
        protocol = entry_protocol("", name)
        if protocol is not Protocol.UDP:
            result.setdefault(number, protocol)
    return dict(sorted(result.items()))


def _spoken(listener: IngressListener) -> Protocol:
    """Return what is spoken on an ingress listener: inside the TLS, where it says how TLS ends."""
    found = entry_protocol(listener.port.protocol, listener.port.name)
    if listener.tls is None:
        return found
    return Protocol.HTTP if found is Protocol.HTTPS else Protocol.TCP
