"""Hosts, workloads and identities that do not fit each other."""

from checking import REVIEWS, codes, findings, service, workload


def entry(name: str, spec: str) -> str:
    return (
        f"apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )


def host(name: str, spec: str) -> str:
    return f"apiVersion: hostmesh.io/v1\nkind: Host\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"


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
  endpoints: [{address: 10.0.0.2}, {address: 10.0.0.1, serviceAccount: b}]
"""
    assert findings(listed, existing) == [
        "f.yaml:9: spec.endpoints[1].address: WorkloadEntry default/a is on 10.0.0.1 port 8080 as service account "
        "default/a, this one as default/b; a port is served under one identity"
    ]
    assert len(findings(existing, listed)) == 1
    assert findings(listed.replace("serviceAccount: b", "serviceAccount: a"), existing) == []
    assert findings(listed.replace("INTERNAL", "EXTERNAL"), existing) == []
    assert findings(listed.replace("8080", "8081"), existing) == []
    adopting = listed.replace(", serviceAccount: b", "")
    assert findings(adopting, existing) == []
    assert findings(existing, adopting) == []
    two = existing + "---\n" + entry("c", "address: 10.0.0.1, ports: {http: 8080}, serviceAccount: a, weight: 2")
    assert findings(adopting, two) == []


def test_ports_that_only_services_name_conflict_too() -> None:
    existing = REVIEWS + "---\n" + entry("a", "address: 10.0.0.1, labels: {app: reviews}, serviceAccount: a")
    [finding] = findings(entry("b", "address: 10.0.0.1, labels: {app: reviews}, serviceAccount: b"), existing)
    assert finding.startswith("f.yaml:4: spec.address: WorkloadEntry default/a is on 10.0.0.1 port 9080 as")


def test_a_port_name_that_no_service_asks_for_is_a_warning() -> None:
    assert findings(entry("a", "address: 10.0.0.1, labels: {app: reviews}, ports: {htpp: 80}"), REVIEWS) == [
        "f.yaml:4: warning: spec.ports.htpp: no port of Service default/reviews is called 'htpp'; did you mean 'http'?"
    ]
    assert findings(entry("a", "address: 10.0.0.1, labels: {app: other}, ports: {htpp: 80}"), REVIEWS) == []


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
        "older one wins. Merge them, or give one of them a selector"
    ]
    assert findings(policy, policy.replace("name: a", "name: b, namespace: other")) == []


def test_a_service_that_brings_two_identities_to_one_port_is_an_error() -> None:
    shared = "address: 10.0.0.1, labels: {app: reviews}"
    existing = entry("a", f"{shared}, serviceAccount: a") + entry("b", f"{shared}, serviceAccount: b")
    [finding] = findings(service("reviews"), existing)
    assert finding.startswith("f.yaml:4: spec: with this service, WorkloadEntry default/a does not fit: ")
    assert findings(service("reviews"), existing.replace("serviceAccount: b", "serviceAccount: a")) == []
    assert findings(service("other"), existing) == []


def test_a_workload_of_services_that_disagree_about_a_port_is_a_warning() -> None:
    member = workload("w", "app: a, tier: b")
    two = service("a", "{name: http, port: 80}") + (
        "apiVersion: v1\nkind: Service\nmetadata: {name: b}\n"
        "spec: {selector: {tier: b}, ports: [{name: tcp, port: 80}]}\n---\n"
    )
    assert codes(member, two) == ["IST0116 conflicting-protocol spec.labels"]
    assert codes(two, member) == ["IST0116 conflicting-protocol spec.selector"] * 2
    ports = two.replace("{name: tcp, port: 80}", "{name: http, port: 81, targetPort: 80}")
    assert codes(member, ports) == ["IST0137 conflicting-port spec.labels"]
    assert codes(member, ports.replace("targetPort: 80", "targetPort: 81")) == []
    assert codes(workload("w", "app: a"), two) == []
