"""Gateways, Sidecars and what changes Envoy itself: accepted as it was written, or refused at its place."""

from typing import Any

import pytest

from hostmesh_controller.model import KINDS, from_document, kind_named, read_document
from hostmesh_controller.model.envoy_filter import EnvoyFilterSpec
from hostmesh_controller.model.faults import path_text
from hostmesh_controller.model.gateway import GatewaySpec

Body = dict[str, Any]


def document(kind: str, spec: Body, name: str = "default") -> Body:
    return {"apiVersion": KINDS[kind].api_versions[0], "kind": kind, "metadata": {"name": name}, "spec": spec}


def faults_of(kind: str, spec: Body, name: str = "default") -> str:
    _, faults = read_document(document(kind, spec, name))
    return "\n".join(f"{path_text(fault.path)}: {fault.message}" for fault in faults)


def server(protocol: str = "HTTPS", *, number: int = 443, name: str = "one", **more: Any) -> Body:
    return {"port": {"number": number, "name": name, "protocol": protocol}, "hosts": ["shop.example.com"], **more}


def gateway(**more: Any) -> Body:
    return {"servers": [server(**more)]}


def tls(mode: str = "SIMPLE", **more: Any) -> Body:
    return gateway(tls={"mode": mode, **more})


def ingress(**more: Any) -> Body:
    return {"ingress": [{"port": {"number": 8080, "protocol": "HTTPS", "name": "web"}, **more}]}


def egress(*hosts: str, **more: Any) -> Body:
    return {"egress": [{"hosts": list(hosts), **more}]}


def patch(apply_to: str = "HTTP_FILTER", **more: Any) -> Body:
    return {"configPatches": [{"applyTo": apply_to, "patch": {"operation": "MERGE", "value": {"a": 1}}, **more}]}


def filter_match(name: str, sub: Body | None = None) -> Body:
    inner = {"name": name} if sub is None else {"name": name, "subFilter": sub}
    return {"listener": {"filterChain": {"filter": inner}}}


