"""RateLimit: what is counted at the ports of the workloads that it selects.

Every rule is a filter of its own, since Envoy's filter has one answer and one mode. Local counts are kept by each
proxy, and by each filter chain of it: while a port takes plaintext beside mutual TLS, the two are counted apart.
"""

from collections.abc import Iterable, Iterator
from typing import Final, cast

from envoy.config.core.v3.base_pb2 import (
    HeaderValue,
    HeaderValueOption,
    RuntimeFractionalPercent,
)
from envoy.config.core.v3.config_source_pb2 import ApiVersion
from envoy.config.core.v3.grpc_service_pb2 import GrpcService
from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.config.ratelimit.v3.rls_pb2 import RateLimitServiceConfig
from envoy.config.route.v3.route_components_pb2 import RateLimit
from envoy.extensions.common.ratelimit.v3.ratelimit_pb2 import LocalRateLimitDescriptor, RateLimitDescriptor
from envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2 import LocalRateLimit
from envoy.extensions.filters.http.ratelimit.v3.rate_limit_pb2 import RateLimit as GlobalRateLimit
from envoy.extensions.filters.network.connection_limit.v3.connection_limit_pb2 import ConnectionLimit
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from envoy.extensions.filters.network.local_ratelimit.v3.local_rate_limit_pb2 import (
    LocalRateLimit as LocalConnectionLimit,
)
from envoy.extensions.rate_limit_descriptors.expr.v3.expr_pb2 import Descriptor
from envoy.type.v3.http_status_pb2 import HttpStatus, StatusCode
from envoy.type.v3.percent_pb2 import FractionalPercent
from envoy.type.v3.token_bucket_pb2 import TokenBucket
from google.protobuf.wrappers_pb2 import UInt32Value, UInt64Value

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.scopes import is_for
from hostmesh_controller.mesh.viewer import faces_of
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.rate_limit import LimitResponse, LimitRule, LimitService, PerValue, RateLimitSpec
from hostmesh_controller.names import OutboundName, expand
from hostmesh_controller.xds.encoding import any_of, duration
from hostmesh_controller.xds.extension_types import NONE, Direction, Extensions, Traffic, faces_behind
from hostmesh_controller.xds.filters import http_filter, network_filter
from hostmesh_controller.xds.rate_limit_terms import condition, value

KIND: Final = "RateLimit"
LOCAL: Final = "envoy.filters.http.local_ratelimit"
GLOBAL: Final = "envoy.filters.http.ratelimit"
MAX_VALUES: Final = 10_000
"""Values that have a bucket of their own in one rule; of more, those not seen for longest begin anew."""
_EXPRESSION: Final = "envoy.rate_limit_descriptors.expr"
_RULE: Final = "rule"
_ANYTHING: Final = TokenBucket(
    max_tokens=2**32 - 1, tokens_per_fill=UInt32Value(value=2**32 - 1), fill_interval=duration(1)
)
"""What the rule does not mean is not limited."""


def limits_of(mesh: Mesh, host: Host, traffic: Traffic) -> Extensions:
    """Return the filters of the limits that hold for one port of a host's workload, or of a gateway's."""
    if traffic.direction is Direction.OUTBOUND:
        return NONE
    faces = faces_behind(mesh, host, traffic)
    items = tuple(item for item in mesh.of_kind(KIND) if is_for(mesh, item, faces))
    if not items:
        return NONE
    http: list[HttpFilter] = []
    network: list[Filter] = []
    for item in items:
        spec = _spec(item)
        for rule in spec.rules:
            if _is_for(rule, traffic.port):
                http += _http(mesh, item, spec, rule)
                network += _network(item, rule)
    # Before anything is done for a request, but after it is known who asks.
    return Extensions(
        (KIND, *(item.key for item in items), traffic.port), items, before_authz=tuple(http), network=tuple(network)
    )


def services_of(mesh: Mesh, host: Host) -> tuple[str, ...]:
    """Return the clusters of the rate limit services that a host's proxy asks: they are never asked for on demand."""
    found = {
        str(_service_name(mesh, item, spec.global_service))
        for item in mesh.of_kind(KIND)
        for spec in (_spec(item),)
        if spec.global_service is not None and is_for(mesh, item, faces_of(mesh, host))
    }
    return tuple(sorted(found))


def _spec(item: ApiObject) -> RateLimitSpec:
    assert isinstance(item.spec, RateLimitSpec)
    return item.spec


def _is_for(rule: LimitRule, port: int) -> bool:
    return not rule.match or any(not match.ports or port in match.ports for match in rule.match)


def _stat_prefix(item: ApiObject, rule: LimitRule) -> str:
    return f"{item.key.namespace}.{item.key.name}.{rule.name}"


def _http(mesh: Mesh, item: ApiObject, spec: RateLimitSpec, rule: LimitRule) -> Iterator[HttpFilter]:
    if spec.global_service is not None:
        yield http_filter(GLOBAL, _counted_elsewhere(mesh, item, rule, spec.global_service))
    elif rule.limit is not None:
        yield http_filter(LOCAL, _counted_here(item, rule))


