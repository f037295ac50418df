"""CUSTOM policies: an RBAC filter tells which requests they mean, and the next filter asks the authorizer about those.

As in Istio there is one authorizer for a workload: if its policies name several, or one that cannot be asked, what
they mean is refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.config.core.v3.config_source_pb2 import ApiVersion
from envoy.config.core.v3.grpc_service_pb2 import GrpcService
from envoy.config.core.v3.http_uri_pb2 import HttpUri
from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.config.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.http.ext_authz.v3.ext_authz_pb2 import (
    AuthorizationRequest,
    AuthorizationResponse,
    BufferSettings,
    ExtAuthz,
    HttpService,
)
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac
from envoy.extensions.filters.network.ext_authz.v3.ext_authz_pb2 import ExtAuthz as NetworkExtAuthz
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac
from envoy.type.matcher.v3.metadata_pb2 import MetadataMatcher
from envoy.type.matcher.v3.string_pb2 import ListStringMatcher, StringMatcher
from envoy.type.matcher.v3.value_pb2 import ValueMatcher
from envoy.type.v3.http_status_pb2 import HttpStatus, StatusCode

from hostmesh_controller.mesh.authorization import authorizer_named, cluster_of, policies_for, provider_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.viewer import faces_of
from hostmesh_controller.model.extension_providers import Authorizer, GrpcAuthorizer, HttpAuthorizer
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.encoding import duration
from hostmesh_controller.xds.filters import http_filter, network_filter
from hostmesh_controller.xds.rbac_filters import HTTP, NETWORK, TCP_STATISTICS, rbac
from hostmesh_controller.xds.trust_domains import TrustDomains

HTTP_ASKS: Final = "envoy.filters.http.ext_authz"
NETWORK_ASKS: Final = "envoy.filters.network.ext_authz"
PREFIX: Final = "istio_ext_authz_"
_NAMES: Final = "istio-ext-authz"
_REFUSED: Final = "-deny-due-to-bad-CUSTOM-action"
"""Behind the names of rules whose authorizer cannot be asked."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A provider that policies name. `cluster` is "" where nobody can be asked."""

    provider: str
    cluster: str = ""
    hostname: str = ""
    authorizer: Authorizer | None = field(default=None, compare=False)
    """It follows from the mesh's settings, which make everything anew when they change."""


def asked_of(mesh: Mesh, host: Host, items: Iterable[ApiObject]) -> tuple[Asked, ...]:
    """Return the authorizers of policies, by name, as the host can reach them."""
    names = sorted({name for item in items if (name := provider_of(item))})
    return tuple(_asked(mesh, host, name) for name in names)


def _asked(mesh: Mesh, host: Host, name: str) -> Asked:
    authorizer = authorizer_named(mesh, name)
    found = cluster_of(mesh, authorizer, mesh.viewer_of(host.name)) if authorizer is not None else None
    if authorizer is None or found is None:
        return Asked(name)
    return Asked(name, str(found), found.hostname, authorizer)


def services_of(mesh: Mesh, host: Host) -> tuple[str, ...]:
    """Return the clusters of the authorizers that a host's proxy asks: they are never asked for on demand."""
    if not mesh.config.extension_providers or not mesh.authorization:
        return ()
    items = policies_for(mesh, faces_of(mesh, host))
    return tuple(sorted({each.cluster for each in asked_of(mesh, host, items) if each.cluster}))


def custom_http(items: Sequence[ApiObject], domains: TrustDomains, asked: Sequence[Asked]) -> tuple[HttpFilter, ...]:
    result: list[HttpFilter] = []
    for each in asked:
        rules = _rules(items, domains, each.provider, for_tcp=False)
        if not each.cluster or len(asked) > 1:
            result.append(http_filter(HTTP, http_rbac.RBAC(rules=_refusing(rules))))
            continue
        result.append(http_filter(HTTP, http_rbac.RBAC(shadow_rules=rules, shadow_rules_stat_prefix=PREFIX)))
        result.append(http_filter(HTTP_ASKS, _http(each)))
    return tuple(result)


def custom_tcp(items: Sequence[ApiObject], domains: TrustDomains, asked: Sequence[Asked]) -> tuple[Filter, ...]:
    """Return the filters for bare connections. As in Istio an authorizer that speaks HTTP has no word on those."""
    result: list[Filter] = []
    for each in asked:
        rules = _rules(items, domains, each.provider, for_tcp=True)
        if not each.cluster or len(asked) > 1:
            refusing = network_rbac.RBAC(rules=_refusing(rules), stat_prefix=TCP_STATISTICS)
            result.append(network_filter(NETWORK, refusing))
        elif isinstance(each.authorizer, GrpcAuthorizer):
            noting = network_rbac.RBAC(shadow_rules=rules, shadow_rules_stat_prefix=PREFIX, stat_prefix=TCP_STATISTICS)
            result += [network_filter(NETWORK, noting), network_filter(NETWORK_ASKS, _network(each))]
    return tuple(result)


