"""Which listener a host gets for a name."""

from envoy.config.listener.v3.listener_pb2 import Listener

from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.inbound import InboundPort, bound_ports, inbound_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.visibility import view
from hostmesh_controller.names import (
    DNS_LISTENER,
    VIRTUAL_INBOUND,
    VIRTUAL_OUTBOUND,
    parse_port_listener,
    port_listener,
)
from hostmesh_controller.xds import dns, gateway_listeners, listeners_inbound, listeners_outbound
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.extension_types import ANY_PORT
from hostmesh_controller.xds.http_extensions import Direction, Extensions, Traffic, extensions
from hostmesh_controller.xds.keeping import kept
from hostmesh_controller.xds.listener_settings import settled
from hostmesh_controller.xds.outbound import Plan, plan
from hostmesh_controller.xds.outbound_identities import outbound_identities
from hostmesh_controller.xds.sidecar_egress import bound_listener, bound_listeners
from hostmesh_controller.xds.tls import trust_of
from hostmesh_controller.xds.workload_identities import marked


def wildcard(mesh: Mesh, host: str) -> tuple[str, ...]:
    ports = plan(mesh, mesh.viewer_of(host)).ports
    gateways = gateway_listeners.wildcard(mesh, host)
    bound = map(listeners_inbound.bound_name, bound_ports(mesh, host))
    called = (each.name for each in bound_listeners(mesh, mesh.viewer_of(host)))
    return (DNS_LISTENER, VIRTUAL_INBOUND, VIRTUAL_OUTBOUND, *map(port_listener, ports), *gateways, *bound, *called)


def dependencies(_mesh: Mesh, _host: str, _name: str) -> tuple[str, ...]:
    """Return nothing: listeners are a host's own, `Touched.hosts` tells of them."""
    return ()


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    viewer, ipv6 = mesh.viewer_of(host.name), mesh.runtime_of(host.name).ipv6
    if name == DNS_LISTENER:
        seen = view(mesh, viewer)
        make = lambda: dns.listener(viewer.namespace, seen.services, mesh.memo)  # noqa: E731 - one of three makers
        return kept(mesh, (name, viewer.namespace, viewer.sidecar), (seen.services,), name, make)
    gateway = gateway_listeners.resource(mesh, host, name)
    if gateway is not None:
        return gateway
    inbound = _inbound(mesh, host, name, ipv6=ipv6)
    if inbound is not None:
        return inbound
    for each in bound_listeners(mesh, viewer):
        if each.name == name:
            more = extensions(mesh, host, Traffic(Direction.OUTBOUND, each.port))
            return encoded(name, settled(bound_listener(each, more), mesh.config))
    planned, by_caller = plan(mesh, viewer), bool(outbound_identities(mesh, host))
    if name == VIRTUAL_OUTBOUND:
        virtual = listeners_outbound.virtual_outbound
        more = extensions(mesh, host, Traffic(Direction.OUTBOUND, ANY_PORT))
        make = lambda: settled(marked(virtual(mesh.settings, planned, more, ipv6=ipv6), by_caller), mesh.config)  # noqa: E731 - as above
        key = (name, viewer, ipv6, by_caller, more.key, len(more.inputs))
        part = mesh.memo.same(("planned for all ports", viewer), planned.of_all_ports())
        return kept(mesh, key, (part, *more.inputs), name, make)
    port = parse_port_listener(name)
    if port is None or port not in planned.ports:
        return None
    more = extensions(mesh, host, Traffic(Direction.OUTBOUND, port))
    part = planned_for(mesh, planned, port)

    def of_port() -> Listener:
        made = listeners_outbound.port_listener(mesh.settings, planned, port, more, ipv6=ipv6)
        return settled(marked(made, by_caller), mesh.config)

    key = (name, viewer, ipv6, by_caller, more.key, len(more.inputs))
    return kept(mesh, key, (part, *more.inputs), name, of_port)


def planned_for(mesh: Mesh, planned: Plan, port: int) -> tuple[object, ...]:
    """Return what a port's listener is made from: the same object while it is equal, whatever other ports have."""
    key = (planned.viewer, port)
    make = lambda: mesh.memo.same(("planned for", *key), planned.of_port(port))  # noqa: E731 - a line is enough
    return mesh.memo.get(("part of plan", *key), (planned,), make)


def _inbound(mesh: Mesh, host: Host, name: str, *, ipv6: bool) -> Resource | None:
    def more(port: InboundPort) -> Extensions:
        return extensions(mesh, host, Traffic(Direction.INBOUND, port.number, port.workload))

    trust = trust_of(mesh.settings, mesh.config)
    if name == VIRTUAL_INBOUND:
        # HostConfig names its version, and most of what touches a host leaves its ports as they are.
        captured = mesh.memo.same(
            ("captured", host.name), tuple(port for port in inbound_ports(mesh, host.name) if not port.bind)
        )
        added = {(port.number, port.workload.key): more(port) for port in captured}
        key = (name, host.name, ipv6, tuple((each.key, len(each.inputs)) for each in added.values()))

        def make() -> Listener:
            chosen = lambda port: added[port.number, port.workload.key]  # noqa: E731 - a line is enough
            return settled(listeners_inbound.virtual_inbound(captured, trust, chosen, ipv6=ipv6), mesh.config)

        return kept(mesh, key, (captured, *(item for each in added.values() for item in each.inputs)), name, make)
    for port in bound_ports(mesh, host.name):
        if name == listeners_inbound.bound_name(port):
            return encoded(name, settled(listeners_inbound.bound_listener(port, trust, more(port)), mesh.config))
    return None
