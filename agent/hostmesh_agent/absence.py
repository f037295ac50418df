"""How Envoy is told, in its own messages, that something is not there: which resources stand for nothing."""

from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_api.delta import Resource

AWAY: Final = "away"
"""Version of the answer "no such virtual host" that stands while the controller is not asked."""
_STATIC_AND_TIMEOUT: Final = b"\x10\x00\x22"
"""Of Envoy's Cluster on the wire: type STATIC, and the tag of the connect timeout; a byte for its length follows."""


def is_no_virtual_host(resource: Resource) -> bool:
    """Tell whether a resource says that there is no such virtual host."""
    return not ResourceMessage.FromString(resource.body).HasField("resource")


def no_virtual_host(name: str) -> Resource:
    """Return the answer that makes Envoy respond 404 at once: a resource that carries its alias and nothing else."""
    message = ResourceMessage(name=name, version=AWAY, aliases=[name])
    return Resource(name, AWAY, message.SerializeToString(deterministic=True))


def is_no_cluster(cluster: Resource | None) -> bool:
    """Tell whether a cluster is not there, or stands for one that does not exist.

    Such a one is static and has a name and a timeout and nothing else. It is not parsed: Envoy's message of clusters,
    with all that it needs, is nothing that an agent has to load.
    """
    if cluster is None:
        return True
    value = ResourceMessage.FromString(cluster.body).resource.value
    rest = value.partition(cluster.name.encode())[2]
    return rest.startswith(_STATIC_AND_TIMEOUT) and len(rest) == 4 + rest[3]
