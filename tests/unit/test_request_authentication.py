"""RequestAuthentication: what it may say, whom it is for, whom a change of it or of its keys touches."""

import hashlib
import json
from base64 import urlsafe_b64decode
from typing import Any

import pytest

from checking import codes, findings, istio, workload
from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.explain.call import Call
from hostmesh_controller.explain.routing import takes
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model import KINDS, from_document, kind_named, read_document
from hostmesh_controller.model.faults import path_text
from hostmesh_controller.model.http_match import HttpMatch
from hostmesh_controller.model.jwks import MAX_BYTES, NOBODYS, JwksError, read_jwks
from hostmesh_controller.model.routing_claims import routing_claim
from hostmesh_controller.xds.extension_types import Direction, Traffic
from hostmesh_controller.xds.jwt import authentication_of
from hostmesh_controller.xds.route_match import path_match
from signing import Signer, key_set

Body = dict[str, Any]
ONE = Signer("one")


def document(spec: Body, version: str = "v1") -> Body:
    return {
        "apiVersion": f"security.istio.io/{version}",
        "kind": "RequestAuthentication",
        "metadata": {"name": "x", "namespace": "default"},
        "spec": spec,
    }


def faults_of(spec: Body) -> str:
    _, faults = read_document(document(spec))
    return "\n".join(f"{path_text(fault.path)}: {fault.message}" for fault in faults)


def rule(**more: Any) -> Body:
    return {"jwtRules": [{"issuer": "https://issuer.example.com", **more}]}


FULL = {
    "selector": {"matchLabels": {"app": "web"}},
    "jwtRules": [
        {
            "issuer": "a@example.com",
            "audiences": ["b"],
            "jwksUri": "https://keys.example.com:8443/a?b=c",
            "fromHeaders": [{"name": "X-Token", "prefix": "Bearer "}, {"name": "y"}],
            "fromParams": ["token"],
            "fromCookies": ["session"],
            "outputPayloadToHeader": "x-payload",
            "forwardOriginalToken": True,
            "outputClaimToHeaders": [{"header": "x_sub-1", "claim": "sub"}],
            "timeout": "1.5s",
            "spaceDelimitedClaims": ["roles"],
        },
        {"issuer": "c@example.com", "jwks": key_set(ONE)},
        {"jwksUri": "http://10.0.0.1/keys"},
    ],
}


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_every_field_is_read_and_comes_back_as_it_was_written(version: str) -> None:
    made = from_document(document(FULL, version))
    assert made.to_dict() == document(FULL, version)
    assert from_document(made.to_dict()) == made
    assert kind_named("ra") is KINDS["RequestAuthentication"]


def test_the_old_spelling_of_jwks_uri_is_read_and_an_empty_object_is_for_everybody() -> None:
    made = from_document(document({"jwtRules": [{"jwks_uri": "https://a.example.com/keys"}]}))
    assert made.to_dict()["spec"] == {"jwtRules": [{"jwksUri": "https://a.example.com/keys"}]}
    assert faults_of({}) == ""


