"""`authz explain`: who may do what, by which rule, and why the others do not hold."""

from pathlib import Path
from typing import Any

import pytest

from golden.objects import all_ready, mesh_of, obj
from hostmesh_controller.explain import explain, parse_call
from hostmesh_controller.explain.permission import Answer, UnknownPartyError, Wish, may, summary
from hostmesh_controller.explain.routing import text_holds
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.rbac_matchers import principal, quoted, request_principal, text
from hostmesh_controller.xds.trust_domains import TrustDomains
from running_controller import running_app
from shop import HOST, SERVICE

Body = dict[str, Any]
WEB = "spiffe://cluster.local/ns/default/sa/web"


def objects() -> list[ApiObject]:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 3306}]
    return [
        obj("Host", "web", {"addresses": ["10.0.0.1"]}),
        obj("Host", "shop", {"addresses": ["10.0.0.2"]}),
        obj("WorkloadEntry", "web", {"address": "10.0.0.1", "labels": {"app": "web"}, "serviceAccount": "web"}),
        obj("WorkloadEntry", "shop-1", {"address": "10.0.0.2", "labels": {"app": "shop"}}),
        obj("WorkloadEntry", "shop-2", {"address": "10.0.9.9", "labels": {"app": "shop"}}),
        obj("Service", "shop", {"selector": {"app": "shop"}, "ports": ports}),
    ]


def policy(name: str, *rules: Body, **more: Any) -> ApiObject:
    return obj("AuthorizationPolicy", name, {"selector": {"matchLabels": {"app": "shop"}}, "rules": rules, **more})


def operation(**fields: list[str]) -> Body:
    return {"to": [{"operation": fields}]}


def source(**fields: list[str]) -> Body:
    return {"from": [{"source": fields}]}


def the_mesh(*more: ApiObject) -> Mesh:
    return mesh_of([*objects(), *more])


def first(mesh: Mesh, who: str = "web", where: str = "http://shop/cart", **wish: Any) -> Answer:
    return may(mesh, who, where, Wish(**wish))[0]


def test_without_policies_everything_is_allowed() -> None:
    answer = first(the_mesh())
    assert (answer.verdict.allowed, answer.verdict.text) == (True, "allowed: no policy refuses it")
    assert (answer.target.text, answer.chain) == ("workload default/shop-1", "0.0.0.0_8080|mtls")


def test_the_rule_that_decides_is_named_and_the_others_say_what_is_in_their_way() -> None:
    rules = (
        source(principals=["cluster.local/ns/default/sa/job"]) | operation(methods=["GET"]),
        operation(paths=["/c*"]),
    )
    mesh = the_mesh(policy("allow", *rules), policy("deny", operation(paths=["/admin", "/x/{*}"]), action="DENY"))
    answer = first(mesh)
    assert answer.verdict.text == "allowed by default/allow rule 1"
    deny, allow = answer.verdict.rulings
    assert (deny.action, deny.decision) == ("DENY", "none")
    assert deny.judged[0].why == "path is '/cart'; asked for: '/admin' or /x/*"
    assert [each.why for each in allow.judged] == [
        f"principal is '{WEB}'; asked for: 'spiffe://cluster.local/ns/default/sa/job'",
        "",
    ]
    denied = first(mesh, path="/x/y")
    assert (denied.verdict.allowed, denied.verdict.text) == (False, "denied by default/deny rule 0 (DENY)")
    nobody = first(mesh, path="/other")
    assert nobody.verdict.text == "denied: there are ALLOW policies, and none of them holds"


def test_callers_are_hosts_workloads_identities_and_addresses() -> None:
    mesh = the_mesh(policy("allow", source(principals=["*/sa/web"]), source(ipBlocks=["192.0.2.0/24"])))
    said = {who: first(mesh, who).verdict.allowed for who in ("web", "default/web", WEB, "192.0.2.7", "192.0.3.7")}
    assert said == {"web": True, "default/web": True, WEB: True, "192.0.2.7": True, "192.0.3.7": False}
    assert first(mesh, "192.0.3.7").chain == "0.0.0.0_8080|plaintext"
    assert first(mesh, "shop", source="192.0.2.7").verdict.allowed
    with pytest.raises(UnknownPartyError, match=r"'wep' is nobody.*did you mean 'web'"):
        first(mesh, "wep")
    with pytest.raises(UnknownPartyError, match="is not an IP address"):
        first(mesh, source="x")


