"""Which ports of a host are captured inbound, whose they are, what they speak and what they demand."""

from dataclasses import dataclass

from hostmesh_controller.mesh.gateways import NO_GATEWAYS
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Mode, Workload
from hostmesh_controller.mesh.selection import endpoint_port, services_of
from hostmesh_controller.model.protocols import Protocol, entry_protocol


@dataclass(frozen=True, slots=True)
class InboundPort:
    """A port on which a workload of the host serves. `shared`: another workload has this number on another address."""

    number: int
    protocol: Protocol
    workload: Workload
    mode: Mode
    shared: bool


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
        InboundPort(number, protocol, workload, mesh.mode_of(workload, number), numbers.count(number) > 1)
        for (number, _), (workload, protocol) in sorted(claims.items(), key=lambda claim: claim[0])
    )


def ports_of(mesh: Mesh, workload: Workload) -> dict[int, Protocol]:
    """Return the numbers on which a workload listens and what each speaks.

    The ports of the services it stands behind (the oldest service decides on the protocol), and those that a
    WorkloadEntry declares itself, whose name tells the protocol.
    """
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
