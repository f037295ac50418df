"""Each kind: what is accepted comes back as it was, what is not is refused at its place."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hostmesh_controller.model import KINDS, ApiObject, DocumentError, Fault, from_document, kind_named, read_document
from hostmesh_controller.model.faults import path_text
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec

Body = dict[str, Any]


def document(kind: str, spec: Body | None = None, **metadata: Any) -> Body:
    made = {"apiVersion": KINDS[kind].api_versions[0], "kind": kind, "metadata": {"name": "x", **metadata}}
    return made if spec is None else made | {"spec": spec}


def read(kind: str, spec: Body) -> ApiObject:
    made, faults = read_document(document(kind, spec))
    assert faults == []
    assert made is not None
    return made


def faults_of(kind: str, spec: Body) -> list[str]:
    _, faults = read_document(document(kind, spec))
    return [f"{path_text(fault.path)}: {fault.message}" for fault in faults]


ROUTE: Body = {"route": [{"destination": {"host": "reviews"}}]}
FULL: list[tuple[str, Body]] = [
    ("Namespace", {}),
    ("ServiceAccount", {}),
    (
        "Service",
        {
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP", "appProtocol": "http"},
                {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP", "nodePort": 30053},
            ],
            "selector": {"app": "reviews"},
            "clusterIP": "None",
            "clusterIPs": ["None"],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
        },
    ),
    (
        "ServiceEntry",
        {
            "hosts": ["db.example.com", "*.example.org"],
            "addresses": ["10.1.0.0/16", "fd00::1"],
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8443}],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "endpoints": [{"address": "10.0.0.1", "ports": {"tls": 9443}, "labels": {"v": "1"}, "weight": 3}],
            "exportTo": ["."],
            "subjectAltNames": ["spiffe://x/ns/a/sa/b"],
        },
    ),
    (
        "WorkloadEntry",
        {
            "address": "10.0.0.1",
            "ports": {"http": 8080},
            "labels": {"app": "reviews", "version": "v1"},
            "network": "lan",
            "locality": "eu/a/1",
            "weight": 5,
            "serviceAccount": "reviews",
        },
    ),
    (
        "WorkloadGroup",
        {
            "metadata": {"labels": {"app": "x"}, "annotations": {"a.b/c": "anything at all"}},
            "template": {"ports": {"http": 80}, "serviceAccount": "x"},
            "probe": {
                "initialDelaySeconds": 5,
                "timeoutSeconds": 3,
                "periodSeconds": 4,
                "successThreshold": 3,
                "failureThreshold": 3,
                "httpGet": {"path": "/h", "host": "127.0.0.1", "port": 3100, "scheme": "HTTPS"}
                | {"httpHeaders": [{"name": "Lit-Header", "value": "x"}]},
            },
        },
    ),
    (
        "Host",
        {
            "addresses": ["10.0.0.1", "fd00::1"],
            "namespace": "shop",
            "outboundIdentity": "shop/reviews",
            "perWorkloadIdentity": True,
            "capture": {"scope": "all"},
        },
    ),
    (
        "VirtualService",
        {
            "hosts": ["reviews", "*.example.com"],
            "gateways": ["mesh"],
            "exportTo": ["*"],
            "http": [
                {
                    "name": "first",
                    "match": [
                        {
                            "name": "m",
                            "uri": {"prefix": "/v1"},
                            "scheme": {"exact": "http"},
                            "method": {"exact": "GET"},
                            "authority": {"regex": "rev.*"},
                            "headers": {"end-user": {"exact": "jason"}, "x": {}},
                            "withoutHeaders": {"y": {"prefix": "z"}},
                            "queryParams": {"q": {"exact": "1"}},
                            "port": 80,
                            "ignoreUriCase": True,
                            "gateways": ["mesh"],
                        }
                    ],
                    "route": [
                        {
                            "destination": {"host": "reviews", "subset": "v1", "port": {"number": 80}},
                            "weight": 80,
                            "headers": {"request": {"set": {"a": "b"}, "add": {"c": "d"}, "remove": ["e"]}},
                        },
                        {"destination": {"host": "reviews", "subset": "v2"}, "weight": 20},
                    ],
                    "rewrite": {"uri": "/v2", "authority": "x"},
                    "timeout": "1.5s",
                    "retries": {"attempts": 3, "perTryTimeout": "100ms", "retryOn": "5xx"},
                    "fault": {
                        "delay": {"fixedDelay": "2s", "percentage": {"value": 0.1}},
                        "abort": {"httpStatus": 503, "percentage": {"value": 100}},
                    },
                    "headers": {"response": {"remove": ["server"]}},
                },
                {"redirect": {"uri": "/x", "authority": "y", "redirectCode": 302, "port": 8080, "scheme": "https"}},
                {"directResponse": {"status": 200, "body": {"string": "hello"}}},
                {"rewrite": {"uriRegexRewrite": {"match": "^/a/(.*)", "rewrite": "/\\1"}}} | ROUTE,
            ],
            "tcp": [{"match": [{"port": 3306}]} | ROUTE],
        },
    ),
    (
        "DestinationRule",
        {
            "host": "reviews",
            "exportTo": ["a", "b"],
            "trafficPolicy": {
                "loadBalancer": {"simple": "ROUND_ROBIN"},
                "connectionPool": {
                    "tcp": {"maxConnections": 10, "connectTimeout": "30ms"},
                    "http": {
                        "http1MaxPendingRequests": 1,
                        "http2MaxRequests": 2,
                        "maxRequestsPerConnection": 3,
                        "maxRetries": 4,
                        "idleTimeout": "1h",
                    },
                },
                "outlierDetection": {
                    "consecutive5xxErrors": 7,
                    "consecutiveGatewayErrors": 5,
                    "interval": "5m",
                    "baseEjectionTime": "15m",
                    "maxEjectionPercent": 50,
                    "minHealthPercent": 10,
                },
                "tls": {"mode": "ISTIO_MUTUAL"},
                "portLevelSettings": [{"port": {"number": 80}, "loadBalancer": {"simple": "LEAST_REQUEST"}}],
            },
            "subsets": [
                {"name": "v1", "labels": {"version": "v1"}},
                {"name": "v2", "labels": {"version": "v2"}, "trafficPolicy": {"tls": {"mode": "DISABLE"}}},
            ],
        },
    ),
    (
        "PeerAuthentication",
        {
            "selector": {"matchLabels": {"app": "x"}},
            "mtls": {"mode": "STRICT"},
            "portLevelMtls": {"8080": {"mode": "DISABLE"}},
        },
    ),
    (
        "AuthorizationPolicy",
        {
            "selector": {"matchLabels": {"app": "x"}},
            "action": "DENY",
            "rules": [
                {},
                {
                    "from": [
                        {
                            "source": {
                                "principals": ["cluster.local/ns/a/sa/b", "*"],
                                "notPrincipals": ["*/sa/c"],
                                "requestPrincipals": ["https://issuer/sub"],
                                "notRequestPrincipals": ["a*"],
                                "namespaces": ["a*"],
                                "notNamespaces": ["b"],
                                "trustDomains": ["cluster.local", "*.org"],
                                "notTrustDomains": ["x*"],
                                "ipBlocks": ["10.0.0.1", "10.0.0.0/8", "fd00::/8"],
                                "notIpBlocks": ["10.0.0.2"],
                                "remoteIpBlocks": ["0.0.0.0/0"],
                                "notRemoteIpBlocks": ["::1"],
                            }
                        },
                        {"source": {"serviceAccounts": ["a", "b/c"], "notServiceAccounts": ["d"]}},
                    ],
                    "to": [
                        {
                            "operation": {
                                "hosts": ["a.b", "*"],
                                "notHosts": ["c.*"],
                                "ports": ["80", "0"],
                                "notPorts": ["65535"],
                                "methods": ["GET"],
                                "notMethods": ["P*"],
                                "paths": ["/a", "*.js", "/a/{*}/b=c/{**}", "/"],
                                "notPaths": ["/{*}"],
                            }
                        }
                    ],
                    "when": [
                        {"key": "request.headers[x]", "values": ["a"], "notValues": ["b"]},
                        {"key": "request.auth.claims[a][b]", "values": ["c"]},
                        {"key": "experimental.envoy.filters.a.b[c]", "notValues": ["[d]"]},
                        {"key": "destination.port", "values": ["80"]},
                    ],
                },
            ],
        },
    ),
    ("AuthorizationPolicy", {"action": "CUSTOM", "provider": {"name": "judge"}, "rules": [{}]}),
    ("AuthorizationPolicy", {"rules": []}),
]


@pytest.mark.parametrize(("kind", "spec"), FULL, ids=[kind for kind, _ in FULL])
def test_every_supported_field_is_read_and_comes_back_as_it_was_written(kind: str, spec: Body) -> None:
    given = document(kind, spec, labels={"a": "b"}, annotations={"note": "x y z"})
    made = from_document(given)
    again = made.to_dict()
    if KINDS[kind].namespaced:
        assert again["metadata"].pop("namespace") == "default"
    assert again.get("spec", {}) == spec
    assert {**again, "spec": spec} == given
    assert from_document(made.to_dict()) == made


MORE = {"Gateway", "Sidecar", "EnvoyFilter", "ProxyConfig", "WasmPlugin", "MeshConfig", "RateLimit", "HealthCheck"}
"""Their examples are in test_model_more_kinds."""
OWN = {"CapturePolicy", "RequestAuthentication", "Rollout", "Secret"}
"""They have tests of their own."""


def test_all_kinds_are_covered_by_the_examples() -> None:
    assert {kind for kind, _ in FULL} == set(KINDS) - MORE - OWN


@pytest.mark.parametrize("kind", [kind for kind, _ in FULL])
def test_every_listed_version_of_a_kind_is_accepted(kind: str) -> None:
    spec = dict(FULL)[kind]
    for version in KINDS[kind].api_versions:
        assert from_document(document(kind, spec) | {"apiVersion": version}).api_version == version


def test_left_out_fields_have_istio_s_defaults() -> None:
    entry = read("ServiceEntry", {"hosts": ["a.example.com"]}).spec
    assert isinstance(entry, ServiceEntrySpec)
    assert (entry.location, entry.resolution) == ("MESH_EXTERNAL", "NONE")
    service = read("Service", {"ports": [{"port": 80}]}).spec
    assert isinstance(service, ServiceSpec)
    assert (service.ports[0].protocol, service.ports[0].target_port, service.selector) == ("TCP", None, {})
    workload = read("WorkloadEntry", {"address": "10.0.0.1"}).spec
    assert isinstance(workload, WorkloadEntrySpec)
    assert (workload.weight, workload.service_account) == (None, "")


def test_specs_are_immutable() -> None:
    spec, field = read("DestinationRule", {"host": "a"}).spec, "host"
    with pytest.raises(ValueError, match="frozen"):
        setattr(spec, field, "b")


def test_null_counts_as_left_out() -> None:
    made = read("VirtualService", {"hosts": ["a"], "tcp": None, "http": [{"match": None, "timeout": None} | ROUTE]})
    assert isinstance(made.spec, VirtualServiceSpec)
    assert made.spec.http[0].match == ()


def test_the_store_s_facts_come_in_beside_the_document_and_are_not_written_into_it() -> None:
    made = from_document(document("Namespace"), uid="u-1")
    assert made.metadata.uid == "u-1"
    assert "uid" not in made.to_dict()["metadata"]


def test_what_kubectl_adds_to_a_document_is_dropped() -> None:
    extra = {"uid": "1", "resourceVersion": "5", "generation": 2, "managedFields": [{}], "creationTimestamp": None}
    given = document("WorkloadEntry", {"address": "10.0.0.1"}, **extra) | {"status": {"conditions": []}}
    made = from_document(given)
    assert made.metadata.uid is None
    assert set(made.to_dict()) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(made.to_dict()["metadata"]) == {"name", "namespace"}


REFUSED = YAML(typ="safe", pure=True).load(Path(__file__).with_name("test_model_refused.yaml"))


@pytest.mark.parametrize("case", REFUSED, ids=[case["refusal"][:70] for case in REFUSED])
def test_a_mistake_is_refused_at_its_place_in_words_that_help(case: Body) -> None:
    assert faults_of(case["kind"], case["spec"]) == [case["refusal"]]


def test_all_mistakes_of_a_document_are_told_at_once() -> None:
    spec = {"hosts": [1], "http": [{"mach": [], "route": [{"destination": {}, "weight": True}]}]}
    _, faults = read_document(document("VirtualService", spec, lables={}, labels={"a": 1}))
    assert {path_text(fault.path) for fault in faults} == {
        "metadata.lables",
        "metadata.labels.a",
        "spec.hosts[0]",
        "spec.http[0].mach",
        "spec.http[0].route[0].destination.host",
        "spec.http[0].route[0].weight",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "Virtualservice"}, "unknown kind 'Virtualservice'; did you mean 'VirtualService'?"),
        ({"kind": "Telemetry"}, "kind 'Telemetry' is not supported yet"),
        ({"kind": "Deployment"}, "kind 'Deployment' is Kubernetes' own and has no meaning for hosts; leave it out"),
        (
            {"kind": "Gateway", "apiVersion": "gateway.networking.k8s.io/v1"},
            "Kubernetes' Gateway API (Gateway) is not supported: write Istio's Gateway and VirtualService instead",
        ),
        (
            {"kind": "HTTPRoute", "apiVersion": "gateway.networking.k8s.io/v1beta1"},
            "Kubernetes' Gateway API (HTTPRoute) is not supported: write Istio's Gateway and VirtualService instead",
        ),
        ({"kind": None}, "required field 'kind' is missing"),
        ({"kind": 5}, "expected a string, found the number 5"),
        ({"apiVersion": None}, "required field 'apiVersion' is missing"),
        ({"apiVersion": "hostmesh.io/v2"}, "Host has apiVersion hostmesh.io/v1, not 'hostmesh.io/v2'"),
        ({"metadata": None}, "required field 'name' is missing"),
        ({"metadata": []}, "expected a mapping, found a list"),
        ({"metadata": {"generateName": "x-", "name": "x"}}, "not supported: give every object a name"),
        ({"metadata": {"name": "x", "namespace": "a"}}, "a Host is in no namespace; remove this"),
        ({"metadata": {"name": 5}}, "expected a string, found the number 5; put it in quotes"),
        ({"spec": []}, "expected a mapping, found a list"),
        ({"spce": {}}, "unknown field 'spce'; did you mean 'spec'?"),
        ({"addresses": []}, "field 'addresses' belongs under spec"),
    ],
)
def test_what_is_wrong_around_the_spec_is_told(changes: Body, message: str) -> None:
    _, faults = read_document(document("Host", {}) | changes)
    assert [fault.message for fault in faults] == [message]


@pytest.mark.parametrize("value", [None, 5, "text", [], True])
def test_what_is_no_mapping_is_no_object(value: object) -> None:
    made, faults = read_document(value)
    assert made is None
    assert [fault.code for fault in faults] == ["type"]


def test_a_document_that_is_not_valid_any_more_raises_with_all_faults() -> None:
    with pytest.raises(DocumentError, match=r"metadata.name: .*; spec.addressen: unknown field") as raised:
        from_document(document("Host", {"addressen": []}, name="A"))
    assert all(isinstance(fault, Fault) for fault in raised.value.faults)


def test_kinds_are_found_by_any_of_their_names() -> None:
    for name in ("VirtualService", "virtualservice", "virtualservices", "vs", "VS"):
        found = kind_named(name)
        assert found is not None
        assert found.kind == "VirtualService"
    assert kind_named("pod") is None


@pytest.mark.parametrize(
    ("kind", "spec", "path"),
    [
        ("Service", {"ports": [{"port": 15001}]}, "spec.ports[0].port"),
        ("Service", {"ports": [{"port": 80, "targetPort": 15006}]}, "spec.ports[0].targetPort"),
        ("Service", {"ports": [{"port": 80}], "clusterIP": "::"}, "spec.clusterIP"),
        ("Service", {"ports": [{"port": 80}], "clusterIP": "0.0.0.0"}, "spec.clusterIP"),
        ("WorkloadEntry", {"address": "10.0.0.1", "ports": {"http": 15006}}, "spec.ports.http"),
        ("WorkloadEntry", {"address": "224.0.0.1"}, "spec.address"),
        ("ServiceEntry", {"hosts": ["a.b"], "ports": [{"number": 15006, "name": "x"}]}, "spec.ports[0].number"),
        (
            "ServiceEntry",
            {"hosts": ["a.b"], "ports": [{"number": 80, "name": "x"}], "addresses": ["::"]},
            "spec.addresses[0]",
        ),
        ("Host", {"addresses": ["255.255.255.255"]}, "spec.addresses[0]"),
    ],
)
def test_ports_and_addresses_on_which_every_envoy_would_stumble_are_refused(kind: str, spec: Body, path: str) -> None:
    made, faults = read_document(document(kind, spec))
    assert made is None
    assert [path_text(each.path) for each in faults] == [path]
