"""Gateways: selectors, ports, credentials and conflicts; and VirtualServices at gateways."""

import pytest

from checking import codes, findings, istio, losses, service, workload
from hostmesh_agent.keys import Svid
from hostmesh_controller.model import ObjectKey
from pki import CART, new_authority, svid

EDGE = workload("edge", "istio: edge", namespace="istio-system")


def gateway(name: str, servers: str, selector: str = "istio: edge", namespace: str = "default") -> str:
    return istio("Gateway", name, f"selector: {{{selector}}}, servers: [{servers}]", namespace)


def http(hosts: str, number: int = 80, rest: str = "") -> str:
    return f"{{port: {{number: {number}, name: http-{number}, protocol: HTTP}}, hosts: [{hosts}]{rest}}}"


def https(credential: str, hosts: str = "a.test") -> str:
    tls = f"{{mode: SIMPLE, credentialName: {credential}}}"
    return f"{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [{hosts}], tls: {tls}}}"


def test_a_gateway_for_a_workload_is_fine() -> None:
    assert codes(gateway("g", http("a.test")), EDGE) == []
    group = istio("WorkloadGroup", "g", "metadata: {labels: {istio: edge}}, template: {}")
    assert codes(gateway("g", http("a.test")), group) == []


def test_a_selector_that_chooses_nobody_is_a_warning() -> None:
    assert findings(gateway("g", http("a.test"))) == [
        "f.yaml:4: warning: spec.selector: no workload has the labels istio=edge (yet?): this gateway is on no host"
    ]
    assert codes(gateway("g", http("a.test")), workload("w", "istio: other")) == [
        "IST0101 unknown-selector spec.selector"
    ]
    assert codes(istio("Gateway", "g", f"servers: [{http('a.test')}]"), EDGE) == ["IST0101 unknown-selector spec"]


def test_a_port_that_no_service_of_the_gateway_leads_to_is_a_warning() -> None:
    front = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: istio-system}\n"
        "spec: {selector: {istio: edge}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n"
    )
    assert findings(gateway("g", http("a.test", 8081)), EDGE + front) == [
        "f.yaml:4: warning: spec.servers[0].port.number: no port of Service istio-system/edge leads to port 8081: it "
        "is not reached through them"
    ]
    for number in (80, 8080):
        assert codes(gateway("g", http("a.test", number)), EDGE + front) == []
    assert codes(gateway("g", http("a.test", 8081)), EDGE) == []


