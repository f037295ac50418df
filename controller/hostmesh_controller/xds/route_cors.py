"""Which pages of other origins may call, as browsers ask for it."""

from envoy.config.core.v3.base_pb2 import RuntimeFractionalPercent
from envoy.extensions.filters.http.cors.v3.cors_pb2 import CorsPolicy as WireCorsPolicy
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_controller.model.virtual_service import CorsPolicy
from hostmesh_controller.xds.route_faults import hundredths
from hostmesh_controller.xds.route_match import text_matches


def cors_policy(policy: CorsPolicy) -> WireCorsPolicy:
    """Return the policy of a route. Preflights of origins that may not call reach the program unless it says IGNORE."""
    result = WireCorsPolicy(
        allow_origin_string_match=text_matches(policy.allow_origins)
        or [StringMatcher(exact=origin) for origin in policy.allow_origin],
        allow_methods=",".join(policy.allow_methods),
        allow_headers=",".join(policy.allow_headers),
        expose_headers=",".join(policy.expose_headers),
        filter_enabled=RuntimeFractionalPercent(default_value=hundredths(100)),
        forward_not_matching_preflights=BoolValue(value=policy.unmatched_preflights != "IGNORE"),
    )
    if policy.max_age is not None:
        result.max_age = str(int(policy.max_age.total_seconds()))
    if policy.allow_credentials is not None:
        result.allow_credentials.CopyFrom(BoolValue(value=policy.allow_credentials))
    return result