HTTP_MANAGER = "envoy.filters.network.http_connection_manager"
FILES = {"serverCertificate": "/etc/tls/a.pem", "privateKey": "/etc/tls/a.key"}
POOL = {"tcp": {"maxConnections": 5}}
FULL: list[tuple[str, Body]] = [
    (
        "Gateway",
        {
            "selector": {"istio": "ingressgateway"},
            "servers": [
                server(
                    tls={
                        "mode": "MUTUAL",
                        "credentialName": "shop",
                        "caCertCredentialName": "shop-cacert",
                        "subjectAltNames": ["spiffe://a/ns/b/sa/c"],
                        "minProtocolVersion": "TLSV1_2",
                        "maxProtocolVersion": "TLSV1_3",
                        "cipherSuites": ["ECDHE-RSA-AES128-GCM-SHA256"],
                        "ecdhCurves": ["P-256"],
                        "verifyCertificateSpki": ["x" * 43 + "="],
                        "verifyCertificateHash": ["ab" * 32, ":".join(["AB"] * 32)],
                        "insecureSkipVerify": False,
                    },
                    bind="10.0.0.1",
                ),
                server("HTTP", number=80, name="two", tls={"httpsRedirect": True}),
                server("TLS", name="three", tls={"mode": "SIMPLE", "tlsCertificates": [FILES]}),
                server(
                    "TLS", name="four", tls={"mode": "OPTIONAL_MUTUAL", **FILES, "caCertificates": "/a", "caCrl": "/b"}
                ),
                server("TLS", name="five", tls={"mode": "SIMPLE", "credentialNames": ["a", "b"]}),
                server("TCP", name="six", bind="10.0.0.1"),
                server("GRPC", number=90, name="seven", hosts=["*", "./*", "ns/*.example.com", "10.0.0.1", "*/a.b"]),
            ],
        },
    ),
    (
        "Sidecar",
        {
            "workloadSelector": {"labels": {"app": "shop"}},
            "ingress": [
                {
                    "port": {"number": 8443, "protocol": "HTTPS", "name": "web"},
                    "bind": "0.0.0.0",
                    "captureMode": "NONE",
                    "defaultEndpoint": "127.0.0.1:8080",
                    "tls": {"mode": "SIMPLE", **FILES},
                    "connectionPool": POOL,
                },
                {"port": {"number": 9000}, "defaultEndpoint": "unix:///run/a.sock"},
                {"port": {"number": 9001}, "defaultEndpoint": "[::1]:8080"},
            ],
            "egress": [
                {"port": {"number": 3306, "protocol": "MYSQL"}, "bind": "127.0.0.1", "hosts": ["*/mysql.foo.com"]},
                {"port": {"protocol": "HTTP"}, "bind": "unix:///run/b.sock", "hosts": ["./*"]},
                {"captureMode": "IPTABLES", "hosts": ["./*", "istio-system/*", "~/*", "*/*.example.com", "~other/*"]},
            ],
            "outboundTrafficPolicy": {
                "mode": "ALLOW_ANY",
                "egressProxy": {"host": "out.default.svc.cluster.local", "subset": "a", "port": {"number": 80}},
            },
            "inboundConnectionPool": POOL,
        },
    ),
    (
        "EnvoyFilter",
        {
            "workloadSelector": {"labels": {"app": "shop"}},
            "priority": -5,
            "configPatches": [
                {
                    "applyTo": "HTTP_FILTER",
                    "match": {
                        "context": "SIDECAR_INBOUND",
                        "proxy": {"proxyVersion": r"^1\.2.*", "metadata": {"a": "b"}},
                        "listener": {
                            "name": "virtualInbound",
                            "portNumber": 8080,
                            "filterChain": {
                                "name": "c",
                                "sni": "d",
                                "transportProtocol": "tls",
                                "applicationProtocols": "h2",
                                "destinationPort": 1,
                                "filter": {"name": HTTP_MANAGER, "subFilter": {"name": "envoy.filters.http.router"}},
                            },
                        },
                    },
                    "patch": {
                        "operation": "INSERT_BEFORE",
                        "filterClass": "AUTHZ",
                        "value": {"name": "x", "typed_config": {"@type": "t", "list": [1, {"a": None}]}},
                    },
                },
                {
                    "applyTo": "LISTENER_FILTER",
                    "match": {"listener": {"listenerFilter": "x"}},
                    "patch": {"operation": "REMOVE"},
                },
                {
                    "applyTo": "HTTP_ROUTE",
                    "match": {
                        "context": "GATEWAY",
                        "routeConfiguration": {
                            "name": "http.80",
                            "portNumber": 80,
                            "portName": "http",
                            "gateway": "ns/gw",
                            "vhost": {"name": "a:80", "domainName": "a", "route": {"name": "r", "action": "ROUTE"}},
                        },
                    },
                    "patch": {"operation": "MERGE", "value": {}},
                },
                {
                    "applyTo": "CLUSTER",
                    "match": {"cluster": {"portNumber": 80, "service": "a.b", "subset": "c", "name": "d"}},
                    "patch": {"operation": "REMOVE"},
                },
            ],
        },
    ),
    ("ProxyConfig", {"selector": {"matchLabels": {"app": "shop"}}, "concurrency": 2}),
    (
        "WasmPlugin",
        {
            "selector": {"matchLabels": {"app": "shop"}},
            "url": "https://example.com/a.wasm",
            "sha256": "ab" * 32,
            "imagePullPolicy": "Always",
            "phase": "AUTHN",
            "priority": 10,
            "pluginConfig": {"a": {"b": [1, True]}},
            "pluginName": "auth",
            "failStrategy": "FAIL_OPEN",
            "type": "HTTP",
            "vmConfig": {"env": [{"name": "A", "value": "b"}, {"name": "C", "valueFrom": "HOST"}]},
            "match": [{"mode": "SERVER", "ports": [{"number": 80}, {"number": 81}]}],
        },
    ),
]


