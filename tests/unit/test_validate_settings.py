"""Annotations, deprecated fields, and settings that do less than they seem to."""

import pytest

from checking import codes, findings, istio, service, workload


def annotated(annotation: str, value: str = "x", kind: str = "Service") -> str:
    if kind == "Service":
        return service("a", rest=f", annotations: {{{annotation}: '{value}'}}")
    return f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: a, annotations: {{{annotation}: '{value}'}}}}\n"


@pytest.mark.parametrize(
    ("kind", "annotation", "expected"),
    [
        ("Service", "networking.istio.io/exportThree", "IST0108 unknown-annotation"),
        ("Service", "sidecar.istio.io/proxyImage", "IST0107 misplaced-annotation"),
        ("Namespace", "traffic.sidecar.istio.io/includeInboundPorts", "IST0107 misplaced-annotation"),
        ("Service", "kubernetes.io/ingress.class", "IST0107 misplaced-annotation"),
        ("Service", "alpha.istio.io/canonical-serviceaccounts", "IST0135 deprecated-annotation"),
        ("Namespace", "topology.istio.io/controlPlaneClusters", ""),
        ("Service", "example.com/mine", ""),
        ("Service", "istio.io/rev", ""),
    ],
)
def test_annotations_are_known_and_where_they_mean_something(kind: str, annotation: str, expected: str) -> None:
    found = codes(annotated(annotation, kind=kind))
    assert found == ([f"{expected} metadata.annotations['{annotation}']"] if expected else [])


def test_a_misspelt_annotation_gets_the_nearest_name() -> None:
    assert findings(annotated("networking.istio.io/exportTwo")) == [
        "f.yaml:3: warning: metadata.annotations['networking.istio.io/exportTwo']: Istio has no such annotation; did "
        "you mean 'networking.istio.io/exportTo'?"
    ]


def test_an_author_can_say_what_is_not_to_be_told() -> None:
    port = service("a", "{name: web, port: 22}", rest=", annotations: {galley.istio.io/analyze-suppress: '%s'}")
    assert codes(port % "IST0118") == ["reserved-port spec.ports[0].port"]
    assert codes(port % "IST0118, reserved-port") == []
    assert codes(port % "*") == []
    twice = "apiVersion: hostmesh.io/v1\nkind: Host\nmetadata: {name: h, annotations: {%s: '*'}}\nspec: {%s}\n"
    assert codes(twice % ("galley.istio.io/analyze-suppress", "addresses: [10.0.0.1, 10.0.0.1]")) == [
        "duplicate-address spec.addresses[1]"
    ]


def http(rule: str) -> list[str]:
    return codes(istio("VirtualService", "v", f"hosts: [a.test], http: [{{{rule}}}]"), THERE)


THERE = service("a") + workload("a", "app: a")
ROUTE = "route: [{destination: {host: a}}]"


def test_old_fields_of_routes_are_told() -> None:
    assert http(f"{ROUTE}, mirror: {{host: a}}, mirrorPercent: 10") == [
        "IST0133 deprecated-field spec.http[0].mirrorPercent"
    ]
    assert http(f"{ROUTE}, mirror: {{host: a}}, mirrorPercentage: {{value: 10}}") == []
    assert http(f"{ROUTE}, fault: {{delay: {{percent: 10, fixedDelay: 1s}}}}") == [
        "IST0002 deprecated-field spec.http[0].fault.delay.percent"
    ]


def test_a_fault_for_no_request_is_told() -> None:
    assert http(f"{ROUTE}, fault: {{delay: {{fixedDelay: 1s}}}}") == ["ineffective-setting spec.http[0].fault.delay"]
    assert http(f"{ROUTE}, fault: {{abort: {{httpStatus: 500}}}}") == ["ineffective-setting spec.http[0].fault.abort"]
    assert http(f"{ROUTE}, fault: {{abort: {{httpStatus: 500, percentage: {{value: 100}}}}}}") == []


def test_mirrors_that_are_not_there_are_warnings() -> None:
    assert http(f"{ROUTE}, mirror: {{host: b}}") == ["IST0101 unknown-host spec.http[0].mirror.host"]
    assert http(f"{ROUTE}, mirrors: [{{destination: {{host: b}}}}]") == [
        "IST0101 unknown-host spec.http[0].mirrors[0].destination.host"
    ]


