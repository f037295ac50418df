"""RequestAuthentication with real Envoys: whose tokens count, where they are looked for, and what comes of them."""

import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from golden.live import NEEDS_ROOT, LiveHost, Network, network, vip, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Answer, Programs, get
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.jwks import read_jwks
from signing import Signer, key_set, signed_with_secret, without_signature

WEB, DB, EDGE, OUTSIDER = "10.9.5.1", "10.9.5.2", "10.9.5.3", "10.9.5.9"
A, B, C = "a@test.example", "https://b.test.example", "https://down.test.example"
SIGNER, OTHER, ELLIPTIC, STRANGER = Signer("a1"), Signer("b1"), Signer("e1", elliptic=True), Signer("stranger")
B_KEYS = "http://keys.test.example/b"

pytestmark = NEEDS_ROOT


def workload(name: str, address: str) -> Any:
    return obj("WorkloadEntry", name, {"address": address, "labels": {"app": name}, "serviceAccount": name})


def authentication(name: str, app: str, *rules: dict[str, Any]) -> Any:
    return obj("RequestAuthentication", name, {"selector": {"matchLabels": {"app": app}}, "jwtRules": list(rules)})


A_RULE = {
    "issuer": A,
    "audiences": ["shop", "other"],
    "jwks": key_set(SIGNER, ELLIPTIC),
    "outputPayloadToHeader": "x-payload",
    "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}, {"header": "x-nested", "claim": "nested.key"}],
}
B_RULE = {
    "issuer": B,
    "jwksUri": B_KEYS,
    "fromHeaders": [{"name": "X-Token", "prefix": "Value "}],
    "fromParams": ["token"],
    "fromCookies": ["session"],
    "forwardOriginalToken": True,
    "outputClaimToHeaders": [{"header": "x-b-sub", "claim": "sub"}],
}
C_RULE = {"issuer": C, "fromHeaders": [{"name": "x-c"}]}


def claim(name: str, **match: str) -> dict[str, Any]:
    return {f"@request.auth.claims{name}": match}


def route(to: str, **match: Any) -> dict[str, Any]:
    found = {"route": [{"destination": {"host": to, "port": {"number": 80}}}]}
    return {**found, "match": [match]} if match else found


