"""RateLimit and HealthCheck: the parts fit each other, or it is said which do not."""

from typing import Any

import pytest

from hostmesh_controller.model import from_document, read_document
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.faults import path_text
from hostmesh_controller.model.health_check import HealthCheckSpec
from hostmesh_controller.model.rate_limit import PerValue, RateLimitSpec

Body = dict[str, Any]


def document(kind: str, spec: Body) -> Body:
    metadata = {"name": "a", "namespace": "default"}
    return {"apiVersion": "hostmesh.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def faults_of(kind: str, spec: Body) -> str:
    _, faults = read_document(document(kind, spec))
    return "\n".join(f"{path_text(fault.path)}: {fault.message}" for fault in faults)


def rule(**more: Any) -> Body:
    return {"rules": [{"name": "a", "limit": {"requests": 5, "per": "1s"}, **more}]}


def connections(**more: Any) -> Body:
    return {"rules": [{"name": "a", "connections": {"limit": 5}, **more}]}


SERVICE = {"service": "limits.default.svc.cluster.local", "port": 8081, "domain": "shop"}
FULL: list[tuple[str, Body]] = [
    (
        "RateLimit",
        {
            "selector": {"matchLabels": {"app": "shop"}},
            "rules": [
                {
                    "name": "checkout",
                    "match": [
                        {
                            "ports": [8080],
                            "paths": [{"exact": "/pay"}, {"prefix": "/pay/"}, {"regex": "/p.*"}],
                            "methods": ["GET", "POST"],
                            "hosts": ["shop.example.com", "*.example.com", "shop.*", "*"],
                            "headers": {"x-plan": {"exact": "free"}},
                            "identities": ["default/shop", "*/a", "spiffe://cluster.local/ns/default/sa/*"],
                        },
                        {"methods": ["PUT"]},
                    ],
                    "per": ["identity", "sourceIp", "path", "method", "host", {"header": "x-user"}, {"query": "key"}],
                    "limit": {"requests": 100, "per": "1m", "burst": 200},
                    "response": {"status": 503, "headers": {"retry-after": "60"}},
                    "mode": "SHADOW",
                },
                {"name": "new", "match": [{"ports": [5432]}], "connections": {"limit": 5, "per": "1s", "burst": 9}},
                {"name": "open", "connections": {"limit": 100}},
            ],
        },
    ),
    (
        "RateLimit",
        {"rules": [{"name": "a", "per": ["identity"]}], "global": {**SERVICE, "timeout": "50ms", "failOpen": False}},
    ),
    (
        "HealthCheck",
        {
            "host": "reviews",
            "ports": [80],
            "http": {
                "path": "/healthz?full=1",
                "host": "reviews.local",
                "expectedStatuses": [200, "300-399"],
                "headers": {"x-check": "1"},
            },
            "interval": "5s",
            "timeout": "500ms",
            "healthyThreshold": 2,
            "unhealthyThreshold": 4,
            "exportTo": ["."],
        },
    ),
    ("HealthCheck", {"host": "reviews", "tcp": {}}),
    ("HealthCheck", {"host": "reviews", "grpc": {"service": "a.B"}}),
]


@pytest.mark.parametrize(("kind", "spec"), FULL)
def test_every_field_is_read_and_comes_back_as_it_was_written(kind: str, spec: Body) -> None:
    made = from_document(document(kind, spec))
    assert made.to_dict()["spec"] == spec
    assert from_document(made.to_dict()) == made


def test_what_is_left_out_has_a_default() -> None:
    limits = from_document(document("RateLimit", {"rules": [{"name": "a"}], "global": SERVICE})).spec
    assert isinstance(limits, RateLimitSpec)
    assert limits.global_service is not None
    assert (limits.global_service.timeout, limits.global_service.fail_open) == (Duration("20ms"), True)
    assert limits.rules[0].mode == "ENFORCE"
    check = from_document(document("HealthCheck", {"host": "a", "http": {"path": "/"}})).spec
    assert isinstance(check, HealthCheckSpec)
    assert check.http is not None
    assert check.http.ranges == ((200, 200),)
    assert (check.interval, check.timeout) == (Duration("10s"), Duration("1s"))


def test_a_bucket_is_per_property_or_per_header_or_query_parameter() -> None:
    spec = from_document(document("RateLimit", rule(per=["path", {"header": "a"}, {"query": "b"}]))).spec
    assert isinstance(spec, RateLimitSpec)
    assert spec.rules[0].per == ("path", PerValue(header="a"), PerValue(query="b"))


def test_the_statuses_of_a_check_are_ranges() -> None:
    spec = from_document(document("HealthCheck", FULL[2][1])).spec
    assert isinstance(spec, HealthCheckSpec)
    assert spec.http is not None
    assert spec.http.ranges == ((200, 200), (300, 399))


REFUSED: list[tuple[str, Body, str]] = [
    ("RateLimit", {}, "spec.rules: required field 'rules' is missing"),
    ("RateLimit", {"rules": []}, "spec.rules: at least 1 needed"),
    ("RateLimit", {"rules": [{"name": "a"}]}, "spec.rules[0]: give limit or connections (or global"),
    ("RateLimit", {**rule(), "global": SERVICE}, "spec.rules[0].limit: the rate limit service named by global"),
    ("RateLimit", {"rules": rule()["rules"] * 2}, "spec.rules[1].name: rule 'a' is there twice"),
    ("RateLimit", rule(connections={"limit": 1}), "only one of limit, connections may be set"),
    (
        "RateLimit",
        rule(limit={"requests": 0, "per": "1s"}),
        "spec.rules[0].limit.requests: must be at least 1, found 0",
    ),
    ("RateLimit", rule(limit={"requests": 1, "per": "10ms"}), "limit.per: 10ms is too short"),
    ("RateLimit", rule(limit={"requests": 5, "per": "1s", "burst": 2}), "limit.burst: a burst of 2 is less than the 5"),
    ("RateLimit", rule(per=["identiy"]), "spec.rules[0].per[0]: expected one of"),
    ("RateLimit", rule(per=["identiy"]), "did you mean 'identity'?"),
    ("RateLimit", rule(per=[5]), "spec.rules[0].per[0]: expected one of"),
    ("RateLimit", rule(per=[{}]), "spec.rules[0].per[0]: give header or query"),
    (
        "RateLimit",
        rule(per=[{"headr": "a"}]),
        "spec.rules[0].per[0].headr: unknown field 'headr'; did you mean 'header'?",
    ),
    ("RateLimit", rule(per=["path", "path"]), "spec.rules[0].per[1]: this is there twice"),
    ("RateLimit", rule(match=[{"methods": ["get"]}]), "match[0].methods[0]: 'get' is not an HTTP method"),
    ("RateLimit", rule(match=[{"hosts": ["a b"]}]), "match[0].hosts[0]: 'a b' is not a host"),
    ("RateLimit", rule(match=[{"identities": ["shop"]}]), "match[0].identities[0]: 'shop' is not an identity"),
    ("RateLimit", rule(match=[{"paths": ["/a"]}]), "match[0].paths[0]: expected a mapping, found the text '/a'"),
    ("RateLimit", rule(response={"status": 200}), "response.status: 200 is not a status that Envoy gives"),
    ("RateLimit", rule(mode="DRY"), "spec.rules[0].mode: expected one of ENFORCE, SHADOW"),
    ("RateLimit", connections(per=["sourceIp"]), "spec.rules[0].per: connections are counted together"),
    ("RateLimit", connections(response={}), "spec.rules[0].response: a connection over the limit is closed"),
    ("RateLimit", connections(match=[{"methods": ["GET"]}]), "match[0].methods: a connection can only be told by its"),
    ("RateLimit", connections(connections={"limit": 1, "burst": 2}), "connections.burst: burst needs per"),
    ("HealthCheck", {"host": "a"}, "spec: give one of http, tcp and grpc"),
    ("HealthCheck", {"host": "a", "tcp": {}, "grpc": {}}, "only one of tcp, grpc may be set"),
    ("HealthCheck", {"host": "a b", "tcp": {}}, "spec.host: 'a b'"),
    ("HealthCheck", {"host": "a", "http": {"path": "x"}}, "spec.http.path: 'x' is not the path of a request"),
    ("HealthCheck", {"host": "a", "http": {"path": "/", "expectedStatuses": [99]}}, "expectedStatuses[0]: expected a"),
    ("HealthCheck", {"host": "a", "http": {"path": "/", "expectedStatuses": ["300-200"]}}, "expected a status such"),
    ("HealthCheck", {"host": "a", "tcp": {}, "interval": "0s"}, "spec.interval: '0s' is too short"),
    ("HealthCheck", {"host": "a", "tcp": {}, "healthyThreshold": 0}, "spec.healthyThreshold: must be at least 1"),
    ("HealthCheck", {"host": "a", "tcp": {}, "ports": [80, 80]}, "spec.ports[1]: port 80 is there twice"),
]


@pytest.mark.parametrize(("kind", "spec", "expected"), REFUSED)
def test_what_does_not_fit_is_refused_at_its_place(kind: str, spec: Body, expected: str) -> None:
    assert expected in faults_of(kind, spec)
