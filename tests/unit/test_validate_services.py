"""Services and ServiceEntries: names, ports and addresses."""

from checking import codes, findings, istio, service

REVIEWS = """\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
"""


def test_a_target_port_by_name_must_be_on_a_workload() -> None:
    service = REVIEWS.replace("port: 9080", "port: 9080, targetPort: web")
    workload = istio("WorkloadEntry", "a", "address: 10.0.0.1, labels: {app: reviews}, ports: {admin: 1}")
    assert findings(service, workload) == [
        "f.yaml:4: warning: spec.ports[0].targetPort: no workload of this service has a port called 'web'"
    ]
    assert findings(service, workload.replace("admin", "web")) == []
    assert findings(service) == []


def test_a_service_without_selector_and_a_namespace_nobody_made_are_fine() -> None:
    text = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nowhere}\nspec: {ports: [{name: tcp, port: 80}]}"
    )
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


def entry(name: str, hosts: str, rest: str, namespace: str = "default") -> str:
    return istio("ServiceEntry", name, f"hosts: [{hosts}], {rest}", namespace)


def test_a_host_name_that_two_namespaces_keep_to_themselves_is_fine() -> None:
    mine = entry("x", "a.example.com", "ports: [{number: 443, name: tls, protocol: TLS}], exportTo: ['.']")
    assert codes(mine.replace("default", "other"), mine) == []
    assert codes(mine.replace("['.']", "['*']").replace("default", "other"), mine) == ["duplicate-host spec.hosts[0]"]


def test_a_port_name_outside_the_convention_is_told() -> None:
    assert findings(service("a", "{name: web, port: 80}")) == [
        "f.yaml:4: info: spec.ports[0].name: port name 'web' (port: 80) does not follow the convention "
        "PROTOCOL[-SUFFIX]: its protocol is detected per connection. Name it http-…, grpc-…, tcp-… to say what it "
        "speaks"
    ]
    assert codes(service("a", "{port: 80}")) == ["IST0118 port-name spec.ports[0]"]
    assert codes(service("a", "{name: web, port: 80, appProtocol: nonsense}")) == [
        "IST0118 port-name spec.ports[0].appProtocol"
    ]
    for fine in ("{name: http-web, port: 80}", "{name: web, port: 80, appProtocol: http}", "{name: db, port: 3306}"):
        assert codes(service("a", fine)) == []


def test_ports_that_are_never_captured_are_warned_of() -> None:
    assert findings(service("a", "{name: tcp-ssh, port: 22}")) == [
        "f.yaml:4: warning: spec.ports[0].port: port 22 is kept free for SSH: connections to this service's virtual "
        "address on it are never captured and lead nowhere. Choose another number; targetPort may stay"
    ]
    for number in (15012, 15013, 15014):
        assert codes(service("a", f"{{name: tcp, port: {number}}}")) == ["reserved-port spec.ports[0].port"]
    assert codes(service("a", "{name: tcp-ssh, port: 2222, targetPort: 22}")) == []
    git = entry("git", "git.example.com", "addresses: [192.0.2.1], ports: [{number: 22, name: tcp, protocol: TCP}]")
    assert codes(git) == ["reserved-port spec.ports[0].number"]


def test_two_services_at_one_address_and_port_are_a_warning() -> None:
    first = entry("a", "a.test", "addresses: [192.0.2.1], ports: [{number: 80, name: http, protocol: HTTP}]")
    second = first.replace("name: a,", "name: b,").replace("a.test", "b.test")
    assert codes(second, first) == ["conflicting-address spec.addresses[0]"]
    assert codes(second.replace("192.0.2.1", "192.0.2.2"), first) == []
    assert codes(second.replace("80", "81"), first) == []


def test_two_entries_that_declare_a_port_differently_are_a_warning() -> None:
    first = entry("a", "a.test", "ports: [{number: 443, name: x, protocol: TLS}], exportTo: ['.']")
    other = first.replace("name: a,", "name: b,").replace("TLS", "HTTPS")
    assert codes(other, first) == [
        "duplicate-host spec.hosts[0]",
        "IST0177 conflicting-protocol spec.ports[0].protocol",
    ]
    assert codes(other.replace("HTTPS", "TLS"), first) == ["duplicate-host spec.hosts[0]"]
    assert codes(other.replace("default", "elsewhere"), first) == []


def test_raw_tcp_without_addresses_is_told_and_a_wildcard_is_warned_of() -> None:
    ports = "ports: [{number: 5432, name: db, protocol: TCP}]"
    assert findings(entry("a", "a.test", ports))[0].startswith("f.yaml:4: info: spec.ports[0]: port 5432 is raw TCP")
    assert codes(entry("a", "a.test", ports)) == ["IST0134 addresses-required spec.ports[0]"]
    [wild] = findings(entry("a", "'*.test'", ports))
    assert wild.startswith("f.yaml:4: warning: spec.ports[0]: port 5432 is raw TCP and a wildcard host has no virtual")
    assert codes(entry("a", "a.test", f"addresses: [192.0.2.1], {ports}")) == []
    assert codes(entry("a", "a.test", ports.replace("TCP", "TLS"))) == []


def test_a_namespace_that_nothing_is_in_cannot_see_anything() -> None:
    text = entry("a", "a.test", "ports: [{number: 80, name: http, protocol: HTTP}], exportTo: ['.', nowhere]")
    assert findings(text) == [
        "f.yaml:4: warning: spec.exportTo[1]: there is nothing in the namespace 'nowhere': nobody there sees this "
        "(yet?)"
    ]
    assert codes(text, service("x", namespace="nowhere")) == []
    assert codes(text, "apiVersion: v1\nkind: Namespace\nmetadata: {name: nowhere}\n") == []
    annotated = service("a", rest=", annotations: {networking.istio.io/exportTo: 'default, nowhere'}")
    assert codes(annotated) == ["unknown-namespace metadata.annotations['networking.istio.io/exportTo']"]


def test_udp_is_told_to_be_passed_by_and_to_need_a_name_of_its_own_beside_tcp() -> None:
    alone = REVIEWS.replace("name: http, port: 9080", "name: udp-log, port: 514, protocol: UDP")
    assert codes(alone) == ["udp-port spec.ports[0]"]
    assert "passed by" in findings(alone)[0]
    http = "{name: http, port: 9080}"
    beside = REVIEWS.replace(http, http + ", {name: dns, port: 53, protocol: UDP}")
    assert codes(beside) == ["udp-port spec.ports[1]"]
    assert "virtual address" in findings(beside)[0]
    assert codes(REVIEWS) == []


def test_a_service_without_an_address_is_told_that_hosts_give_it_one() -> None:
    headless = REVIEWS.replace("spec: {", "spec: {clusterIP: None, ")
    assert codes(headless) == ["headless spec.clusterIP"]
    assert "virtual address all the same" in findings(headless)[0]
