"""Services and ServiceEntries: names, ports, addresses and the workloads behind them."""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.placement import check_agreement, check_identity
from hostmesh_controller.checks.relations import (
    NEVER_CAPTURED,
    exported_to,
    inline_workloads,
    port_numbers,
    selector_of,
    service_addresses,
    service_names,
    workload_ports,
)
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.protocols import Protocol
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec


def check_service(item: ApiObject, world: World) -> Iterator[Finding]:
    """Yield what does not fit a Service or ServiceEntry."""
    yield from _check_names(item, world)
    yield from _check_identities(item, world)
    yield from _check_target_ports(item, world)
    yield from _check_reserved(item)
    yield from _check_addresses(item, world)
    yield from _check_udp(item)
    if isinstance(item.spec, ServiceSpec):
        yield from _check_port_names(item.spec)
        yield from _check_headless(item.spec)
    elif isinstance(item.spec, ServiceEntrySpec):
        yield from _check_protocols(item, item.spec, world)
        yield from _check_virtual_addresses(item.spec)


def _check_udp(item: ApiObject) -> Iterator[Finding]:
    """Tell that UDP is passed by, and warn where that leaves programs with an address at which nobody answers it."""
    spec = item.spec
    assert isinstance(spec, ServiceSpec | ServiceEntrySpec)
    protocols = [port.mesh_protocol for port in spec.ports]
    udp = [index for index, protocol in enumerate(protocols) if protocol is Protocol.UDP]
    alone = len(udp) == len(protocols)
    for index in udp:
        path: Path = ("spec", "ports", index)
        if alone:
            message = "UDP is passed by: it goes where the name leads without the mesh"
            yield Finding(path, message, "udp-port", "info")
        else:
            message = (
                "UDP is passed by, and nobody answers it at this name's virtual address, which its other ports need: "
                "give UDP a name of its own, or send it to a workload's own address"
            )
            yield Finding(path, message, "udp-port")


def _check_headless(spec: ServiceSpec) -> Iterator[Finding]:
    """Warn of a Service without an address of its own: hosts give it one all the same."""
    if "None" in {spec.cluster_ip, *spec.cluster_ips}:
        message = (
            "clusterIP None: on hosts the name has a virtual address all the same, and calls are spread over the "
            "workloads; a program that means one of them calls that one's own address"
        )
        yield Finding(("spec", "clusterIP"), message, "headless")


def _check_names(item: ApiObject, world: World) -> Iterator[Finding]:
    for index, name in enumerate(service_names(item, world.domain)):
        others = [other for other in world.others_at(Relation.SERVICE, name, item) if _meet(exported_to(item), other)]
        if others:
            path: Path = ("spec", "hosts", index) if isinstance(item.spec, ServiceEntrySpec) else ("metadata", "name")
            yield Finding(path, f"{others[0].key} defines {name!r} too; the older one wins", "duplicate-host")


def _meet(scopes: frozenset[str], other: ApiObject) -> bool:
    theirs = exported_to(other)
    return "*" in scopes or "*" in theirs or bool(scopes & theirs)


def _check_identities(item: ApiObject, world: World) -> Iterator[Finding]:
    for index, spec in enumerate(inline_workloads(item)):
        yield from check_identity(item, spec, world, ("spec", "endpoints", index))
    seen: set[str] = set()
    for workload in _members(item, world):
        # A port that this service is the first to ask for can bring two identities together, or two protocols.
        for finding in (*check_identity(workload, _workload(workload), world), *check_agreement(workload, world)):
            if finding.code not in seen:
                seen.add(finding.code)
                path: Path = ("spec",) if finding.severity == "error" else ("spec", _selector_field(item))
                message = f"with this service, {workload.key} does not fit: {finding.message}"
                yield finding._replace(path=path, message=message)


def _selector_field(item: ApiObject) -> str:
    return "selector" if isinstance(item.spec, ServiceSpec) else "workloadSelector"


def _workload(item: ApiObject) -> WorkloadEntrySpec:
    assert isinstance(item.spec, WorkloadEntrySpec)
    return item.spec


def _members(item: ApiObject, world: World) -> list[ApiObject]:
    found = world.selected(selector_of(item), item.key.namespace)
    return sorted((each for each in found if isinstance(each.spec, WorkloadEntrySpec)), key=lambda each: each.key)


