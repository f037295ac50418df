"""All objects as they would be after the change, indexed for the checks."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from hostmesh_controller.model import ApiObject, ObjectKey, Path
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec
from hostmesh_controller.names import canonical_address, expand, service_hostname, wildcards


class Finding(NamedTuple):
    """Something that does not fit: where in the object that was looked at, what, and how bad."""

    path: Path
    message: str
    code: str
    severity: Literal["error", "warning"] = "warning"


class Address(NamedTuple):
    """An address of an object, in its canonical spelling, and where the object says it."""

    owner: ObjectKey
    text: str
    path: Path


class Labelled(NamedTuple):
    """One label in one namespace."""

    namespace: str
    key: str
    value: str


@dataclass(slots=True)
class World:
    """The index. Host names are full and lower case; addresses are canonical."""

    domain: str
    objects: Mapping[ObjectKey, ApiObject]
    services: dict[str, list[ApiObject]] = field(default_factory=lambda: defaultdict(list))
    """Services and ServiceEntries by host name."""
    rules: dict[str, list[ApiObject]] = field(default_factory=lambda: defaultdict(list))
    """DestinationRules by host name."""
    routes: dict[str, list[ApiObject]] = field(default_factory=lambda: defaultdict(list))
    """VirtualServices by host name."""
    hosts: dict[str, list[ApiObject]] = field(default_factory=lambda: defaultdict(list))
    """Hosts by address."""
    workloads: dict[str, list[ApiObject]] = field(default_factory=lambda: defaultdict(list))
    """WorkloadEntries by address."""
    inline: dict[str, list[ApiObject]] = field(default_factory=lambda: defaultdict(list))
    """ServiceEntries that say themselves which workloads of the mesh they have, by the addresses of these."""
    selectors: dict[Labelled, list[ApiObject]] = field(default_factory=lambda: defaultdict(list))
    """Services and ServiceEntries that select workloads, by one of the labels they ask for."""
    labelled: dict[Labelled, list[ApiObject]] = field(default_factory=lambda: defaultdict(list))
    """WorkloadEntries by each of their labels."""

    def add(self, item: ApiObject) -> None:
        """Index one object."""
        match item.spec:
            case ServiceSpec() | ServiceEntrySpec():
                self._add_service(item)
            case DestinationRuleSpec(host=host):
                self.rules[self.full(host, item)].append(item)
            case VirtualServiceSpec(hosts=hosts):
                for host in dict.fromkeys(self.full(host, item) for host in hosts):
                    self.routes[host].append(item)
            case HostSpec():
                for address in dict.fromkeys(address.text for address in addresses_of(item)):
                    self.hosts[address].append(item)
            case WorkloadEntrySpec():
                if item.spec.address:
                    self.workloads[address_of(item.spec)].append(item)
                for label in labels_of(item).items():
                    self.labelled[Labelled(item.key.namespace, *label)].append(item)

    def _add_service(self, item: ApiObject) -> None:
        for name in self.service_names(item):
            self.services[name].append(item)
        for address in dict.fromkeys(map(address_of, inline_workloads(item))):
            self.inline[address].append(item)
        for label in list(selector_of(item).items())[:1]:
            self.selectors[Labelled(item.key.namespace, *label)].append(item)

    def full(self, host: str, item: ApiObject) -> str:
        """Return the full name of a host as `item` writes it."""
        return expand(host, item.key.namespace, self.domain)

    def service_names(self, item: ApiObject) -> list[str]:
        """Return the host names that a Service or ServiceEntry defines."""
        if isinstance(item.spec, ServiceEntrySpec):
            return [host.lower() for host in item.spec.hosts]
        return [service_hostname(item.key.name, item.key.namespace, self.domain)]

    def services_named(self, host: str) -> list[ApiObject]:
        """Return what defines a full host name, by itself or by a wildcard."""
        return next((self.services[name] for name in (host, *wildcards(host)) if name in self.services), [])

    def rules_for(self, host: str) -> Iterator[ApiObject]:
        """Yield the DestinationRules that may hold for a full host name."""
        for name in (host, *wildcards(host)):
            yield from self.rules.get(name, ())

    def selecting(self, workload: ApiObject) -> list[ApiObject]:
        """Return the Services and ServiceEntries that select a WorkloadEntry."""
        labels = labels_of(workload)
        return [
            service
            for label in labels.items()
            for service in self.selectors.get(Labelled(workload.key.namespace, *label), ())
            if selector_of(service).items() <= labels.items()
        ]

    def selected_by(self, service: ApiObject) -> list[WorkloadEntrySpec]:
        """Return the WorkloadEntries that a Service or ServiceEntry selects."""
        selector = selector_of(service)
        if not selector:
            return []
        label = next(iter(selector.items()))
        return [
            workload.spec
            for workload in self.labelled.get(Labelled(service.key.namespace, *label), ())
            if selector.items() <= labels_of(workload).items() and isinstance(workload.spec, WorkloadEntrySpec)
        ]


def make_world(objects: Mapping[ObjectKey, ApiObject], domain: str) -> World:
    """Return the index of a set of objects."""
    world = World(domain, objects)
    for item in objects.values():
        world.add(item)
    return world


def selector_of(item: ApiObject) -> Mapping[str, str]:
    """Return the labels that a Service or ServiceEntry selects by; nothing if it does not select."""
    if isinstance(item.spec, ServiceSpec):
        return item.spec.selector
    if isinstance(item.spec, ServiceEntrySpec) and item.spec.workload_selector is not None:
        return item.spec.workload_selector.labels
    return {}


def inline_workloads(item: ApiObject) -> tuple[WorkloadEntrySpec, ...]:
    """Return the workloads of the mesh that a ServiceEntry lists; none for other kinds, and none that are outside."""
    spec = item.spec
    if not isinstance(spec, ServiceEntrySpec) or (spec.location, spec.resolution) != ("MESH_INTERNAL", "STATIC"):
        return ()
    return spec.endpoints


def address_of(workload: WorkloadEntrySpec) -> str:
    """Return a workload's address in its canonical spelling; as it is written where it is no address."""
    return canonical_address(workload.address or "") or workload.address or ""


def labels_of(workload: ApiObject) -> dict[str, str]:
    """Return the labels that selectors see: those of the metadata, and over them those of the spec."""
    assert isinstance(workload.spec, WorkloadEntrySpec)
    return dict(workload.metadata.labels) | dict(workload.spec.labels)


def addresses_of(item: ApiObject) -> list[Address]:
    """Return the addresses of a Host, in its order; nothing for other kinds."""
    if not isinstance(item.spec, HostSpec):
        return []
    return [
        Address(item.key, canonical_address(text) or text, ("spec", "addresses", index))
        for index, text in enumerate(item.spec.addresses)
    ]


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
    if isinstance(service.spec, ServiceSpec):
        return [port.port for port in service.spec.ports]
    return [port.number for port in service.spec.ports] if isinstance(service.spec, ServiceEntrySpec) else []
