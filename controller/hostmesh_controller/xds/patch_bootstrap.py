"""BOOTSTRAP patches: what a host's agent puts into the file that Envoy is started with."""

import json
from typing import Final

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf.json_format import MessageToDict

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.xds.patch_merge import apply_merge
from hostmesh_controller.xds.patch_set import GATEWAY, INBOUND, OUTBOUND, PatchSet, patches_of

_CONTEXTS: Final = frozenset({INBOUND, OUTBOUND, GATEWAY})


def bootstrap_patch(mesh: Mesh, viewer: Viewer) -> str:
    """Return all changes to a host's bootstrap as the JSON of one Bootstrap, "" if there are none."""
    if not viewer.patches:
        return ""
    patches = patches_of(mesh, viewer)
    return mesh.memo.get(("bootstrap", viewer.patches, viewer.namespace), (patches,), lambda: _merged(patches))


def _merged(patches: PatchSet) -> str:
    result = Bootstrap()
    for patch in patches.of("BOOTSTRAP"):
        if patch.merges and patch.is_for(_CONTEXTS):
            apply_merge(patch, result)
    if not result.ByteSize():
        return ""
    return json.dumps(MessageToDict(result, preserving_proto_field_name=True), sort_keys=True)
