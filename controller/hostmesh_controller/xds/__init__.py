"""From the mesh to Envoy's configuration: pure constructors, one resource at a time.

    resources           the entry: (mesh, host, type, name) -> bytes, the names of `*`, and what a resource depends on
    of_*                the same for one type: listeners, clusters, endpoints, routes, virtual hosts, secrets
    patches             EnvoyFilter, on finished resources; patch_set: which hold; patch_*: what each kind does
    http_extensions     Wasm plugins (wasm) and rate limits: more filters for a chain
    keeping             what is made once for many hosts
    outbound            what a viewer calls: ports, addresses; connections: routes of connections
    calling             which resources another set of things to call makes others
    listeners_outbound  virtualOutbound and 0.0.0.0_PORT
    listeners_inbound   virtualInbound
    gateway_*           listeners, route tables, TLS and connections of gateways; file_secrets: certificates in files
    dns                 the DNS listener
    filters             the filters that listeners are put together from
    routes              RDS and VHDS; route_*: the parts of a VirtualService's routes
    clusters            CDS; policy: DestinationRule; breakers, client_tls: its parts
    endpoints           EDS
    tls                 mutual TLS of the mesh
    host_config         the agent's own resource
    sources             where Envoy gets what it asks for
    redaction           secrets as people may see them
    encoding            messages to bytes and versions; messages: and back, of any of Envoy's types

Every resource is asked for by a host, since what a host sees depends on its namespace; resources that are equal for
many hosts are made once (see `mesh.memo`).
"""

from hostmesh_api.delta import Resource
from hostmesh_controller.xds.calling import called_by, standing_clusters
from hostmesh_controller.xds.encoding import is_absent
from hostmesh_controller.xds.resources import WILDCARD_TYPES, audience, dependencies, knows_host, resource, wildcard

__all__ = [
    "WILDCARD_TYPES",
    "Resource",
    "audience",
    "called_by",
    "dependencies",
    "is_absent",
    "knows_host",
    "resource",
    "standing_clusters",
    "wildcard",
]
