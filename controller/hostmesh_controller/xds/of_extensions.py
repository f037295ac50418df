"""Which configuration of an extension a host's Envoy gets for a filter's name (ECDS)."""

from typing import Final

from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.step import EXPULSIONS, object_dependency
from hostmesh_controller.xds import expelled, wasm
from hostmesh_controller.xds.keeping import kept

EXPELLED: Final = frozenset({expelled.HTTP, expelled.NETWORK})


def dependencies(_mesh: Mesh, _host: str, name: str) -> tuple[str, ...]:
    """Return the WasmPlugin that a name means, existing or not; what EnvoyFilters add is part of the host's view."""
    if name in EXPELLED:
        return (EXPULSIONS,)
    key = wasm.plugin_key(name)
    return () if key is None else (object_dependency(key),)


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return the configuration of a plugin that is for the host, it gets no other's; or who was expelled."""
    if name in EXPELLED:
        denied = mesh.expulsions.enrolments
        return kept(mesh, (name,), (denied,), name, lambda: expelled.configuration(name, denied))
    key = wasm.plugin_key(name)
    item = mesh.objects.get(key) if key is not None else None
    if item is None or not wasm.is_selected(mesh, host, item):
        return None
    return kept(mesh, (wasm.KIND, name), (item,), name, lambda: wasm.configuration(item))