def _rules(items: Iterable[ApiObject], domains: TrustDomains, provider: str, *, for_tcp: bool) -> RBAC:
    own = [item for item in items if provider_of(item) == provider]
    return rbac(own, domains, RBAC.DENY, for_tcp=for_tcp, prefix=f"{_NAMES}-{provider}-")


def _refusing(rules: RBAC) -> RBAC:
    result = RBAC(action=RBAC.DENY)
    for name, policy in rules.policies.items():
        result.policies[name + _REFUSED].CopyFrom(policy)
    return result


def _meant(filter_name: str, provider: str) -> MetadataMatcher:
    """Return how the filter that asks finds out that the one before it took a request for one of a provider's."""
    name = ValueMatcher(string_match=StringMatcher(prefix=f"{_NAMES}-{provider}-ns["))
    key = f"{PREFIX}shadow_effective_policy_id"
    return MetadataMatcher(filter=filter_name, path=[MetadataMatcher.PathSegment(key=key)], value=name)


def _http(asked: Asked) -> ExtAuthz:
    authorizer = asked.authorizer
    assert authorizer is not None
    result = ExtAuthz(
        transport_api_version=ApiVersion.V3,
        failure_mode_allow=authorizer.fail_open,
        filter_enabled_metadata=_meant(HTTP, asked.provider),
    )
    if authorizer.status_on_error:
        result.status_on_error.CopyFrom(HttpStatus(code=cast("StatusCode.ValueType", int(authorizer.status_on_error))))
    body = authorizer.include_request_body_in_check
    if body is not None:
        result.with_request_body.CopyFrom(
            BufferSettings(
                max_request_bytes=body.max_request_bytes,
                allow_partial_message=body.allow_partial_message,
                pack_as_bytes=body.pack_as_bytes,
            )
        )
    if isinstance(authorizer, HttpAuthorizer):
        result.http_service.CopyFrom(_http_service(asked, authorizer))
        shown = authorizer.include_request_headers_in_check or authorizer.include_headers_in_check
        if shown:
            result.allowed_headers.CopyFrom(_headers(shown))
    else:
        result.grpc_service.CopyFrom(_grpc(asked, authorizer))
    return result


def _network(asked: Asked) -> NetworkExtAuthz:
    assert asked.authorizer is not None
    return NetworkExtAuthz(
        stat_prefix=TCP_STATISTICS,
        failure_mode_allow=asked.authorizer.fail_open,
        transport_api_version=ApiVersion.V3,
        grpc_service=_grpc(asked, asked.authorizer),
        filter_enabled_metadata=_meant(NETWORK, asked.provider),
    )


def _grpc(asked: Asked, authorizer: Authorizer) -> GrpcService:
    return GrpcService(
        envoy_grpc=GrpcService.EnvoyGrpc(cluster_name=asked.cluster, authority=asked.hostname),
        timeout=duration(authorizer.timeout.total_seconds()),
    )


def _http_service(asked: Asked, authorizer: HttpAuthorizer) -> HttpService:
    result = HttpService(
        path_prefix=authorizer.path_prefix,
        server_uri=HttpUri(
            uri=f"http://{asked.hostname}",
            cluster=asked.cluster,
            timeout=duration(authorizer.timeout.total_seconds()),
        ),
    )
    added = sorted(authorizer.include_additional_headers_in_check.items())
    if added:
        headers = [HeaderValue(key=key, value=value) for key, value in added]
        result.authorization_request.CopyFrom(AuthorizationRequest(headers_to_add=headers))
    response = AuthorizationResponse()
    for part, names in (
        (response.allowed_upstream_headers, authorizer.headers_to_upstream_on_allow),
        (response.allowed_client_headers, authorizer.headers_to_downstream_on_deny),
        (response.allowed_client_headers_on_success, authorizer.headers_to_downstream_on_allow),
    ):
        if names:
            part.CopyFrom(_headers(names))
    if response.ByteSize():
        result.authorization_response.CopyFrom(response)
    return result


def _headers(names: Iterable[str]) -> ListStringMatcher:
    return ListStringMatcher(patterns=[_header(name) for name in names])


def _header(name: str) -> StringMatcher:
    if name.startswith("*"):
        return StringMatcher(suffix=name[1:], ignore_case=True)
    if name.endswith("*"):
        return StringMatcher(prefix=name[:-1], ignore_case=True)
    return StringMatcher(exact=name, ignore_case=True)
