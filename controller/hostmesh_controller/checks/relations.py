"""What each object says about itself and others, in one form whatever its kind."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from hostmesh_api.wire import ADMIN_PORT, AGENTS_PORT, JOIN_PORT
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.exports import annotated, export_to
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.protocols import Protocol
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.virtual_service import Delegate, Destination, VirtualServiceSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, Workload, WorkloadEntrySpec, WorkloadGroupSpec
from hostmesh_controller.names import canonical_address, expand, service_hostname

NEVER_CAPTURED: Final = {
    22: "SSH",
    AGENTS_PORT: "the controller",
    JOIN_PORT: "the controller",
    ADMIN_PORT: "the controller",
}
"""Ports that no host ever captures, so that nothing of ours can cut the way to it, and whose they are."""


class Address(NamedTuple):
    """An address of an object, in its canonical spelling, and where the object says it."""

    text: str
    path: Path


class Reference(NamedTuple):
    """A destination of a VirtualService, and where it says so."""

    path: Path
    destination: Destination


def full(host: str, item: ApiObject, domain: str) -> str:
    """Return the full name of a host as `item` writes it; an IP address in its canonical spelling."""
    return canonical_address(host) or expand(host, item.key.namespace, domain)


def service_names(item: ApiObject, domain: str) -> tuple[str, ...]:
    """Return the host names that a Service or ServiceEntry defines; nothing for other kinds."""
    if isinstance(item.spec, ServiceEntrySpec):
        return tuple(dict.fromkeys(host.lower() for host in item.spec.hosts))
    if isinstance(item.spec, ServiceSpec):
        return (service_hostname(item.key.name, item.key.namespace, domain),)
    return ()


def service_addresses(item: ApiObject) -> list[Address]:
    """Return the single addresses, no blocks, at which a Service or ServiceEntry is called."""
    found: list[tuple[str, Path]] = []
    if isinstance(item.spec, ServiceSpec):
        found.append((item.spec.cluster_ip, ("spec", "clusterIP")))
        found += [(text, ("spec", "clusterIPs", index)) for index, text in enumerate(item.spec.cluster_ips)]
    elif isinstance(item.spec, ServiceEntrySpec):
        found += [(text, ("spec", "addresses", index)) for index, text in enumerate(item.spec.addresses)]
    unique: dict[str, Address] = {}
    for text, path in found:
        address = canonical_address(text)
        if address is not None:
            unique.setdefault(address, Address(address, path))
    return list(unique.values())


def destinations(spec: VirtualServiceSpec) -> Iterator[Reference]:
    """Yield where a VirtualService sends its traffic, and copies of it, in the order in which it says so."""
    for index, http in enumerate(spec.http):
        path: Path = ("spec", "http", index)
        for place, route in enumerate(http.route):
            yield Reference((*path, "route", place, "destination"), route.destination)
        if http.mirror is not None:
            yield Reference((*path, "mirror"), http.mirror)
        for place, mirror in enumerate(http.mirrors):
            yield Reference((*path, "mirrors", place, "destination"), mirror.destination)
    for protocol, rules in (("tls", spec.tls), ("tcp", spec.tcp)):
        for index, rule in enumerate(rules):
            for place, target in enumerate(rule.route):
                yield Reference(("spec", protocol, index, "route", place, "destination"), target.destination)


def delegate_name(item: ApiObject, delegate: Delegate) -> str:
    """Return NAMESPACE/NAME of the VirtualService that has the routes of another one's rule."""
    return f"{delegate.namespace or item.key.namespace}/{delegate.name}"


def credentials_of(spec: GatewaySpec) -> Iterator[tuple[Path, str]]:
    """Yield the Secrets that a Gateway names, with the paths at which it does."""
    for index, server in enumerate(spec.servers):
        tls, path = server.tls, ("spec", "servers", index, "tls")
        if tls is None:
            continue
        names: list[tuple[Path, str]] = [((*path, "credentialName"), tls.credential_name or "")]
        for place, name in enumerate(tls.credential_names or ()):
            names.append(((*path, "credentialNames", place), name))
        names.append(((*path, "caCertCredentialName"), tls.ca_cert_credential_name))
        # A name with a scheme, as in sds://, is of something else than a Secret.
        yield from ((at, name) for at, name in names if name and "://" not in name)