@pytest.mark.parametrize(
    ("spec", "refusal"),
    [
        ({"jwtRules": [{}]}, "spec.jwtRules[0]: issuer or jwksUri must be non-empty string"),
        ({"jwtRules": [{"jwks": key_set(ONE)}]}, "issuer or jwksUri must be non-empty string"),
        (rule(issuer=""), "spec.jwtRules[0].issuer: must not be empty"),
        (rule(audiences=[""]), "spec.jwtRules[0].audiences[0]: must not be empty"),
        (rule(jwksUri="file:///etc/passwd"), "spec.jwtRules[0].jwksUri: 'file:///etc/passwd': url must have scheme"),
        (rule(jwksUri="unix:///a"), "url must have scheme http:// or https://"),
        (rule(jwksUri="https://"), "the URL has no host"),
        (rule(jwksUri="https://a:b@c.example.com/"), "a password in a URL is shown to everybody"),
        (rule(jwksUri="https://a.example.com/ b"), "a URL has no spaces"),
        (rule(jwksUri="https://a.example.com:99999/"), "is not a URL: Port out of range"),
        (rule(jwksUri="https://a.example.com", jwks=key_set(ONE)), "only one of jwks, jwksUri may be set"),
        (rule(jwksUri="https://a.example.com/" + "a" * 2048), "at most 2048 characters"),
        (rule(jwks="{"), "spec.jwtRules[0].jwks: jwks parse error: not a JWKS (RFC 7517): it is not JSON"),
        (rule(jwks="[]"), 'expected an object with "keys", a list'),
        (rule(jwks=key_set({"kty": "oct", "k": "c2VjcmV0"})), "keys[0]: it is symmetric (oct)"),
        (rule(fromHeaders=[{"name": ""}]), "spec.jwtRules[0].fromHeaders[0].name: must not be empty"),
        (rule(fromHeaders=[{"prefix": "x"}]), "required field 'name' is missing"),
        (rule(fromHeaders=[{"name": "a b"}]), "'a b' is not a valid header name"),
        (rule(fromHeaders=[{"name": "a", "prefix": "b\n"}]), "a line break is not allowed here"),
        (rule(fromParams=[""]), "spec.jwtRules[0].fromParams[0]: must not be empty"),
        (rule(fromCookies=[""]), "spec.jwtRules[0].fromCookies[0]: must not be empty"),
        (rule(outputPayloadToHeader="a b"), "'a b' is not a valid header name"),
        (rule(outputPayloadToHeader="Host"), "'host' says where a request goes"),
        (rule(outputClaimToHeaders=[{"header": "x"}]), "required field 'claim' is missing"),
        (rule(outputClaimToHeaders=[{"header": "x.y", "claim": "a"}]), "'x.y' is not a header name of letters"),
        (rule(outputClaimToHeaders=[{"header": "x", "claim": ""}]), "outputClaimToHeaders[0].claim: must not be empty"),
        (rule(timeout="0.5ms"), "at least 1ms is needed"),
        (rule(spaceDelimitedClaims=["a"] * 65), "spec.jwtRules[0].spaceDelimitedClaims: at most 64 allowed"),
        (rule(presence="REQUIRED"), "spec.jwtRules[0].presence: not supported: Istio has the field and does nothing"),
        ({"targetRef": {"kind": "Gateway", "name": "x"}}, "spec.targetRef: not supported: it selects Kubernetes'"),
        ({"targetRefs": []}, "spec.targetRefs: not supported: it selects Kubernetes' gateways"),
        ({"selector": {"matchLabels": {"a": "*"}}}, "spec.selector.matchLabels.a: '*' is not a valid label value"),
    ],
)
def test_what_istio_or_envoy_would_refuse_is_refused_at_its_place(spec: Body, refusal: str) -> None:
    assert refusal in faults_of(spec)


def test_a_key_set_goes_to_proxies_without_what_they_must_not_have() -> None:
    private, elliptic = ONE.private_jwk, Signer("two", elliptic=True)
    found = read_jwks(
        key_set(private, elliptic, {"kty": "oct", "k": "eA"}, {"kty": "XYZ"}, {"kty": "EC", "crv": "P-256"})
    )
    assert [set(key) & {"d", "p", "q", "k"} for key in json.loads(found.text)["keys"]] == [set(), set()]
    assert found.keys == ("one", "two")
    assert [(each.index, each.whole) for each in found.left_out] == [(0, False), (2, True), (3, True), (4, True)]
    assert read_jwks(json.dumps(json.loads(key_set(ONE)), indent=3)).text == read_jwks(key_set(ONE)).text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        '{"keys": {}}',
        '{"keys": [], "keys": []}',
        "[" * 100_000,
        '{"keys": [' + ",".join(["{}"] * 101) + "]}",
        " " * MAX_BYTES + '{"keys": []}',
    ],
)
def test_what_is_no_key_set_is_none(text: str) -> None:
    with pytest.raises(JwksError):
        read_jwks(text)


@pytest.mark.parametrize("change", [{"n": "AQAB"}, {"n": "!"}, {"e": None}, {"n": "_" * 4000}])
def test_a_key_with_which_nothing_can_be_verified_is_left_out_and_nobody_s_takes_its_place(change: Body) -> None:
    found = read_jwks(key_set(ONE.jwk | change))
    assert (found.text, found.keys, len(found.left_out)) == (NOBODYS, (), 1)


