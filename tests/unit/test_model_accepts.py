"""The routing kinds: what Istio takes is taken and comes back as it was written, what means the same is the same."""

from typing import Any

import pytest

from hostmesh_controller.model import KINDS, path_text, read_document
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.service_entry import ServiceEntrySpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec

Body = dict[str, Any]

TO: Body = {"route": [{"destination": {"host": "cart"}}]}
ONE: list[Body] = [{"destination": {"host": "cart", "port": {"number": 443}}}]


def document(kind: str, spec: Body) -> Body:
    metadata = {"name": "x", "namespace": "shop"}
    return {"apiVersion": KINDS[kind].api_versions[0], "kind": kind, "metadata": metadata, "spec": spec}


def faults_of(kind: str, spec: Body) -> list[str]:
    return [f"{path_text(fault.path)}: {fault.message}" for fault in read_document(document(kind, spec))[1]]


def vs(**http: Any) -> Body:
    return {"hosts": ["cart"], "http": [TO | http]}


def rule(**policy: Any) -> Body:
    return {"host": "cart", "trafficPolicy": policy}


def balanced(**settings: Any) -> Body:
    return rule(loadBalancer=settings)


def server_name(name: str, *hosts: str, gateways: tuple[str, ...] = ("g",)) -> Body:
    tls = [{"match": [{"sniHosts": [name]}], "route": ONE}]
    return {"hosts": list(hosts), "gateways": list(gateways), "tls": tls}


