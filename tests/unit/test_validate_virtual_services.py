"""VirtualServices that name what is not there, or route what another one routes."""

from checking import codes, findings, istio, service

REVIEWS = """\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews}
spec: {address: 10.0.0.1, labels: {app: reviews}}
"""


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
        "match, the older one wins. Merge them into one VirtualService"
    ]


def test_a_destination_of_several_ports_must_say_which() -> None:
    two = service("two", "{name: http, port: 80}, {name: http-admin, port: 81}")
    assert findings(routes("host: two"), REVIEWS + "---\n" + two) == [
        "f.yaml:8: warning: spec.http[0].route[0].destination.host: 'two.default.svc.cluster.local' has several ports "
        "(80, 81); say with port.number which one is meant"
    ]
    assert codes(routes("host: two"), REVIEWS + "---\n" + two) == [
        "IST0112 port-required spec.http[0].route[0].destination.host"
    ]
    assert codes(routes("host: two, port: {number: 81}"), REVIEWS + "---\n" + two) == []


def test_a_destination_that_is_not_exported_to_the_routes_is_a_warning() -> None:
    hidden = service("hidden", namespace="other", rest=", annotations: {networking.istio.io/exportTo: 'other'}")
    destination = routes("host: hidden.other.svc.cluster.local")
    assert findings(destination, REVIEWS + "---\n" + hidden) == [
        "f.yaml:8: warning: spec.http[0].route[0].destination.host: Service other/hidden defines "
        "'hidden.other.svc.cluster.local' and is exported to other only; add this namespace to its exportTo"
    ]
    assert codes(destination, REVIEWS + "---\n" + hidden.replace("'other'", "'other, default'")) == []
    elsewhere = destination.replace("  http:", "  exportTo: [other]\n  http:")
    assert codes(elsewhere, REVIEWS + "---\n" + hidden) == []


def test_the_codes_of_references_are_istios() -> None:
    assert codes(routes("host: revews"), REVIEWS) == ["IST0101 unknown-host spec.http[0].route[0].destination.host"]
    assert codes(routes("host: reviews, subset: v9"), REVIEWS) == [
        "IST0101 unknown-subset spec.http[0].route[0].destination.subset"
    ]
    assert codes(routes("host: reviews, port: {number: 1}"), REVIEWS) == [
        "IST0101 unknown-port spec.http[0].route[0].destination.port.number"
    ]


def test_weights_that_are_not_a_hundred_together_are_told() -> None:
    weighted = "hosts: [reviews], http: [{route: [%s]}]"
    for first, second, expected in ((80, 20, []), (80, 10, ["weights spec.http[0].route"]), (1, 1, None)):
        route = ", ".join(f"{{destination: {{host: reviews}}, weight: {each}}}" for each in (first, second))
        found = codes(istio("VirtualService", "w", weighted % route), REVIEWS)
        assert found == (["weights spec.http[0].route"] if expected is None else expected)
    assert codes(routes("host: reviews"), REVIEWS) == []


def test_hosts_of_other_namespaces_conflict_only_where_both_are_seen() -> None:
    mine = istio("VirtualService", "a", "hosts: [a.test], http: [{directResponse: {status: 200}}]")
    theirs = mine.replace("default", "other")
    assert codes(theirs, mine) == ["IST0109 duplicate-host spec.hosts[0]"]
    kept = mine.replace("hosts:", "exportTo: ['.'], hosts:")
    assert codes(kept.replace("default", "other"), kept) == []
    assert codes(theirs, kept) == ["IST0109 duplicate-host spec.hosts[0]"]


def test_a_rule_after_one_without_a_match_is_never_used() -> None:
    rules = "{name: all, directResponse: {status: 200}}, {match: [{uri: {prefix: /a}}], directResponse: {status: 201}}"
    assert findings(istio("VirtualService", "a", f"hosts: [a.test], http: [{rules}]")) == [
        "f.yaml:4: warning: spec.http[1]: this rule is never used: rule 'all' before it has no match and takes "
        "everything; move this rule before it"
    ]
    tcp = "{route: [{destination: {host: a.test}}]}"
    there = istio("ServiceEntry", "a", "hosts: [a.test]")
    assert codes(istio("VirtualService", "a", f"hosts: [a.test], tcp: [{tcp}, {tcp}]"), there) == [
        "IST0130 unreachable-rule spec.tcp[1]"
    ]
    assert codes(istio("VirtualService", "a", f"hosts: [a.test], tcp: [{tcp}]"), there) == []


