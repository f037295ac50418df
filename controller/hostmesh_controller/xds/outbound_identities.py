"""Which workloads of a host call others under an identity of their own."""

from hostmesh_api.callers import distinct
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.selection import identity_of


def outbound_identities(mesh: Mesh, host: Host) -> tuple[str, ...]:
    """Return the SPIFFE IDs under which programs of a host call others if they are those of its workloads; sorted."""
    if not host.per_workload_identity:
        return ()
    workloads = mesh.workloads_of(host.name)
    return distinct(tuple(identity_of(each, mesh.settings.trust_domain).uri for each in workloads))
