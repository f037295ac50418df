"""The configuration API: objects like Kubernetes', of Istio's kinds and our own.

    objects          what all have in common: a key, metadata, a spec, the place it was read from
    kinds            the register of kinds
    documents        one object from mappings and lists; faults: what is wrong with it, in the words of its author
    schema           what specs are made of
                     types of fields: durations, domains, exports, paths, patterns, log_format, pem
    redaction        documents as people may see them

Kinds, one file per family; behind a kind the files of its parts:

    hosts            Host
    services         Namespace, ServiceAccount, Service; protocols: what a port speaks
    workloads        WorkloadGroup; workload_entry, service_entry, probes; adoption: identities of listed endpoints
    virtual_service  http_match, http_actions, tcp_routes, route_fields; delegation: which matches agree
    destination_rule connection_pool, load_balancing, localities, client_tls
    gateway          listeners and server_tls, which are sidecar's too
    sidecar
    envoy_filter
    mesh_config      proxy_defaults: its defaultConfig; proxy_config: ProxyConfig
    security         PeerAuthentication
    authorization_policy  authorization_terms: values and attributes; extension_providers: MeshConfig's authorizers
    request_authentication  its keys: jwks; routing_claims: routes by what a token says
    secret
    wasm_plugin
    rate_limit
    health_check

    from hostmesh_controller.model import KINDS, ApiObject, ObjectKey, from_document
"""

from hostmesh_controller.model.documents import DocumentError, from_document, read_document
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.faults import Fault, path_text
from hostmesh_controller.model.kinds import KINDS, KindInfo, kind_named
from hostmesh_controller.model.objects import ApiObject, Metadata, ObjectKey, Origin, Path, Place
from hostmesh_controller.model.protocols import Protocol, entry_protocol, service_protocol
from hostmesh_controller.model.schema import Spec

__all__ = [
    "KINDS",
    "ApiObject",
    "DocumentError",
    "Duration",
    "Fault",
    "KindInfo",
    "Metadata",
    "ObjectKey",
    "Origin",
    "Path",
    "Place",
    "Protocol",
    "Spec",
    "entry_protocol",
    "from_document",
    "kind_named",
    "path_text",
    "read_document",
    "service_protocol",
]
