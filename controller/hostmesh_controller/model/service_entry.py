"""ServiceEntry: a service by name, outside the mesh or on hosts."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.domains import WILDCARD, check_subnet, check_wildcard_domain, is_ip
from hostmesh_controller.model.exports import ServiceExportTo
from hostmesh_controller.model.protocols import KNOWN_PROTOCOLS, Protocol, entry_protocol, tells_hosts_apart
from hostmesh_controller.model.schema import (
    LabelKey,
    LabelValue,
    MeshPort,
    PortName,
    Spec,
    as_fault,
    check_ip,
    fault,
)
from hostmesh_controller.model.workload_entry import WorkloadEntrySpec

_DYNAMIC_PROTOCOLS: Final = ("HTTP", "HTTP2", "GRPC", "TLS")


def _entry_address(value: str) -> str:
    with as_fault("address"):
        return check_subnet(value) if "/" in value else check_ip(value)


def _entry_host(value: str) -> str:
    with as_fault("host-name"):
        if value == WILDCARD:
            raise ValueError("'*' would stand for every host; name one, or a wildcard such as '*.example.com'")
        return check_wildcard_domain(value)


def _known_protocol(value: str) -> str:
    if value and value.upper() not in KNOWN_PROTOCOLS:
        raise fault("protocol", f"{value!r} is not a known protocol: {', '.join(KNOWN_PROTOCOLS)}")
    return value


ServiceAddress = Annotated[str, Field(max_length=64), AfterValidator(_entry_address)]


class EntryPort(Spec):
    """A port of a ServiceEntry. `target_port` None means the same number on the endpoints."""

    number: MeshPort
    name: PortName
    protocol: Annotated[str, AfterValidator(_known_protocol)] = ""
    target_port: MeshPort | None = None

    @property
    def mesh_protocol(self) -> Protocol:
        """What the port speaks."""
        return entry_protocol(self.protocol, self.name)


class WorkloadSelector(Spec):
    """Labels that a WorkloadEntry of the same namespace must have, all of them."""

    labels: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=256)] = Field(default_factory=dict)


class ServiceEntrySpec(Spec):
    """A service by name that is not a Kubernetes Service: outside the mesh, or on hosts chosen by labels."""

    hosts: Annotated[tuple[Annotated[str, AfterValidator(_entry_host)], ...], Field(min_length=1, max_length=256)]
    addresses: Annotated[tuple[ServiceAddress, ...], Field(max_length=256)] = ()
    ports: Annotated[tuple[EntryPort, ...], Field(max_length=256)] = ()
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] = "NONE"
    endpoints: Annotated[tuple[WorkloadEntrySpec, ...], Field(max_length=4096)] = ()
    workload_selector: WorkloadSelector | None = None
    export_to: ServiceExportTo = ()
    subject_alt_names: tuple[str, ...] = ()

    @property
    def by_name(self) -> bool:
        """Whether endpoints are looked up in DNS."""
        return self.resolution in {"DNS", "DNS_ROUND_ROBIN"}

    @model_validator(mode="after")
    def _parts_fit(self) -> "ServiceEntrySpec":
        if self.workload_selector is not None and self.endpoints:
            raise fault("one-of", "only one of workloadSelector and endpoints may be set", "endpoints")
        if self.resolution == "NONE" and self.endpoints:
            raise fault("endpoints", "resolution NONE cannot have endpoints; set resolution: STATIC", "endpoints")
        if self.resolution == "DNS_ROUND_ROBIN" and len(self.endpoints) > 1:
            raise fault("endpoints", "resolution DNS_ROUND_ROBIN can have one endpoint at most", "endpoints", 1)
        return self

    @model_validator(mode="after")
    def _hosts_fit(self) -> "ServiceEntrySpec":
        for index, host in enumerate(self.hosts):
            if host in self.hosts[:index]:
                raise fault("duplicate-host", f"host {host!r} is there twice", "hosts", index)
            if host.startswith(WILDCARD) and self.by_name and not self.endpoints:
                raise fault("host-name", "a wildcard cannot be looked up in DNS; give endpoints", "hosts", index)
        return self

    @model_validator(mode="after")
    def _addresses_fit(self) -> "ServiceEntrySpec":
        for index, address in enumerate(self.addresses):
            if "/" in address and self.resolution not in {"NONE", "STATIC"}:
                raise fault("address", "CIDR blocks need resolution NONE or STATIC", "addresses", index)
        return self

    @model_validator(mode="after")
    def _endpoints_fit(self) -> "ServiceEntrySpec":
        names = {port.name for port in self.ports}
        for index, endpoint in enumerate(self.endpoints):
            wrong = self._address_fault(endpoint)
            if wrong:
                raise fault("address", wrong, "endpoints", index, "address")
            for name in endpoint.ports:
                if name not in names:
                    message = f"the ServiceEntry has no port named {name!r}"
                    raise fault("unknown-port", message, "endpoints", index, "ports", name)
        return self

    def _address_fault(self, endpoint: WorkloadEntrySpec) -> str | None:
        address = endpoint.address or ""
        if self.resolution == "STATIC":
            if endpoint.is_unix and len(self.ports) != 1:
                return f"a Unix socket serves one port; the ServiceEntry has {len(self.ports)}"
            if address and not endpoint.is_unix and not is_ip(address):
                return "resolution STATIC needs an IP address"
        if self.by_name and (endpoint.is_unix or not address):
            return f"resolution {self.resolution} needs a host name or an IP address"
        return None

    @model_validator(mode="after")
    def _ports_are_told_apart(self) -> "ServiceEntrySpec":
        for field in ("number", "name"):
            seen: set[object] = set()
            for index, port in enumerate(self.ports):
                value = getattr(port, field)
                if value in seen:
                    raise fault("duplicate-port", f"port {field} {value!r} is there twice", "ports", index, field)
                seen.add(value)
        return self

    @model_validator(mode="after")
    def _hosts_are_told_apart(self) -> "ServiceEntrySpec":
        if self.resolution == "NONE" or len(self.hosts) == 1:
            return self
        for index, port in enumerate(self.ports):
            if not tells_hosts_apart(port.protocol):
                what = port.protocol or "without a protocol"
                message = (
                    f"several hosts on a port {what}: only HTTP and TLS tell them apart; make one ServiceEntry each"
                )
                raise fault("protocol", message, "ports", index)
        return self

    @model_validator(mode="after")
    def _names_that_callers_choose(self) -> "ServiceEntrySpec":
        if self.resolution != "DYNAMIC_DNS":
            return self
        for wrong, at, index in self._dynamic_faults():
            raise fault("resolution", f"resolution DYNAMIC_DNS {wrong}", at, *index)
        return self

    def _dynamic_faults(self) -> Iterator[tuple[str, str, tuple[int | str, ...]]]:
        for index, host in enumerate(self.hosts):
            if not host.startswith(WILDCARD):
                yield "needs wildcards such as '*.example.com'; for one name use resolution: DNS", "hosts", (index,)
        for field in ("addresses", "endpoints"):
            if getattr(self, field):
                yield f"looks up the name that is called; remove {field}", field, ()
        for index, port in enumerate(self.ports):
            if port.protocol.upper() not in _DYNAMIC_PROTOCOLS:
                allowed = ", ".join(_DYNAMIC_PROTOCOLS)
                yield f"needs the name in each call: protocol is one of {allowed}", "ports", (index, "protocol")