def test_nobody_s_key_is_a_point_that_was_not_chosen_by_its_private_key() -> None:
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B

    def root(x: int) -> int | None:
        square = (x**3 - 3 * x + b) % prime
        y = pow(square, (prime + 1) // 4, prime)
        return min(y, prime - y) if y * y % prime == square else None

    sums = (int.from_bytes(hashlib.sha256(f"hostmesh: nobody's key {n}".encode()).digest()) for n in range(100))
    x, y = next((x, y) for x in sums if x < prime and (y := root(x)) is not None)
    [key] = json.loads(NOBODYS)["keys"]
    assert [int.from_bytes(urlsafe_b64decode(key[name] + "=")) for name in "xy"] == [x, y]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("@request.auth.claims.a", ("a",)),
        ("@request.auth.claims.a.b-C", ("a", "b-C")),
        ("@Request.Auth.Claims.A", ("A",)),
        ("@request.auth.claims[a.b][c]", ("a.b", "c")),
        ("@request.auth.claims[]", None),
        ("@request.auth.claims.", None),
        ("@request.auth.claims", None),
        ("@request.auth.claimsa", None),
        ("x-request.auth.claims.a", None),
    ],
)
def test_a_claim_is_named_as_in_istio(name: str, path: tuple[str, ...] | None) -> None:
    assert routing_claim(name) == path


A_KEYS, B_KEYS = "https://a.example.com/keys", "https://b.example.com/keys"


def authentication(name: str, url: str, app: str = "", namespace: str = "default", **more: Any) -> Any:
    own = {"selector": {"matchLabels": {"app": app}}} if app else {}
    spec = {"jwtRules": [{"issuer": more.pop("issuer", name), "jwksUri": url}], **own}
    return obj("RequestAuthentication", name, spec, namespace, **more)


def hosts() -> list[Any]:
    found = []
    for index, (name, namespace) in enumerate((("one", "default"), ("two", "default"), ("far", "far")), start=1):
        address = f"10.9.0.{index}"
        found += [
            obj("Host", name, {"addresses": [address]}),
            obj("WorkloadEntry", name, {"address": address, "labels": {"app": name}}, namespace),
            obj("Service", name, {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]}, namespace),
        ]
    return found


def rules_at(mesh: Mesh, host: str, direction: Direction = Direction.INBOUND) -> list[str]:
    [workload] = mesh.workloads_of(host)
    own = workload if direction is Direction.INBOUND else None
    return [str(part) for part in authentication_of(mesh, mesh.hosts[host], Traffic(direction, 80, own)).key[2:]]


def test_the_policies_of_the_namespace_and_of_the_whole_mesh_hold_together() -> None:
    mesh = mesh_of(
        [
            *hosts(),
            authentication("wide", A_KEYS, namespace="istio-system", age=0),
            authentication("root", A_KEYS, "far", namespace="istio-system", age=1),
            authentication("young", A_KEYS, "one", age=3),
            authentication("old", A_KEYS, age=2),
        ]
    )
    name = "RequestAuthentication {}".format
    assert rules_at(mesh, "one") == [*map(name, ("default/old", "default/young", "istio-system/wide"))]
    assert rules_at(mesh, "two") == [*map(name, ("default/old", "istio-system/wide"))]
    assert rules_at(mesh, "far") == [*map(name, ("istio-system/wide", "istio-system/root"))]
    assert rules_at(mesh, "one", Direction.OUTBOUND) == []


def inbound(mesh: Mesh, host: str) -> xds.Resource:
    found = xds.resource(mesh, host, wire.LISTENER_TYPE, "virtualInbound")
    assert found is not None
    return found


def test_a_change_of_keys_touches_the_hosts_that_verify_with_them_and_no_others() -> None:
    mesh = mesh_of([*hosts(), authentication("a", A_KEYS, "one"), authentication("b", B_KEYS, "two")])
    keys = {A_KEYS: "{}", B_KEYS: "{}"}
    first, touched = update(mesh, {}, mesh.vips, mesh.runtime, keys)
    assert touched.hosts == {"one", "two"}
    second, touched = update(first, {}, mesh.vips, mesh.runtime, {**keys, A_KEYS: '{"keys":[]}'})
    assert touched.hosts == {"one"}
    assert not touched.everything
    assert inbound(second, "one").version != inbound(first, "one").version
    assert inbound(second, "two") is inbound(first, "two")
    assert inbound(second, "far") is inbound(mesh, "far")
    _, touched = update(second, {}, mesh.vips, mesh.runtime)
    assert touched.hosts == set()
    third, _ = update(second, {}, mesh.vips, mesh.runtime, {B_KEYS: "{}"})
    assert inbound(third, "one").version == inbound(mesh, "one").version


