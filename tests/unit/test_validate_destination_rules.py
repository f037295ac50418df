"""DestinationRules: host, subsets and TLS."""

from checking import codes, findings, istio, service, workload

REVIEWS = service("reviews")
V1 = workload("reviews-v1", "app: reviews, version: v1")


def rule(spec: str, name: str = "rule", namespace: str = "default") -> str:
    return istio("DestinationRule", name, f"host: reviews, {spec}" if "host:" not in spec else spec, namespace)


def subset(name: str, version: str) -> str:
    return f"subsets: [{{name: {name}, labels: {{version: {version}}}}}]"


def tls(settings: str) -> str:
    return f"trafficPolicy: {{tls: {{{settings}}}}}"


def test_a_rule_for_what_is_there_is_fine() -> None:
    assert codes(rule(subset("v1", "v1")), REVIEWS + V1) == []
    assert codes(rule("host: '*.example.com'")) == []


def test_a_rule_for_nothing_is_a_warning_with_the_nearest_name() -> None:
    assert findings(rule("host: revews"), REVIEWS) == [
        "f.yaml:4: warning: spec.host: no Service or ServiceEntry defines 'revews.default.svc.cluster.local'; did you "
        "mean 'reviews.default.svc.cluster.local'?"
    ]
    assert codes(rule("host: revews"), REVIEWS) == ["IST0174 unknown-host spec.host"]


def test_a_subset_of_two_rules_is_a_warning() -> None:
    first = rule(subset("v1", "v1"), "first")
    assert findings(rule(subset("v1", "v1")), REVIEWS + V1 + first) == [
        "f.yaml:4: warning: spec.subsets[0].name: DestinationRule default/first defines the subset 'v1' of this host "
        "too; the older one wins"
    ]
    assert codes(rule(subset("v1", "v1"), namespace="other"), REVIEWS + V1 + first)[:1] == [
        "IST0174 unknown-host spec.host"
    ]


def test_a_subset_that_no_workload_is_in_is_a_warning_with_the_labels_there_are() -> None:
    assert findings(rule(subset("v2", "v2")), REVIEWS + V1) == [
        "f.yaml:4: warning: spec.subsets[0].labels: no workload of Service default/reviews has the labels of the "
        "subset 'v2' (there are: version=v1): calls to it fail with 503"
    ]
    assert codes(rule(subset("v2", "v2")), REVIEWS + V1) == ["IST0173 empty-subset spec.subsets[0].labels"]
    group = istio("WorkloadGroup", "g", "metadata: {labels: {app: reviews}}, template: {labels: {version: v2}}")
    assert codes(rule(subset("v2", "v2")), REVIEWS + group) == []


def test_subsets_of_an_entry_are_its_endpoints() -> None:
    entry = istio(
        "ServiceEntry",
        "e",
        "hosts: [reviews.test], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], "
        "endpoints: [{address: 192.0.2.1, labels: {version: v1}}]",
    )
    assert codes(rule(f"host: reviews.test, {subset('v1', 'v1')}"), entry) == []
    assert codes(rule(f"host: reviews.test, {subset('v1', 'v2')}"), entry) == [
        "IST0173 empty-subset spec.subsets[0].labels"
    ]


def test_tls_that_names_no_roots_is_told() -> None:
    assert codes(rule(tls("mode: SIMPLE")), REVIEWS) == ["IST0128 no-ca-certificates spec.trafficPolicy.tls"]
    assert codes(rule(tls("mode: SIMPLE, caCertificates: /etc/roots.pem")), REVIEWS) == []
    assert codes(rule(tls("mode: ISTIO_MUTUAL")), REVIEWS) == []
    port = "trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}"
    assert codes(rule(port), REVIEWS) == ["IST0129 no-ca-certificates spec.trafficPolicy.portLevelSettings[0].tls"]
    assert codes(rule(port.replace("SIMPLE", "DISABLE")), REVIEWS) == []
    credential = "mode: SIMPLE, credentialName: theirs"
    assert "ca.crt of the Secret 'theirs' alone" in findings(rule(tls(credential)), REVIEWS)[0]


def policy(mode: str, namespace: str = "default", rest: str = "") -> str:
    return (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        f"metadata: {{name: p{mode.lower()}, namespace: {namespace}}}\nspec: {{mtls: {{mode: {mode}}}{rest}}}\n---\n"
    )


def test_plaintext_to_a_strict_service_is_a_warning() -> None:
    plain = rule(tls("mode: DISABLE"))
    assert findings(plain, REVIEWS + policy("STRICT")) == [
        "f.yaml:4: warning: spec.trafficPolicy.tls.mode: calls go out as plaintext, and PeerAuthentication "
        "default/pstrict lets in the mesh's mutual TLS alone (STRICT): they are refused. Use mode ISTIO_MUTUAL, or "
        "leave tls out"
    ]
    assert codes(plain, REVIEWS + policy("STRICT", "istio-system")) == ["mtls-conflict spec.trafficPolicy.tls.mode"]
    assert codes(plain, REVIEWS + policy("PERMISSIVE") + policy("STRICT", "istio-system")) == []
    own = policy("DISABLE", rest=", selector: {matchLabels: {app: reviews}}")
    assert codes(plain, REVIEWS + policy("STRICT") + own) == []
    assert codes(rule(tls("mode: ISTIO_MUTUAL")), REVIEWS + policy("STRICT")) == []
