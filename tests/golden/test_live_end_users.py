"""RequestAuthentication and AuthorizationPolicy together, with real Envoys: what a token says decides."""

from collections.abc import Iterator
from typing import Any, Final

import pytest

from golden.live import NEEDS_ROOT, Network, network, vip, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Programs, get
from hostmesh_controller.explain.permission import Wish, may
from signing import Signer, key_set

WEB, SHOP, OUTSIDER = "10.9.6.1", "10.9.6.2", "10.9.6.9"
ISSUER, SLASHED, UNVERIFIED = "a@test.example", "https://b.test.example/tenant", "c@test.example"
FIRST, SECOND, STRANGER = Signer("first"), Signer("second", elliptic=True), Signer("stranger")
MESH_NAME: Final = "cluster.local/ns/default/sa/web"
LABELS: Final = {"app": "shop"}

pytestmark = NEEDS_ROOT


def rule(path: str, *conditions: tuple[str, list[str]], **source: list[str]) -> dict[str, Any]:
    return {
        "to": [{"operation": {"paths": [path]}}],
        **({"from": [{"source": source}]} if source else {}),
        **({"when": [{"key": key, "values": values} for key, values in conditions]} if conditions else {}),
    }


def policy(name: str, action: str, *rules: dict[str, Any], tried: bool = False) -> Any:
    annotations = {"istio.io/dry-run": "true"} if tried else {}
    spec = {"selector": {"matchLabels": LABELS}, "action": action, "rules": list(rules)}
    return obj("AuthorizationPolicy", name, spec, annotations=annotations)