def test_a_match_that_was_there_before_has_no_effect() -> None:
    again = "{match: [{name: %s, uri: {prefix: /a}}%s], directResponse: {status: 200}}"
    spec = f"hosts: [a.test], http: [{again % ('one', '')}, {again % ('two', '')}]"
    assert codes(istio("VirtualService", "a", spec)) == [
        "IST0131 ineffective-match spec.http[1].match[0]",
        "IST0130 unreachable-rule spec.http[1]",
    ]
    other = f"hosts: [a.test], http: [{again % ('one', '')}, {again % ('two', ', {uri: {prefix: /b}}')}]"
    assert codes(istio("VirtualService", "a", other)) == ["IST0131 ineffective-match spec.http[1].match[0]"]


def prefixes(first: str, second: str) -> list[str]:
    rules = [f"{{match: [{{{match}}}], directResponse: {{status: 200}}}}" for match in (first, second)]
    return codes(istio("VirtualService", "a", f"hosts: [a.test], http: [{', '.join(rules)}]"))


def test_a_longer_prefix_after_a_shorter_one_has_no_effect_where_the_rest_is_not_narrower() -> None:
    hidden = ["IST0131 ineffective-match spec.http[1].match[0]"]
    get, post = "method: {exact: GET}", "method: {exact: POST}"
    assert prefixes("uri: {prefix: /a}", "uri: {prefix: /ab}") == hidden
    assert prefixes("uri: {prefix: /ab}", "uri: {prefix: /a}") == []
    assert prefixes("uri: {prefix: /a}", f"uri: {{prefix: /ab}}, {get}") == hidden
    assert prefixes(f"uri: {{prefix: /a}}, {get}", "uri: {prefix: /ab}") == []
    assert prefixes(f"uri: {{prefix: /a}}, {get}", f"uri: {{prefix: /ab}}, {post}") == []
    assert prefixes("uri: {prefix: /a}, port: 80", "uri: {prefix: /ab}, port: 81") == []
    assert (
        prefixes("uri: {prefix: /a}, headers: {x: {prefix: v}}", "uri: {prefix: /ab}, headers: {x: {exact: v1}}")
        == hidden
    )
    assert prefixes("uri: {prefix: /a}, sourceNamespace: a", "uri: {prefix: /ab}, sourceNamespace: a") == hidden
    assert prefixes("uri: {prefix: /a}, sourceNamespace: a", "uri: {prefix: /ab}") == []
    assert prefixes("uri: {prefix: /a}, sourceLabels: {a: b}", "uri: {prefix: /ab}, sourceLabels: {a: b}") == hidden
    assert prefixes("uri: {prefix: /a}, sourceLabels: {a: b}", "uri: {prefix: /ab}") == []
    assert prefixes("uri: {prefix: /a}, withoutHeaders: {x: {}}", "uri: {prefix: /ab}") == []
    assert prefixes("uri: {prefix: /a}", "uri: {prefix: /AB}, ignoreUriCase: true") == []


def test_a_wildcard_that_all_see_over_hosts_that_some_see_is_told_from_both_sides() -> None:
    wide = istio("VirtualService", "wide", "hosts: ['*.test'], http: [{directResponse: {status: 200}}]")
    kept = istio("VirtualService", "kept", "hosts: [a.test], exportTo: ['.'], http: [{directResponse: {status: 200}}]")
    assert findings(kept, wide) == [
        "f.yaml:4: info: spec.hosts[0]: VirtualService default/wide has routes for hosts that 'a.test' overlaps; for "
        "each name the nearest host holds"
    ]
    assert codes(wide, kept) == ["IST0109 overlapping-host spec.hosts[0]"]
    assert codes(kept.replace("a.test", "a.other"), wide) == []
    assert codes(kept.replace("exportTo: ['.'], ", ""), wide) == []
