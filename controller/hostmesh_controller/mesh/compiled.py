"""From configuration objects to the mesh's records: one pure function per kind."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from hostmesh_controller.mesh.records import (
    Host,
    NamedEndpoint,
    Order,
    Resolution,
    Service,
    ServiceId,
    ServicePort,
    Settings,
    Workload,
    WorkloadKey,
)
from hostmesh_controller.model.adoption import endpoint_ports
from hostmesh_controller.model.exports import annotated, export_to
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.protocols import Protocol
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.workloads import GROUP_ANNOTATION, ServiceEntrySpec, WorkloadEntrySpec
from hostmesh_controller.model.workloads import Workload as WorkloadSpec
from hostmesh_controller.names import canonical_address, canonical_prefix, is_single, service_hostname, virtual_address
from hostmesh_controller.workload_annotations import by_cores, by_load, probes

EVERYWHERE: Final = frozenset({"*"})
DEFAULT_SERVICE_ACCOUNT: Final = "default"


def order_of(item: ApiObject) -> Order:
    created = item.metadata.creation_timestamp
    return Order(created.timestamp() if created else 0.0, item.key.namespace, item.key.name)


def age_of(item: ApiObject) -> tuple[float, str, str]:
    """Return by what rules are told apart by age: as in Istio, of two of one second by name, then by namespace."""
    order = order_of(item)
    return order.created, order.name, order.namespace


def compile_host(item: ApiObject) -> Host:
    spec = item.spec
    assert isinstance(spec, HostSpec)
    addresses = (canonical_address(address) for address in spec.addresses)
    return Host(
        name=item.key.name,
        addresses=tuple(address for address in addresses if address is not None),
        namespace=spec.namespace,
        outbound_identity=spec.outbound_identity,
        capture_all=spec.capture.scope == "all" if "scope" in spec.capture.model_fields_set else None,
        labels=dict(item.metadata.labels),
        locality=spec.locality,
        per_workload_identity=spec.per_workload_identity,
    )


def service_hostnames(item: ApiObject, domain: str) -> tuple[str, ...]:
    """Return the host names that a Service or ServiceEntry defines; nothing for other kinds."""
    if isinstance(item.spec, ServiceSpec):
        return (service_hostname(item.key.name, item.key.namespace, domain),)
    if isinstance(item.spec, ServiceEntrySpec):
        return tuple(dict.fromkeys(host.lower() for host in item.spec.hosts))
    return ()


def virtual_hostnames(item: ApiObject, domain: str) -> tuple[str, ...]:
    """Return the host names for which the object needs a virtual address.

    Wildcards cannot have one, and where callers dial the endpoints themselves nobody would be behind it. Nor would
    anybody behind the one of a name that is only for UDP, which passes the mesh by: it is looked up as it was before.
    """
    spec = item.spec
    if isinstance(spec, ServiceEntrySpec) and not _has_virtual_addresses(Resolution(spec.resolution)):
        return ()
    if isinstance(spec, ServiceSpec | ServiceEntrySpec) and _is_for_udp(spec):
        return ()
    return tuple(host for host in service_hostnames(item, domain) if not host.startswith("*"))


def _is_for_udp(spec: ServiceSpec | ServiceEntrySpec) -> bool:
    return bool(spec.ports) and all(port.mesh_protocol is Protocol.UDP for port in spec.ports)


def _has_virtual_addresses(resolution: Resolution) -> bool:
    return resolution not in {Resolution.NONE, Resolution.DYNAMIC_DNS}


def compile_services(
    item: ApiObject, settings: Settings, vips: Mapping[str, int], exports: tuple[str, ...] = ("*",)
) -> tuple[Service, ...]:
    """Return the services that an object defines: one, or one per host of a ServiceEntry.

    `exports` is whom those are shown to that do not say.
    """
    if isinstance(item.spec, ServiceSpec):
        return (_service(item, item.spec, settings, vips, exports),)
    if isinstance(item.spec, ServiceEntrySpec):
        hosts = service_hostnames(item, settings.domain)
        return tuple(_service_entry(item, item.spec, host, settings, vips, exports) for host in hosts)
    return ()


def _service(
    item: ApiObject, spec: ServiceSpec, settings: Settings, vips: Mapping[str, int], exports: tuple[str, ...]
) -> Service:
    hostname = service_hostname(item.key.name, item.key.namespace, settings.domain)
    return Service(
        id=ServiceId(hostname, item.key),
        order=order_of(item),
        ports=tuple(
            ServicePort(port.port, port.name, port.mesh_protocol, port.target_port)
            for port in spec.ports
            if port.mesh_protocol is not Protocol.UDP
        ),
        addresses=_prefixes((spec.cluster_ip, *spec.cluster_ips)),
        vip4=_virtual(settings.vip4, vips.get(hostname)),
        vip6=_virtual(settings.vip6, vips.get(hostname)),
        resolution=Resolution.STATIC,
        external=False,
        selector=dict(spec.selector) or None,
        named_endpoints=(),
        export_to=export_to(annotated(item.metadata.annotations) or exports, item.key.namespace),
        short=True,
    )


def _service_entry(
    item: ApiObject,
    spec: ServiceEntrySpec,
    hostname: str,
    settings: Settings,
    vips: Mapping[str, int],
    exports: tuple[str, ...],
) -> Service:
    resolution = Resolution(spec.resolution)
    by_name = resolution in {Resolution.DNS, Resolution.DNS_ROUND_ROBIN}
    index = vips.get(hostname) if _has_virtual_addresses(resolution) else None
    return Service(
        id=ServiceId(hostname, item.key),
        order=order_of(item),
        ports=tuple(
            ServicePort(port.number, port.name, port.mesh_protocol, port.target_port)
            for port in spec.ports
            if port.mesh_protocol is not Protocol.UDP
        ),
        addresses=_prefixes(spec.addresses),
        vip4=_virtual(settings.vip4, index),
        vip6=_virtual(settings.vip6, index),
        resolution=resolution,
        external=spec.location == "MESH_EXTERNAL",
        selector=dict(spec.workload_selector.labels) if spec.workload_selector else None,
        named_endpoints=_named_endpoints(spec, hostname) if by_name else (),
        export_to=export_to(spec.export_to or exports, item.key.namespace),
        subject_alt_names=spec.subject_alt_names,
    )


def _named_endpoints(spec: ServiceEntrySpec, hostname: str) -> tuple[NamedEndpoint, ...]:
    # Without endpoints and selector the host itself is what is looked up.
    if not spec.endpoints and spec.workload_selector is None and not hostname.startswith("*"):
        return (NamedEndpoint(hostname, {}, {}, 1),)
    return tuple(
        NamedEndpoint(entry.address, dict(entry.ports), dict(entry.labels), _weight(entry), entry.locality or "")
        for entry in spec.endpoints
        if entry.address
    )


def compile_workload(item: ApiObject) -> Workload | None:
    """Return the workload of a WorkloadEntry, not yet placed on a host, or None if it has no address."""
    spec = item.spec
    assert isinstance(spec, WorkloadEntrySpec)
    made = _workload(WorkloadKey(item.key.namespace, item.key.name), spec, dict(item.metadata.labels))
    annotations = item.metadata.annotations
    if made is None or not annotations:
        return made
    group = annotations.get(GROUP_ANNOTATION)
    return replace(
        made,
        group=ObjectKey("WorkloadGroup", item.key.namespace, group) if group else None,
        by_cores=not spec.weight and by_cores(annotations),
        by_load=not spec.weight and by_load(annotations),
        probes=probes(annotations),
    )


def compile_inline_workloads(item: ApiObject) -> tuple[Workload, ...]:
    """Return the endpoints written inside a ServiceEntry that is resolved statically, not yet placed on hosts."""
    spec = item.spec
    if not isinstance(spec, ServiceEntrySpec) or spec.resolution != "STATIC":
        return ()
    result: dict[WorkloadKey, Workload] = {}
    for entry in spec.endpoints:
        name = f"{item.key.name}@{canonical_address(entry.address or '') or entry.address}"
        key = WorkloadKey(item.key.namespace, name)
        count = 1
        while key in result:
            count += 1
            key = WorkloadKey(item.key.namespace, f"{name}#{count}")
        workload = _workload(key, entry, {}, item)
        if workload is not None:
            adopting = None if entry.service_account else endpoint_ports(spec, entry)
            result[key] = replace(workload, adopting=adopting)
    return tuple(result.values())


def _workload(
    key: WorkloadKey, spec: WorkloadSpec, labels: dict[str, str], owner: ApiObject | None = None
) -> Workload | None:
    if not spec.address:
        return None
    # A name is for services that look their endpoints up; a Unix socket is the caller's own.
    address = canonical_address(spec.address) or spec.address
    return Workload(
        key=key,
        address=address,
        ports=dict(spec.ports),
        labels=labels | dict(spec.labels),
        service_account=spec.service_account or DEFAULT_SERVICE_ACCOUNT,
        weight=_weight(spec),
        locality=spec.locality or "",
        host=None,
        owner=owner.key if owner else None,
    )


def _weight(spec: WorkloadSpec) -> int:
    # Envoy has no weight 0; Istio takes it as "not set".
    return spec.weight or 1


def _prefixes(addresses: tuple[str, ...]) -> tuple[str, ...]:
    prefixes = (canonical_prefix(address) for address in addresses)
    unique = {prefix for prefix in prefixes if prefix is not None}
    return tuple(sorted(unique, key=lambda prefix: (ip_network(prefix).version, ip_network(prefix))))


def _virtual(network: IPv4Network | IPv6Network, index: int | None) -> str | None:
    return None if index is None else virtual_address(network, index)


def single_addresses(service: Service) -> tuple[str, ...]:
    """Return every single address under which the service is called: explicit ones, then the virtual ones."""
    explicit = tuple(prefix.partition("/")[0] for prefix in service.addresses if is_single(prefix))
    return (*explicit, *(vip for vip in (service.vip4, service.vip6) if vip is not None))


def blocks(service: Service) -> tuple[str, ...]:
    """Return the explicit address blocks of more than one address."""
    return tuple(prefix for prefix in service.addresses if not is_single(prefix))
