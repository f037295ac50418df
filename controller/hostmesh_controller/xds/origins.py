"""Where a route or cluster comes from, noted as Istio notes it, for people and for those who read Envoy's own dump."""

from collections.abc import Sequence
from typing import Final

from envoy.config.core.v3.base_pb2 import Metadata
from google.protobuf.struct_pb2 import Struct

from hostmesh_controller.mesh.records import Service
from hostmesh_controller.model.objects import ObjectKey

ISTIO: Final = "istio"
_PLACES: Final = {"VirtualService": "virtual-service", "DestinationRule": "destination-rule"}


def config_path(key: ObjectKey) -> str:
    """Return Istio's path of a configuration object."""
    return f"/apis/networking.istio.io/v1/namespaces/{key.namespace}/{_PLACES[key.kind]}/{key.name}"


def origin_of_route(key: ObjectKey) -> Metadata:
    """Return the note on a route of a VirtualService."""
    result = Metadata()
    result.filter_metadata[ISTIO].update({"config": config_path(key)})
    return result


def origin_of_cluster(service: Service, subset: str, rules: Sequence[ObjectKey]) -> Metadata:
    """Return the note on an outbound cluster: its service, its subset, and the first DestinationRule that holds."""
    result = Metadata()
    note: Struct = result.filter_metadata[ISTIO]
    name = service.id.source.name if service.short else service.id.hostname
    note.update(
        {
            "services": [{"host": service.id.hostname, "name": name, "namespace": service.id.namespace}],
        }
    )
    if subset:
        note.update({"subset": subset})
    if rules:
        note.update({"config": config_path(rules[0])})
    return result
