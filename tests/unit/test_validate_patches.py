"""Sidecars, EnvoyFilters, and the selectors of what changes proxies."""

import pytest

from checking import codes, findings, istio, service, workload


def sidecar(name: str, selector: str = "", hosts: str = "./*", namespace: str = "default") -> str:
    chosen = f"workloadSelector: {{labels: {{{selector}}}}}, " if selector else ""
    return istio("Sidecar", name, f"{chosen}egress: [{{hosts: [{hosts}]}}]", namespace)


WEB = workload("web", "app: web, tier: front")


def test_a_sidecar_for_a_workload_is_fine() -> None:
    assert codes(sidecar("s", "app: web"), WEB) == []
    assert codes(sidecar("s"), sidecar("other", namespace="other") + sidecar("web", "app: web")) == []


def test_a_sidecar_for_nobody_is_a_warning() -> None:
    assert findings(sidecar("s", "app: wbe"), WEB) == [
        "f.yaml:4: warning: spec.workloadSelector.labels: no workload of namespace 'default' has the labels app=wbe "
        "(yet?)"
    ]
    assert codes(sidecar("s", "app: web", namespace="other"), WEB) == [
        "IST0101 unknown-selector spec.workloadSelector.labels"
    ]


def test_two_sidecars_for_a_namespace_are_a_warning() -> None:
    assert codes(sidecar("s"), sidecar("other")) == ["IST0111 duplicate-sidecar metadata.name"]


def test_two_sidecars_for_one_workload_are_a_warning() -> None:
    assert findings(sidecar("s", "app: web"), WEB + sidecar("other", "tier: front")) == [
        "f.yaml:4: warning: spec.workloadSelector.labels: Sidecar default/other selects WorkloadEntry default/web "
        "too; the older one holds for it. Let their selectors choose different workloads"
    ]
    assert codes(sidecar("s", "app: web"), WEB + sidecar("other", "tier: front")) == [
        "IST0110 duplicate-sidecar spec.workloadSelector.labels"
    ]
    assert codes(sidecar("s", "app: web"), WEB + sidecar("other", "tier: back")) == []


def test_hosts_of_a_namespace_that_is_not_there_and_hosts_twice_are_warnings() -> None:
    assert codes(sidecar("s", hosts="nowhere/*")) == ["unknown-namespace spec.egress[0].hosts[0]"]
    assert codes(sidecar("s", hosts="nowhere/*"), service("a", namespace="nowhere")) == []
    assert codes(sidecar("s", hosts="./a.test, ./a.test")) == ["IST0133 ineffective-setting spec.egress[0].hosts[1]"]
    assert codes(sidecar("s", hosts="'*/*', ./a.test")) == ["IST0133 ineffective-setting spec.egress[0].hosts"]
    assert codes(sidecar("s", hosts="./a.test, ./b.test")) == []


def test_a_proxy_for_all_that_leaves_is_deprecated_and_must_be_there() -> None:
    policy = "outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: out, port: {number: 80}}}"
    old = "IST0002 deprecated-field spec.outboundTrafficPolicy.egressProxy"
    assert old in codes(istio("Sidecar", "s", policy), service("out"))
    assert old not in codes(istio("Sidecar", "s", "outboundTrafficPolicy: {mode: ALLOW_ANY}"))
    assert "IST0101 unknown-host spec.outboundTrafficPolicy.egressProxy.host" in codes(istio("Sidecar", "s", policy))


def patches(*parts: str, priority: int = 0) -> list[str]:
    text = istio("EnvoyFilter", "e", f"priority: {priority}, configPatches: [{', '.join(parts)}]")
    found = codes(text.replace("istio.io/v1\n", "istio.io/v1alpha3\n"))
    # What is wrong with the values themselves has its own tests.
    return [each for each in found if each.startswith("IST")]


def patch(where: str, operation: str, match: str = "") -> str:
    value = "" if operation == "REMOVE" else ", value: {name: lua}"
    matched = f"match: {{{match}}}, " if match else ""
    return f"{{applyTo: {where}, {matched}patch: {{operation: {operation}{value}}}}}"


PLACE = "spec.configPatches[0].patch.operation"


@pytest.mark.parametrize(
    ("where", "operation", "expected"),
    [
        ("HTTP_FILTER", "INSERT_FIRST", []),
        ("HTTP_FILTER", "ADD", []),
        ("CLUSTER", "MERGE", []),
        ("HTTP_FILTER", "INSERT_BEFORE", [f"IST0151 relative-operation {PLACE}"]),
        ("HTTP_FILTER", "INSERT_AFTER", [f"IST0151 relative-operation {PLACE}"]),
        ("NETWORK_FILTER", "REPLACE", [f"IST0151 relative-operation {PLACE}"]),
        ("CLUSTER", "REMOVE", [f"IST0151 relative-operation {PLACE}"]),
        ("CLUSTER", "REPLACE", [f"IST0152 ignored-operation {PLACE}"]),
        ("HTTP_ROUTE", "ADD", [f"IST0153 ignored-operation {PLACE}"]),
        ("ROUTE_CONFIGURATION", "REMOVE", [f"IST0154 ignored-operation {PLACE}"]),
    ],
)
def test_operations_that_are_ignored_or_depend_on_others_are_told(
    where: str, operation: str, expected: list[str]
) -> None:
    assert patches(patch(where, operation)) == expected


def test_a_priority_says_the_order_of_relative_operations() -> None:
    assert patches(patch("HTTP_FILTER", "INSERT_BEFORE"), priority=10) == []


@pytest.mark.parametrize("where", ["LISTENER_FILTER", "NETWORK_FILTER", "HTTP_FILTER"])
def test_a_filter_without_a_name_is_told(where: str) -> None:
    nameless = patch(where, "INSERT_FIRST").replace("{name: lua}", "{}")
    text = istio("EnvoyFilter", "e", f"configPatches: [{nameless}]").replace("istio.io/v1\n", "istio.io/v1alpha3\n")
    assert codes(text) == ["missing spec.configPatches[0].patch.value"]


def test_a_relative_operation_after_one_for_some_versions_has_its_own_code() -> None:
    first = patch("HTTP_FILTER", "ADD", "proxy: {proxyVersion: '1.2.*'}")
    assert patches(first, patch("HTTP_FILTER", "INSERT_BEFORE")) == [
        "IST0155 relative-operation spec.configPatches[1].patch.operation"
    ]


def test_a_filter_that_is_matched_for_a_listener_has_no_effect() -> None:
    match = "listener: {filterChain: {filter: {name: x}}}"
    assert patches(patch("LISTENER", "MERGE", match)) == [
        "IST0133 ineffective-match spec.configPatches[0].match.listener.filterChain.filter"
    ]
    assert patches(patch("NETWORK_FILTER", "MERGE", match)) == []


def test_a_selector_of_an_extension_or_a_policy_that_chooses_nobody_is_a_warning() -> None:
    plugin = (
        "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: p}\n"
        "spec: {selector: {matchLabels: {app: web}}, url: 'file:///x.wasm'}\n"
    )
    policy = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\n"
        "spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}\n"
    )
    for text in (plugin, policy):
        assert codes(text) == ["IST0127 unknown-selector spec.selector.matchLabels"]
        assert codes(text, WEB) == []
        assert codes(text, WEB.replace("default", "other")) == ["IST0127 unknown-selector spec.selector.matchLabels"]
        in_root = text.replace("name: p}", "name: p, namespace: istio-system}")
        assert codes(in_root, WEB.replace("default", "other")) == []
