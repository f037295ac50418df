"""MeshConfig: Istio's fields and defaults, as an object and as a plain mesh file."""

from typing import Any

import pytest

from hostmesh_controller.load_mesh import read_mesh_file
from hostmesh_controller.model import from_document, read_document
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.faults import path_text
from hostmesh_controller.model.mesh_config import MeshConfigSpec, laid_over


def document(spec: dict[str, Any], name: str = "default") -> dict[str, Any]:
    return {"apiVersion": "hostmesh.io/v1", "kind": "MeshConfig", "metadata": {"name": name}, "spec": spec}


def faults_of(spec: dict[str, Any], name: str = "default") -> str:
    _, faults = read_document(document(spec, name))
    return "\n".join(f"{path_text(fault.path)}: {fault.message}" for fault in faults)


def settings(text: str) -> MeshConfigSpec:
    spec, problems = read_mesh_file(text, "mesh.yaml")
    assert problems == []
    assert spec is not None
    return spec


FULL: dict[str, Any] = {
    "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
    "inboundTrafficPolicy": {"mode": "LOCALHOST"},
    "connectTimeout": "3s",
    "tcpKeepalive": {"probes": 3, "time": "10s", "interval": "5s"},
    "defaultHttpRetryPolicy": {"attempts": 1, "retryOn": "5xx"},
    "defaultInboundHttpRetryPolicy": {"attempts": 1, "retryOn": "reset", "backoff": "5ms"},
    "localityLbSetting": {"enabled": False},
    "accessLogFile": "/dev/stdout",
    "accessLogFormat": '{"at": "%START_TIME%"}\n',
    "accessLogEncoding": "JSON",
    "trustDomain": "example.com",
    "trustDomainAliases": ["old.example.com"],
    "defaultServiceExportTo": ["."],
    "defaultVirtualServiceExportTo": ["."],
    "defaultDestinationRuleExportTo": ["."],
    "protocolDetectionTimeout": "0s",
    "dnsRefreshRate": "5s",
    "enableAutoMtls": False,
    "rootNamespace": "istio-system",
    "h2UpgradePolicy": "UPGRADE",
    "inboundClusterStatName": "%SERVICE%",
    "outboundClusterStatName": "%SERVICE_FQDN%",
    "pathNormalization": {"normalization": "MERGE_SLASHES"},
    "meshMTLS": {"minProtocolVersion": "TLSV1_3"},
    "verifyCertificateAtClient": False,
    "defaultConfig": {
        "concurrency": 2,
        "gatewayTopology": {"numTrustedProxies": 1},
        "drainDuration": "10s",
        "terminationDrainDuration": "0s",
    },
    "extensionProviders": [
        {
            "name": "judge",
            "envoyExtAuthzGrpc": {
                "service": "a/judge.a.svc.cluster.local",
                "port": 9191,
                "timeout": "2s",
                "failOpen": True,
                "statusOnError": "503",
                "includeRequestBodyInCheck": {
                    "maxRequestBytes": 1024,
                    "allowPartialMessage": True,
                    "packAsBytes": True,
                },
            },
        },
        {
            "name": "judge-http",
            "envoyExtAuthzHttp": {
                "service": "judge.example.com",
                "port": 80,
                "pathPrefix": "/check",
                "includeHeadersInCheck": ["x-old"],
                "includeRequestHeadersInCheck": ["x-user", "x-*", "*-token"],
                "includeAdditionalHeadersInCheck": {"x-mesh": "hostmesh"},
                "headersToUpstreamOnAllow": ["x-user"],
                "headersToDownstreamOnDeny": ["www-*"],
                "headersToDownstreamOnAllow": ["set-cookie"],
            },
        },
    ],
}


def test_every_field_is_read_and_comes_back_as_it_was_written() -> None:
    given = document(FULL)
    made = from_document(given)
    assert made.to_dict() == given
    assert {field.alias for field in MeshConfigSpec.model_fields.values()} == set(FULL)


