"""From one revision of the mesh to the next: what changed, what that makes different, and whom it touches.

`build` is `update` of the empty mesh, so that both cannot disagree about what a configuration means. The steps of
`update` (`take_*`) are in the order of the data.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.mesh_config import mesh_config
from hostmesh_controller.mesh.proxy_config import take_proxy_configs
from hostmesh_controller.mesh.records import HostRuntime, Settings, Touched
from hostmesh_controller.mesh.step import begin
from hostmesh_controller.mesh.take_authorization import take_authorization
from hostmesh_controller.mesh.take_endpoints import take_endpoints
from hostmesh_controller.mesh.take_expulsions import take_expulsions
from hostmesh_controller.mesh.take_extensions import take_extensions
from hostmesh_controller.mesh.take_gateways import take_gateways
from hostmesh_controller.mesh.take_hosts import take_hosts
from hostmesh_controller.mesh.take_objects import take_objects
from hostmesh_controller.mesh.take_policies import take_policies
from hostmesh_controller.mesh.take_request_authentications import take_request_authentications
from hostmesh_controller.mesh.take_rules import take_rules
from hostmesh_controller.mesh.take_services import take_services
from hostmesh_controller.mesh.take_sidecars import take_sidecars
from hostmesh_controller.mesh.take_viewers import take_viewers
from hostmesh_controller.mesh.take_workloads import take_workloads
from hostmesh_controller.model.objects import ApiObject, ObjectKey

_NO_JWKS: Final[Mapping[str, str]] = MappingProxyType({})


def build(
    settings: Settings,
    objects: Iterable[ApiObject],
    vips: Mapping[str, int],
    runtime: Mapping[str, HostRuntime],
    jwks: Mapping[str, str] = _NO_JWKS,
) -> Mesh:
    """Return the index of a whole configuration.

    Args:
        settings: what holds for the whole mesh.
        objects: every object; kinds that mean nothing to the mesh are kept and ignored.
        vips: index of the virtual addresses of each host name (see `virtual_hostnames`).
        runtime: what is true of hosts now; one that is missing has not joined.
        jwks: the key sets that were fetched, by URL; of one that is missing no token is valid.
    """
    by_key = {item.key: item for item in objects}
    return _next(Mesh(settings, mesh_config(settings, by_key)), by_key, vips, runtime, jwks)[0]


def update(
    mesh: Mesh,
    changed: Mapping[ObjectKey, ApiObject | None],
    vips: Mapping[str, int],
    runtime: Mapping[str, HostRuntime],
    jwks: Mapping[str, str] | None = None,
) -> tuple[Mesh, Touched]:
    """Return the mesh with changed objects (None: deleted) and new whole `vips`, `runtime`, `jwks`; what it touches.

    The result equals what `build` makes of the same configuration. Passing the same mapping objects for `vips`,
    `runtime` and `jwks` (None: as it is) again says that they did not change. Otherwise they are compared entry by
    entry.
    """
    jwks = mesh.jwks if jwks is None else jwks
    if any(key.kind == "MeshConfig" for key in changed):
        # It is read wherever something is made, so all is made anew: it changes a few times in a mesh's life.
        objects = {**mesh.objects, **changed}
        remaining = [item for item in objects.values() if item is not None]
        return build(mesh.settings, remaining, vips, runtime, jwks), Touched(everything=True)
    return _next(mesh, changed, vips, runtime, jwks)


def _next(
    mesh: Mesh,
    changed: Mapping[ObjectKey, ApiObject | None],
    vips: Mapping[str, int],
    runtime: Mapping[str, HostRuntime],
    jwks: Mapping[str, str],
) -> tuple[Mesh, Touched]:
    step = begin(mesh, changed)
    take_objects(step)
    take_policies(step)
    take_hosts(step, runtime)
    take_expulsions(step)
    take_workloads(step)
    take_services(step, vips)
    take_sidecars(step)
    take_proxy_configs(step)
    take_gateways(step)
    take_endpoints(step)
    take_rules(step)
    take_extensions(step)
    take_authorization(step)
    take_request_authentications(step, jwks)
    take_viewers(step)
    return step.mesh, step.touched()
