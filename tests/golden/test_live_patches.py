"""EnvoyFilters in real Envoys: the patches that Istio's users write, for a caller and for who is called."""

from collections.abc import Iterator
from typing import Any

import pytest

from golden.live import NEEDS_ROOT, LiveHost, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Programs, get, talk
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject

WEB, DB, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.9"
DB_VIP = "240.240.0.1"
TYPE = "type.googleapis.com/envoy.extensions"
HCM = "envoy.filters.network.http_connection_manager"
ROUTER = "envoy.filters.http.router"

pytestmark = NEEDS_ROOT


def envoy_filter(name: str, *patches: dict[str, Any], **labels: str) -> ApiObject:
    selector = {"workloadSelector": {"labels": labels}} if labels else {}
    return obj("EnvoyFilter", name, {"configPatches": list(patches), **selector})


def http_filter(context: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the patch that Istio's documentation is full of: a filter before the router."""
    chain = {"filter": {"name": HCM, "subFilter": {"name": ROUTER}}}
    return {
        "applyTo": "HTTP_FILTER",
        "match": {"context": context, "listener": {"filterChain": chain}},
        "patch": {"operation": "INSERT_BEFORE", "value": {"name": name, "typed_config": config}},
    }


def lua(context: str, code: str) -> dict[str, Any]:
    return http_filter(context, "mine.lua", {"@type": f"{TYPE}.filters.http.lua.v3.Lua", "inlineCode": code})


def on_request(header: str) -> str:
    return f'function envoy_on_request(handle) handle:headers():add("{header}", "yes") end'


OBJECTS = [
    obj("Host", "web", {"addresses": [WEB]}),
    obj("Host", "db", {"addresses": [DB]}),
    obj("WorkloadEntry", "web", {"address": WEB, "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("WorkloadEntry", "db", {"address": DB, "labels": {"app": "db"}, "serviceAccount": "db"}),
    obj(
        "Service",
        "db",
        {
            "selector": {"app": "db"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "http-limited", "port": 81, "targetPort": 8081},
                {"name": "tcp", "port": 3306},
            ],
        },
    ),
    envoy_filter("lua-out", lua("SIDECAR_OUTBOUND", on_request("x-lua-out")), app="web"),
    envoy_filter("lua-in", lua("SIDECAR_INBOUND", on_request("x-lua-in")), app="db"),
    envoy_filter(
        "limit",
        {
            "applyTo": "HTTP_FILTER",
            "match": {
                "context": "SIDECAR_INBOUND",
                "listener": {"portNumber": 8081, "filterChain": {"filter": {"name": HCM}}},
            },
            "patch": {
                "operation": "INSERT_FIRST",
                "value": {
                    "name": "envoy.filters.http.local_ratelimit",
                    "typed_config": {
                        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                        "type_url": f"{TYPE}.filters.http.local_ratelimit.v3.LocalRateLimit",
                        "value": {
                            "stat_prefix": "mine",
                            "token_bucket": {"max_tokens": 2, "tokens_per_fill": 2, "fill_interval": "600s"},
                            "filter_enabled": {"default_value": {"numerator": 100}},
                            "filter_enforced": {"default_value": {"numerator": 100}},
                        },
                    },
                },
            },
        },
        app="db",
    ),
    envoy_filter(
        "via",
        {
            "applyTo": "NETWORK_FILTER",
            "match": {"context": "SIDECAR_INBOUND", "listener": {"filterChain": {"filter": {"name": HCM}}}},
            "patch": {
                "operation": "MERGE",
                "value": {
                    "name": HCM,
                    "typed_config": {
                        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "via": "mine",
                    },
                },
            },
        },
        {
            "applyTo": "VIRTUAL_HOST",
            "match": {"context": "SIDECAR_INBOUND", "routeConfiguration": {"vhost": {"name": "inbound|http|8080"}}},
            "patch": {
                "operation": "MERGE",
                "value": {"response_headers_to_add": [{"header": {"key": "x-inbound", "value": "patched"}}]},
            },
        },
        app="db",
    ),
    envoy_filter(
        "routes",
        {
            "applyTo": "ROUTE_CONFIGURATION",
            "match": {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"portNumber": 80}},
            "patch": {
                "operation": "MERGE",
                "value": {"response_headers_to_add": [{"header": {"key": "x-table", "value": "80"}}]},
            },
        },
        {
            "applyTo": "VIRTUAL_HOST",
            "match": {
                "context": "SIDECAR_OUTBOUND",
                "routeConfiguration": {"vhost": {"name": "db.default.svc.cluster.local:80"}},
            },
            "patch": {
                "operation": "MERGE",
                "value": {"response_headers_to_add": [{"header": {"key": "x-host", "value": "db"}}]},
            },
        },
        {
            "applyTo": "HTTP_ROUTE",
            "match": {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"vhost": {"domainName": "db.default"}}},
            "patch": {
                "operation": "INSERT_FIRST",
                "value": {
                    "match": {"prefix": "/teapot"},
                    "direct_response": {"status": 418, "body": {"inline_string": "short and stout"}},
                },
            },
        },
        {
            "applyTo": "VIRTUAL_HOST",
            "match": {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"name": "80"}},
            "patch": {
                "operation": "ADD",
                "value": {
                    "name": "mine",
                    "domains": ["*.mine.example.com"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "mine"}}],
                },
            },
        },
        {
            "applyTo": "CLUSTER",
            "patch": {
                "operation": "ADD",
                "value": {
                    "name": "mine",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": "mine",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {"socket_address": {"address": OUTSIDER, "port_value": 8000}}
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                },
            },
        },
        {
            "applyTo": "LISTENER",
            "match": {"context": "SIDECAR_OUTBOUND"},
            "patch": {
                "operation": "ADD",
                "value": {
                    "name": "mine",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 7777}},
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.tcp_proxy",
                                    "typed_config": {
                                        "@type": f"{TYPE}.filters.network.tcp_proxy.v3.TcpProxy",
                                        "stat_prefix": "mine",
                                        "cluster": "mine",
                                    },
                                }
                            ]
                        }
                    ],
                },
            },
        },
        {
            "applyTo": "CLUSTER",
            "match": {"context": "SIDECAR_OUTBOUND", "cluster": {"service": "db.default.svc.cluster.local"}},
            "patch": {
                "operation": "MERGE",
                "value": {
                    "health_checks": [
                        {
                            "timeout": "1s",
                            "interval": "0.2s",
                            "no_traffic_interval": "0.2s",
                            "unhealthy_threshold": 2,
                            "healthy_threshold": 2,
                            "tcp_health_check": {},
                        }
                    ]
                },
            },
        },
        app="web",
    ),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net(mesh: Mesh) -> Iterator[Network]:
    programs = Programs()
    with network(mesh, OUTSIDER) as running:
        with running.hosts["db"]():
            programs.http(8080, "db")
            programs.http(8081, "limited")
            programs.echo(3306)
        with running.outsider():
            programs.http(8000, "outside")
        yield running
    programs.close()