def _counted_here(item: ApiObject, rule: LimitRule) -> LocalRateLimit:
    assert rule.limit is not None
    response = rule.response or LimitResponse()
    bucket = TokenBucket(
        max_tokens=rule.limit.burst or rule.limit.requests,
        tokens_per_fill=UInt32Value(value=rule.limit.requests),
        fill_interval=duration(rule.limit.per.total_seconds()),
    )
    # An entry without a value takes any value, each with a bucket of its own.
    entries = [RateLimitDescriptor.Entry(key=key, value=rule.name if key == _RULE else "") for key in _keys(rule)]
    return LocalRateLimit(
        stat_prefix=_stat_prefix(item, rule),
        status=HttpStatus(code=cast("StatusCode.ValueType", response.status)),
        token_bucket=_ANYTHING,
        filter_enabled=_share(100),
        filter_enforced=_share(100 if rule.mode == "ENFORCE" else 0),
        response_headers_to_add=_headers(response),
        descriptors=[LocalRateLimitDescriptor(entries=entries, token_bucket=bucket)],
        rate_limits=[_descriptor(rule)],
        max_dynamic_descriptors=UInt32Value(value=MAX_VALUES),
    )


def _counted_elsewhere(mesh: Mesh, item: ApiObject, rule: LimitRule, service: LimitService) -> GlobalRateLimit:
    response = rule.response or LimitResponse()
    cluster = str(_service_name(mesh, item, service))
    return GlobalRateLimit(
        domain=service.domain,
        timeout=duration(service.timeout.total_seconds()),
        failure_mode_deny=not service.fail_open,
        rate_limit_service=RateLimitServiceConfig(
            grpc_service=GrpcService(envoy_grpc=GrpcService.EnvoyGrpc(cluster_name=cluster)),
            transport_api_version=ApiVersion.V3,
        ),
        rate_limited_status=HttpStatus(code=cast("StatusCode.ValueType", response.status)),
        response_headers_to_add=_headers(response),
        stat_prefix=_stat_prefix(item, rule),
        filter_enforced=_share(100 if rule.mode == "ENFORCE" else 0),
        rate_limits=[_descriptor(rule)],
    )


def _service_name(mesh: Mesh, item: ApiObject, service: LimitService) -> OutboundName:
    return OutboundName(service.port, "", expand(service.service, item.key.namespace, mesh.settings.domain))


def _keys(rule: LimitRule) -> Iterator[str]:
    yield _RULE
    for per in rule.per:
        if isinstance(per, PerValue):
            yield f"header:{per.header.lower()}" if per.header is not None else f"query:{per.query}"
        else:
            # The action that reads the address names its entry itself.
            yield "remote_address" if per == "sourceIp" else per


def _descriptor(rule: LimitRule) -> RateLimit:
    """Return how a request becomes the key that is counted: the rule, then what has a bucket of its own."""
    actions = [_expression(_RULE, condition(rule.name, rule.match))]
    for per, key in zip(rule.per, list(_keys(rule))[1:], strict=True):
        expression = value(per)
        action = RateLimit.Action()
        if expression is not None:
            action = _expression(key, expression)
        elif isinstance(per, PerValue) and per.query is not None:
            action.query_parameters.query_parameter_name = per.query
            action.query_parameters.descriptor_key = key
        else:
            action.remote_address.CopyFrom(RateLimit.Action.RemoteAddress())
        actions.append(action)
    return RateLimit(actions=actions)


def _expression(key: str, text: str) -> RateLimit.Action:
    action = RateLimit.Action()
    action.extension.name = _EXPRESSION
    action.extension.typed_config.CopyFrom(any_of(Descriptor(descriptor_key=key, text=text)))
    return action


def _headers(response: LimitResponse) -> Iterable[HeaderValueOption]:
    overwrite = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    for name, text in sorted(response.headers.items()):
        yield HeaderValueOption(header=HeaderValue(key=name, value=text), append_action=overwrite)


def _share(percent: int) -> RuntimeFractionalPercent:
    return RuntimeFractionalPercent(default_value=FractionalPercent(numerator=percent))


def _network(item: ApiObject, rule: LimitRule) -> Iterator[Filter]:
    if rule.connections is None:
        return
    limits = rule.connections
    prefix = _stat_prefix(item, rule)
    if limits.per is None:
        yield network_filter(
            "envoy.filters.network.connection_limit",
            ConnectionLimit(stat_prefix=prefix, max_connections=UInt64Value(value=limits.limit)),
        )
        return
    bucket = TokenBucket(
        max_tokens=limits.burst or limits.limit,
        tokens_per_fill=UInt32Value(value=limits.limit),
        fill_interval=duration(limits.per.total_seconds()),
    )
    yield network_filter(
        "envoy.filters.network.local_ratelimit",
        # The key makes the chains of a port count together.
        LocalConnectionLimit(stat_prefix=prefix, token_bucket=bucket, share_key=prefix),
    )
