"""RequestAuthentications: keys that cannot be found or trusted; and routes by claims that nobody verifies."""

from collections.abc import Iterator
from typing import Final

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import labels_of, selector_text
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, ObjectKey, Path
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.jwks import read_jwks
from hostmesh_controller.model.request_authentication import JwtRule, RequestAuthenticationSpec, url_problem
from hostmesh_controller.model.routing_claims import routing_claim
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.names import MESH, gateway_name

UNVERIFIED_CLAIMS: Final = "IST0149"


def check_request_authentication(spec: RequestAuthenticationSpec) -> Iterator[Finding]:
    """Yield what is doubtful in the rules of one object."""
    issuers: dict[str, int] = {}
    for index, rule in enumerate(spec.jwt_rules):
        path: Path = ("spec", "jwtRules", index)
        first = issuers.setdefault(rule.issuer or "", index)
        if rule.issuer and first != index:
            message = f"jwtRules[{first}] is for {rule.issuer!r} too: a token counts if one of them takes it"
            yield Finding((*path, "issuer"), message, "duplicate-issuer")
        yield from _check_keys(path, rule)


def _check_keys(path: Path, rule: JwtRule) -> Iterator[Finding]:
    if rule.jwks:
        yield from _check_inline((*path, "jwks"), rule.jwks)
        return
    at: Path = (*path, "jwksUri" if rule.jwks_uri else "issuer")
    problem = "" if rule.jwks_uri else url_problem(rule.keys_url)
    if problem:
        message = (
            "without jwks and jwksUri the issuer must be a URL that tells where its keys are, and "
            f"{rule.issuer!r} is none: every token is refused"
        )
        yield Finding(at, message, "no-keys")
    elif rule.keys_url.startswith("http://"):
        message = "whoever is between this address and the controller can put other keys in their place: use https"
        yield Finding(at, message, "unverified-keys")


def _check_inline(path: Path, text: str) -> Iterator[Finding]:
    found = read_jwks(text)
    for each in found.left_out:
        if each.whole:
            yield Finding(path, f"keys[{each.index}] is left out: {each.reason}", "unusable-key")
        else:
            message = f"keys[{each.index}]: {each.reason}; take it out, it is a secret"
            yield Finding(path, message, "private-key")
    if not found.keys:
        yield Finding(path, "there is no key in it that can be used: every token is refused", "no-keys")


def check_claim_routes(item: ApiObject, spec: VirtualServiceSpec, world: World) -> Iterator[Finding]:
    """Yield routes by claims where no RequestAuthentication verifies tokens: no request has claims there."""
    path = _first_claim(spec)
    if path is None:
        return
    for name in spec.gateways:
        namespace, _, short = gateway_name(name, item.key.namespace).partition("/")
        gateway = None if name == MESH else world.objects.get(ObjectKey("Gateway", namespace, short))
        if gateway is None:
            continue
        assert isinstance(gateway.spec, GatewaySpec)
        for member in sorted(world.selected(gateway.spec.selector), key=lambda each: each.key):
            if not _is_authenticated(member, world):
                message = (
                    f"no RequestAuthentication is for {member.key} ({selector_text(gateway.spec.selector)}), which "
                    f"serves Gateway {namespace}/{short}: no request has claims there"
                )
                yield Finding(path, message, "unverified-claims", istio_code=UNVERIFIED_CLAIMS)
    if not spec.gateways or MESH in spec.gateways:
        message = "routes by claims are for gateways: callers inside the mesh verify no tokens, so none has claims"
        yield Finding(path, message, "unverified-claims", istio_code=UNVERIFIED_CLAIMS)


def _first_claim(spec: VirtualServiceSpec) -> Path | None:
    for index, http in enumerate(spec.http):
        for place, match in enumerate(http.match):
            for field, names in (("headers", match.headers), ("withoutHeaders", match.without_headers)):
                for name in names:
                    if routing_claim(name) is not None:
                        return ("spec", "http", index, "match", place, field, name)
    return None


def _is_authenticated(workload: ApiObject, world: World) -> bool:
    labels = labels_of(workload).items()
    for namespace in (workload.key.namespace, world.root_namespace):
        for policy in world.at(Relation.AUTHENTICATION, namespace):
            assert isinstance(policy.spec, RequestAuthenticationSpec)
            if not policy.spec.selector or policy.spec.selector.match_labels.items() <= labels:
                return True
    return False
