"""AuthorizationPolicies that hold for nobody, for more than they seem to, or ask whom nobody can ask."""

import pytest

from checking import codes, findings, istio, problems, service, workload

THERE = service("shop", "{name: http, port: 80}, {name: tcp, port: 3306}") + workload("shop-1", "app: shop")
SELECTED = "selector: {matchLabels: {app: shop}}"
JUDGE = """\
apiVersion: hostmesh.io/v1
kind: MeshConfig
metadata: {name: default}
spec:
  trustDomainAliases: [old.test]
  extensionProviders:
  - {name: judge, envoyExtAuthzGrpc: {service: SERVICE, port: 80}}
  - {name: by-http, envoyExtAuthzHttp: {service: SERVICE, port: 80}}
"""
SETTINGS = JUDGE.replace("SERVICE", "shop.default.svc.cluster.local") + "---\n"


def policy(spec: str, name: str = "p", namespace: str = "default", annotations: str = "") -> str:
    return (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        f"metadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotations}}}}}\nspec: {{{spec}}}\n---\n"
    )


def of(spec: str, existing: str = THERE) -> list[str]:
    return codes(policy(spec), existing)


def test_a_policy_that_fits_has_nothing_to_be_told() -> None:
    assert of(f"{SELECTED}, rules: [{{from: [{{source: {{principals: [cluster.local/ns/a/sa/b]}}}}]}}]") == []
    assert of("rules: [{}]") == []


def test_who_selects_nobody_is_told() -> None:
    assert of("selector: {matchLabels: {app: shoop}}") == ["IST0127 unknown-selector spec.selector.matchLabels"]
    assert codes(policy("rules: [{}]", namespace="empty")) == ["IST0127 unknown-selector metadata.namespace"]
    assert codes(policy("rules: [{}]", namespace="istio-system")) == []
    assert of("selector: {}") == ["IST0133 empty-selector spec.selector"]


def test_namespaces_that_are_not_there_are_told() -> None:
    source = "namespaces: [default, prod, 'def*', 'x*'], notNamespaces: [y]"
    found = of(f"{SELECTED}, rules: [{{from: [{{source: {{{source}}}}}]}}]")
    at = "spec.rules[0].from[0].source"
    assert found == [
        f"IST0101 unknown-namespace {at}.namespaces[1]",
        f"IST0101 unknown-namespace {at}.namespaces[3]",
        f"IST0101 unknown-namespace {at}.notNamespaces[0]",
    ]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("to: [{operation: {paths: [/admin]}}]", True),
        ("to: [{operation: {paths: [/admin], ports: ['80']}}]", False),
        ("from: [{source: {requestPrincipals: [x]}}]", True),
        ("from: [{source: {principals: [x]}}]", False),
        ("from: [{source: {principals: [x]}}], to: [{operation: {methods: [GET]}}]", True),
        ("{}", False),
    ],
)
def test_a_deny_rule_for_http_alone_denies_all_tcp(rule: str, told: bool) -> None:
    rule = rule if rule.startswith("{") else f"{{{rule}}}"
    found = of(f"{SELECTED}, action: DENY, rules: [{rule}]")
    assert found == (["IST0133 denies-tcp spec.rules[0]"] if told else [])


def test_an_allow_policy_for_http_alone_refuses_connections_to_ports_that_are_not() -> None:
    rules = "rules: [{to: [{operation: {paths: [/a]}}]}]"
    assert of(f"{SELECTED}, {rules}") == ["denies-tcp spec.rules"]
    assert of(rules) == ["denies-tcp spec.rules"]
    http = service("shop") + workload("shop-1", "app: shop")
    assert of(f"{SELECTED}, {rules}", http) == []
    assert of(f"{SELECTED}, rules: [{{to: [{{operation: {{paths: [/a]}}}}]}}, {{}}]") == []


def test_ports_that_nobody_declares_are_told() -> None:
    rules = "rules: [{to: [{operation: {ports: ['3306', '81']}}]}]"
    assert of(f"{SELECTED}, {rules}") == ["undeclared-port spec.rules[0].to[0].operation.ports[1]"]
    assert of(f"selector: {{matchLabels: {{app: x}}}}, {rules}") == [
        "IST0127 unknown-selector spec.selector.matchLabels"
    ]
    server = "{hosts: ['*'], port: {number: 81, name: http, protocol: HTTP}}"
    gateway = istio("Gateway", "g", f"selector: {{app: shop}}, servers: [{server}]")
    assert of(f"{SELECTED}, {rules}", THERE + gateway) == []


def test_principals_that_nobody_has_are_told() -> None:
    given = "principals: ['spiffe://cluster.local/ns/a/sa/b', cluster.local/ns/a/sa/b, '*/sa/b']"
    assert of(f"{SELECTED}, rules: [{{from: [{{source: {{{given}}}}}]}}]") == [
        "unknown-principal spec.rules[0].from[0].source.principals[0]"
    ]


@pytest.mark.parametrize(
    ("annotations", "action", "code"),
    [
        ("istio.io/dry-run: 'true'", "ALLOW", None),
        ("istio.io/dry-run: 'false'", "DENY", None),
        ("istio.io/dry-run: 'yes'", "ALLOW", "value"),
        ("istio.io/dry-run: 'true'", "AUDIT", "misplaced-annotation"),
    ],
)
def test_what_can_be_tried_is_as_in_istio(annotations: str, action: str, code: str | None) -> None:
    found = problems(policy(f"{SELECTED}, action: {action}, rules: [{{}}]", annotations=annotations), THERE)
    assert [(each.code, each.severity) for each in found] == ([(code, "error")] if code else [])


def test_nothing_but_a_policy_can_be_tried() -> None:
    text = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        "metadata: {name: p, annotations: {istio.io/dry-run: 'true'}}\nspec: {}\n"
    )
    assert codes(text) == ["misplaced-annotation metadata.annotations['istio.io/dry-run']"]


CUSTOM = f"{SELECTED}, action: CUSTOM, rules: [{{}}], provider: {{name: NAME}}"


def test_an_authorizer_that_nobody_can_ask_is_told() -> None:
    assert of(CUSTOM.replace("NAME", "judge"), THERE + SETTINGS) == []
    (found,) = findings(policy(CUSTOM.replace("NAME", "judg")), THERE + SETTINGS)
    assert "what this policy means is refused; did you mean 'judge'?" in found
    assert of(CUSTOM.replace("NAME", "judge")) == ["IST0101 unknown-provider spec.provider.name"]
    assert of(CUSTOM.replace("NAME", "by-http"), THERE + SETTINGS) == ["ineffective-setting spec.provider.name"]


def test_two_authorizers_for_one_workload_are_told() -> None:
    other = policy("action: CUSTOM, rules: [{}], provider: {name: by-http}", "other", "istio-system")
    existing = THERE + SETTINGS + other
    assert of(CUSTOM.replace("NAME", "judge"), existing) == ["several-providers spec.provider.name"]
    apart = policy(CUSTOM.replace("app: shop", "app: x").replace("NAME", "by-http"), "other")
    assert of(CUSTOM.replace("NAME", "judge"), THERE + SETTINGS + apart) == []


def test_a_provider_without_a_service_is_told() -> None:
    assert codes(JUDGE.replace("SERVICE", "nobody.test")) == [
        "IST0101 unknown-host spec.extensionProviders[0].envoyExtAuthzGrpc.service",
        "IST0101 unknown-host spec.extensionProviders[1].envoyExtAuthzHttp.service",
    ]
    assert codes(SETTINGS, THERE) == []
