"""MeshConfig: what the operator decided for the whole mesh, from the controller's file and the object over it."""

from collections.abc import Mapping
from typing import Final

from hostmesh_controller.mesh.records import Settings
from hostmesh_controller.model.mesh_config import MeshConfigSpec, laid_over
from hostmesh_controller.model.objects import ApiObject, ObjectKey

KEY: Final = ObjectKey("MeshConfig", "", "default")


def mesh_config(settings: Settings, objects: Mapping[ObjectKey, ApiObject]) -> MeshConfigSpec:
    """Return the configuration that holds: the object's fields over the file's."""
    item = objects.get(KEY)
    if item is None:
        return settings.mesh_config
    assert isinstance(item.spec, MeshConfigSpec)
    return laid_over(item.spec, settings.mesh_config)
