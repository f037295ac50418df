"""The resources of one host as messages, and what can be read off them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import Metadata
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.message import Message

from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, HOST_CONFIG_NAME, HOST_CONFIG_TYPE, LISTENER_TYPE
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.xds.messages import message_of, unpacked

T = TypeVar("T", bound=Message)
_CONFIG_PREFIX = "/apis/"


@dataclass(frozen=True, slots=True)
class Sight:
    """One host's configuration."""

    mesh: Mesh
    host: str

    def message(self, type_url: str, name: str, kind: type[T]) -> T | None:
        """Return the message that the host gets for a name, None if there is none."""
        found = xds.resource(self.mesh, self.host, type_url, name)
        message = message_of(found) if found is not None and not xds.is_absent(found) else None
        return message if isinstance(message, kind) else None

    def listener(self, name: str) -> Listener | None:
        return self.message(LISTENER_TYPE, name, Listener)

    def cluster(self, name: str) -> Cluster | None:
        return self.message(CLUSTER_TYPE, name, Cluster)

    def config(self) -> HostConfig:
        return self.message(HOST_CONFIG_TYPE, HOST_CONFIG_NAME, HostConfig) or HostConfig()

    def endpoints(self, cluster: Cluster) -> list[tuple[int, LbEndpoint]]:
        """Return the endpoints of a cluster with their priorities, nearest first."""
        assignment: ClusterLoadAssignment | None = cluster.load_assignment
        if cluster.type == Cluster.EDS:
            name = cluster.eds_cluster_config.service_name or cluster.name
            assignment = self.message(ENDPOINT_TYPE, name, ClusterLoadAssignment)
        groups = assignment.endpoints if assignment is not None else ()
        found = [(group.priority, endpoint) for group in groups for endpoint in group.lb_endpoints]
        return sorted(found, key=lambda each: each[0])


def filters_of(chain: FilterChain) -> Iterator[Message]:
    """Yield the configurations of a chain's network filters, in order."""
    for each in chain.filters:
        message = unpacked(each.typed_config)
        if message is not None:
            yield message


def origin_of(metadata: Metadata) -> str:
    """Return the object that a route or cluster was made from, as Istio notes it there: `KIND NS/NAME`, or ""."""
    fields = metadata.filter_metadata
    config = fields["istio"].fields["config"].string_value if "istio" in fields else ""
    parts = config.removeprefix(_CONFIG_PREFIX).split("/")
    return f"{parts[-2]} {parts[-3]}/{parts[-1]}" if config.startswith(_CONFIG_PREFIX) and len(parts) >= 4 else ""
