"""Gateway: what hosts at the edge of the mesh listen to."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator

from hostmesh_api.wire import ENVOYS_TCP_PORTS
from hostmesh_controller.model.domains import is_ip
from hostmesh_controller.model.listeners import UNIX, Bind, Protocol, check_full_host, is_http, is_tls
from hostmesh_controller.model.schema import LabelKey, LabelValue, Spec, Unsigned, as_fault, check_label, fault
from hostmesh_controller.model.server_tls import ServerTls

_PORT_MAX = 65535


def _server_host(value: str) -> str:
    namespace, slash, host = value.partition("/")
    with as_fault("host-name"):
        if slash and namespace not in {"*", "."}:
            check_label(namespace)
        name = host if slash else value
        if not is_ip(name):
            check_full_host(name)
    return value


class ServerPort(Spec):
    """Where a server listens, and what is spoken there."""

    refused: ClassVar[Mapping[str, str]] = {"targetPort": "it has no effect on a Gateway; remove it"}

    number: Unsigned
    protocol: Protocol
    name: Annotated[str, Field(min_length=1)]


class Server(Spec):
    """One listener. `hosts` are `host` or `namespace/host`: whose VirtualServices may bind to it."""

    refused: ClassVar[Mapping[str, str]] = {
        "defaultEndpoint": "Istio ignores it in a Gateway; route with a VirtualService"
    }

    port: ServerPort
    bind: Bind = ""
    hosts: Annotated[tuple[Annotated[str, AfterValidator(_server_host)], ...], Field(min_length=1)]
    tls: ServerTls | None = None
    name: str = ""

    @model_validator(mode="after")
    def _port_fits_the_address(self) -> "Server":
        number = self.port.number
        if self.bind.startswith(UNIX):
            raise fault("not-supported", "a gateway's callers are on other hosts: it listens on ports alone", "bind")
        if not 1 <= number <= _PORT_MAX:
            raise fault("port", f"must be between 1 and {_PORT_MAX}, found {number}", "port", "number")
        if number in ENVOYS_TCP_PORTS:
            message = f"port {number} is Envoy's own on every host of the mesh: use another"
            raise fault("port", message, "port", "number")
        return self

    @model_validator(mode="after")
    def _tls_fits_the_protocol(self) -> "Server":
        protocol = self.port.protocol
        if is_tls(protocol):
            if self.tls is None:
                raise fault("missing", f"protocol {protocol} needs tls settings", "tls")
        elif self.tls is not None and not is_http(protocol):
            raise fault("tls", f"protocol {protocol} has no tls settings: use TLS or HTTPS", "tls")
        elif self.tls is not None:
            files = self.tls.ca_certificates or self.tls.private_key or self.tls.server_certificate
            if not self.tls.passes_through or files:
                raise fault("tls", f"protocol {protocol} is plain text: only httpsRedirect may be set", "tls")
        return self


class GatewaySpec(Spec):
    """Listeners of the hosts that have a workload with all labels of `selector`; no selector selects none."""

    selector: Mapping[LabelKey, LabelValue] = Field(default_factory=dict)
    servers: Annotated[tuple[Server, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _ports_are_told_apart(self) -> "GatewaySpec":
        seen: set[str] = set()
        for index, server in enumerate(self.servers):
            name = server.port.name
            if name in seen:
                raise fault("duplicate-port", f"port name {name!r} is there twice", "servers", index, "port", "name")
            seen.add(name)
        return self