OBJECTS = [
    *(obj("Host", name, {"addresses": [address]}) for name, address in (("web", WEB), ("db", DB), ("edge", EDGE))),
    *(workload(name, address) for name, address in (("web", WEB), ("db", DB), ("edge", EDGE))),
    *(
        obj("Service", name, {"selector": {"app": "db"}, "ports": [{"name": "http", "port": 80, "targetPort": port}]})
        for name, port in (("db", 8080), ("admin", 8081), ("staff", 8082), ("nested", 8083))
    ),
    obj(
        "Gateway",
        "edge",
        {
            "selector": {"app": "edge"},
            "servers": [{"port": {"number": 8090, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}],
        },
    ),
    obj(
        "VirtualService",
        "edge",
        {
            "hosts": ["*"],
            "gateways": ["edge"],
            "http": [
                route("admin", headers=claim(".role", exact="admin"), uri={"prefix": "/claims"}),
                route("staff", headers=claim(".groups", regex="staff-.*"), uri={"prefix": "/claims"}),
                route("nested", headers=claim("[a.b][c]", prefix="d"), uri={"prefix": "/claims"}),
                route("staff", headers=claim(".any"), uri={"prefix": "/claims"}),
                route("admin", withoutHeaders=claim(".sub", exact="somebody"), uri={"prefix": "/not"}),
                route("db"),
            ],
        },
    ),
    authentication("db", "db", A_RULE, B_RULE, C_RULE),
    authentication("edge", "edge", {"issuer": A, "jwks": key_set(SIGNER), "forwardOriginalToken": True}),
]


def with_keys(mesh: Mesh, *signers: Signer) -> Mesh:
    keys = {B_KEYS: read_jwks(key_set(*signers)).text}
    return update(mesh, {}, mesh.vips, mesh.runtime, keys)[0]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return with_keys(mesh_of(OBJECTS), OTHER)


@pytest.fixture(scope="module")
def net(mesh: Mesh) -> Iterator[Network]:
    programs = Programs()
    with network(mesh, OUTSIDER) as found:
        with found.hosts["db"]():
            for port, name in ((8080, "db"), (8081, "admin"), (8082, "staff"), (8083, "nested")):
                programs.http(port, name)
        yield found
        programs.close()


@pytest.fixture
def db(mesh: Mesh) -> str:
    return vip(mesh, "db")


def call(address: str, headers: Mapping[str, str] | None = None, path: str = "/", *, method: str = "") -> Answer:
    return get(address, 80, "db", path, headers, method=method)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def good(**claims: Any) -> str:
    return SIGNER.token(A, **{"aud": "shop", **claims})


def test_a_valid_token_passes_and_a_request_without_one_does_too(web: LiveHost, db: str) -> None:
    assert call(db).status == 200
    answer = call(db, bearer(good()))
    assert answer.status == 200
    assert "authorization" not in answer.got, "the token is not passed on"
    assert call(db, bearer(ELLIPTIC.token(A, aud=["x", "other"]))).status == 200
    assert call(db, bearer(SIGNER.token(A, aud="shop", kid=None))).status == 200


@pytest.mark.parametrize(
    ("token", "status"),
    [
        pytest.param(lambda: good(exp=int(time.time()) - 3600), 401, id="expired"),
        pytest.param(lambda: good(nbf=int(time.time()) + 3600), 401, id="not yet valid"),
        pytest.param(lambda: SIGNER.token("somebody else", aud="shop"), 401, id="of another issuer"),
        pytest.param(lambda: SIGNER.token(A, aud="elsewhere"), 403, id="for another audience"),
        pytest.param(lambda: SIGNER.token(A), 403, id="for no audience"),
        pytest.param(lambda: STRANGER.token(A, aud="shop"), 401, id="with a key that is unknown"),
        pytest.param(lambda: STRANGER.token(A, aud="shop", kid="a1"), 401, id="with another key of the known name"),
        pytest.param(lambda: STRANGER.token(A, aud="shop", kid=None), 401, id="with an unknown key without name"),
        pytest.param(lambda: OTHER.token(A, aud="shop"), 401, id="with the key of another rule"),
        pytest.param(lambda: without_signature(A, aud="shop"), 401, id="without signature"),
        pytest.param(
            lambda: signed_with_secret(SIGNER.public_pem(), A, "a1", aud="shop"),
            401,
            id="with the public key as a secret",
        ),
        pytest.param(
            lambda: signed_with_secret(SIGNER.jwk["n"].encode(), A, aud="shop"), 401, id="with the modulus as a secret"
        ),
        pytest.param(lambda: good()[:-8] + "AAAAAAAA", 401, id="with a broken signature"),
        pytest.param(lambda: "nonsense", 401, id="that is no token"),
    ],
)
def test_a_token_is_refused(web: LiveHost, db: str, token: Any, status: int) -> None:
    answer = call(db, bearer(token()))
    assert (answer.status, "program" in answer.body) == (status, False)


def test_a_token_is_taken_from_each_place_that_a_rule_names_and_from_no_other(web: LiveHost, db: str) -> None:
    token, bad = OTHER.token(B), STRANGER.token(B)
    places: list[tuple[dict[str, str], str]] = [
        ({"X-Token": "Value %s"}, "/"),
        ({}, "/?token=%s"),
        ({"Cookie": "other=1; session=%s"}, "/"),
    ]

    def at(place: tuple[dict[str, str], str], value: str) -> Answer:
        headers, path = place
        return call(db, {name: text.replace("%s", value) for name, text in headers.items()}, path.replace("%s", value))

    for place in places:
        answer = at(place, token)
        assert (answer.status, answer.got.get("x-b-sub")) == (200, "somebody"), place
        assert token in answer.body, "it is passed on"
        assert at(place, bad).status == 401, place
    # Where no rule looks a token is a text like any other, and gives nobody a name.
    answer = call(db, {"X-Token-2": token, "X-Other": f"Value {token}"})
    assert (answer.status, "x-b-sub" in answer.got) == (200, False)
    # The default places are for rules that name none.
    assert call(db, bearer(token)).status == 401
    assert call(db, {}, f"/?access_token={good()}").status == 200
    # As in Istio one valid token is enough.
    assert call(db, {"X-Token": f"Value {bad}", **bearer(good())}).status == 200
    assert call(db, {"X-Token": f"Value {bad}", **bearer(STRANGER.token(A, aud="shop"))}).status == 401


def test_the_program_is_told_claims_and_the_payload(web: LiveHost, db: str) -> None:
    got = call(db, bearer(good(sub="me", nested={"key": "value"}))).got
    assert (got["x-sub"], got["x-nested"]) == ("me", "value")
    payload = got["x-payload"]
    assert json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"] == "me"


def test_what_a_caller_says_itself_under_the_names_of_claims_is_dropped(web: LiveHost, db: str) -> None:
    forged = {"x-sub": "admin", "X-Nested": "admin", "x-payload": "e30", "x-b-sub": "admin"}
    got = call(db, {**forged, "x-mine": "1"}).got
    assert (not {name.lower() for name in forged} & got.keys(), got["x-mine"]) == (True, "1")
    # A valid token of one rule is enough, and the rule of the other header is never come to.
    got = call(db, forged | bearer(good(sub="me"))).got
    assert (got["x-sub"], "x-nested" in got, "x-b-sub" in got) == ("me", False, False)
    got = call(db, forged | {"X-Token": f"Value {OTHER.token(B)}"}).got
    assert (got["x-b-sub"], "x-sub" in got, "x-payload" in got) == ("somebody", False, False)


def test_a_preflight_request_needs_no_token_and_brings_no_claims(web: LiveHost, db: str) -> None:
    expired = bearer(good(exp=1))
    asks = {"Origin": "https://x.example", "Access-Control-Request-Method": "POST", "x-sub": "admin"}
    answer = call(db, expired | asks, method="OPTIONS")
    assert (answer.status, "x-sub" in answer.got) == (200, False)
    assert call(db, expired, method="OPTIONS").status == 401


def test_an_issuer_whose_keys_could_not_be_had_has_no_valid_token(web: LiveHost, db: str) -> None:
    for signer in (SIGNER, ELLIPTIC, STRANGER):
        assert call(db, {"x-c": signer.token(C)}).status == 401
    assert call(db, {"x-c": without_signature(C)}).status == 401
    assert call(db, bearer(good())).status == 200, "others are not concerned"


def test_keys_that_rotate_count_at_once_and_for_those_who_use_them_alone(
    net: Network, web: LiveHost, mesh: Mesh, db: str
) -> None:
    new = Signer("b2", elliptic=True)
    headers = {"X-Token": f"Value {new.token(B)}"}
    assert call(db, headers).status == 401
    rotated = with_keys(mesh, new)
    edge_before = len(net.hosts["edge"].ads.pushed)
    for host in net.hosts.values():
        host.take(rotated)
    wait_until("the new key counts", lambda: call(db, headers).status == 200)
    wait_until("the old one does not", lambda: call(db, {"X-Token": f"Value {OTHER.token(B)}"}).status == 401)
    assert len(net.hosts["edge"].ads.pushed) == edge_before
    net.hosts["db"].take(mesh)
    wait_until("it is as it was", lambda: call(db, {"X-Token": f"Value {OTHER.token(B)}"}).status == 200)


def at_edge(path: str, headers: Mapping[str, str] | None = None) -> str:
    answer = get(EDGE, 8090, "shop.example", path, headers)
    return answer.got["program"] if answer.status == 200 else str(answer.status)


def test_routes_of_a_gateway_ask_for_claims(net: Network, mesh: Mesh) -> None:
    with net.outsider():

        def program(path: str = "/claims", **claims: Any) -> str:
            return at_edge(path, bearer(SIGNER.token(A, **{"aud": "shop", **claims})))

        assert program(role="admin") == "admin"
        assert program(role=["user", "admin"]) == "admin"
        assert program(role="administrator") == "db"
        assert program(groups=["staff-1"]) == "staff"
        assert program(scope="x staff-1", groups="staff-2") == "staff"
        assert program("/claims", **{"a.b": {"c": "delta"}}) == "nested"
        assert program(any="x") == "staff"
        assert program(any=["x"]) == "staff"
        assert program() == "db"
        assert program("/not", sub="another") == "admin"
        assert program("/not") == "db"
        assert at_edge("/not") == "admin", "no token, no claim"
        # A header that is named like the claim is none, and neither is a token that is not valid.
        assert at_edge("/claims", {"@request.auth.claims.role": "admin"}) in {"db", "400"}
        assert at_edge("/claims", bearer(STRANGER.token(A, role="admin"))) == "401"
