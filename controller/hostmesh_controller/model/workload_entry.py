"""Where a workload is: WorkloadEntry, and what endpoints of ServiceEntries and WorkloadGroups share with it."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.domains import check_domain, is_ip
from hostmesh_controller.model.paths import check_plain_path
from hostmesh_controller.model.schema import (
    LabelKey,
    LabelValue,
    MeshPort,
    OptionalSubdomain,
    PortName,
    Spec,
    Unsigned,
    as_fault,
    check_ip,
    fault,
)

UNIX: Final = "unix://"
"""How the address of a Unix socket begins: a path, or '@' and the name of an abstract one, follows."""


def _endpoint_address(value: str) -> str:
    with as_fault("address"):
        if value.startswith(UNIX):
            return _unix_address(value)
        if is_ip(value) or value.replace(".", "").isdigit():
            return check_ip(value)
        try:
            return value and check_domain(value)
        except ValueError:
            raise ValueError(f"{value!r} is neither an IP address nor a host name (a port goes under ports)") from None


def _unix_address(value: str) -> str:
    path = value.removeprefix(UNIX)
    if not path.startswith(("/", "@")):
        raise ValueError(f"{value!r}: the path of a Unix socket is absolute, or '@' and a name: unix:///run/x.sock")
    if path.endswith("/"):
        raise ValueError(f"{value!r} is a directory; name the Unix socket in it")
    check_plain_path(path)
    return value


EndpointAddress = Annotated[str, Field(max_length=256), AfterValidator(_endpoint_address)]


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

    @model_validator(mode="after")
    def _a_unix_socket_has_no_ports(self) -> "Workload":
        if self.is_unix and self.ports:
            raise fault("one-of", "a Unix socket has no ports; remove them", "ports")
        return self

    @property
    def is_unix(self) -> bool:
        """Whether its address is a Unix socket, on the host where the proxy that calls it runs."""
        return (self.address or "").startswith(UNIX)


class WorkloadEntrySpec(Workload):
    """One running instance of a service, on one host."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> "WorkloadEntrySpec":
        if not self.address and not self.network:
            raise fault("missing", "an address is needed", "address")
        return self
