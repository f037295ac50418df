"""What a DestinationRule says of connections that Envoy looks no further into: their life, and a tunnel around them."""

from collections.abc import Iterable
from dataclasses import dataclass

from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from hostmesh_controller.mesh.destination_rules import destination_rules_for
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import destination_named
from hostmesh_controller.model.destination_rule import Tunnel
from hostmesh_controller.names import host_and_port, parse_outbound
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.policy import policy_for


@dataclass(frozen=True, slots=True)
class ConnectionPolicy:
    """How connections to one cluster are kept. None is for ever; `tunnel` None: bytes are passed as they are."""

    idle_s: float | None = None
    longest_s: float | None = None
    tunnel: Tunnel | None = None


Policies = tuple[tuple[str, ConnectionPolicy], ...]
"""By the name of the cluster."""


def connection_policy(mesh: Mesh, viewer: Viewer, cluster: str) -> ConnectionPolicy | None:
    """Return the policy of connections to an outbound cluster, or None if there is nothing to say of them."""
    name = parse_outbound(cluster)
    service = destination_named(mesh, name.hostname, viewer) if name else None
    if name is None or service is None:
        return None
    policy = policy_for(destination_rules_for(mesh, service, viewer), name.subset, name.port)
    tcp = policy.connection_pool.tcp if policy.connection_pool else None
    idle = tcp.idle_timeout.total_seconds() if tcp and tcp.idle_timeout is not None else None
    longest = tcp.max_connection_duration.total_seconds() if tcp and tcp.max_connection_duration is not None else None
    found = ConnectionPolicy(idle, longest, policy.tunnel)
    return None if found == ConnectionPolicy() else found


def connection_policies(mesh: Mesh, viewer: Viewer, clusters: Iterable[str]) -> Policies:
    """Return the policies of all clusters that have one, by name."""
    found = ((name, connection_policy(mesh, viewer, name)) for name in sorted(set(clusters)))
    return tuple((name, policy) for name, policy in found if policy is not None)


def shape(proxy: TcpProxy, policy: ConnectionPolicy) -> None:
    """Make a proxy of connections keep to a policy."""
    if policy.idle_s is not None:
        proxy.idle_timeout.CopyFrom(duration(policy.idle_s))
    if policy.longest_s is not None:
        proxy.max_downstream_connection_duration.CopyFrom(duration(policy.longest_s))
    if policy.tunnel is not None:
        proxy.tunneling_config.hostname = host_and_port(policy.tunnel.target_host, policy.tunnel.target_port)
        proxy.tunneling_config.use_post = policy.tunnel.protocol == "POST"
