"""Where a call goes once it is routed: clusters, their endpoints, and what waits at each of these."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import Address
from envoy.config.core.v3.health_check_pb2 import HealthStatus
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint

from hostmesh_controller.explain.call import Call
from hostmesh_controller.explain.inbound import arrival
from hostmesh_controller.explain.sight import Sight, origin_of
from hostmesh_controller.explain.story import Step
from hostmesh_controller.names import BLACK_HOLE, canonical_address, host_and_port
from hostmesh_controller.xds.breakers import UNLIMITED
from hostmesh_controller.xds.endpoints import MATCH_KEY

SHOWN: Final = 20
"""Endpoints that are told one by one."""
_UNUSED: Final = frozenset({HealthStatus.UNHEALTHY, HealthStatus.DRAINING, HealthStatus.TIMEOUT})


@dataclass(frozen=True, slots=True)
class Targets:
    """The clusters that a route or TCP proxy names, with their weights. `http`: as requests, not as bytes."""

    clusters: tuple[tuple[str, int], ...]
    http: bool


@dataclass(frozen=True, slots=True)
class Destination:
    """One of them: its share of the calls, and how it ends."""

    cluster: str
    share: float
    steps: tuple[Step, ...]
    reached: bool
    verdict: str = ""


def destinations(sight: Sight, call: Call, targets: Targets) -> Iterator[Destination]:
    """Yield what becomes of each cluster's share."""
    total = sum(weight for _, weight in targets.clusters) or 1
    for name, weight in targets.clusters:
        yield _destination(sight, call, name, weight / total, http=targets.http)


def _destination(sight: Sight, call: Call, name: str, share: float, *, http: bool) -> Destination:
    cluster = sight.cluster(name)
    if cluster is None:
        step = Step("cluster", name, "there is no such cluster")
        return Destination(name, share, (step,), False, "Envoy answers 503" if http else "Envoy closes the connection")
    steps = [Step("cluster", name, _cluster_why(cluster, share), _cluster_details(cluster))]
    if cluster.name == BLACK_HOLE:
        return Destination(name, share, tuple(steps), False, "the destination is not allowed: closed")
    if cluster.type == Cluster.ORIGINAL_DST:
        where = "the address that the program dialled"
        steps.append(Step("endpoint", where, "the cluster has no endpoints of its own"))
        return Destination(name, share, tuple(steps), True)
    found = sight.endpoints(cluster)
    usable = [each for each in found if each[1].health_status not in _UNUSED]
    arrived = False
    for priority, endpoint in found[:SHOWN]:
        told, taken = _endpoint(sight, call, cluster, priority, endpoint)
        arrived |= taken and endpoint.health_status not in _UNUSED
        steps.extend(told)
    if len(found) > SHOWN:
        steps.append(Step("endpoint", f"and {len(found) - SHOWN} more"))
        arrived = True
    if not usable:
        no = "it has no endpoint" if not found else "none of its endpoints is healthy"
        steps.append(Step("endpoint", "none", f"{no}: see the Service's selector and the subset's labels"))
        return Destination(name, share, tuple(steps), False, f"{name}: {no}")
    return Destination(name, share, tuple(steps), arrived, "" if arrived else f"{name}: no endpoint takes the call")


def _cluster_why(cluster: Cluster, share: float) -> str:
    origin = origin_of(cluster.metadata)
    # An on-demand cluster has the name of what was dialled, and counts under the service's.
    service = f"it stands for {cluster.alt_stat_name}" if cluster.alt_stat_name else ""
    parts = [f"{share:.0%} of the calls" if share < 1 else "", origin, service]
    return "; ".join(part for part in parts if part)


def _cluster_details(cluster: Cluster) -> dict[str, object]:
    details: dict[str, object] = {
        "type": Cluster.DiscoveryType.Name(cluster.type),
        "lb_policy": Cluster.LbPolicy.Name(cluster.lb_policy),
        "connect_timeout_s": cluster.connect_timeout.ToTimedelta().total_seconds(),
        "transport": _transport(cluster),
    }
    if cluster.HasField("outlier_detection"):
        details["outlier_detection"] = True
    for limits in cluster.circuit_breakers.thresholds[:1]:
        for name in ("max_connections", "max_pending_requests", "max_requests"):
            value = getattr(limits, name).value
            if value < UNLIMITED:
                details[name] = value
    return details


def _transport(cluster: Cluster) -> str:
    if not cluster.HasField("transport_socket"):
        return "plaintext"
    return "mutual TLS of the mesh" if _meshs_own(cluster) else "TLS"


def _meshs_own(cluster: Cluster) -> bool:
    return b"spiffe://" in cluster.transport_socket.typed_config.value


def uses_mutual_tls(cluster: Cluster, endpoint: LbEndpoint) -> bool:
    """Tell whether an endpoint is called with the mesh's mutual TLS: by default, unless it is marked."""
    return _meshs_own(cluster) and MATCH_KEY not in endpoint.metadata.filter_metadata


def _endpoint(
    sight: Sight, call: Call, cluster: Cluster, priority: int, endpoint: LbEndpoint
) -> tuple[list[Step], bool]:
    """Return the steps of one endpoint, and whether the call is let in there."""
    text = _address_text(endpoint.endpoint.address)
    mutual_tls = uses_mutual_tls(cluster, endpoint)
    health = HealthStatus.Name(endpoint.health_status) if endpoint.health_status else "HEALTHY"
    details: dict[str, object] = {"priority": priority, "health": health, "mutual_tls": mutual_tls}
    if endpoint.HasField("load_balancing_weight"):
        details["weight"] = endpoint.load_balancing_weight.value
    how = "mutual TLS" if mutual_tls else _transport(cluster) if not _meshs_own(cluster) else "plaintext"
    steps = [Step("endpoint", text, f"by {how}; {health.lower()}", details)]
    socket = endpoint.endpoint.address.socket_address
    address = canonical_address(socket.address)
    if address is None:
        return steps, True
    step, let_in = arrival(sight.mesh, sight.host, call, address, socket.port_value, mutual_tls=mutual_tls)
    return [*steps, *step], let_in


def _address_text(address: Address) -> str:
    if address.HasField("pipe"):
        return f"unix://{address.pipe.path}"
    socket = address.socket_address
    return host_and_port(socket.address, socket.port_value)
