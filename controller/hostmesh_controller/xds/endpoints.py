"""Endpoints (EDS): the bytes of one assignment are the joined bytes of its endpoints."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from envoy.config.core.v3.address_pb2 import Address, Pipe
from envoy.config.core.v3.base_pb2 import Metadata
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.peers import selects
from hostmesh_controller.mesh.records import Endpoint, Endpoints
from hostmesh_controller.model.workloads import UNIX
from hostmesh_controller.xds.encoding import length_delimited, resource_of_bytes
from hostmesh_controller.xds.localities import Group, parts_of
from hostmesh_controller.xds.sources import socket

MATCH_KEY: Final = "envoy.transport_socket_match"
TLS_MODE: Final = "tlsMode"
DISABLED: Final = "disabled"
PLAINTEXT_HOSTNAME: Final = "plaintext"

_CLUSTER_NAME: Final = ClusterLoadAssignment.CLUSTER_NAME_FIELD_NUMBER
_LOCALITIES: Final = ClusterLoadAssignment.ENDPOINTS_FIELD_NUMBER
_LB_ENDPOINTS: Final = LocalityLbEndpoints.LB_ENDPOINTS_FIELD_NUMBER
_CACHED: Final = 131_072
"""Endpoints whose bytes are kept: about 20 MB."""


def endpoints_of(endpoints: Endpoints, port: int, labels: Mapping[str, str]) -> list[Endpoint]:
    """Return the endpoints of a service's port that have the labels of a subset, in a stable order.

    Those where nobody seems to answer are left out. They are not marked as unhealthy: Envoy would call them when too
    few others are left. Where there is no other they stay, for whoever says that they are dead may be wrong.
    """
    found = (member.endpoints.get(port) for member in endpoints.members.values())
    chosen = [endpoint for endpoint in found if endpoint is not None and selects(labels, endpoint.labels)]
    chosen = [endpoint for endpoint in chosen if not endpoint.away] or chosen
    return sorted(chosen, key=lambda endpoint: (endpoint.locality, endpoint.address, endpoint.port))


def assignment(name: str, groups: Iterable[Group]) -> Resource:
    """Return the ClusterLoadAssignment of a cluster as resource."""
    return resource_of_bytes(name, wire.ENDPOINT_TYPE, load_assignment(name, groups))


def load_assignment(name: str, groups: Iterable[Group], *, renamed: bool = True) -> bytes:
    """Return the ClusterLoadAssignment of a cluster. One in the mesh has no metadata, so that it stays small.

    `renamed` False leaves endpoints their names: those that are looked up are found by them.
    """
    groups = tuple(groups)
    # Where there is but one place, nothing is shared out.
    weighted = any(group.locality for group in groups)
    parts = [length_delimited(_CLUSTER_NAME, name.encode())]
    for group in groups:
        encoded = (lb_endpoint(each.address, each.port, each.weight, each.tls, renamed) for each in group.endpoints)
        weight = group.weight if weighted else 0
        payload = _locality(group.locality, weight, group.priority) + b"".join(encoded)
        parts.append(length_delimited(_LOCALITIES, payload))
    return b"".join(parts)


@lru_cache(_CACHED)
def lb_endpoint(address: str, port: int, weight: int, tls: bool, renamed: bool = True) -> bytes:
    """Return an endpoint as the field of its locality."""
    message = LbEndpoint(load_balancing_weight=None if weight == 1 else UInt32Value(value=weight))
    message.endpoint.address.CopyFrom(_address(address, port))
    if not tls:
        message.metadata.CopyFrom(plaintext_metadata())
        # With other metadata alone it would be the same host to Envoy, whose open connections stay as they are. With
        # another hostname it is another host: what was opened in plaintext is not used once mutual TLS is possible.
        if renamed:
            message.endpoint.hostname = PLAINTEXT_HOSTNAME
    return length_delimited(_LB_ENDPOINTS, message.SerializeToString(deterministic=True))


def plaintext_metadata() -> Metadata:
    metadata = Metadata()
    metadata.filter_metadata[MATCH_KEY].update({TLS_MODE: DISABLED})
    return metadata


def _address(address: str, port: int) -> Address:
    path = address.removeprefix(UNIX)
    return socket(address, port) if path == address else Address(pipe=Pipe(path=path))


@lru_cache(8192)
def _locality(name: str, weight: int, priority: int) -> bytes:
    """Return `region/zone/subzone` with its weight (0: none) and priority, as fields of a locality's endpoints."""
    message = LocalityLbEndpoints(priority=priority)
    if name:
        region, zone, sub_zone = parts_of(name)
        message.locality.region, message.locality.zone, message.locality.sub_zone = region, zone, sub_zone
    if weight:
        message.load_balancing_weight.CopyFrom(UInt32Value(value=weight))
    return message.SerializeToString(deterministic=True)