def test_targets_are_urls_ports_workloads_and_hosts() -> None:
    mesh = the_mesh(policy("allow", operation(ports=["3306"])))
    said = {
        where: first(mesh, where=where, port=port).verdict.allowed
        for where, port in (
            ("http://shop/", None),
            ("shop:3306", None),
            ("tcp://shop", 3306),
            ("default/shop-1", 3306),
            ("default/shop-1", 8080),
            ("10.0.0.2:3306", None),
            ("shop.default:80", None),
        )
    }
    assert [*said.values()] == [False, True, True, False, True, False]
    with pytest.raises(UnknownPartyError, match=r"has the ports 3306, 8080: give --port"):
        first(mesh, where="default/shop-1")
    for where in ("nobody:80", "http://nobody", "ftp://shop"):
        with pytest.raises(UnknownPartyError):
            first(mesh, where=where)


def test_each_workload_behind_a_service_gives_its_own_answer() -> None:
    answers = may(the_mesh(policy("nobody")), "web", "http://shop/", Wish())
    assert [(each.target.text, each.verdict.allowed) for each in answers] == [
        ("workload default/shop-1", False),
        ("workload default/shop-2", True),
    ]
    assert "outside of the mesh" in answers[1].verdict.text
    assert summary(answers) is False


def test_without_http_an_allow_rule_that_asks_for_it_allows_nothing() -> None:
    mesh = the_mesh(policy("allow", operation(paths=["/c*"])))
    assert first(mesh).verdict.allowed
    answer = first(mesh, where="shop:3306")
    assert not answer.verdict.allowed
    assert answer.verdict.rulings[0].judged == ()


def test_strict_and_disabled_ports_take_whom_they_take() -> None:
    strict = obj("PeerAuthentication", "default", {"mtls": {"mode": "STRICT"}})
    answer = first(the_mesh(strict), "192.0.2.7")
    assert (answer.verdict.allowed, answer.verdict.text) == (
        False,
        "no filter chain takes plaintext: the port is STRICT",
    )
    off = obj("PeerAuthentication", "default", {"mtls": {"mode": "DISABLE"}})
    assert first(the_mesh(off)).identity is None
    assert not first(the_mesh(off, policy("allow", source(principals=["*"])))).verdict.allowed


def test_claims_of_a_token_count_where_they_are_given() -> None:
    rules = (
        {"from": [{"source": {"requestPrincipals": ["https://issuer.test/ann"]}}]},
        {"when": [{"key": "request.auth.claims[groups]", "values": ["admins"]}]},
        {"when": [{"key": "request.auth.claims[a][b]", "values": ["c*"]}]},
        {"when": [{"key": "request.auth.audiences", "values": ["shop"]}]},
    )
    mesh = the_mesh(policy("allow", *rules))
    given: list[tuple[Body | None, bool]] = [
        (None, False),
        ({"iss": "https://issuer.test", "sub": "ann"}, True),
        ({"iss": "https://issuer.test", "sub": "bob"}, False),
        ({"groups": ["users", "admins"]}, True),
        ({"groups": "admins"}, True),
        ({"groups": ["users"]}, False),
        ({"a": {"b": "cd"}}, True),
        ({"a": "c"}, False),
        ({"aud": ["shop", "x"]}, True),
    ]
    for claims, allowed in given:
        assert first(mesh, claims=claims).verdict.allowed is allowed, claims


def test_what_an_authorizer_decides_is_neither_allowed_nor_denied() -> None:
    judge = {"service": "shop.default.svc.cluster.local", "port": 80}
    config = obj("MeshConfig", "default", {"extensionProviders": [{"name": "judge", "envoyExtAuthzGrpc": judge}]})
    asked = policy("custom", operation(paths=["/c*"]), action="CUSTOM", provider={"name": "judge"})
    answer = first(the_mesh(config, asked))
    assert answer.verdict.allowed is None
    assert answer.verdict.text.startswith("the authorizer that default/custom rule 0 names decides")
    assert first(the_mesh(config, asked), path="/x").verdict.allowed
    refused = first(the_mesh(asked))
    assert refused.verdict.text == "denied: the authorizer that default/custom rule 0 names cannot be asked"


def test_what_is_only_tried_is_told_and_does_not_count() -> None:
    tried = obj(
        "AuthorizationPolicy", "tried", {"action": "DENY", "rules": [{}]}, annotations={"istio.io/dry-run": "true"}
    )
    answer = first(the_mesh(tried))
    assert answer.verdict.allowed
    (ruling,) = answer.verdict.rulings
    assert (ruling.dry_run, ruling.decision, ruling.body()["by"]) == (True, "deny", "default/tried rule 0")


