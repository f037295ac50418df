"""How the agent tells whether a workload is ready, as a WorkloadGroup or an annotation of a WorkloadEntry says."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from hostmesh_controller.model.schema import Count, Port, Spec, at_most_one, fault, given


class ProbeHeader(Spec):
    """A header sent with an HTTP probe."""

    name: Annotated[str, Field(pattern=r"^[-A-Za-z0-9]+$")]
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


class SystemdProbe(Spec):
    """Ask systemd: a unit that is active is healthy."""

    unit: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9:_.\\@-]+\.(service|socket|target|mount|path|timer)$", max_length=255)
    ]


class Probe(Spec):
    """How the agent tells whether a workload is healthy: one of these ways, and when. None is Kubernetes' default."""

    ways: ClassVar[tuple[str, ...]] = ("http_get", "tcp_socket", "exec", "grpc")
    meant: ClassVar = {
        "http": "write httpGet: {port: 8080, path: /}",
        "https": "write httpGet: {port: 8443, path: /, scheme: HTTPS}",
        "tcp": "write tcpSocket: {port: 5432}",
    }

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
        at_most_one(self, *self.ways)
        if not given(self, *self.ways):
            *most, last = map(to_camel, self.ways)
            raise fault("missing", f"give one of {', '.join(most)} and {last}")
        return self


class NamedProbe(Probe):
    """One of several probes of a workload. Istio's, and beside it a systemd unit."""

    ways = (*Probe.ways, "systemd")
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)] = ""
    systemd: SystemdProbe | None = None


class ProbeList(Spec):
    """All must succeed."""

    probes: Annotated[tuple[NamedProbe, ...], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _told_apart(self) -> "ProbeList":
        names = [each.name for each in self.probes]
        for index, name in enumerate(names):
            if len(names) > 1 and not name:
                raise fault("missing", "give each of several probes a name", "probes", index, "name")
            if name in names[:index]:
                raise fault("duplicate", f"two probes are named {name!r}", "probes", index, "name")
        return self
