"""RequestAuthentication: the filter that verifies tokens, in Istio's form.

What it finds in a token it leaves in the metadata of the request, where AuthorizationPolicies and routes look. Headers
for claims and payload come from a token or from nobody: Envoy removes what a caller sends under these names, for every
rule and of every request, preflight ones too (1.40; the tests hold it to that).
"""

from collections.abc import Iterable
from typing import Final

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.config.route.v3.route_components_pb2 import RouteMatch
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import (
    JwtAuthentication,
    JwtClaimToHeader,
    JwtHeader,
    JwtProvider,
    JwtRequirement,
    JwtRequirementAndList,
    JwtRequirementOrList,
    RequirementRule,
)
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from google.protobuf.empty_pb2 import Empty

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.request_authentications import jwt_rules, request_authentications_of
from hostmesh_controller.model.jwks import NOBODYS, read_jwks
from hostmesh_controller.model.request_authentication import JwtRule
from hostmesh_controller.xds.extension_types import NONE, Direction, Extensions, Traffic, faces_behind
from hostmesh_controller.xds.filters import http_filter, on_demand

JWT_AUTHN: Final = "envoy.filters.http.jwt_authn"
PAYLOAD: Final = "payload"
"""Below the filter's name in the metadata of a request: the claims of its token (Istio's word)."""
SPACE_DELIMITED: Final = frozenset({"permission", "scope"})
"""Claims that are lists written as one text (Istio's)."""
_AGAIN: Final = "hostmesh.on_demand_after_authn"


def authentication_of(mesh: Mesh, host: Host, traffic: Traffic) -> Extensions:
    """Return the filters that verify the tokens of requests to a workload's port, or to a gateway."""
    if traffic.direction is Direction.OUTBOUND or not mesh.request_authentications:
        return NONE
    items = request_authentications_of(mesh, faces_behind(mesh, host, traffic))
    # As in Istio: by issuer, of one issuer in the order of the policies.
    rules = sorted((rule for item in items for rule in jwt_rules(item)), key=lambda rule: rule.issuer or "")
    if not rules:
        return NONE
    is_gateway = traffic.direction is Direction.GATEWAY
    sets = tuple(mesh.jwks.get(rule.keys_url, NOBODYS) if rule.keys_url else "" for rule in rules)
    key = ("RequestAuthentication", is_gateway, *(item.key for item in items))

    def make() -> Extensions:
        filters = tuple(_filters(rules, sets, is_gateway=is_gateway))
        return Extensions(key=key, inputs=(*items, *sets), authn=filters)

    return mesh.memo.get(key, (*items, *sets), make)


def _filters(rules: list[JwtRule], sets: Iterable[str], *, is_gateway: bool) -> Iterable[HttpFilter]:
    yield http_filter(JWT_AUTHN, _configuration(rules, sets, is_gateway=is_gateway))
    if is_gateway:
        # Claims may lead to another route, and so to a cluster that nobody asked for yet.
        yield on_demand(_AGAIN)


def _configuration(rules: list[JwtRule], sets: Iterable[str], *, is_gateway: bool) -> JwtAuthentication:
    named = {f"origins-{index}": rule for index, rule in enumerate(rules)}
    result = JwtAuthentication(bypass_cors_preflight=True)
    for (name, rule), keys in zip(named.items(), sets, strict=True):
        result.providers[name].CopyFrom(_provider(rule, keys or read_jwks(rule.jwks or "").text, is_gateway))
    result.rules.append(RequirementRule(match=RouteMatch(prefix="/"), requires=_requirement(list(named))))
    return result


def _provider(rule: JwtRule, keys: str, is_gateway: bool) -> JwtProvider:
    claims = sorted(SPACE_DELIMITED.union(rule.space_delimited_claims))
    return JwtProvider(
        issuer=rule.issuer or "",
        audiences=rule.audiences,
        local_jwks=DataSource(inline_string=keys),
        forward=rule.forward_original_token,
        from_headers=[JwtHeader(name=each.name, value_prefix=each.prefix) for each in rule.from_headers],
        from_params=rule.from_params,
        from_cookies=rule.from_cookies,
        forward_payload_header=rule.output_payload_to_header,
        claim_to_headers=[
            JwtClaimToHeader(header_name=each.header, claim_name=each.claim) for each in rule.output_claim_to_headers
        ],
        payload_in_metadata=PAYLOAD,
        normalize_payload_in_metadata=JwtProvider.NormalizePayload(space_delimited_claims=claims),
        # Routes of gateways may ask for claims; those of a workload's port do not.
        clear_route_cache=is_gateway,
    )


def _requirement(names: list[str]) -> JwtRequirement:
    """Return what a request must have: no token, or a valid one wherever a rule looks for one.

    The rules alone come first: several may look in one place, where only one of them can find its token.
    """
    each = [_any([JwtRequirement(provider_name=name), JwtRequirement(allow_missing=Empty())]) for name in names]
    if len(each) == 1:
        return each[0]
    together = JwtRequirement(requires_all=JwtRequirementAndList(requirements=each))
    return _any([*(JwtRequirement(provider_name=name) for name in names), together])


def _any(requirements: list[JwtRequirement]) -> JwtRequirement:
    return JwtRequirement(requires_any=JwtRequirementOrList(requirements=requirements))