def test_a_server_name_that_is_an_address_is_told() -> None:
    rule = "{match: [{sniHosts: [%s]}], route: [{destination: {host: a}}]}"
    text = istio("VirtualService", "v", f"hosts: [192.0.2.1, a.test], tls: [{rule}]")
    assert codes(text % "192.0.2.1", THERE) == ["IST0133 ineffective-setting spec.tls[0].match[0].sniHosts[0]"]
    assert codes(text % "a.test", THERE) == []


def rule(policy: str) -> list[str]:
    return codes(istio("DestinationRule", "d", f"host: a, trafficPolicy: {{{policy}}}"), THERE)


def test_old_and_lonely_settings_of_rules_are_told() -> None:
    assert rule("outlierDetection: {consecutiveErrors: 5}") == [
        "IST0133 deprecated-field spec.trafficPolicy.outlierDetection.consecutiveErrors"
    ]
    hashing = "loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 10}}"
    assert rule(hashing) == ["IST0133 deprecated-field spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize"]
    failover = "loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}"
    assert rule(failover) == ["IST0133 ineffective-setting spec.trafficPolicy.loadBalancer.localityLbSetting"]
    assert rule(f"{failover}, outlierDetection: {{consecutive5xxErrors: 5}}") == []


def server(protocol: str, tls: str) -> list[str]:
    servers = f"{{port: {{number: 443, name: x, protocol: {protocol}}}, hosts: [a.test], tls: {{{tls}}}}}"
    edge = workload("edge", "istio: edge")
    return codes(istio("Gateway", "g", f"selector: {{istio: edge}}, servers: [{servers}]"), edge)


def test_tls_settings_of_gateways_that_do_nothing_are_told() -> None:
    files = "serverCertificate: /c, privateKey: /k"
    assert server("HTTPS", f"mode: SIMPLE, {files}") == []
    assert server("HTTPS", f"mode: SIMPLE, {files}, httpsRedirect: true") == [
        "IST0133 ineffective-setting spec.servers[0].tls.httpsRedirect"
    ]
    assert server("HTTPS", f"mode: SIMPLE, {files}, minProtocolVersion: TLSV1_0") == [
        "IST0133 ineffective-setting spec.servers[0].tls.minProtocolVersion"
    ]
    assert server("HTTPS", f"mode: SIMPLE, {files}, cipherSuites: [NONSENSE, AES128-SHA, AES128-SHA]") == [
        "IST0133 ineffective-setting spec.servers[0].tls.cipherSuites[0]",
        "IST0133 ineffective-setting spec.servers[0].tls.cipherSuites[2]",
    ]
    assert server("TLS", f"mode: PASSTHROUGH, {files}") == ["IST0133 ineffective-setting spec.servers[0].tls.mode"]
    assert server("TLS", "mode: PASSTHROUGH") == []


def test_settings_of_entries_that_do_nothing_are_told() -> None:
    def entry(rest: str) -> list[str]:
        ports = "ports: [{number: 80, name: tcp, protocol: TCP}]"
        return codes(istio("ServiceEntry", "e", f"addresses: [192.0.2.1], {ports}, {rest}"))

    assert entry("hosts: [a.test], resolution: STATIC, workloadSelector: {labels: {app: a}}") == []
    assert entry("hosts: [a.test], resolution: STATIC, workloadSelector: {}") == [
        "IST0133 ineffective-setting spec.workloadSelector"
    ]
    assert entry("hosts: [a.test], workloadSelector: {labels: {app: a}}") == [
        "IST0133 ineffective-setting spec.resolution"
    ]
    assert entry("hosts: [a.test, b.test]") == ["IST0133 ineffective-setting spec.hosts"]


def test_a_workload_that_is_nowhere_is_told() -> None:
    assert codes(istio("WorkloadEntry", "w", "network: n1")) == ["IST0133 ineffective-setting spec"]
    assert codes(workload("w", "app: a")) == []


def test_a_log_file_that_some_envoy_may_not_be_able_to_write_is_a_warning() -> None:
    def mesh_config(path: str) -> str:
        head = "apiVersion: hostmesh.io/v1\nkind: MeshConfig\nmetadata: {name: default}\n"
        return f"{head}spec: {{accessLogFile: {path}}}\n"

    assert codes(mesh_config("/dev/stdout")) == []
    assert codes(mesh_config("/var/log/mesh.log")) == ["log-file spec.accessLogFile"]
