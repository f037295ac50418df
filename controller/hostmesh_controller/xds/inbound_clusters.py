"""Clusters of the host's own programs: where inbound connections go once their policy is seen to."""

from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import Address, BindConfig, ExtraSourceAddress, Pipe, SocketAddress
from envoy.config.endpoint.v3.endpoint_components_pb2 import Endpoint, LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from hostmesh_api import wire
from hostmesh_controller.mesh.inbound import InboundPort
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.selection import endpoint_port, services_of
from hostmesh_controller.model.listeners import UNIX
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.protocols import Protocol
from hostmesh_controller.names import is_v6
from hostmesh_controller.xds import cluster_http
from hostmesh_controller.xds.breakers import circuit_breakers, keepalive
from hostmesh_controller.xds.cluster_target import stat_name
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.sources import socket

LOCALHOST: Final = "127.0.0.1"
_INSTANCE: Final = frozenset({"0.0.0.0", "[::]"})  # noqa: S104 - Istio's words for the workload's own address


def inbound(port: InboundPort, config: MeshConfigSpec, stat: str, *, ipv6: bool) -> Cluster:
    """Return the cluster of a local program's port.

    That is where the caller dialled, unless the Sidecar or the mesh says otherwise, from an address told apart by
    rules. Requests keep the HTTP version they came with, unless the port is declared as plain HTTP: that is HTTP/1.1.

    Args:
        port: which one.
        config: what holds for the whole mesh.
        stat: its name in statistics, "" for its own.
        ipv6: the host has IPv6.
    """
    connect = port.pool.tcp.connect_timeout if port.pool and port.pool.tcp else None
    cluster = Cluster(
        name=port.cluster,
        alt_stat_name=stat,
        connect_timeout=duration((connect or config.connect_timeout).total_seconds()),
        circuit_breakers=circuit_breakers(port.pool),
    )
    at = address_of(port, config)
    if at is None:
        cluster.type = Cluster.ORIGINAL_DST
        cluster.lb_policy = Cluster.CLUSTER_PROVIDED
    else:
        cluster.type = Cluster.STATIC
        one = LbEndpoint(endpoint=Endpoint(address=at))
        localities = [LocalityLbEndpoints(lb_endpoints=[one])]
        cluster.load_assignment.CopyFrom(ClusterLoadAssignment(cluster_name=cluster.name, endpoints=localities))
    if is_where_dialled(port, config):
        cluster.upstream_bind_config.CopyFrom(_source(ipv6=ipv6))
    keepalive(cluster, port.pool, config.tcp_keepalive)
    options = _spoken(port)
    cluster_http.bound(options, port.pool)
    cluster_http.set_spoken(cluster, options)
    return cluster


def _spoken(port: InboundPort) -> HttpProtocolOptions:
    # Between proxies it may be HTTP/2, which a program that declares plain HTTP need not speak.
    return HttpProtocolOptions() if port.protocol is Protocol.HTTP else cluster_http.same_as_downstream()


def address_of(port: InboundPort, config: MeshConfigSpec) -> Address | None:
    """Return where a program listens, None for the address that the caller dialled."""
    if port.endpoint.startswith(UNIX):
        return Address(pipe=Pipe(path=port.endpoint.removeprefix(UNIX)))
    host, _, number = port.endpoint.rpartition(":")
    if number:
        own = port.workload.address
        address = own if host in _INSTANCE else host.strip("[]") or LOCALHOST
        return socket(address, int(number))
    if config.inbound_traffic_policy.mode == "LOCALHOST":
        return socket("::1" if is_v6(port.workload.address) else LOCALHOST, port.number)
    # Nothing was redirected where Envoy itself listens: the address that was dialled is Envoy's own.
    return socket(LOCALHOST, port.number) if port.bind else None


def is_where_dialled(port: InboundPort, config: MeshConfigSpec) -> bool:
    """Tell whether a program is called at the address of the host that its caller dialled."""
    at = address_of(port, config)
    return at is None or at.socket_address.address == port.workload.address


def statistics_name(mesh: Mesh, port: InboundPort) -> str:
    """Return the name in statistics that the mesh's pattern gives a port, "" for the cluster's own."""
    pattern = mesh.config.inbound_cluster_stat_name.replace("%TARGET_PORT%", str(port.number))
    for service in services_of(mesh, port.workload) if pattern else ():
        for each in service.ports:
            if endpoint_port(each, port.workload.ports) == port.number:
                return stat_name(pattern, service, each)
    return ""


def _source(*, ipv6: bool) -> BindConfig:
    bind = BindConfig(source_address=SocketAddress(address=wire.INBOUND_SOURCE_V4, port_value=0))
    if ipv6:
        extra = ExtraSourceAddress(address=SocketAddress(address=wire.INBOUND_SOURCE_V6, port_value=0))
        bind.extra_source_addresses.append(extra)
    return bind
