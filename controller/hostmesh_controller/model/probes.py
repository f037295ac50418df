"""How the agent tells whether a workload is ready, as a WorkloadGroup says."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

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
        ways = ("http_get", "tcp_socket", "exec", "grpc")
        at_most_one(self, *ways)
        if not given(self, *ways):
            raise fault("missing", "give one of httpGet, tcpSocket, exec and grpc")
        return self