def _check_target_ports(item: ApiObject, world: World) -> Iterator[Finding]:
    specs = [_workload(each) for each in _members(item, world)]
    field = "targetPort"
    for index, port in enumerate(workload_ports(item)):
        if specs and all(port.on(spec) is None for spec in specs):
            message = f"no workload of this service has a port called {port.names[-1]!r}"
            yield Finding(("spec", "ports", index, field), message, "unknown-port")


def _check_reserved(item: ApiObject) -> Iterator[Finding]:
    field = "port" if isinstance(item.spec, ServiceSpec) else "number"
    for index, number in enumerate(port_numbers(item)):
        whose = NEVER_CAPTURED.get(number)
        if whose:
            message = (
                f"port {number} is kept free for {whose}: connections to this service's virtual address on it are "
                "never captured and lead nowhere. Choose another number; targetPort may stay"
            )
            yield Finding(("spec", "ports", index, field), message, "reserved-port")


def _check_addresses(item: ApiObject, world: World) -> Iterator[Finding]:
    mine = set(port_numbers(item))
    for address, path in service_addresses(item):
        for other in world.others_at(Relation.SERVICE_ADDRESS, address, item):
            both = sorted(mine.intersection(port_numbers(other)))
            if both and _meet(exported_to(item), other):
                message = (
                    f"{other.key} is called at {address} on port {both[0]} too; connections go to the older one. Give "
                    "one of them another address or port"
                )
                yield Finding(path, message, "conflicting-address")


def _check_port_names(spec: ServiceSpec) -> Iterator[Finding]:
    for index, port in enumerate(spec.ports):
        if port.mesh_protocol is not Protocol.UNSUPPORTED:
            continue
        if port.app_protocol is not None:
            path: Path = ("spec", "ports", index, "appProtocol")
            what = f"appProtocol {port.app_protocol!r} is not one the mesh knows"
        else:
            path = ("spec", "ports", index, "name") if port.name else ("spec", "ports", index)
            what = f"port name {port.name!r} (port: {port.port}) does not follow the convention PROTOCOL[-SUFFIX]"
        message = (
            f"{what}: its protocol is detected per connection. Name it http-…, grpc-…, tcp-… to say what it speaks"
        )
        yield Finding(path, message, "port-name", "info", "IST0118")


def _check_protocols(item: ApiObject, spec: ServiceEntrySpec, world: World) -> Iterator[Finding]:
    for index, port in enumerate(spec.ports):
        for host in dict.fromkeys(each.lower() for each in spec.hosts):
            for other in world.others_at(Relation.SERVICE, host, item):
                if not isinstance(other.spec, ServiceEntrySpec) or not _meet(exported_to(item), other):
                    continue
                theirs = {each.protocol.upper() for each in other.spec.ports if each.number == port.number}
                if theirs - {port.protocol.upper()}:
                    message = (
                        f"{other.key} declares port {port.number} of {host!r} as {min(theirs) or 'nothing'}, this one "
                        f"as {port.protocol.upper() or 'nothing'}; which one holds depends on their age. Use one "
                        "protocol"
                    )
                    path = ("spec", "ports", index, "protocol")
                    yield Finding(path, message, "conflicting-protocol", istio_code="IST0177")


def _check_virtual_addresses(spec: ServiceEntrySpec) -> Iterator[Finding]:
    """Yield raw TCP ports without addresses, which Istio asks for wherever a proxy has no automatic ones.

    Here every name without a wildcard has a virtual address.
    """
    wild = any(host.startswith("*") for host in spec.hosts)
    for index, port in enumerate(() if spec.addresses else spec.ports):
        if port.protocol.upper() not in {"", "TCP"}:
            continue
        path: Path = ("spec", "ports", index)
        if wild:
            message = (
                f"port {port.number} is raw TCP and a wildcard host has no virtual address: which service is meant "
                "cannot be told. Set addresses, or a protocol such as TLS or HTTP"
            )
            yield Finding(path, message, "addresses-required", istio_code="IST0134")
        else:
            message = (
                f"port {port.number} is raw TCP and addresses are not set: it is called at the virtual address that "
                "the mesh's names lead to, and connections to other addresses are not recognized"
            )
            yield Finding(path, message, "addresses-required", "info", "IST0134")
