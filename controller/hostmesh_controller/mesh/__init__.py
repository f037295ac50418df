"""The immutable index of one revision of the mesh: what the configuration means, before Envoy comes into it.

    table        a persistent mapping, so that a revision shares what did not change with the one before
    records      hosts, workloads, services, endpoints: the mesh in its own words
    compiled     configuration objects -> records
    peers        PeerAuthentication -> the mode of a workload's port
    index        Mesh: all tables of one revision
    selection    which workloads stand behind which services
    viewer       who looks: what of a host decides what it sees
    scopes       which Sidecar and EnvoyFilters hold for a host
    mesh_config  MeshConfig, from the file and the object
    visibility   what a namespace sees; what a host name or an address means to it
    rules        by what rules tell callers apart; virtual_services, destination_rules: which of them hold
    delegates    the routes of a VirtualService with those of its delegates in their places
    gateways     what a host at the edge listens to; gateway_merge makes it of all Gateways that select the host
    inbound      which ports of a host are served, by whom and how
    revision     build, update: from one revision to the next, and whom that touches
    step         one update under way; take_*: its steps
    memo         results that are kept while their inputs are the same objects

Everything here is pure: no clock, no socket, no store.
"""

from hostmesh_controller.mesh.compiled import virtual_hostnames
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import HostRuntime, Settings, Touched
from hostmesh_controller.mesh.revision import build, update
from hostmesh_controller.mesh.step import host_dependency, object_dependency

__all__ = [
    "HostRuntime",
    "Mesh",
    "Settings",
    "Touched",
    "build",
    "host_dependency",
    "object_dependency",
    "update",
    "virtual_hostnames",
]
