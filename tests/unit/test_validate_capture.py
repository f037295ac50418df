"""What `apply` says of CapturePolicies: rivals, rules that can never hold, and what stays closed."""

from checking import codes, findings

HOSTS = """\
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h1, labels: {rack: a}}
spec: {addresses: [10.0.0.1]}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h2}
spec: {addresses: [10.0.0.2]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: shop}
spec: {address: 10.0.0.1, labels: {app: shop}}
---
"""
STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
"""


def policy(name: str, spec: str, namespace: str = "default") -> str:
    head = f"apiVersion: hostmesh.io/v1\nkind: CapturePolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
    return f"{head}spec: {{{spec}}}\n---\n"


def chosen(**labels: str) -> str:
    return f"selector: {{matchLabels: {{{', '.join(f'{key}: {value}' for key, value in labels.items())}}}}}"


def test_a_policy_for_a_host_says_nothing() -> None:
    assert (
        findings(policy("p", f"{chosen(app='shop', rack='a')}, inbound: {{exclude: [{{ports: [80]}}]}}"), HOSTS) == []
    )


def test_two_policies_of_one_rank_that_choose_one_host_are_told() -> None:
    first = policy("first", chosen(app="shop"))
    assert findings(policy("second", chosen(rack="a")), HOSTS + first) == [
        "f.yaml:3: warning: metadata.name: CapturePolicy default/first is for h1 too, and policies are not merged: the "
        "older one holds. Merge them, or let their selectors choose other hosts"
    ]
    assert findings(policy("wide", ""), HOSTS + first) == []
    assert findings(policy("second", chosen(rack="a"), "istio-system"), HOSTS + first) == []
    assert codes(policy("other", ""), HOSTS + policy("wide", "")) == ["duplicate-policy metadata.name"]


def test_a_policy_for_nobody_is_told() -> None:
    assert codes(policy("p", chosen(app="none")), HOSTS) == ["unknown-selector spec.selector.matchLabels"]
    assert codes(policy("p", "", "nowhere"), HOSTS) == ["unknown-selector metadata.namespace"]
    assert codes(policy("p", chosen(app="none"))) == [], "hosts may come later"


def test_an_include_that_can_never_hold_is_told() -> None:
    assert codes(policy("p", "inbound: {include: [{ports: [22, 15012]}, {ports: [22, 80]}]}"), HOSTS) == [
        "never-captured spec.inbound.include[0].ports"
    ]
    ranged = "include: [{ports: ['15012-15013']}, {ports: ['8000-8002']}], exclude: [{ports: [8000, '8001-8003']}]"
    assert codes(policy("p", f"inbound: {{{ranged}}}"), HOSTS) == [
        "never-captured spec.inbound.include[0].ports",
        "never-captured spec.inbound.include[1]",
    ]
    never = "include: [{cidrs: [10.1.0.0/16], users: [7]}], exclude: [{ports: [1]}, {cidrs: [10.0.0.0/8]}]"
    assert findings(policy("p", f"outbound: {{{never}}}"), HOSTS) == [
        "f.yaml:4: warning: spec.outbound.include[0]: all of it is in outbound.exclude[1], and what is excluded is not "
        "captured: remove one"
    ]
    for held in ("cidrs: [10.1.0.0/24]", "cidrs: [10.0.0.0/8], ports: [1]", "users: [8]", "cidrs: ['fd00::/8']"):
        spec = f"outbound: {{include: [{{cidrs: [10.1.0.0/16], users: [7]}}], exclude: [{{{held}}}]}}"
        assert findings(policy("p", spec), HOSTS) == [], held


def test_what_stays_captured_and_closed_though_open_was_asked_for_is_told() -> None:
    inbound = policy("p", "inbound: {failureMode: open}")
    assert codes(inbound, HOSTS) == []
    assert findings(inbound, HOSTS + STRICT) == [
        "f.yaml:4: warning: spec.inbound: PeerAuthentication default/strict says STRICT: ports that take mutual TLS "
        "alone stay captured whatever is left out here, and are closed while no Envoy is there"
    ]
    assert codes(policy("p", "inbound: {exclude: [{ports: [80]}]}"), HOSTS + STRICT) == [
        "strict-stays-captured spec.inbound"
    ]
    assert codes(policy("p", "outbound: {failureMode: open}"), HOSTS) == ["stays-closed spec.outbound.failureMode"]
    assert codes(policy("p", "scope: all, outbound: {failureMode: open}"), HOSTS) == []
    closed = """\
apiVersion: hostmesh.io/v1
kind: MeshConfig
metadata: {name: default}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
---
"""
    assert codes(policy("p", "scope: all, outbound: {failureMode: open}"), HOSTS + closed) == [
        "stays-closed spec.outbound.failureMode"
    ]