def test_a_change_of_a_policy_touches_whom_it_was_for_and_whom_it_is_for() -> None:
    mesh = mesh_of([*hosts(), authentication("a", A_KEYS, "one")])
    moved = authentication("a", A_KEYS, "two")
    after, touched = update(mesh, {moved.key: moved}, mesh.vips, mesh.runtime)
    assert touched.hosts == {"one", "two"}
    assert not touched.everything
    assert inbound(after, "far") is inbound(mesh, "far")
    _, touched = update(after, {moved.key: None}, mesh.vips, mesh.runtime)
    assert touched.hosts == {"two"}


def test_a_filter_is_made_once_for_all_who_have_the_same() -> None:
    mesh = mesh_of([*hosts(), authentication("a", A_KEYS)])
    one, two = (
        authentication_of(mesh, mesh.hosts[name], Traffic(Direction.INBOUND, 80, mesh.workloads_of(name)[0]))
        for name in ("one", "two")
    )
    assert one is two


def policy(rules: str, rest: str = "", name: str = "x", namespace: str = "default") -> str:
    text = istio("RequestAuthentication", name, f"jwtRules: [{rules}]{rest}", namespace)
    return text.replace("networking.istio.io", "security.istio.io")


def inline(*keys: Any) -> str:
    return f"{{issuer: a, jwks: {json.dumps(key_set(*keys))}}}"


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ("{issuer: 'https://a.example.com'}", None),
        ("{issuer: a@example.com}", "no-keys spec.jwtRules[0].issuer"),
        ("{issuer: 'http://a.example.com'}", "unverified-keys spec.jwtRules[0].issuer"),
        ("{jwksUri: 'http://a.example.com/keys'}", "unverified-keys spec.jwtRules[0].jwksUri"),
        (inline(ONE), None),
        (inline(ONE.private_jwk), "private-key spec.jwtRules[0].jwks"),
        (inline(ONE, {"kty": "EC", "crv": "x"}), "unusable-key spec.jwtRules[0].jwks"),
        (inline(), "no-keys spec.jwtRules[0].jwks"),
        (f"{inline(ONE)}, {inline(ONE)}", "duplicate-issuer spec.jwtRules[1].issuer"),
    ],
)
def test_keys_that_cannot_be_had_or_trusted_are_warned_of(rules: str, code: str | None) -> None:
    assert codes(policy(rules)) == ([code] if code else [])


def test_a_selector_that_chooses_nobody_is_warned_of() -> None:
    text = policy(inline(ONE), ", selector: {matchLabels: {app: none}}")
    assert codes(text) == ["IST0127 unknown-selector spec.selector.matchLabels"]


def test_routes_by_claims_that_nobody_verifies_are_warned_of() -> None:
    edge = workload("edge", "istio: edge", namespace="edge")
    gateway = istio(
        "Gateway",
        "g",
        "selector: {istio: edge}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]",
    )
    claims = "headers: {'@request.auth.claims.role': {exact: admin}}"
    routes = istio(
        "VirtualService", "v", f"hosts: ['*'], gateways: [g], http: [{{match: [{{{claims}}}], redirect: {{uri: /x}}}}]"
    )
    [found] = findings(routes, edge + gateway)
    assert "no RequestAuthentication is for WorkloadEntry edge/edge (istio=edge)" in found
    assert "IST0149 unverified-claims" in codes(routes, edge + gateway)[0]
    assert codes(routes, edge + gateway + policy(inline(ONE), namespace="edge")) == []
    assert codes(routes, edge + gateway + policy(inline(ONE), namespace="istio-system")) == []
    other = policy(inline(ONE), ", selector: {matchLabels: {app: other}}", namespace="edge")
    assert len(codes(routes, edge + gateway + other)) == 1


def test_a_call_that_is_explained_has_no_claims() -> None:
    claims = {"@request.auth.claims.role": {"exact": "admin"}}
    call = Call("http", "db", 80)
    match = HttpMatch.model_validate
    assert not takes(path_match(match({"headers": claims})), call)
    assert takes(path_match(match({"withoutHeaders": claims})), call)
    assert takes(path_match(None), call)
