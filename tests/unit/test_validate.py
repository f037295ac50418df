"""Objects that are fine by themselves and do not fit each other."""

from hostmesh_controller.load import load_documents
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.validate import validate


def read(text: str, file: str = "f.yaml") -> list[ApiObject]:
    objects, problems = load_documents(text, file)
    assert problems == []
    return objects


def findings(text: str, existing: str = "") -> list[str]:
    stored = {item.key: item for item in read(existing, "stored.yaml")}
    return [str(problem) for problem in validate(read(text), stored)]


REVIEWS = """\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
"""


def entry(name: str, spec: str) -> str:
    return (
        f"apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )


def host(name: str, spec: str) -> str:
    return f"apiVersion: hostmesh.io/v1\nkind: Host\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"


def routes(destination: str) -> str:
    return (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\n"
        f"spec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {{{destination}}}\n"
    )


def test_routes_to_what_is_there_are_fine() -> None:
    assert findings(routes("host: reviews, subset: v1, port: {number: 9080}"), REVIEWS) == []
    assert findings(routes("host: reviews.default.svc.cluster.local"), REVIEWS) == []
    assert findings(REVIEWS + "---\n" + routes("host: reviews, subset: v1")) == []


def test_a_destination_that_is_not_there_is_a_warning_with_the_nearest_name() -> None:
    assert findings(routes("host: revews"), REVIEWS) == [
        "f.yaml:8: warning: spec.http[0].route[0].destination.host: no Service or ServiceEntry defines "
        "'revews.default.svc.cluster.local'; did you mean 'reviews.default.svc.cluster.local'?"
    ]


def test_a_subset_and_a_port_that_are_not_there_are_warnings() -> None:
    assert findings(routes("host: reviews, subset: v2, port: {number: 80}"), REVIEWS) == [
        "f.yaml:8: warning: spec.http[0].route[0].destination.port.number: 'reviews.default.svc.cluster.local' has no "
        "port 80, only 9080",
        "f.yaml:8: warning: spec.http[0].route[0].destination.subset: no DestinationRule for "
        "'reviews.default.svc.cluster.local' defines the subset 'v2'",
    ]


def test_a_wildcard_service_entry_and_a_wildcard_rule_count() -> None:
    wild = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec: {hosts: ["*.example.com"]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: wild}
spec: {host: "*.com", subsets: [{name: v1}]}
"""
    assert findings(routes("host: a.example.com, subset: v1") + "---\n" + wild) == []


def test_two_virtual_services_for_one_host_are_a_warning() -> None:
    other = routes("host: reviews").replace("name: r}", "name: other}")
    assert findings(routes("host: reviews"), REVIEWS + "---\n" + other) == [
        "f.yaml:5: warning: spec.hosts[0]: VirtualService default/other has routes for 'reviews' too; where both "
        "match, the older one wins"
    ]


def test_a_rule_for_nothing_and_a_subset_of_two_rules_are_warnings() -> None:
    _, rule = REVIEWS.split("---\n")
    assert findings(rule) == [
        "f.yaml:4: warning: spec.host: no Service or ServiceEntry defines 'reviews.default.svc.cluster.local'"
    ]
    assert findings(rule.replace("name: reviews}", "name: more}"), REVIEWS) == [
        "f.yaml:4: warning: spec.subsets[0].name: DestinationRule default/reviews defines the subset 'v1' of this host "
        "too; the older one wins"
    ]


def test_an_address_of_two_hosts_is_an_error_in_any_spelling() -> None:
    assert findings(host("h2", "addresses: [10.0.0.2, 'fd00:0::1']"), host("h1", "addresses: ['fd00::1']")) == [
        "f.yaml:4: spec.addresses[1]: address fd00::1 belongs to Host h1; an address is on one host only"
    ]
    assert findings(host("h1", "addresses: [10.0.0.1, 10.0.0.1]")) == [
        "f.yaml:4: spec.addresses[1]: address 10.0.0.1 is there twice"
    ]


def test_an_object_that_replaces_itself_does_not_conflict_with_what_it_was() -> None:
    before = host("h1", "addresses: [10.0.0.1]") + entry("a", "address: 10.0.0.1, ports: {http: 80}, serviceAccount: a")
    assert findings(before.replace("serviceAccount: a", "serviceAccount: b"), before) == []


def test_two_identities_on_one_address_and_port_are_an_error() -> None:
    existing = entry("a", "address: 10.0.0.1, ports: {http: 8080}, serviceAccount: a")
    new = entry("b", "address: 10.0.0.1, ports: {web: 8080}, serviceAccount: b")
    assert findings(new, existing) == [
        "f.yaml:4: spec.ports.web: WorkloadEntry default/a is on 10.0.0.1 port 8080 as service account default/a, this "
        "one as default/b; a port is served under one identity"
    ]
    assert findings(new.replace("serviceAccount: b", "serviceAccount: a"), existing) == []
    assert findings(new.replace("8080", "8081"), existing) == []
    assert findings(new.replace("10.0.0.1", "10.0.0.2"), existing) == []


def test_an_endpoint_of_a_service_entry_has_the_identity_of_its_port() -> None:
    existing = entry("a", "address: 10.0.0.1, ports: {http: 8080}, serviceAccount: a")
    listed = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: alias}
spec:
  hosts: [alias.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: 10.0.0.2}, {address: 10.0.0.1}]
"""
    assert findings(listed, existing) == [
        "f.yaml:9: spec.endpoints[1].address: WorkloadEntry default/a is on 10.0.0.1 port 8080 as service account "
        "default/a, this one as default/default; a port is served under one identity"
    ]
    assert len(findings(existing, listed)) == 1
    assert findings(listed.replace("10.0.0.1", "10.0.0.1, serviceAccount: a"), existing) == []
    assert findings(listed.replace("INTERNAL", "EXTERNAL"), existing) == []
    assert findings(listed.replace("8080", "8081"), existing) == []


def test_ports_that_only_services_name_conflict_too() -> None:
    existing = REVIEWS + "---\n" + entry("a", "address: 10.0.0.1, labels: {app: reviews}, serviceAccount: a")
    [finding] = findings(entry("b", "address: 10.0.0.1, labels: {app: reviews}, serviceAccount: b"), existing)
    assert finding.startswith("f.yaml:4: spec.address: WorkloadEntry default/a is on 10.0.0.1 port 9080 as")


def test_a_port_name_that_no_service_asks_for_is_a_warning() -> None:
    assert findings(entry("a", "address: 10.0.0.1, labels: {app: reviews}, ports: {htpp: 80}"), REVIEWS) == [
        "f.yaml:4: warning: spec.ports.htpp: no port of Service default/reviews is called 'htpp'; did you mean 'http'?"
    ]
    assert findings(entry("a", "address: 10.0.0.1, labels: {app: other}, ports: {htpp: 80}"), REVIEWS) == []


def test_a_target_port_by_name_must_be_on_a_workload() -> None:
    service, _ = REVIEWS.replace("port: 9080", "port: 9080, targetPort: web").split("---\n")
    workload = entry("a", "address: 10.0.0.1, labels: {app: reviews}, ports: {admin: 1}")
    assert findings(service, workload) == [
        "f.yaml:4: warning: spec.ports[0].targetPort: no workload of this service has a port called 'web'"
    ]
    assert findings(service, workload.replace("admin", "web")) == []
    assert findings(service) == []


def test_a_service_without_selector_and_a_namespace_nobody_made_are_fine() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nowhere}\nspec: {ports: [{port: 80}]}"
    assert findings(text) == []


