"""What serves: ServiceEntry, WorkloadEntry, WorkloadGroup."""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.protocols import KNOWN_PROTOCOLS, Protocol, entry_protocol
from hostmesh_controller.model.schema import (
    Count,
    ExportTo,
    LabelKey,
    LabelValue,
    MeshPort,
    OptionalSubdomain,
    Port,
    PortName,
    Spec,
    Unsigned,
    as_fault,
    at_most_one,
    check_host,
    check_ip,
    fault,
)


def _endpoint_address(value: str) -> str:
    with as_fault("address"):
        if value.startswith("unix://"):
            raise ValueError("unix domain sockets are not supported yet; give an IP address")
        if ":" in value or value.replace(".", "").isdigit():
            return check_ip(value)
        return check_host(value)


def _entry_address(value: str) -> str:
    with as_fault("address"):
        try:
            network = ip_network(value)
        except ValueError:
            raise ValueError(f"{value!r} is not an IP address or a CIDR block") from None
        return check_ip(value) if network.num_addresses == 1 and "/" not in value else value


def _entry_host(value: str) -> str:
    with as_fault("host-name"):
        if value == "*":
            raise ValueError("'*' would stand for every host; name one, or a wildcard such as '*.example.com'")
        return check_host(value)


def _known_protocol(value: str) -> str:
    if value and value.upper() not in KNOWN_PROTOCOLS:
        raise fault("protocol", f"{value!r} is not a known protocol: {', '.join(KNOWN_PROTOCOLS)}")
    return value


EndpointAddress = Annotated[str, Field(max_length=256), AfterValidator(_endpoint_address)]
ServiceAddress = Annotated[str, Field(max_length=64), AfterValidator(_entry_address)]


class Workload(Spec):
    """Where a workload is: what WorkloadEntry, an endpoint of a ServiceEntry and a WorkloadGroup's template share.

    `ports` maps port names of the service to numbers on the workload. `weight` None counts as 1,
    `service_account` "" as "default".
    """

    address: EndpointAddress | None = None
    ports: Annotated[Mapping[PortName, MeshPort], Field(max_length=128)] = Field(default_factory=dict)
    labels: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=256)] = Field(default_factory=dict)
    network: Annotated[str, Field(max_length=2048)] | None = None
    locality: Annotated[str, Field(max_length=2048)] | None = None
    weight: Unsigned | None = None
    service_account: OptionalSubdomain = ""


class WorkloadEntrySpec(Workload):
    """One running instance of a service, on one host."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> "WorkloadEntrySpec":
        if not self.address and not self.network:
            raise fault("missing", "an address is needed", "address")
        return self


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
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN"] = "NONE"
    endpoints: Annotated[tuple[WorkloadEntrySpec, ...], Field(max_length=4096)] = ()
    workload_selector: WorkloadSelector | None = None
    export_to: tuple[ExportTo, ...] = ()
    subject_alt_names: tuple[str, ...] = ()

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
            if host.startswith("*") and self.resolution.startswith("DNS") and not self.endpoints:
                raise fault("host-name", "a wildcard cannot be looked up in DNS; give endpoints", "hosts", index)
        return self

    @model_validator(mode="after")
    def _addresses_fit(self) -> "ServiceEntrySpec":
        for index, address in enumerate(self.addresses):
            if "/" in address and self.resolution not in {"NONE", "STATIC"}:
                raise fault("address", "CIDR blocks need resolution NONE or STATIC", "addresses", index)
        for index, endpoint in enumerate(self.endpoints):
            if self.resolution == "STATIC" and endpoint.address and not _is_ip(endpoint.address):
                raise fault("address", "resolution STATIC needs an IP address", "endpoints", index, "address")
        return self

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


def _is_ip(value: str) -> bool:
    try:
        check_ip(value)
    except ValueError:
        return False
    return True


class GroupMetadata(Spec):
    """Labels and annotations that every workload of a group gets."""

    labels: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=256)] = Field(default_factory=dict)
    annotations: Annotated[Mapping[LabelKey, str], Field(max_length=256)] = Field(default_factory=dict)


class ProbeHeader(Spec):
    """A header sent with an HTTP probe."""

    name: Annotated[str, Field(pattern=r"^[-_A-Za-z0-9]+$")]
    value: str = ""


class HttpProbe(Spec):
    """GET a path; 200 to 399 is healthy."""

    host: str | None = None
    port: Port
    path: str = "/"
    scheme: Literal["", "HTTP", "HTTPS"] = ""
    http_headers: tuple[ProbeHeader, ...] = ()


class TcpProbe(Spec):
    """Open a connection; an open one is healthy."""

    host: str | None = None
    port: Port


class ExecProbe(Spec):
    """Run a command; exit code 0 is healthy."""

    command: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class GrpcProbe(Spec):
    """Ask gRPC's health service."""

    port: Port
    service: str = ""


class Probe(Spec):
    """How the agent tells whether a workload is healthy: one of four ways, and when. None is Kubernetes' default."""

    http_get: HttpProbe | None = None
    tcp_socket: TcpProbe | None = None
    exec: ExecProbe | None = None
    grpc: GrpcProbe | None = None
    initial_delay_seconds: Count | None = None
    timeout_seconds: Count | None = None
    period_seconds: Count | None = None
    success_threshold: Count | None = None
    failure_threshold: Count | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Probe":
        at_most_one(self, "http_get", "tcp_socket", "exec", "grpc")
        return self


class WorkloadGroupSpec(Spec):
    """What the workloads of one kind have in common."""

    metadata: GroupMetadata = GroupMetadata()
    template: Workload
    probe: Probe | None = None
