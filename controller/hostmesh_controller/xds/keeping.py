"""Resources that are made once for all hosts that get the same."""

from collections.abc import Callable

from google.protobuf.message import Message

from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.xds.encoding import resource


def kept(mesh: Mesh, key: object, inputs: tuple[object, ...], name: str, make: Callable[[], Message]) -> Resource:
    """Return the resource of `make()`, made again only when one of the inputs is another object."""
    return mesh.memo.get(("resource", key), inputs, lambda: resource(name, make()))