def selector_of(item: ApiObject) -> Mapping[str, str]:
    """Return the labels that a Service or ServiceEntry selects by; nothing if it does not select."""
    if isinstance(item.spec, ServiceSpec):
        return item.spec.selector
    if isinstance(item.spec, ServiceEntrySpec) and item.spec.workload_selector is not None:
        return item.spec.workload_selector.labels
    return {}


def label_texts(labels: Mapping[str, str]) -> list[str]:
    """Return labels as `key=value`, sorted."""
    return sorted(f"{key}={value}" for key, value in labels.items())


def selector_text(labels: Mapping[str, str]) -> str:
    """Return a selector as kubectl writes it: key=value,key=value."""
    return ",".join(label_texts(labels))


def inline_workloads(item: ApiObject) -> tuple[WorkloadEntrySpec, ...]:
    """Return the workloads of the mesh that a ServiceEntry lists; none for other kinds, and none that are outside."""
    spec = item.spec
    if not isinstance(spec, ServiceEntrySpec) or (spec.location, spec.resolution) != ("MESH_INTERNAL", "STATIC"):
        return ()
    return spec.endpoints


def address_of(workload: Workload) -> str:
    """Return a workload's address in its canonical spelling; as it is written where it is no address."""
    return canonical_address(workload.address or "") or workload.address or ""


def labels_of(workload: ApiObject) -> dict[str, str]:
    """Return the labels that selectors see: those of the metadata, and over them those of the spec.

    A WorkloadGroup has those that its members will have.
    """
    if isinstance(workload.spec, WorkloadGroupSpec):
        return dict(workload.spec.metadata.labels) | dict(workload.spec.template.labels)
    assert isinstance(workload.spec, WorkloadEntrySpec)
    return dict(workload.metadata.labels) | dict(workload.spec.labels)


def addresses_of(item: ApiObject) -> list[Address]:
    """Return the addresses of a Host, in its order; nothing for other kinds."""
    if not isinstance(item.spec, HostSpec):
        return []
    return [
        Address(canonical_address(text) or text, ("spec", "addresses", index))
        for index, text in enumerate(item.spec.addresses)
    ]


class CalledPort(NamedTuple):
    """A port of a service: the number under which it is called, and what it speaks."""

    called: int
    mesh_protocol: Protocol


def service_ports(service: ApiObject) -> list[CalledPort]:
    """Return the ports of a Service or ServiceEntry; nothing for other kinds."""
    if isinstance(service.spec, ServiceSpec):
        return [CalledPort(port.port, port.mesh_protocol) for port in service.spec.ports]
    if isinstance(service.spec, ServiceEntrySpec):
        return [CalledPort(port.number, port.mesh_protocol) for port in service.spec.ports]
    return []


class WorkloadPort(NamedTuple):
    """How a service finds its port on a workload: by the first of the names that the workload maps, or the number."""

    names: tuple[str, ...]
    number: int | None

    def on(self, workload: WorkloadEntrySpec) -> int | None:
        """Return the number on a workload; None if a name is wanted that it does not map."""
        return next((workload.ports[name] for name in self.names if name in workload.ports), self.number)


def workload_ports(service: ApiObject) -> Iterable[WorkloadPort]:
    """Yield how a Service or ServiceEntry finds each of its ports on a workload."""
    if isinstance(service.spec, ServiceSpec):
        for port in service.spec.ports:
            if isinstance(port.target_port, str):
                yield WorkloadPort((port.name, port.target_port), None)
            else:
                yield WorkloadPort((port.name,), port.target_port or port.port)
    elif isinstance(service.spec, ServiceEntrySpec):
        for entry_port in service.spec.ports:
            yield WorkloadPort((entry_port.name,), entry_port.target_port or entry_port.number)


def port_numbers(service: ApiObject) -> list[int]:
    """Return the port numbers under which a Service or ServiceEntry is called."""
    return [port.called for port in service_ports(service)]


def exported_to(item: ApiObject) -> frozenset[str]:
    """Return the namespaces that may see an object, "*" among them where all may."""
    match item.spec:
        case ServiceSpec():
            values = annotated(item.metadata.annotations)
        case ServiceEntrySpec() | VirtualServiceSpec() | DestinationRuleSpec():
            values = item.spec.export_to
        case _:
            values = ()
    return export_to(values, item.key.namespace)