def _no_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _no_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_no_nulls(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("kind", "spec"), FULL, ids=[kind for kind, _ in FULL])
def test_every_field_is_read_and_comes_back_as_it_was_written_in_every_version(kind: str, spec: Body) -> None:
    for version in KINDS[kind].api_versions:
        made = from_document(document(kind, spec) | {"apiVersion": version})
        assert made.to_dict()["spec"] == _no_nulls(spec)
        assert from_document(made.to_dict()) == made


def test_the_kinds_go_by_istio_s_short_names() -> None:
    found = [kind_named(name) for name in ("gw", "ef", "sidecars", "wasmplugin", "PROXYCONFIGS", "rl", "hc")]
    names = [info.kind for info in found if info is not None]
    assert names == ["Gateway", "EnvoyFilter", "Sidecar", "WasmPlugin", "ProxyConfig", "RateLimit", "HealthCheck"]


def test_what_is_left_out_has_istio_s_defaults() -> None:
    spec = from_document(document("Gateway", gateway(tls={}))).spec
    assert isinstance(spec, GatewaySpec)
    [only] = spec.servers
    assert only.tls is not None
    assert (only.tls.mode, only.tls.passes_through, only.tls.credentials, only.bind) == ("PASSTHROUGH", True, (), "")
    spec = from_document(document("EnvoyFilter", patch())).spec
    assert isinstance(spec, EnvoyFilterSpec)
    assert (spec.priority, spec.config_patches[0].match) == (0, None)


def test_patches_are_equal_by_what_they_say() -> None:
    one, same = (from_document(document("EnvoyFilter", patch())) for _ in range(2))
    other = from_document(document("EnvoyFilter", patch(patch={"operation": "MERGE", "value": {"a": 2}})))
    assert one == same
    assert one != other