def test_the_defaults_are_istio_s() -> None:
    spec = settings("")
    assert spec == MeshConfigSpec()
    assert (spec.outbound_traffic_policy.mode, spec.inbound_traffic_policy.mode) == ("ALLOW_ANY", "PASSTHROUGH")
    assert (spec.connect_timeout, spec.protocol_detection_timeout) == (Duration("10s"), Duration("0"))
    assert (spec.dns_refresh_rate, spec.default_config.drain_duration) == (Duration("60s"), Duration("45s"))
    assert (spec.locality_lb_setting.enabled, spec.enable_auto_mtls) == (True, True)
    assert spec.default_service_export_to == ("*",)


JUDGE: dict[str, Any] = {"service": "judge.default.svc.cluster.local", "port": 9191}


def test_numbers_of_a_provider_may_be_text_as_in_istio_s_guides() -> None:
    body = {"maxRequestBytes": "1024"}
    given = {"name": "a", "envoyExtAuthzGrpc": {**JUDGE, "port": "9191", "includeRequestBodyInCheck": body}}
    (made,) = from_document(document({"extensionProviders": [given]})).to_dict()["spec"]["extensionProviders"]
    found = made["envoyExtAuthzGrpc"]
    assert (found["port"], found["includeRequestBodyInCheck"]) == (9191, {"maxRequestBytes": 1024})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"connectTimeout": "0s"}, "spec.connectTimeout: '0s' is too short: at least 1ms"),
        ({"connectTimeout": "61m"}, "spec.connectTimeout: 61m is too long: at most 1h"),
        ({"protocolDetectionTimeout": "1.5ms"}, "spec.protocolDetectionTimeout: 1.5ms is no multiple of 1ms"),
        ({"trustDomainAliases": ["a_b"]}, "spec.trustDomainAliases[0]: 'a_b' is not a valid name"),
        ({"trustDomain": ""}, "spec.trustDomain"),
        ({"outboundTrafficPolicy": {"mode": "ALLOW_ANY_DYNAMIC_DNS"}}, "ALLOW_ANY_DYNAMIC_DNS: not supported yet"),
        ({"meshMTLS": {"ecdhCurves": ["P-256"]}}, "spec.meshMTLS.ecdhCurves: not supported"),
        ({"enablePrometheusMerge": True}, "spec.enablePrometheusMerge: not supported: metrics of the programs"),
        ({"ingressClass": "istio"}, "spec.ingressClass: not supported: it is for Kubernetes' Ingress"),
        (
            {"extensionProviders": [{"name": "a", "zipkin": {}}]},
            "spec.extensionProviders[0].zipkin: not supported: a later release",
        ),
        ({"extensionProviders": [{"name": "a"}]}, "spec.extensionProviders[0]: give envoyExtAuthzHttp or"),
        (
            {"extensionProviders": [{"name": "A", "envoyExtAuthzGrpc": JUDGE}]},
            "spec.extensionProviders[0].name: 'A' is",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzGrpc": JUDGE}] * 2},
            "spec.extensionProviders[1].name: provider 'a' is there twice",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzGrpc": JUDGE, "envoyExtAuthzHttp": JUDGE}]},
            "spec.extensionProviders[0].envoyExtAuthzGrpc: only one of",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzHttp": {**JUDGE, "statusOnError": "299"}}]},
            "spec.extensionProviders[0].envoyExtAuthzHttp.statusOnError: '299' is not an HTTP status",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzHttp": {**JUDGE, "pathPrefix": "x"}}]},
            "spec.extensionProviders[0].envoyExtAuthzHttp.pathPrefix: 'x' is not the beginning of a path",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzHttp": {**JUDGE, "headersToUpstreamOnAllow": ["*"]}}]},
            "spec.extensionProviders[0].envoyExtAuthzHttp.headersToUpstreamOnAllow[0]: write a header's name",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzGrpc": {**JUDGE, "port": "x"}}]},
            "spec.extensionProviders[0].envoyExtAuthzGrpc.port: expected an integer, found the text 'x'",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzGrpc": {**JUDGE, "port": "15001"}}]},
            "spec.extensionProviders[0].envoyExtAuthzGrpc.port: ",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzGrpc": {**JUDGE, "service": "a/b/c.d"}}]},
            "spec.extensionProviders[0].envoyExtAuthzGrpc.service: 'a/b' is not a valid name",
        ),
        (
            {"extensionProviders": [{"name": "a", "envoyExtAuthzGrpc": {**JUDGE, "pathPrefix": "/"}}]},
            "spec.extensionProviders[0].envoyExtAuthzGrpc.pathPrefix: unknown field",
        ),
        ({"defaultConfig": {"holdApplicationUntilProxyStarts": True}}, "not supported: programs on a host are started"),
        ({"defaultConfig": {"drainDuration": "1.5s"}}, "spec.defaultConfig.drainDuration: 1.5s: Envoy drains in whole"),
        ({"defaultConfig": {"drainDuration": "2562047h"}}, "spec.defaultConfig.drainDuration: 2562047h is too long"),
        ({"defaultConfig": {"terminationDrainDuration": "1200h"}}, "1200h is too long"),
        ({"defaultConfig": {"concurency": 2}}, "did you mean 'concurrency'?"),
        ({"defaultConfig": {"proxyStatsMatcher": {}}}, "all of Envoy's statistics are kept"),
        ({"defaultConfig": {"statNameLength": 100}}, "Istio ignores it"),
        ({"defaultInboundHttpRetryPolicy": {"retryOn": "reset"}}, "attempts is 0, which turns retries off"),
        ({"defaultInboundHttpRetryPolicy": {"attempts": 1, "perTryTimeout": "1s"}}, "the caller's proxy has the"),
        ({"connect_timeout": "1s"}, "did you mean 'connectTimeout'?"),
        ({"localityLbSetting": {"failover": [{"from": "a", "to": "a"}]}}, "'a' cannot step in for itself"),
    ],
)
def test_what_is_wrong_or_not_for_hosts_is_refused_at_its_place(spec: dict[str, Any], expected: str) -> None:
    assert expected in faults_of(spec)