def test_a_port_that_others_use_on_each_host_is_a_warning() -> None:
    assert codes(gateway("g", http("a.test", 22)), EDGE) == ["reserved-port spec.servers[0].port.number"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Svid:
    return svid(new_authority(tmp_path_factory.mktemp("ca")), CART)


def secret(name: str, fields: dict[str, bytes], namespace: str = "istio-system") -> str:
    lines = "".join(f"  {field}: |\n" + indented(pem) for field, pem in fields.items())
    return (
        f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\nstringData:\n{lines}---\n"
    )


def whole(pair: Svid) -> dict[str, bytes]:
    return {"tls.crt": pair.chain_pem, "tls.key": pair.key_pem}


def indented(pem: bytes) -> str:
    return "".join(f"    {line}\n" for line in pem.decode().splitlines())


def test_a_credential_is_looked_for_where_the_gateways_workloads_are(pair: Svid) -> None:
    wanted = gateway("g", https("cert"))
    assert findings(wanted, EDGE) == [
        "f.yaml:4: warning: spec.servers[0].tls.credentialName: there is no Secret 'cert' in the namespace of the "
        "gateway's workloads, istio-system (yet?)"
    ]
    assert codes(wanted, EDGE + secret("cert", whole(pair), "default")) == [
        "IST0101 unknown-credential spec.servers[0].tls.credentialName"
    ]
    assert codes(wanted, EDGE + secret("cert", whole(pair))) == []
    assert codes(wanted, EDGE + secret("cert", {"ca.crt": pair.chain_pem})) == [
        "IST0161 bad-credential spec.servers[0].tls.credentialName"
    ]


def test_two_gateways_for_one_host_on_one_port_are_a_warning() -> None:
    first = gateway("first", http("a.test"))
    assert findings(gateway("g", http("a.test")), EDGE + first) == [
        "f.yaml:4: warning: spec.servers[0].hosts: Gateway default/first has port 80 for a.test on the same hosts "
        "(istio=edge); the older one wins. Merge the two"
    ]
    assert codes(gateway("g", http("a.test")), EDGE + first) == ["IST0145 conflicting-gateway spec.servers[0].hosts"]
    assert codes(gateway("g", http("b.test")), EDGE + first) == []
    assert codes(gateway("g", http("a.test", 81)), EDGE + first) == []
    assert codes(gateway("g", http("a.test", rest=", bind: 10.0.0.1")), EDGE + first) == []


def test_gateways_with_other_selectors_conflict_only_on_a_workload_of_both() -> None:
    narrow = gateway("g", http("a.test"), "istio: edge, zone: a")
    first = gateway("first", http("a.test"))
    both = workload("both", "istio: edge, zone: a", "10.0.0.2")
    assert codes(narrow, EDGE + both + first) == ["IST0145 conflicting-gateway spec.servers[0].hosts"]
    elsewhere = first.replace("{istio: edge}", "{istio: edge, zone: b}")
    assert codes(narrow, EDGE + both + elsewhere) == []


def test_a_certificate_of_two_gateways_is_a_warning(pair: Svid) -> None:
    stored = EDGE + secret("cert", whole(pair)) + secret("other", whole(pair))
    assert codes(gateway("g", https("cert", "b.test")), stored + gateway("first", https("cert"))) == [
        "IST0138 shared-certificate spec.servers[0].tls.credentialName"
    ]
    assert codes(gateway("g", https("other", "b.test")), stored + gateway("first", https("cert"))) == []


def at_gateway(gateways: str, hosts: str = "a.test", match: str = "", namespace: str = "default") -> str:
    rule = f"{{match: [{{{match}}}], directResponse: {{status: 200}}}}" if match else "{directResponse: {status: 200}}"
    return istio("VirtualService", "v", f"hosts: [{hosts}], gateways: [{gateways}], http: [{rule}]", namespace)


def test_routes_at_a_gateway_that_is_not_there_are_a_warning() -> None:
    assert findings(at_gateway("g")) == ["f.yaml:4: warning: spec.gateways[0]: there is no Gateway default/g (yet?)"]
    assert codes(at_gateway("g")) == ["IST0101 unknown-gateway spec.gateways[0]"]
    stored = EDGE + gateway("g", http("a.test"), namespace="other")
    assert codes(at_gateway("other/g, mesh"), stored) == []
    assert codes(at_gateway("g.other.svc.cluster.local"), stored) == ["IST0133 deprecated-field spec.gateways[0]"]


def test_routes_for_hosts_that_the_gateway_does_not_have_are_a_warning() -> None:
    stored = EDGE + gateway("g", http("'*.example.com', other/b.test, ./c.test"))
    assert findings(at_gateway("g"), stored) == [
        "f.yaml:4: warning: spec.gateways[0]: none of the hosts (a.test) is in Gateway default/g: it has "
        "*.example.com, c.test"
    ]
    assert codes(at_gateway("g", "b.test"), stored) == ["IST0132 host-not-in-gateway spec.gateways[0]"]
    for fine in ("x.example.com", "c.test", "a.test, c.test"):
        assert codes(at_gateway("g", fine), stored) == []
    assert codes(at_gateway("default/g", "b.test", namespace="other"), stored) == []
    assert codes(at_gateway("default/g", "c.test", namespace="other"), stored) == [
        "IST0132 host-not-in-gateway spec.gateways[0]"
    ]


def test_a_match_for_a_gateway_that_the_routes_are_not_bound_to_is_a_warning() -> None:
    stored = EDGE + gateway("g", http("a.test"))
    assert codes(at_gateway("g", match="gateways: [mesh]"), stored) == [
        "unbound-gateway spec.http[0].match[0].gateways[0]"
    ]
    assert codes(at_gateway("g, mesh", match="gateways: [mesh, default/g]"), stored) == []


def test_subsets_that_are_chosen_inside_have_no_effect_at_a_gateway() -> None:
    inside = istio(
        "VirtualService", "inside", "hosts: [web], http: [{route: [{destination: {host: web, subset: v1}}]}]"
    )
    rule = istio("DestinationRule", "web", "host: web, subsets: [{name: v1}]")
    stored = EDGE + service("web") + workload("w", "app: web") + rule + gateway("g", http("a.test")) + inside
    outside = "hosts: [a.test], gateways: [g], http: [{route: [{destination: {host: web}}]}]"
    assert codes(istio("VirtualService", "v", outside), stored) == [
        "IST0140 no-effect-at-gateway spec.http[0].route[0].destination"
    ]
    assert codes(istio("VirtualService", "v", outside.replace("host: web", "host: web, subset: v1")), stored) == []


def test_deleting_a_gateway_or_a_credential_names_who_uses_it(pair: Svid) -> None:
    stored = EDGE + gateway("g", https("cert")) + secret("cert", whole(pair)) + at_gateway("g")
    assert losses([ObjectKey("Gateway", "default", "g")], stored) == [
        "Gateway default/g: warning: VirtualService default/v routes at this gateway, which is gone"
    ]
    assert losses([ObjectKey("Secret", "istio-system", "cert")], stored) == [
        "Secret istio-system/cert: warning: Gateway default/g shows its certificate, and loses it"
    ]
    assert losses([ObjectKey("VirtualService", "default", "v")], stored) == []
