"""Egress listeners with an address of their own: programs call them by it, or by a Unix socket.

Envoy listens there itself, or (where the listener is captured) connections to the address are captured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from envoy.config.core.v3.address_pb2 import Address, Pipe
from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_components_pb2 import FilterChain, FilterChainMatch
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, ServicePort
from hostmesh_controller.mesh.sidecars import Import, imports_of, sidecar
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import destination_named, exported
from hostmesh_controller.model.listeners import UNIX
from hostmesh_controller.model.protocols import Protocol, entry_protocol
from hostmesh_controller.model.sidecar import EgressListener
from hostmesh_controller.names import OutboundName, candidates, canonical_prefix, split_header
from hostmesh_controller.xds import filters
from hostmesh_controller.xds.connections import Weights
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.http_extensions import Extensions
from hostmesh_controller.xds.listeners_outbound import DETECTION_TIMEOUT_S, PLAIN_HTTP
from hostmesh_controller.xds.outbound import tcp_weights
from hostmesh_controller.xds.sources import socket

LOCALHOST: Final = "127.0.0.1"
_HTTP_PORT: Final = 80


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener for calls to the mesh. `port` is 0 for a Unix socket; `to`: where bytes go; `captured`: not bound."""

    bind: str
    port: int
    protocol: Protocol
    imports: tuple[Import, ...]
    to: Weights
    captured: bool = False

    @property
    def name(self) -> str:
        """As Istio names it."""
        return f"{self.bind}_{self.port}"

    @property
    def table(self) -> str:
        """The name of its route table, as Istio names it."""
        return str(self.port) if self.port else self.bind


def bound_listeners(mesh: Mesh, viewer: Viewer) -> tuple[Bound, ...]:
    """Return the egress listeners of a viewer that have an address of their own."""
    spec = sidecar(mesh, viewer)
    listeners = tuple(each for each in spec.egress if is_bound(each)) if spec is not None else ()
    if not listeners:
        return ()
    inputs = (spec, mesh.services, mesh.tcp_routes)
    return mesh.memo.get(
        ("bound egress", viewer), inputs, lambda: tuple(each for one in listeners for each in _bound(mesh, viewer, one))
    )


def is_bound(listener: EgressListener) -> bool:
    return listener.capture_mode == "NONE" or bool(listener.bind)


def captured_prefixes(mesh: Mesh, viewer: Viewer) -> tuple[str, ...]:
    """Return the addresses that are captured because an egress listener has them; loopback never is."""
    found = {each.bind for each in bound_listeners(mesh, viewer) if each.captured}
    prefixes = (canonical_prefix(bind) for bind in found if not ip_address(bind).is_loopback)
    return tuple(sorted(prefix for prefix in prefixes if prefix is not None))


def _bound(mesh: Mesh, viewer: Viewer, listener: EgressListener) -> Iterator[Bound]:
    imports, bind = imports_of(mesh, viewer, listener), listener.bind or LOCALHOST
    captured = listener.capture_mode != "NONE" and not bind.startswith(UNIX)
    services = _imported(mesh, viewer, imports)
    if listener.port is not None:
        protocol = entry_protocol(listener.port.protocol, listener.port.name)
        to = _to(mesh, viewer, services, listener.port.number)
        yield Bound(bind, listener.port.number, protocol, imports, to, captured)
        return
    # Without a port there is one for each port of the services, which speaks what the oldest of them does.
    ports: dict[int, Protocol] = {}
    for service in services:
        for port in service.ports:
            ports.setdefault(port.number, port.protocol)
    for number, protocol in sorted(ports.items()):
        yield Bound(bind, number, protocol, imports, _to(mesh, viewer, services, number), captured)


def _imported(mesh: Mesh, viewer: Viewer, imports: tuple[Import, ...]) -> list[Service]:
    found = (
        service
        for service in mesh.services.values()
        if exported(service, viewer) and any(each.covers(service.id.namespace, service.id.hostname) for each in imports)
    )
    return sorted(found, key=lambda service: (service.order, service.id))


def _to(mesh: Mesh, viewer: Viewer, services: list[Service], number: int) -> Weights:
    """Return where bytes go: to the oldest service with the port, or else with one port alone."""
    for service in services:
        port = service.port(number)
        if port is not None:
            return _weights(mesh, viewer, service, port)
    single = next((service for service in services if len(service.ports) == 1), None)
    return _weights(mesh, viewer, single, single.ports[0]) if single is not None else ()


def _weights(mesh: Mesh, viewer: Viewer, service: Service, port: ServicePort) -> Weights:
    if port.protocol.is_http:
        return ((str(OutboundName(port.number, "", service.id.hostname)), 1),)
    return tcp_weights(mesh, service, port, viewer)


def bound_listener(bound: Bound, more: Extensions) -> Listener:
    """Return the listener of an egress listener with an address of its own."""
    unix = bound.bind.startswith(UNIX)
    path = Address(pipe=Pipe(path=bound.bind.removeprefix(UNIX)))
    listener = Listener(
        name=bound.name,
        address=path if unix else socket(bound.bind.strip("[]"), bound.port),
        bind_to_port=BoolValue(value=False) if bound.captured else None,
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    http = [*more.network, filters.outbound_http(bound.port, more.http, table=bound.table)]
    if bound.protocol.is_http:
        listener.filter_chains.append(FilterChain(name=bound.name, filters=http))
        return listener
    bytes_to = FilterChain(name=bound.name, filters=[*more.network, *filters.tcp_weighted(bound.name, bound.to)])
    if bound.protocol.is_detected:
        match = FilterChainMatch(application_protocols=PLAIN_HTTP)
        listener.filter_chains.append(FilterChain(name=f"{bound.name}:http", filter_chain_match=match, filters=http))
        listener.listener_filters.append(filters.http_inspector())
        listener.listener_filters_timeout.CopyFrom(duration(DETECTION_TIMEOUT_S))
        listener.continue_on_listener_filters_timeout = True
    listener.filter_chains.append(bytes_to)
    return listener


@dataclass(frozen=True, slots=True)
class SocketHost:
    """A host header that came by a Unix socket. `hosts` are the names it may mean; `service` and `port` None: none."""

    hosts: tuple[str, ...]
    service: Service | None = None
    port: int = 0


def socket_host(mesh: Mesh, viewer: Viewer, name: str) -> SocketHost | None:
    """Return what a virtual host of a Unix socket (`unix:///path/HOST-HEADER`) is for, None for any other name.

    A socket has no port number: the header has one, or the service has no other, or it is 80.
    """
    if not name.startswith(UNIX):
        return None
    table, _, header = name.rpartition("/")
    host, port = split_header(header)
    hosts = candidates(host, viewer.namespace, mesh.settings.domain)
    bound = next((each for each in bound_listeners(mesh, viewer) if each.table == table), None)
    for each in hosts if bound is not None else ():
        service = destination_named(mesh, each, viewer)
        if service is None or bound is None:
            continue
        if any(one.covers(service.id.namespace, service.id.hostname) for one in bound.imports):
            number = port or (service.ports[0].number if len(service.ports) == 1 else _HTTP_PORT)
            if service.port(number) is not None:
                return SocketHost(hosts, service, number)
    return SocketHost(hosts)