def entry(*hosts: str, **more: Any) -> Body:
    return {"hosts": list(hosts), "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], **more}


TAKEN: list[tuple[str, str, Body]] = [
    ("a gateway of each spelling", "VirtualService", {"gateways": ["mesh", "g", "ns/g", "g.ns.svc"], **vs()}),
    ("every host of a gateway", "VirtualService", {"hosts": ["*"], "gateways": ["g"], "http": [TO]}),
    ("half a label as wildcard", "VirtualService", {"hosts": ["*-eu.shop.test", "*cart"], "http": [TO]}),
    ("a final dot and capitals", "VirtualService", {"hosts": ["Cart.Shop.Test."], "http": [TO]}),
    ("an address as host", "VirtualService", {"hosts": ["10.1.2.3", "fd00::1"], "http": [TO]}),
    ("no host: a delegate", "VirtualService", {"http": [TO]}),
    ("port 0: no port", "VirtualService", vs(match=[{"port": 0}])),
    ("retries turned off", "VirtualService", vs(retries={"attempts": 0})),
    ("a retry on status codes", "VirtualService", vs(retries={"attempts": 1, "retryOn": "5xx,429,connect-failure"})),
    ("an absent header", "VirtualService", vs(match=[{"withoutHeaders": {"x-beta": {"regex": "*"}}}])),
    ("pseudo headers to look at", "VirtualService", vs(match=[{"headers": {":method": {"exact": "GET"}}}])),
    ("an empty prefix of the path", "VirtualService", vs(match=[{"uri": {"prefix": ""}}])),
    ("the authority set", "VirtualService", vs(headers={"request": {"set": {"Host": "a", "x": "%HOSTNAME%"}}})),
    (
        "a redirect of a prefix",
        "VirtualService",
        {
            "hosts": ["cart"],
            "http": [
                {"match": [{"uri": {"prefix": "/a"}}, {}], "redirect": {"prefixRewrite": "/b", "redirectCode": 0}}
            ],
        },
    ),
    (
        "a big answer",
        "VirtualService",
        {"hosts": ["a"], "http": [{"directResponse": {"status": 200, "body": {"string": "x" * 70_000}}}]},
    ),
    ("an address as server name", "VirtualService", server_name("10.1.2.3", "cart", gateways=())),
    ("a cluster's server name", "VirtualService", server_name("outbound_.80_.v1_.cart.shop", "*")),
    ("a name of a wildcard", "VirtualService", server_name("*.eu.shop.test", "*.shop.test")),
    ("the old keep-alive of none", "DestinationRule", rule(connectionPool={"tcp": {"idleTimeout": "0s"}})),
    (
        "a locality for the rest",
        "DestinationRule",
        balanced(
            localityLbSetting={
                "distribute": [
                    {"from": "eu/a/*", "to": {"eu/a/1": 70, "eu/a/*": 20, "us": 10}},
                    {"from": "eu/b", "to": {"us/*": 100}},
                ]
            }
        ),
    ),
    (
        "files and a server name",
        "DestinationRule",
        rule(tls={"mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k", "caCrl": "/r", "sni": "a"}),
    ),
    ("a stored credential", "DestinationRule", rule(tls={"mode": "MUTUAL", "credentialName": "partner"})),
    ("any partner", "DestinationRule", rule(tls={"mode": "SIMPLE", "insecureSkipVerify": True})),
    ("its own namespace", "DestinationRule", {"host": "a", "workloadSelector": {}, "exportTo": ["shop"]}),
    ("a tunnel to an address", "DestinationRule", rule(tunnel={"targetHost": "fd00::1", "targetPort": 443})),
    ("blocks with more bits", "ServiceEntry", entry("a.test", addresses=["10.1.2.3/16", "fd00::5/64"])),
    ("an abstract socket", "ServiceEntry", entry("a.test", resolution="STATIC", endpoints=[{"address": "unix://@a"}])),
    ("nobody sees it", "ServiceEntry", entry("a.test", exportTo=["~"])),
    ("several hosts by HTTP", "ServiceEntry", entry("a.test", "b.test", resolution="DNS")),
    ("names chosen by callers", "ServiceEntry", entry("*.a.test", resolution="DYNAMIC_DNS")),
    ("half a label", "ServiceEntry", entry("*a")),
    ("somewhere in a network", "WorkloadEntry", {"network": "far"}),
    ("a socket", "WorkloadEntry", {"address": "unix:///run/cart.sock"}),
    ("ready by gRPC", "WorkloadGroup", {"template": {}, "probe": {"grpc": {"port": 9000}}}),
]


@pytest.mark.parametrize(("kind", "spec"), [case[1:] for case in TAKEN], ids=[case[0] for case in TAKEN])
def test_what_istio_takes_is_taken_and_comes_back_as_it_was_written(kind: str, spec: Body) -> None:
    made, faults = read_document(document(kind, spec))
    assert faults == []
    assert made is not None
    assert faults_of(kind, made.spec.to_dict()) == []


EVERYTHING: list[tuple[str, Body]] = [
    (
        "VirtualService",
        {
            "hosts": ["cart.shop.test"],
            "gateways": ["mesh", "edge/public"],
            "http": [
                {
                    "match": [
                        {
                            "uri": {"prefix": "/"},
                            "sourceLabels": {"app": "web"},
                            "sourceNamespace": "web",
                            "statPrefix": "cart",
                            "gateways": ["edge/public"],
                        }
                    ],
                    "route": [{"destination": {"host": "cart"}}],
                    "retries": {
                        "attempts": 2,
                        "backoff": "30ms",
                        "retryIgnorePreviousHosts": False,
                        "retryRemoteLocalities": True,
                    },
                    "fault": {"delay": {"fixedDelay": "1s", "percent": 5}},
                    "corsPolicy": {
                        "allowOrigins": [{"exact": "https://a.test"}, {"regex": "https://.*"}],
                        "allowOrigin": ["https://b.test"],
                        "allowMethods": ["GET", "*"],
                        "allowHeaders": ["x-a", "*"],
                        "exposeHeaders": ["x-b"],
                        "maxAge": "24h",
                        "allowCredentials": True,
                        "unmatchedPreflights": "IGNORE",
                    },
                    "mirror": {"host": "shadow", "subset": "v2"},
                    "mirrorPercentage": {"value": 12.5},
                    "mirrorPercent": 12,
                },
                {
                    "match": [{"uri": {"prefix": "/old"}}],
                    "redirect": {"prefixRewrite": "/new", "derivePort": "FROM_REQUEST_PORT"},
                },
                {"route": ONE, "mirrors": [{"destination": {"host": "shadow"}, "percentage": {"value": 1}}]},
                {"delegate": {"name": "rest", "namespace": "shop"}},
            ],
            "tls": [
                {
                    "match": [
                        {
                            "sniHosts": ["cart.shop.test"],
                            "port": 443,
                            "destinationSubnets": ["10.0.0.0/8"],
                            "sourceLabels": {"app": "web"},
                            "sourceNamespace": "web",
                            "gateways": ["mesh"],
                        }
                    ],
                    "route": [{"destination": {"host": "a"}, "weight": 1}, {"destination": {"host": "b"}, "weight": 1}],
                }
            ],
            "tcp": [
                {
                    "match": [
                        {
                            "port": 5432,
                            "destinationSubnets": ["10.1.2.3"],
                            "sourceLabels": {"app": "web"},
                            "sourceNamespace": "web",
                        }
                    ],
                    "route": ONE,
                }
            ],
        },
    ),
    (
        "DestinationRule",
        {
            "host": "*.shop.test",
            "workloadSelector": {"matchLabels": {"app": "web"}},
            "exportTo": ["."],
            "trafficPolicy": {
                "loadBalancer": {
                    "consistentHash": {
                        "httpCookie": {
                            "name": "c",
                            "path": "/",
                            "ttl": "0s",
                            "attributes": [{"name": "SameSite", "value": "Strict"}, {"name": "Secure"}],
                        },
                        "maglev": {"tableSize": 65537},
                    },
                    "localityLbSetting": {
                        "enabled": True,
                        "failover": [{"from": "eu", "to": "us"}],
                        "failoverPriority": ["app", "version=v1"],
                    },
                    "warmup": {"duration": "30s", "minimumPercent": 5.5, "aggression": 2},
                    "warmupDurationSecs": "30s",
                },
                "connectionPool": {
                    "tcp": {
                        "tcpKeepalive": {"probes": 3, "time": "2h", "interval": "75s"},
                        "maxConnectionDuration": "1h",
                        "idleTimeout": "5m",
                    },
                    "http": {
                        "h2UpgradePolicy": "UPGRADE",
                        "useClientProtocol": False,
                        "maxConcurrentStreams": 100,
                        "http2KeepAlive": {"interval": "10s", "timeout": "1s"},
                    },
                },
                "outlierDetection": {
                    "consecutiveLocalOriginFailures": 3,
                    "splitExternalLocalOriginErrors": True,
                    "outlierDetectionHttpErrorCodes": [429, 503],
                },
                "proxyProtocol": {"version": "V2"},
                "retryBudget": {"percent": 20.5, "minRetryConcurrency": 5, "budgetInterval": "10s"},
                "portLevelSettings": [
                    {
                        "port": {"number": 80},
                        "loadBalancer": {
                            "consistentHash": {"useSourceIp": True, "ringHash": {"minimumRingSize": 2048}},
                            "zoneAwareLbSetting": {"enabled": True, "minClusterSize": 6, "failoverPriority": ["app"]},
                        },
                    },
                    {
                        "port": {"number": 81},
                        "loadBalancer": {"consistentHash": {"httpQueryParameterName": "q", "minimumRingSize": 10}},
                    },
                ],
            },
            "subsets": [
                {
                    "name": "v1",
                    "labels": {"version": "v1"},
                    "trafficPolicy": {"tunnel": {"protocol": "POST", "targetHost": "a.test", "targetPort": 443}},
                }
            ],
        },
    ),
]


@pytest.mark.parametrize(("kind", "spec"), EVERYTHING, ids=[kind for kind, _ in EVERYTHING])
def test_every_field_of_routes_and_rules_comes_back_as_it_was_written(kind: str, spec: Body) -> None:
    made, faults = read_document(document(kind, spec))
    assert faults == []
    assert made is not None
    assert made.spec.to_dict() == spec


def spec_of(kind: str, spec: Body) -> Any:
    made, faults = read_document(document(kind, spec))
    assert faults == []
    assert made is not None
    return made.spec


def test_the_mirror_s_old_percentage_has_two_spellings() -> None:
    routes: VirtualServiceSpec = spec_of("VirtualService", vs(mirror={"host": "b"}, mirror_percent=5))
    assert routes.http[0].mirror_percent == 5
    assert routes == spec_of("VirtualService", vs(mirror={"host": "b"}, mirrorPercent=5))


def test_a_virtual_service_knows_whether_it_is_for_the_mesh_and_whether_it_is_a_delegate() -> None:
    for gateways, for_mesh in (([], True), (["mesh", "g"], True), (["g"], False)):
        routes: VirtualServiceSpec = spec_of("VirtualService", vs() | {"gateways": gateways})
        assert (routes.for_mesh, routes.is_delegate) == (for_mesh, False)
    assert spec_of("VirtualService", {"http": [TO]}).is_delegate


def test_what_is_left_out_has_istio_s_meaning() -> None:
    assert spec_of("VirtualService", vs(retries={})).http[0].retries.attempts == 0
    policy: DestinationRuleSpec = spec_of("DestinationRule", rule(proxyProtocol={}))
    assert policy.traffic_policy is not None
    assert policy.traffic_policy.proxy_protocol is not None
    assert policy.traffic_policy.proxy_protocol.version == "V1"


def test_an_endpoint_of_a_unix_socket_says_so() -> None:
    spec: ServiceEntrySpec = spec_of(
        "ServiceEntry", entry("a.test", resolution="STATIC", endpoints=[{"address": "unix:///run/a"}])
    )
    assert spec.endpoints[0].is_unix


@pytest.mark.parametrize(
    ("kind", "spec"),
    [("VirtualService", vs()), ("DestinationRule", {"host": "a"}), ("ServiceEntry", entry("a.test"))],
)
def test_an_object_is_exported_once_to_each_namespace(kind: str, spec: Body) -> None:
    assert faults_of(kind, spec | {"exportTo": [".", "other"]}) == []
    assert faults_of(kind, spec | {"exportTo": [".", "shop"]}) == [
        "spec.exportTo[1]: 'shop' is there twice ('.' is the object's own namespace)"
    ]
    assert faults_of(kind, spec | {"exportTo": ["*", "."]}) == [
        "spec.exportTo[0]: '*' stands alone: remove it or the others"
    ]
