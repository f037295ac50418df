"""Sidecar: what a workload sees of the mesh, and listeners of its own."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.connection_pool import ConnectionPool
from hostmesh_controller.model.http_actions import Destination
from hostmesh_controller.model.listeners import (
    UNIX,
    Bind,
    OptionalProtocol,
    check_full_host,
    check_unix_path,
    is_tls,
)
from hostmesh_controller.model.schema import (
    MeshPort,
    OptionalPortName,
    Spec,
    Unsigned,
    as_fault,
    check_label,
    fault,
)
from hostmesh_controller.model.server_tls import ServerTls
from hostmesh_controller.model.service_entry import WorkloadSelector

CaptureMode = Literal["DEFAULT", "IPTABLES", "NONE"]
_PORT_MAX = 65535
_LOOPBACKS = frozenset({"", "127.0.0.1", "0.0.0.0", "[::1]", "[::]"})  # noqa: S104 - Istio's words, nothing is bound
_NO_TARGET: Mapping[str, str] = {"targetPort": "it has no effect on a Sidecar; remove it"}


def _egress_host(value: str) -> str:
    namespace, slash, host = value.partition("/")
    with as_fault("host-name"):
        if not slash or not namespace or not host:
            raise ValueError(f"{value!r} is not of the form namespace/host, such as ./* or */*.example.com")
        bare = namespace.removeprefix("~")
        if bare not in {"", "*", "."}:
            check_label(bare)
        check_full_host(host)
    return value


def _endpoint(value: str) -> str:
    if not value:
        return value
    with as_fault("address"):
        if value.startswith(UNIX):
            check_unix_path(value.removeprefix(UNIX))
            return value
        host, colon, port = value.rpartition(":")
        if not colon or host not in _LOOPBACKS:
            raise ValueError(
                f"{value!r}: write 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix:// and a path"
            )
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= _PORT_MAX):
            raise ValueError(f"{value!r}: expected a port between 1 and {_PORT_MAX} after the colon")
    return value


class IngressPort(Spec):
    """The port on which the workload is called."""

    refused: ClassVar[Mapping[str, str]] = _NO_TARGET

    number: MeshPort
    protocol: OptionalProtocol = ""
    name: OptionalPortName = ""


class EgressPort(Spec):
    """The port that is called; 0 where `bind` is a Unix socket."""

    refused: ClassVar[Mapping[str, str]] = _NO_TARGET

    number: Unsigned = 0
    protocol: OptionalProtocol = ""
    name: OptionalPortName = ""


class IngressListener(Spec):
    """Inbound traffic of one port. `default_endpoint` is where the program listens; "" is the same port."""

    port: IngressPort
    bind: Bind = ""
    capture_mode: CaptureMode = "DEFAULT"
    default_endpoint: Annotated[str, AfterValidator(_endpoint)] = ""
    tls: ServerTls | None = None
    connection_pool: ConnectionPool | None = None

    @model_validator(mode="after")
    def _fits(self) -> "IngressListener":
        if self.bind.startswith(UNIX):
            raise fault("address", "an ingress listener is bound to an IP address", "bind")
        if self.tls is not None:
            self._check_tls(self.tls)
        return self

    def _check_tls(self, tls: ServerTls) -> None:
        unfit = (
            ("subjectAltNames", tls.subject_alt_names, "subjectAltNames are not supported at a Sidecar's ingress"),
            ("httpsRedirect", tls.https_redirect, "httpsRedirect is not supported at a Sidecar's ingress"),
            ("credentialName", tls.credential_name, "a Sidecar's ingress takes certificates from files only"),
            ("credentialNames", tls.credential_names, "a Sidecar's ingress takes certificates from files only"),
            ("tlsCertificates", tls.tls_certificates, "a Sidecar's ingress has one certificate: serverCertificate"),
        )
        for written, value, message in unfit:
            if value:
                raise fault("not-supported", message, "tls", written)
        if tls.mode in {"ISTIO_MUTUAL", "AUTO_PASSTHROUGH"}:
            raise fault("value", f"mode {tls.mode} is not for a Sidecar's ingress", "tls", "mode")
        if not is_tls(self.port.protocol):
            raise fault("tls", "only protocols HTTPS and TLS have tls settings", "tls")


class EgressListener(Spec):
    """What is seen (`hosts`: namespace/host), on one port or, without `port`, on all."""

    port: EgressPort | None = None
    bind: Bind = ""
    capture_mode: CaptureMode = "DEFAULT"
    hosts: Annotated[tuple[Annotated[str, AfterValidator(_egress_host)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _port_fits_the_address(self) -> "EgressListener":
        if self.port is None:
            return self
        unix = self.bind.startswith(UNIX)
        if self.port.number == 0 and not unix:
            raise fault("port", "port 0 needs a bind of the form unix:///path", "port", "number")
        if self.port.number and unix:
            raise fault("port", "a Unix socket has no port: write 0", "port", "number")
        if self.port.number > _PORT_MAX:
            raise fault("port", f"must be at most {_PORT_MAX}, found {self.port.number}", "port", "number")
        if unix and self.capture_mode == "IPTABLES":
            raise fault("value", "a Unix socket cannot be captured: use DEFAULT or NONE", "captureMode")
        return self


class SidecarOutboundPolicy(Spec):
    """What happens to destinations that are not seen. `egress_proxy`: all of them go there."""

    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY"] = "REGISTRY_ONLY"
    egress_proxy: Destination | None = None

    @model_validator(mode="after")
    def _proxy_is_whole(self) -> "SidecarOutboundPolicy":
        if self.egress_proxy is None:
            return self
        if self.mode != "ALLOW_ANY":
            raise fault("one-of", "egressProxy needs mode ALLOW_ANY", "egressProxy")
        if self.egress_proxy.port is None:
            raise fault("missing", "egressProxy needs a port", "egressProxy", "port")
        return self


class SidecarSpec(Spec):
    """Settings of the selected workloads of the namespace, or (without selector) of all of them.

    None of `egress` is everything that is exported to the namespace; None of `outbound_traffic_policy` is the mesh's.
    """

    workload_selector: WorkloadSelector | None = None
    ingress: tuple[IngressListener, ...] = ()
    egress: tuple[EgressListener, ...] = ()
    outbound_traffic_policy: SidecarOutboundPolicy | None = None
    inbound_connection_pool: ConnectionPool | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "SidecarSpec":
        policies = (self.outbound_traffic_policy, self.inbound_connection_pool)
        if not self.ingress and not self.egress and policies == (None, None):
            raise fault("empty", "give ingress, egress, outboundTrafficPolicy or inboundConnectionPool")
        return self

    @model_validator(mode="after")
    def _listeners_are_told_apart(self) -> "SidecarSpec":
        seen: set[int | str] = set()
        for index, listener in enumerate(self.ingress):
            if listener.port.number in seen:
                raise fault("duplicate-port", "this port is there twice", "ingress", index, "port", "number")
            seen.add(listener.port.number)
        seen = set()
        for index, egress in enumerate(self.egress):
            if egress.port is None:
                if index < len(self.egress) - 1:
                    raise fault("order", "the listener without a port must be the last one", "egress", index)
                continue
            key: int | str = egress.port.number or egress.bind
            if key in seen:
                where = ("port", "number") if egress.port.number else ("bind",)
                raise fault("duplicate-port", f"{key} is there twice", "egress", index, *where)
            seen.add(key)
        return self