ALLOWED: Final = (
    rule("/open"),
    rule("/anybody", requestPrincipals=["*"]),
    rule("/one", requestPrincipals=[f"{ISSUER}/ann"]),
    rule("/tenant", requestPrincipals=[f"{SLASHED}/*"]),
    rule("/not-ann", notRequestPrincipals=[f"{ISSUER}/ann"]),
    rule("/both", requestPrincipals=["*"], principals=[MESH_NAME]),
    rule("/other-caller", requestPrincipals=["*"], principals=["cluster.local/ns/default/sa/other"]),
    rule("/text", ("request.auth.claims[role]", ["admin", "team-*"])),
    rule("/list", ("request.auth.claims[groups]", ["staff"])),
    rule("/nested", ("request.auth.claims[org][teams]", ["red"])),
    rule("/dotted", ("request.auth.claims[test.example/role]", ["admin"])),
    rule("/scope", ("request.auth.claims[scope]", ["write"])),
    rule("/audience", ("request.auth.audiences", ["shop"])),
    rule("/presenter", ("request.auth.presenter", ["app"])),
    rule("/denied*", requestPrincipals=["*"]),
)
OBJECTS: Final = [
    obj("MeshConfig", "default", {"accessLogFile": "/dev/stdout"}),
    obj("Host", "web", {"addresses": [WEB]}),
    obj("WorkloadEntry", "web", {"address": WEB, "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("Host", "shop", {"addresses": [SHOP]}),
    obj("WorkloadEntry", "shop", {"address": SHOP, "labels": LABELS, "serviceAccount": "shop"}),
    obj("Service", "shop", {"selector": LABELS, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
    obj(
        "RequestAuthentication",
        "shop",
        {
            "selector": {"matchLabels": LABELS},
            "jwtRules": [{"issuer": name, "jwks": key_set(FIRST, SECOND)} for name in (ISSUER, SLASHED)],
        },
    ),
    policy("allowed", "ALLOW", *ALLOWED),
    policy("without-token", "DENY", rule("/denied*", notRequestPrincipals=["*"])),
    policy("blocked", "DENY", rule("/denied", ("request.auth.claims[groups]", ["blocked"]))),
    policy("tried", "DENY", rule("/open", notRequestPrincipals=["*"]), tried=True),
]
MESH: Final = mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    programs = Programs()
    with network(MESH, OUTSIDER) as found:
        with found.hosts["shop"]():
            programs.http(8080, "shop")
        with found.hosts["web"]():
            yield found
        programs.close()


def status(path: str, claims: dict[str, Any] | None, signer: Signer = FIRST) -> int:
    headers = {}
    if claims is not None:
        headers["Authorization"] = f"Bearer {signer.token(claims.get('iss', ISSUER), **claims)}"
    return get(vip(MESH, "shop"), 80, "shop", path, headers).status


ANN: Final = {"sub": "ann"}


@pytest.mark.parametrize(
    ("path", "claims", "expected"),
    [
        ("/open", None, 200),
        ("/open", ANN, 200),
        ("/closed", ANN, 403),
        ("/anybody", ANN, 200),
        ("/anybody", None, 403),
        ("/one", ANN, 200),
        ("/one", {"sub": "anna"}, 403),
        ("/one", {"sub": "ann", "iss": SLASHED}, 403),
        ("/one", None, 403),
        ("/tenant", {"sub": "bob", "iss": SLASHED}, 200),
        ("/tenant", {"sub": "bob"}, 403),
        ("/not-ann", {"sub": "bob"}, 200),
        ("/not-ann", ANN, 403),
        # Who shows no token is not ann: as in Istio.
        ("/not-ann", None, 200),
        ("/both", ANN, 200),
        ("/both", None, 403),
        ("/other-caller", ANN, 403),
        ("/text", {"role": "admin"}, 200),
        ("/text", {"role": "team-red"}, 200),
        ("/text", {"role": "administrator"}, 403),
        ("/text", {"role": ["user", "admin"]}, 200),
        ("/text", {"role": {"admin": "admin"}}, 403),
        ("/text", {}, 403),
        ("/text", None, 403),
        ("/list", {"groups": ["user", "staff"]}, 200),
        ("/list", {"groups": "staff"}, 200),
        ("/list", {"groups": "user staff"}, 403),
        ("/list", {"groups": []}, 403),
        ("/nested", {"org": {"teams": ["blue", "red"]}}, 200),
        ("/nested", {"org": {"teams": "red"}}, 200),
        ("/nested", {"org": {"team": "red"}}, 403),
        ("/nested", {"org": "red"}, 403),
        ("/dotted", {"test.example/role": "admin"}, 200),
        ("/dotted", {"test.example": {"role": "admin"}}, 403),
        ("/scope", {"scope": "read write"}, 200),
        ("/scope", {"scope": "read writes"}, 403),
        ("/audience", {"aud": "shop"}, 200),
        ("/audience", {"aud": ["other", "shop"]}, 200),
        ("/audience", {"aud": "other"}, 403),
        ("/audience", {}, 403),
        ("/presenter", {"azp": "app"}, 200),
        ("/presenter", {"azp": "other"}, 403),
        ("/denied", ANN, 200),
        ("/denied", None, 403),
        ("/denied", {"groups": ["blocked"]}, 403),
    ],
)
def test_what_a_token_says_decides_and_explain_says_the_same(
    net: Network, path: str, claims: dict[str, Any] | None, expected: int
) -> None:
    assert status(path, claims) == expected
    # Envoy tells the authorization a claim that is a list with spaces as a list, and so must who asks `explain`.
    known = None if claims is None else {"iss": ISSUER, "sub": "somebody", **claims}
    if known is not None and "scope" in known:
        known["scope"] = known["scope"].split()
    (answer,) = may(MESH, "web", "http://shop", Wish(path=path, claims=known))
    assert answer.verdict.allowed is (expected == 200)


def test_each_key_of_a_set_signs_for_each_of_its_issuers_and_no_other_does(net: Network) -> None:
    for signer in (FIRST, SECOND):
        assert status("/one", ANN, signer) == 200
        assert status("/tenant", {"iss": SLASHED}, signer) == 200
    # A token that is not valid is refused even where nobody asks for one.
    assert status("/open", ANN, STRANGER) == 401
    assert status("/open", {"exp": 1}) == 401
    assert status("/open", {"iss": UNVERIFIED}) == 401


def test_claims_in_a_header_or_in_a_token_where_no_rule_looks_give_no_name(net: Network) -> None:
    token = FIRST.token(ISSUER, sub="ann")
    for headers in ({"X-Token": token}, {"Cookie": f"token={token}"}, {"Authorization": token}):
        assert get(vip(MESH, "shop"), 80, "shop", "/one", headers).status == 403, headers


def test_a_policy_that_is_only_tried_tells_who_lacks_a_token_and_refuses_nobody(net: Network) -> None:
    shop = net.hosts["shop"]

    def refused() -> int:
        return shop.stat(r"http\.inbound_.*\.rbac\.istio_dry_run_deny_\.shadow_denied")

    before = refused()
    assert status("/open", ANN) == 200
    assert refused() == before
    assert status("/open", None) == 200
    wait_until("the refusal is counted", lambda: refused() == before + 1)
