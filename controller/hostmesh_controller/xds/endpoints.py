"""Endpoints (EDS): the bytes of one assignment are the joined bytes of its endpoints."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from envoy.config.core.v3.base_pb2 import Metadata
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.peers import selects
from hostmesh_controller.mesh.records import Endpoint, Endpoints
from hostmesh_controller.xds.encoding import length_delimited, resource_of_bytes
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
    """Return the endpoints of a service's port that have the labels of a subset, in a stable order."""
    found = (member.endpoints.get(port) for member in endpoints.members.values())
    chosen = [endpoint for endpoint in found if endpoint is not None and selects(labels, endpoint.labels)]
    return sorted(chosen, key=lambda endpoint: (endpoint.locality, endpoint.address, endpoint.port))


def assignment(name: str, endpoints: Iterable[Endpoint]) -> Resource:
    """Return the ClusterLoadAssignment of a cluster. One in the mesh carries no metadata, so that it stays small."""
    localities: dict[str, list[bytes]] = {}
    for item in endpoints:
        encoded = lb_endpoint(item.address, item.port, item.weight, item.tls)
        localities.setdefault(item.locality, []).append(encoded)
    parts = [length_delimited(_CLUSTER_NAME, name.encode())]
    for locality, encoded_endpoints in localities.items():
        payload = _locality(locality) + b"".join(encoded_endpoints)
        parts.append(length_delimited(_LOCALITIES, payload))
    return resource_of_bytes(name, wire.ENDPOINT_TYPE, b"".join(parts))


@lru_cache(_CACHED)
def lb_endpoint(address: str, port: int, weight: int, tls: bool) -> bytes:
    """Return an endpoint as the field of its locality."""
    message = LbEndpoint(load_balancing_weight=None if weight == 1 else UInt32Value(value=weight))
    message.endpoint.address.CopyFrom(socket(address, port))
    if not tls:
        message.metadata.CopyFrom(plaintext_metadata())
        # With other metadata alone it would be the same host to Envoy, whose open connections stay as they are. With
        # another hostname it is another host: what was opened in plaintext is not used once mutual TLS is possible.
        message.endpoint.hostname = PLAINTEXT_HOSTNAME
    return length_delimited(_LB_ENDPOINTS, message.SerializeToString(deterministic=True))


def plaintext_metadata() -> Metadata:
    metadata = Metadata()
    metadata.filter_metadata[MATCH_KEY].update({TLS_MODE: DISABLED})
    return metadata


@lru_cache(1024)
def _locality(name: str) -> bytes:
    """Return `region/zone/subzone` as fields of the locality; nothing for none."""
    if not name:
        return b""
    region, zone, sub_zone = (*name.split("/", 2), "", "")[:3]
    message = LocalityLbEndpoints()
    message.locality.region, message.locality.zone, message.locality.sub_zone = region, zone, sub_zone
    return message.SerializeToString(deterministic=True)