REFUSED: list[tuple[str, Body, str]] = [
    ("Gateway", {}, "spec.servers: required field 'servers' is missing"),
    ("Gateway", {"servers": []}, "spec.servers: at least 1 needed, found 0"),
    ("Gateway", gateway(), "spec.servers[0].tls: protocol HTTPS needs tls settings"),
    ("Gateway", gateway(protocol="HTP"), "spec.servers[0].port.protocol: 'HTP' is not a protocol"),
    ("Gateway", gateway(protocol="UDP"), "UDP is not supported"),
    ("Gateway", gateway(protocol="TCP", number=0), "spec.servers[0].port.number: must be between 1 and 65535, found 0"),
    ("Gateway", gateway(protocol="TCP", number=65536), "must be between 1 and 65535, found 65536"),
    ("Gateway", gateway(protocol="TCP", number=15001), "port 15001 is Envoy's own"),
    (
        "Gateway",
        gateway(protocol="TCP", bind="unix:///a"),
        "spec.servers[0].bind: a gateway's callers are on other hosts",
    ),
    ("Gateway", gateway(protocol="TCP", bind="unix://a"), "spec.servers[0].bind: 'a' is not the absolute path"),
    ("Gateway", gateway(protocol="TCP", bind="localhost"), "spec.servers[0].bind: 'localhost' is not an IP address"),
    ("Gateway", gateway(protocol="TCP", tls={}), "spec.servers[0].tls: protocol TCP has no tls settings"),
    ("Gateway", gateway(protocol="HTTP", tls={"mode": "SIMPLE", **FILES}), "only httpsRedirect may be set"),
    ("Gateway", gateway(protocol="TCP", hosts=[]), "spec.servers[0].hosts: at least 1 needed"),
    ("Gateway", gateway(protocol="TCP", hosts=["shop"]), "spec.servers[0].hosts[0]: 'shop' is a short name"),
    ("Gateway", gateway(protocol="TCP", hosts=["*shop.com"]), "spec.servers[0].hosts[0]: '*shop.com'"),
    ("Gateway", gateway(protocol="TCP", hosts=["a_b/*"]), "spec.servers[0].hosts[0]: 'a_b' is not a valid name"),
    ("Gateway", gateway(protocol="TCP", hosts=["~/*"]), "spec.servers[0].hosts[0]: '~' is not a valid name"),
    ("Gateway", gateway(protocol="TCP", defaultEndpoint="1"), "defaultEndpoint: not supported: Istio ignores it"),
    (
        "Gateway",
        {"servers": [server("TCP"), server("TCP")]},
        "spec.servers[1].port.name: port name 'one' is there twice",
    ),
    ("Gateway", tls(), "spec.servers[0].tls.serverCertificate: mode SIMPLE needs serverCertificate"),
    ("Gateway", tls(serverCertificate="/a"), "spec.servers[0].tls.privateKey: mode SIMPLE needs privateKey"),
    ("Gateway", tls("MUTUAL", **FILES), "spec.servers[0].tls.caCertificates: mode MUTUAL needs caCertificates"),
    ("Gateway", tls(tlsCertificates=[{"privateKey": "a"}]), "tls.tlsCertificates[0].serverCertificate: mode SIMPLE"),
    ("Gateway", tls(tlsCertificates=[]), "tls.tlsCertificates: at least 1 needed"),
    ("Gateway", tls(credentialNames=["a", "b", "c"]), "tls.credentialNames: at most 2 allowed"),
    ("Gateway", tls(credentialName="a", credentialNames=["b"]), "only one of credentialName, credentialNames"),
    ("Gateway", tls(tlsCertificates=[FILES], credentialNames=["b"]), "only one of tlsCertificates, credentialNames"),
    ("Gateway", tls(credentialName="a", **FILES), "only one of credentialName, credentialNames, serverCertificate"),
    ("Gateway", tls("ISTIO_MUTUAL", privateKey="a"), "tls.privateKey: mode ISTIO_MUTUAL uses the mesh's own"),
    ("Gateway", tls("ISTIO_MUTUAL", credentialName="a"), "tls.credentialName: mode ISTIO_MUTUAL uses the mesh's own"),
    ("Gateway", tls(caCrl="/a", credentialName="a"), "tls.caCrl: the revocation list belongs into the Secret"),
    ("Gateway", tls(caCrl="/a", **FILES), "tls.caCrl: mode SIMPLE asks for no client certificate"),
    ("Gateway", tls("SIMPEL"), "did you mean 'SIMPLE'?"),
    ("Sidecar", {}, "spec: give ingress, egress, outboundTrafficPolicy or inboundConnectionPool"),
    ("Sidecar", {"workloadSelector": {"labels": {"a": "*"}}, **egress("./*")}, "spec.workloadSelector.labels.a: '*'"),
    ("Sidecar", {"ingress": [{}]}, "spec.ingress[0].port: required field 'port' is missing"),
    ("Sidecar", ingress(port={"number": 80, "targetPort": 1}), "port.targetPort: not supported: it has no effect"),
    ("Sidecar", ingress(bind="unix:///a"), "spec.ingress[0].bind: an ingress listener is bound to an IP address"),
    ("Sidecar", ingress(defaultEndpoint="10.0.0.1:80"), "spec.ingress[0].defaultEndpoint: '10.0.0.1:80': write 127."),
    ("Sidecar", ingress(defaultEndpoint="127.0.0.1:x"), "expected a port between 1 and 65535"),
    ("Sidecar", ingress(defaultEndpoint="80"), "spec.ingress[0].defaultEndpoint: '80': write 127.0.0.1:PORT"),
    ("Sidecar", ingress(tls={"mode": "ISTIO_MUTUAL"}), "tls.mode: mode ISTIO_MUTUAL is not for a Sidecar's ingress"),
    ("Sidecar", ingress(tls={"mode": "SIMPLE", "credentialName": "a"}), "takes certificates from files only"),
    ("Sidecar", ingress(tls={"httpsRedirect": True}), "tls.httpsRedirect: httpsRedirect is not supported"),
    (
        "Sidecar",
        ingress(tls={"mode": "SIMPLE", **FILES}, port={"number": 80, "protocol": "HTTP"}),
        "spec.ingress[0].tls: only protocols HTTPS and TLS have tls settings",
    ),
    ("Sidecar", {"ingress": ingress()["ingress"] * 2}, "spec.ingress[1].port.number: this port is there twice"),
    ("Sidecar", egress(), "spec.egress[0].hosts: at least 1 needed"),
    ("Sidecar", egress("shop.example.com"), "'shop.example.com' is not of the form namespace/host"),
    ("Sidecar", egress("/a.b"), "'/a.b' is not of the form namespace/host"),
    ("Sidecar", egress("./shop"), "spec.egress[0].hosts[0]: 'shop' is a short name"),
    ("Sidecar", egress("a_b/*"), "spec.egress[0].hosts[0]: 'a_b' is not a valid name"),
    ("Sidecar", egress("./*", port={"protocol": "TCP"}), "port.number: port 0 needs a bind of the form unix:///path"),
    ("Sidecar", egress("./*", port={"number": 70000}), "port.number: must be at most 65535, found 70000"),
    ("Sidecar", egress("./*", port={"number": 80}, bind="unix:///a"), "a Unix socket has no port: write 0"),
    (
        "Sidecar",
        egress("./*", port={"number": 0}, bind="unix:///a", captureMode="IPTABLES"),
        "captureMode: a Unix socket cannot be captured",
    ),
    (
        "Sidecar",
        {"egress": egress("./*")["egress"] * 2},
        "spec.egress[0]: the listener without a port must be the last",
    ),
    (
        "Sidecar",
        {"egress": egress("./*", port={"number": 80})["egress"] * 2},
        "spec.egress[1].port.number: 80 is there twice",
    ),
    (
        "Sidecar",
        {"outboundTrafficPolicy": {"egressProxy": {"host": "a.b", "port": {"number": 1}}}},
        "egressProxy needs mode ALLOW_ANY",
    ),
    (
        "Sidecar",
        {"outboundTrafficPolicy": {"mode": "ALLOW_ANY", "egressProxy": {"host": "a.b"}}},
        "egressProxy.port: egressProxy needs a port",
    ),
    ("EnvoyFilter", {"configPatches": [{}]}, "spec.configPatches[0].applyTo: required field 'applyTo' is missing"),
    ("EnvoyFilter", {"configPatches": [{}]}, "spec.configPatches[0].patch: required field 'patch' is missing"),
    ("EnvoyFilter", patch("CLUSTERS"), "did you mean 'CLUSTER'?"),
    ("EnvoyFilter", patch(patch={"value": {}}), "patch.operation: required field 'operation' is missing"),
    ("EnvoyFilter", patch(patch={"operation": "ADD"}), "patch.value: operation ADD needs a value"),
    ("EnvoyFilter", patch(patch={"operation": "ADD", "value": []}), "patch.value: expected a mapping, found a list"),
    ("EnvoyFilter", patch(match={"cluster": {}}), "match.cluster: applyTo HTTP_FILTER needs a listener match"),
    ("EnvoyFilter", patch("CLUSTER", match={"listener": {}}), "match.listener: applyTo CLUSTER needs a cluster match"),
    ("EnvoyFilter", patch("HTTP_ROUTE", match={"cluster": {}}), "needs a routeConfiguration match, not cluster"),
    ("EnvoyFilter", patch(match={"cluster": {}, "listener": {}}), "only one of listener, cluster may be set"),
    ("EnvoyFilter", patch(match=filter_match("")), "filterChain.filter: the filter match needs a name"),
    ("EnvoyFilter", patch(match=filter_match("a", {"name": "b"})), f"a subFilter is inside {HTTP_MANAGER}"),
    ("EnvoyFilter", patch(match=filter_match(HTTP_MANAGER, {})), "the subFilter match needs a name"),
    (
        "EnvoyFilter",
        patch("NETWORK_FILTER", match=filter_match(HTTP_MANAGER, {"name": "b"})),
        "filter.subFilter: a subFilter match is for applyTo HTTP_FILTER only",
    ),
    ("EnvoyFilter", patch(match={"proxy": {"proxyVersion": "("}}), "match.proxy.proxyVersion: '(' without ')'"),
    ("EnvoyFilter", patch(match={"context": "WAYPOINT"}), "only support waypointMatch when context is WAYPOINT"),
    ("EnvoyFilter", patch(match={"waypoint": {}}), "only support waypointMatch when context is WAYPOINT"),
    (
        "EnvoyFilter",
        patch(match={"context": "WAYPOINT", "waypoint": {}}),
        "match.waypoint: not supported: waypoints are proxies of ambient mode",
    ),
    (
        "EnvoyFilter",
        patch(match={"context": "WAYPOINT", "waypoint": {"portNumber": 65536}}),
        "waypoint.portNumber: must be between 1 and 65535, found 65536",
    ),
    ("EnvoyFilter", {"targetRefs": []}, "spec.targetRefs: not supported: it selects Kubernetes' gateways"),
    ("ProxyConfig", {"concurrency": -1}, "spec.concurrency: must be at least 0, found -1"),
    ("ProxyConfig", {"image": {"imageType": "debug"}}, "spec.image: not supported: hosts run Envoy from a package"),
    ("ProxyConfig", {"environmentVariables": {"A": "b"}}, "spec.environmentVariables: not supported: Envoy is started"),
    ("ProxyConfig", {"selector": {"matchLabels": {"": "a"}}}, "spec.selector.matchLabels['']"),
    ("WasmPlugin", {}, "spec.url: required field 'url' is missing"),
    ("WasmPlugin", {"url": ""}, "spec.url: must not be empty"),
    (
        "WasmPlugin",
        {"url": "oci://example.com/a:1"},
        "is an image of an OCI registry, and hosts have no registry client",
    ),
    ("WasmPlugin", {"url": "example.com/a:1"}, "is an image of an OCI registry, and hosts have no registry client"),
    ("WasmPlugin", {"url": "ftp://example.com/a"}, "url must have schema one of [http, https, file, oci]"),
    ("WasmPlugin", {"url": "http:///a"}, "url must have schema one of"),
    ("WasmPlugin", {"url": "#%b$#@"}, "url must have schema one of"),
    ("WasmPlugin", {"url": "file://a.wasm"}, "expected file:/// and an absolute path"),
    ("WasmPlugin", {"url": "http://a", "sha256": "AB" * 32}, "spec.sha256: expected the 64 hexadecimal digits"),
    ("WasmPlugin", {"url": "http://a", "pluginName": ""}, "spec.pluginName: must not be empty"),
    ("WasmPlugin", {"url": "http://a", "imagePullSecret": "a"}, "spec.imagePullSecret: not supported: only images"),
    ("WasmPlugin", {"url": "http://a", "targetRefs": []}, "spec.targetRefs: not supported: it selects Kubernetes'"),
    ("WasmPlugin", {"url": "http://a", "match": [{"ports": [{}]}]}, "spec.match[0].ports[0].number: required field"),
    (
        "WasmPlugin",
        {"url": "http://a", "vmConfig": {"env": [{"name": "A"}, {"name": "A"}]}},
        "spec.vmConfig.env[1].name: Duplicate value: 'A'",
    ),
    (
        "WasmPlugin",
        {"url": "http://a", "vmConfig": {"env": [{"name": "A", "valueFrom": "HOST", "value": ""}]}},
        "env[0].value: value may only be set when valueFrom is INLINE",
    ),
]


@pytest.mark.parametrize(("kind", "spec", "expected"), REFUSED)
def test_what_istio_refuses_and_what_hosts_cannot_have_is_refused_at_its_place(
    kind: str, spec: Body, expected: str
) -> None:
    assert expected in faults_of(kind, spec)


def test_a_gateway_s_name_has_no_dots() -> None:
    assert "metadata.name" in faults_of("Gateway", gateway(protocol="TCP"), name="a.b")
    assert faults_of("WasmPlugin", {"url": "file:///a.wasm"}, name="a.b") == ""