def test_a_gateway_answers_for_its_own_workload() -> None:
    gateway = obj(
        "Gateway",
        "edge",
        {
            "selector": {"app": "shop"},
            "servers": [{"hosts": ["*"], "port": {"number": 9000, "name": "http", "protocol": "HTTP"}}],
        },
    )
    route = obj(
        "VirtualService",
        "edge",
        {
            "hosts": ["*"],
            "gateways": ["edge"],
            "http": [{"route": [{"destination": {"host": "shop", "port": {"number": 80}}}]}],
        },
    )
    mesh = the_mesh(gateway, route, policy("allow", source(remoteIpBlocks=["192.0.2.0/24"])))
    assert first(mesh, "192.0.2.7", "http://10.0.0.2:9000/").verdict.allowed
    answer = first(mesh, "198.51.100.1", "http://10.0.0.2:9000/", headers={"x-forwarded-for": "192.0.2.7"})
    assert (answer.target.text, answer.verdict.allowed) == ("gateway default/edge", False)


def test_explain_tells_what_policies_make_of_a_call() -> None:
    mesh = mesh_of([*objects(), policy("nobody")], all_ready(objects()))
    story = explain(mesh, "web", parse_call("http://shop/"))
    (step,) = (each for each in story.steps if each.stage == "authorization")
    assert step.what == "denied: there are ALLOW policies, and none of them holds"


@pytest.mark.parametrize(
    ("value", "aliases", "expected"),
    [
        ("cluster.local/ns/a/sa/b", ("td", "old"), ("td/ns/a/sa/b", "old/ns/a/sa/b")),
        ("old/ns/a/sa/b", ("td", "old"), ("td/ns/a/sa/b", "old/ns/a/sa/b")),
        ("other/ns/a/sa/b", ("td", "old"), ("other/ns/a/sa/b",)),
        ("*/ns/a/sa/b", ("td", "old"), ("*/ns/a/sa/b",)),
        ("*-td/ns/a/sa/b", ("new-td", "old-td"), ("*-td/ns/a/sa/b",)),
        ("*d/ns/a/sa/b", ("td", "other"), ("*d/ns/a/sa/b", "other/ns/a/sa/b")),
        ("sa/b", ("td",), ("sa/b",)),
        ("*", ("td", "old"), ("*",)),
    ],
)
def test_trust_domains_stand_for_each_other(value: str, aliases: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert TrustDomains(aliases).principals((value,)) == expected


def test_only_whole_names_of_trust_domains_stand_for_each_other() -> None:
    assert TrustDomains(("td", "old")).domains(("old", "*d", "x")) == ("td", "old", "*d", "x")


def test_what_regular_expressions_mean_is_taken_as_it_is_written() -> None:
    assert quoted("a.b-c[d]") == r"a\.b-c\[d\]"
    matcher = principal("*/ns/a.b/sa/c").authenticated.principal_name
    assert text_holds(matcher, "spiffe://td/ns/a.b/sa/c")
    assert not text_holds(matcher, "spiffe://td/ns/axb/sa/c")
    assert not text_holds(text("*"), "")


@pytest.mark.parametrize(
    ("value", "issuer", "subject"),
    [
        ("*", "~.+", "~.+"),
        ("https://a/b", "https://a", "b"),
        ("*/b", "~.+", "b"),
        ("*.test/b", "$.test", "b"),
        ("*b", "~.+", "$b"),
        ("a/*", "a", "~.+"),
        ("a/b*", "a", "^b"),
        ("a*", "^a", "~.+"),
        ("a", "a", ""),
    ],
)
def test_a_request_principal_is_an_issuer_and_a_subject(value: str, issuer: str, subject: str) -> None:
    signs = {"safe_regex": "~", "prefix": "^", "suffix": "$", "exact": ""}

    def written(index: int) -> str:
        matcher = request_principal(value).and_ids.ids[index].metadata.value.string_match
        kind = matcher.WhichOneof("match_pattern") or ""
        return signs[kind] + (matcher.safe_regex.regex if kind == "safe_regex" else getattr(matcher, kind))

    assert (written(0), written(1)) == (issuer, subject)


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-get, namespace: shop}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
"""
MEMBER = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-1, namespace: shop}
spec: {address: ADDRESS, labels: {app: reviews}}
"""


async def test_the_api_answers_and_says_what_is_wrong_with_the_question(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        address = "10.0.0.1"
        text = "---".join((HOST, SERVICE, MEMBER.replace("ADDRESS", address), POLICY))
        assert (await app.apply(text)).status_code == 200
        await app.published()
        asked = {"caller": "spiffe://cluster.local/ns/shop/sa/web", "target": "http://reviews.shop.svc.cluster.local/"}
        answer = await app.root.post("/v1/authz/explain", json=asked)
        assert answer.json()["allowed"], answer.text
        assert [each["workload"] for each in answer.json()["answers"]] == ["workload shop/reviews-1"]
        assert not (await app.root.post("/v1/authz/explain", json={**asked, "method": "put"})).json()["allowed"]
        wrong = await app.root.post("/v1/authz/explain", json={**asked, "caller": "nobody"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "unknown_party")
