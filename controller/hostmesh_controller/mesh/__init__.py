"""The immutable index of one revision of the mesh: what the configuration means, before Envoy comes into it.

    table              a persistent mapping, so that a revision shares what did not change with the one before
    records            hosts, workloads, services, endpoints: the mesh in its own words
    compiled           configuration objects -> records; adoption: whose identity a ServiceEntry's endpoint has
    index              Mesh: all tables of one revision
    memo               results that are kept while their inputs are the same objects
    mesh_config        MeshConfig, from the file and the object; proxy_config: ProxyConfig

Who is what:

    peers              PeerAuthentication -> the mode of a workload's port
    authorization      which AuthorizationPolicies hold for whom, and the authorizers that they name
    request_authentications  whose tokens are taken
    selection          which workloads stand behind which services
    merging            several ServiceEntries of one host as one service

Who sees what:

    viewer             who looks: what of a host decides what it sees
    scopes             which Sidecar and EnvoyFilters hold for a host, and for whom an object with a selector is
    sidecars           what a Sidecar lets its hosts see, and what happens to all else; ingress: its inbound side
    visibility         what a namespace sees; what a host name or an address means to it
    rules              by what rules tell callers apart; virtual_services, destination_rules: which of them hold
    delegates          the routes of a VirtualService with those of its delegates in their places

What a host serves:

    inbound            which ports of a host are served, by whom and how
    gateways           what a host at the edge listens to; gateway_merge makes it of all Gateways that select the host

From one to the next:

    revision           build, update: from one revision to the next, and whom that touches
    step               one update under way
    take_*             its steps: objects, policies, hosts, workloads, services, endpoints, sidecars, viewers, rules,
                       gateways, extensions, authorization, request_authentications, expulsions

Everything here is pure: no clock, no socket, no store.
"""

from hostmesh_controller.mesh.compiled import virtual_hostnames
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import HostRuntime, Settings, Touched, Trust, Update
from hostmesh_controller.mesh.revision import build, update
from hostmesh_controller.mesh.step import host_dependency, object_dependency

__all__ = [
    "HostRuntime",
    "Mesh",
    "Settings",
    "Touched",
    "Trust",
    "Update",
    "build",
    "host_dependency",
    "object_dependency",
    "update",
    "virtual_hostnames",
]