def test_a_host_name_defined_twice_is_a_warning() -> None:
    text = (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\n"
        "spec: {hosts: [a.example.com, reviews.default.svc.cluster.local]}\n"
    )
    assert findings(text, REVIEWS) == [
        "f.yaml:4: warning: spec.hosts[1]: Service default/reviews defines 'reviews.default.svc.cluster.local' too; "
        "the older one wins"
    ]


def test_an_outbound_identity_must_be_one_of_the_host_s_workloads() -> None:
    workload = entry("r1", "address: 10.0.0.1, serviceAccount: reviews")
    for identity in ("r1", "reviews", "default/r1", "default/reviews", "'spiffe://td/ns/default/sa/reviews'"):
        assert findings(host("h", f"addresses: [10.0.0.1], outboundIdentity: {identity}"), workload) == []
    assert findings(host("h", "addresses: [10.0.0.1], outboundIdentity: revews"), workload) == [
        "f.yaml:4: warning: spec.outboundIdentity: no workload on this host has the identity 'revews' (yet?); did you "
        "mean 'reviews'?"
    ]


def test_two_policies_for_all_of_a_namespace_are_a_warning() -> None:
    policy = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}"
    )
    assert findings(policy, policy.replace("name: a", "name: b")) == [
        "f.yaml:3: warning: metadata.name: PeerAuthentication default/b is for all of namespace 'default' too; the "
        "older one wins"
    ]
    assert findings(policy, policy.replace("name: a", "name: b, namespace: other")) == []


def test_findings_of_objects_without_a_file_name_the_object() -> None:
    [made] = read(host("h1", "addresses: [10.0.0.1, 10.0.0.1]"))
    [problem] = validate([ApiObject(made.key, made.api_version, made.metadata, made.spec)], {})
    assert str(problem) == "Host h1: spec.addresses[1]: address 10.0.0.1 is there twice"
    assert problem.key == ObjectKey("Host", "", "h1")
    assert problem.is_error


def test_another_domain_makes_other_full_names() -> None:
    [service, _] = read(REVIEWS)
    [made] = read(routes("host: reviews.default.svc.mesh.internal"))
    assert validate([made], {service.key: service}, domain="mesh.internal") == []
    assert len(validate([made], {service.key: service})) == 1