def test_there_is_one_mesh_config_and_it_is_called_default() -> None:
    assert "metadata.name: there is one MeshConfig: name it 'default'" in faults_of({}, name="other")


def test_a_mesh_file_is_the_settings_at_the_top_level() -> None:
    spec = settings("connectTimeout: 3s\ndefaultConfig:\n  concurrency: 2\n")
    assert (spec.connect_timeout, spec.default_config.concurrency) == (Duration("3s"), 2)
    assert spec.model_fields_set == {"connect_timeout", "default_config"}


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("accessLogFile: 1\nconnectTimeout: 5\n", (1, "accessLogFile"), "expected a string, found the number 1"),
        ("rootNamespace: a\nca: {}\n", (2, "ca"), "not supported: the controller is the mesh's CA"),
        ("meshConfig:\n  connectTimeout: 1s\n", (1, "meshConfig"), "not under 'meshConfig'"),
        ("apiVersion: hostmesh.io/v1\nkind: MeshConfig\n", (2, "kind"), "this is an object"),
        ("- a\n", (1, ""), "expected a mapping, found a list"),
        ("connectTimeout: 1s\n---\nconnectTimeout: 2s\n", (3, ""), "a mesh file is one document"),
        ("a: [\n", (1, ""), "not valid YAML"),
    ],
)
def test_a_mistake_in_a_mesh_file_is_told_with_its_line(text: str, place: tuple[int, str], expected: str) -> None:
    spec, problems = read_mesh_file(text, "mesh.yaml")
    assert spec is None
    assert (problems[0].file, problems[0].path) == ("mesh.yaml", place[1])
    assert problems[0].line == place[0] or "not valid YAML" in expected
    assert expected in problems[0].message


def test_settings_lie_over_others_field_by_field_and_the_proxy_s_one_by_one() -> None:
    below = settings("connectTimeout: 3s\naccessLogFile: /a\ndefaultConfig: {concurrency: 2, drainDuration: 5s}\n")
    above = settings("connectTimeout: 4s\ndefaultConfig: {concurrency: 3}\n")
    both = laid_over(above, below)
    assert (both.connect_timeout, both.access_log_file) == (Duration("4s"), "/a")
    assert (both.default_config.concurrency, both.default_config.drain_duration.total_seconds()) == (3, 5)
    assert laid_over(MeshConfigSpec(), below) == below