def test_lua_runs_before_the_call_leaves_and_before_the_program_is_called(web: LiveHost) -> None:
    answer = get(DB_VIP, 80, "db")
    assert answer.status == 200
    assert (answer.got["x-lua-out"], answer.got["x-lua-in"]) == ("yes", "yes")


def test_the_connection_manager_and_the_routes_are_as_the_patches_leave_them(web: LiveHost) -> None:
    answer = get(DB_VIP, 80, "db")
    assert {name: answer.headers[name] for name in ("via", "x-inbound", "x-table", "x-host")} == {
        "via": "mine",
        "x-inbound": "patched",
        "x-table": "80",
        "x-host": "db",
    }
    assert get(DB_VIP, 80, "db", "/teapot").status == 418


def test_a_local_rate_limit_counts_on_its_port_alone(web: LiveHost) -> None:
    assert [get(DB_VIP, 81, "db").status for _ in range(3)] == [200, 200, 429]
    assert get(DB_VIP, 80, "db").status == 200


def test_an_added_virtual_host_answers_for_its_domains_beside_those_that_are_asked_for(web: LiveHost) -> None:
    assert get(DB_VIP, 80, "a.mine.example.com").got["program"] == "outside"
    assert get(DB_VIP, 80, "mine.example.com").status == 404
    assert get(DB_VIP, 80, "db.default").got["program"] == "db"


def test_an_added_listener_leads_to_an_added_cluster(web: LiveHost) -> None:
    assert get("127.0.0.1", 7777, "anything").got["program"] == "outside"


@pytest.mark.parametrize("port", [80, 3306])
def test_a_cluster_is_checked_actively_by_its_service_even_one_asked_for_by_address(web: LiveHost, port: int) -> None:
    if port == 80:
        get(DB_VIP, 80, "db")
    else:
        assert talk(DB_VIP, 3306, b"hello") == b"hello"
    pattern = rf"cluster\.outbound.{port}..db\.default\.svc\.cluster\.local.*health_check\.success"
    wait_until("a health check succeeds", lambda: web.stat(pattern) > 0)


def test_an_edited_filter_reaches_what_is_in_use(net: Network, web: LiveHost, mesh: Mesh) -> None:
    table = [each for each in OBJECTS if each.key.name == "lua-out"]
    assert get(DB_VIP, 80, "db").got["x-lua-out"] == "yes"
    changed = envoy_filter("lua-out", lua("SIDECAR_OUTBOUND", on_request("x-lua-new")), app="web")
    after, touched = update(mesh, {table[0].key: changed}, mesh.vips, mesh.runtime)
    assert touched.hosts == {"web"}
    web.take(after)
    wait_until("the new code runs", lambda: "x-lua-new" in get(DB_VIP, 80, "db").got)
    without, _ = update(after, {changed.key: None}, mesh.vips, mesh.runtime)
    web.take(without)
    wait_until("no code runs", lambda: "x-lua-new" not in get(DB_VIP, 80, "db").got)
    # The virtual host that was asked for is still there, patched.
    assert get(DB_VIP, 80, "db").headers["x-host"] == "db"
