"""From the mesh to Envoy's configuration: pure constructors, one resource at a time.

    resources            the entry: (mesh, host, type, name) -> bytes, the names of `*`, and what a resource depends on
    of_*                 the same for one type of resource
    calling              which resources another set of things to call makes others
    keeping              what is made once for many hosts
    encoding             messages to bytes and versions; messages: and back, of any of Envoy's types
    sources              where Envoy gets what it asks for
    origins              notes of the objects that a route or a cluster was made from
    redaction            secrets as people may see them

Listeners (LDS):

    outbound             what a viewer calls: ports, addresses; connections: routes of connections
    listeners_outbound   virtualOutbound and 0.0.0.0_PORT; sidecar_egress: those of Sidecars' own addresses
    listeners_inbound    virtualInbound; sidecar_tls: TLS that ends at a Sidecar's ingress
    dns                  the DNS listener
    filters              the filters that listeners are put together from
    listener_settings    what mesh-wide settings make of a listener; access_log: its logs
    called_by_name       services that have no address: dialled anyhow, told apart by their names

Gateways:

    gateway_listeners    their listeners; gateway_tls: TLS that ends there; file_secrets: certificates in files
    gateway_routes       their route tables; gateway_bound: from which VirtualServices
    gateway_connections  where connections go that are not HTTP; gateway_passthrough: the mesh's own TLS passed on

Routes (RDS, VHDS):

    routes               tables that ask for virtual hosts, and what these hold
    route_*              the parts of a VirtualService's route: match, action, headers, redirect, retries, faults, cors
    sidecar_beyond       requests for what a viewer does not see

Clusters (CDS) and endpoints (EDS):

    clusters             the fixed ones and services on demand; inbound_clusters: of the host's own programs
    cluster_target       what a cluster is made from; cluster_*: its discovery, http, tls
    policy               DestinationRule; its parts: breakers, connection_policy, load_balancing, client_tls
    health_checks        HealthCheck
    endpoints            assignments; localities: which are used first
    tls                  mutual TLS of the mesh

Who may call:

    expelled             who was expelled, refused first of all in every chain
    jwt                  RequestAuthentication: the filter that verifies tokens
    authorization        AuthorizationPolicy, all of a chain in Istio's order; custom_authorization: those that ask
    rbac                 one rule; rbac_filters: rules as a filter; rbac_matchers: values; trust_domains: aliases
    call_log             who calls, counted in Envoy; stats_log: by such counters

Extensions:

    http_extensions      more filters for a chain (extension_types): wasm; rate_limits with rate_limit_terms
    patches              EnvoyFilter, on finished resources; patch_set: which hold; patch_merge: how they change
    patch_*              what each kind does: listeners, filters, routes, virtual_hosts, clusters, bootstrap

The agent's own: host_config; cold_pages: all that a viewer may call, for the time without a controller.

Every resource is asked for by a host, since what a host sees depends on its viewer; resources that are equal for many
hosts are made once (see `mesh.memo`).
"""

from hostmesh_api.delta import Resource
from hostmesh_controller.xds.calling import called_by, standing_clusters
from hostmesh_controller.xds.clusters import is_missing
from hostmesh_controller.xds.encoding import is_absent
from hostmesh_controller.xds.resources import (
    WILDCARD_TYPES,
    audience,
    confirmation,
    dependencies,
    knows_host,
    resource,
    wildcard,
)

__all__ = [
    "WILDCARD_TYPES",
    "Resource",
    "audience",
    "called_by",
    "confirmation",
    "dependencies",
    "is_absent",
    "is_missing",
    "knows_host",
    "resource",
    "standing_clusters",
    "wildcard",
]
