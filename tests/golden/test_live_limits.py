"""RateLimit with real Envoys: who is over a limit is refused, and nobody else is."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from envoy.service.ratelimit.v3.rls_pb2_grpc import RateLimitServiceServicer, add_RateLimitServiceServicer_to_server

from golden.live import NEEDS_ROOT, Network, network
from golden.objects import mesh_of, obj
from golden.programs import Programs, get, talk
from hostmesh_controller.model.objects import ApiObject

CALLER, OTHER, SERVER, OUTSIDER = "10.9.1.1", "10.9.1.2", "10.9.1.3", "10.9.1.9"
LONG = "1h"
"""No bucket is filled again while a test runs."""

pytestmark = NEEDS_ROOT


def rule(name: str, requests: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "limit": {"requests": requests, "per": LONG}, **more}


def workload(name: str, address: str) -> ApiObject:
    return obj("WorkloadEntry", name, {"address": address, "labels": {"app": name}, "serviceAccount": name})


PORTS = [
    {"name": "http", "port": 80, "targetPort": 8080},
    {"name": "http-counted", "port": 81, "targetPort": 8081},
    {"name": "tcp", "port": 3306},
    {"name": "tcp-few", "port": 3307},
]
RULES = [
    rule(
        "prefix",
        2,
        match=[{"paths": [{"prefix": "/prefix"}], "methods": ["GET"]}],
        response={"status": 503, "headers": {"who": "us"}},
    ),
    rule("each-user", 1, match=[{"paths": [{"exact": "/user"}]}], per=[{"header": "X-User"}]),
    rule("each-caller", 1, match=[{"paths": [{"regex": "/call.*"}]}], per=["identity"]),
    rule("only-caller", 1, match=[{"paths": [{"exact": "/only"}], "identities": ["default/caller"]}]),
    rule("each-query", 1, match=[{"paths": [{"exact": "/query"}]}], per=[{"query": "key"}]),
    rule("either", 1, match=[{"paths": [{"exact": "/a"}]}, {"headers": {"x-either": {"exact": "yes"}}}]),
    rule("shadow", 1, match=[{"paths": [{"exact": "/shadow"}]}], mode="SHADOW"),
    {"name": "connections", "match": [{"ports": [3307]}], "connections": {"limit": 2, "per": LONG}},
]
COUNTED = {
    "selector": {"matchLabels": {"app": "server"}},
    "global": {"service": "limits", "port": 8090, "domain": "shop", "timeout": "5s", "failOpen": False},
    "rules": [{"name": "counted", "match": [{"ports": [8081], "paths": [{"prefix": "/"}]}], "per": ["method"]}],
}
OBJECTS = [
    obj("Host", "caller", {"addresses": [CALLER]}),
    obj("Host", "other", {"addresses": [OTHER]}),
    obj("Host", "server", {"addresses": [SERVER]}),
    workload("caller", CALLER),
    workload("other", OTHER),
    workload("server", SERVER),
    workload("limits", OUTSIDER),
    obj("Service", "server", {"selector": {"app": "server"}, "ports": PORTS}),
    obj("Service", "limits", {"selector": {"app": "limits"}, "ports": [{"name": "grpc", "port": 8090}]}),
    obj("RateLimit", "here", {"selector": {"matchLabels": {"app": "server"}}, "rules": RULES}),
    obj("RateLimit", "elsewhere", COUNTED),
]


class Limits(RateLimitServiceServicer):
    """A rate limit service that refuses POST; it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()

    def ShouldRateLimit(self, request: RateLimitRequest, context: grpc.ServicerContext) -> RateLimitResponse:  # noqa: N802 - the protocol's name
        entries = {entry.key: entry.value for each in request.descriptors for entry in each.entries}
        with self.lock:
            self.asked.append((request.domain, entries))
        over = entries.get("method") == "POST"
        return RateLimitResponse(overall_code=RateLimitResponse.OVER_LIMIT if over else RateLimitResponse.OK)


@contextmanager
def serving(limits: Limits) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_RateLimitServiceServicer_to_server(limits, server)
    assert server.add_insecure_port(f"{OUTSIDER}:8090") == 8090
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None).wait(10)


LIMITS = Limits()


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    programs = Programs()
    with network(mesh_of(OBJECTS), OUTSIDER) as found:
        with found.hosts["server"]():
            for port in (8080, 8081):
                programs.http(port, "server")
            for port in (3306, 3307):
                programs.echo(port)
        with found.outsider(), serving(LIMITS):
            yield found
        programs.close()


def statuses(net: Network, path: str, times: int, *, host: str = "caller", port: int = 80, **more: Any) -> list[int]:
    with net.hosts[host]():
        return [get(VIP, port, "server", path, **more).status for _ in range(times)]


VIP = "240.240.0.2"


def test_what_a_rule_means_is_limited_and_nothing_else(net: Network) -> None:
    assert statuses(net, "/prefix/1", 3) == [200, 200, 503]
    assert statuses(net, "/other", 4) == [200] * 4
    with net.hosts["caller"]():
        assert get(VIP, 80, "server", "/prefix").headers["who"] == "us"


def test_each_value_of_a_header_has_a_bucket_of_its_own(net: Network) -> None:
    assert statuses(net, "/user", 2, headers={"x-user": "ann"}) == [200, 429]
    assert statuses(net, "/user", 2, headers={"x-user": "bob"}) == [200, 429]
    assert statuses(net, "/user", 2) == [200, 429]


def test_each_caller_is_told_by_its_identity(net: Network) -> None:
    assert statuses(net, "/call/1", 2) == [200, 429]
    assert statuses(net, "/call/2", 2, host="other") == [200, 429]


def test_a_rule_for_one_identity_lets_others_be(net: Network) -> None:
    assert statuses(net, "/only", 3, host="other") == [200] * 3
    assert statuses(net, "/only", 2) == [200, 429]


def test_each_value_of_a_query_parameter_has_a_bucket_of_its_own(net: Network) -> None:
    assert statuses(net, "/query?key=1", 2) == [200, 429]
    assert statuses(net, "/query?key=2", 2) == [200, 429]


def test_one_of_several_matches_is_enough(net: Network) -> None:
    assert statuses(net, "/a", 1) == [200]
    assert statuses(net, "/b", 1, headers={"x-either": "yes"}) == [429]
    assert statuses(net, "/b", 1, headers={"x-either": "no"}) == [200]


def test_a_shadow_counts_and_refuses_nobody(net: Network) -> None:
    assert statuses(net, "/shadow", 3) == [200] * 3
    assert net.hosts["server"].stat(r"default\.here\.shadow\.http_local_rate_limit\.rate_limited") == 2


def test_new_connections_are_limited_on_the_port_that_is_named(net: Network) -> None:
    with net.hosts["caller"]():
        assert [talk(VIP, 3307, b"x") for _ in range(2)] == [b"x", b"x"]
        assert talk(VIP, 3307, b"x") == b""
        assert [talk(VIP, 3306, b"x") for _ in range(3)] == [b"x"] * 3


def test_a_service_counts_for_all_proxies(net: Network) -> None:
    assert statuses(net, "/", 1, port=81) == [200]
    assert statuses(net, "/", 1, port=81, body=b"") == [429]
    assert ("shop", {"rule": "counted", "method": "GET"}) in LIMITS.asked
