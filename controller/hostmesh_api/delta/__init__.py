"""The delta xDS protocol without I/O: requests in, responses out.

Both sides of both hops use this package: the controller serves agents with `ServerStream`; the agent serves its Envoy
with another `ServerStream` and asks the controller with `ClientStream`. Nothing here knows a socket, a clock or what
a resource means: resources are names, versions and bytes.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from hostmesh_api.delta.asking import ClientStream, Update
from hostmesh_api.delta.messages import (
    PUSH_ORDER,
    WILDCARD,
    WILDCARD_TYPES,
    Answer,
    Nack,
    Push,
    Received,
    Resource,
    Source,
    encode_response,
)
from hostmesh_api.delta.serving import ServerStream

__all__ = [
    "PUSH_ORDER",
    "WILDCARD",
    "WILDCARD_TYPES",
    "Answer",
    "ClientStream",
    "Nack",
    "Push",
    "Received",
    "Resource",
    "ServerStream",
    "Source",
    "Update",
    "encode_response",
]
