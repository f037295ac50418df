"""EnvoyFilter patches of routes, clusters and the bootstrap, on resources written here; and for whom a patch is."""

import json
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from golden.objects import mesh_of, obj
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.cluster_http import PROTOCOL_OPTIONS
from hostmesh_controller.xds.messages import as_json
from hostmesh_controller.xds.patch_bootstrap import bootstrap_patch
from hostmesh_controller.xds.patch_clusters import ClusterNames, patch_cluster
from hostmesh_controller.xds.patch_routes import patch_routes
from hostmesh_controller.xds.patch_set import GATEWAY, INBOUND, OUTBOUND
from patching import (
    LUA_TYPE,
    ROUTER,
    TYPE,
    UPSTREAM_TLS,
    Json,
    change,
    hcm,
    http,
    http_filters,
    names,
    parse,
    patch_set,
    patched,
)

UPSTREAM = f"{TYPE}.upstreams.http.v3"


def test_patches_are_applied_in_the_order_in_which_they_are_written() -> None:
    patches = patch_set(
        http("INSERT_BEFORE", ROUTER, "a"), http("INSERT_BEFORE", ROUTER, "b"), http("INSERT_AFTER", "a", "c")
    )
    assert http_filters(patched(patches)) == ["lua", "a", "c", "b", ROUTER]


def test_a_typed_struct_is_taken_as_it_is() -> None:
    patch = http("INSERT_FIRST", None)
    struct = {
        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": LUA_TYPE,
        "value": {"inline_code": "x"},
    }
    patch["patch"]["value"] = {"name": "new", "typed_config": struct}
    [first, *_] = hcm(patched(patch_set(patch))).http_filters
    assert first.typed_config.type_url.endswith("udpa.type.v1.TypedStruct")


@pytest.mark.parametrize(
    ("proxy", "holds"),
    [
        ({"proxyVersion": r"^1\.30.*"}, True),
        ({"proxyVersion": r"1\.[0-9]+"}, True),
        ({"proxyVersion": r"^1\.16.*"}, False),
        ({"proxyVersion": "1" * 1025 + "|1"}, False),
        ({"metadata": {"NAMESPACE": "default"}}, True),
        ({"metadata": {"NAMESPACE": "other"}}, False),
        ({"metadata": {"unknown": "x"}}, False),
    ],
)
def test_a_patch_is_for_the_proxies_that_it_names(proxy: Json, holds: bool) -> None:
    found = http_filters(patched(patch_set(http("INSERT_FIRST", None, proxy=proxy))))
    assert (found[0] == "new") == holds


# Routes


def table(name: str = "80", **more: Any) -> RouteConfiguration:
    routes = [
        {"name": "one", "match": {"prefix": "/one"}, "route": {"cluster": "one"}},
        {"name": "two", "match": {"prefix": "/two"}, "redirect": {"path_redirect": "/"}},
    ]
    hosts = [
        {"name": "a.example.com:80", "domains": ["a.example.com", "a"], "routes": routes},
        {"name": "b.example.com:80", "domains": ["b.example.com"], "routes": routes[:1]},
    ]
    found: RouteConfiguration = parse(RouteConfiguration(), {"name": name, "virtual_hosts": hosts} | more)
    return found


def routed(patch: Json, *contexts: str, of: RouteConfiguration | None = None) -> RouteConfiguration:
    found = table() if of is None else of
    patch_routes(found, patch_set(patch), frozenset(contexts or {OUTBOUND}), {8443})
    return found


@pytest.mark.parametrize(
    ("name", "contexts", "match", "holds"),
    [
        ("80", {OUTBOUND}, {}, True),
        ("80", {OUTBOUND}, {"name": "80"}, True),
        ("80", {OUTBOUND}, {"name": "81"}, False),
        ("80", {OUTBOUND}, {"portNumber": 80}, True),
        ("80", {OUTBOUND}, {"portNumber": 81}, False),
        ("inbound|8080||", {INBOUND}, {"portNumber": 8080}, True),
        ("inbound|8080||", {INBOUND}, {"portNumber": 80}, False),
        ("http.8080", {GATEWAY}, {"portNumber": 8080}, True),
        ("http.8080", {GATEWAY}, {"portNumber": 8443}, True),
        ("http.8080", {GATEWAY}, {"portNumber": 1}, False),
        ("https.443.web.edge.apps", {GATEWAY}, {"portName": "web", "gateway": "apps/edge"}, True),
        ("https.443.web.edge.apps", {GATEWAY}, {"gateway": "edge"}, False),
        ("https.443.web.edge.apps", {GATEWAY}, {"portName": "other"}, False),
    ],
)
def test_a_table_of_routes_is_merged_where_it_matches(name: str, contexts: set[str], match: Json, holds: bool) -> None:
    patch = change(
        "ROUTE_CONFIGURATION", "MERGE", {"most_specific_header_mutations_wins": True}, routeConfiguration=match
    )
    assert routed(patch, *contexts, of=table(name)).most_specific_header_mutations_wins == holds


def vhost(operation: str, value: Json | None = None, **match: Any) -> Json:
    return change("VIRTUAL_HOST", operation, value, routeConfiguration={"vhost": match})


def test_virtual_hosts_are_merged_replaced_removed_and_added() -> None:
    found = routed(vhost("MERGE", {"response_headers_to_remove": ["x"]}, name="a.example.com:80"))
    assert [list(each.response_headers_to_remove) for each in found.virtual_hosts] == [["x"], []]
    found = routed(vhost("REPLACE", {"name": "new", "domains": ["n"]}, domainName="a"))
    assert names(found.virtual_hosts) == ["new", "b.example.com:80"]
    assert names(routed(vhost("REMOVE", domainName="b.example.com")).virtual_hosts) == ["a.example.com:80"]
    assert names(routed(vhost("ADD", {"name": "new", "domains": ["*"]})).virtual_hosts)[2] == "new"
    assert names(routed(vhost("REMOVE", name="a")).virtual_hosts) == ["a.example.com:80", "b.example.com:80"]


def route(operation: str, value: Json | None = None, **match: Any) -> Json:
    inner: Json = {"name": "a.example.com:80"} | ({"route": match} if match else {})
    return change("HTTP_ROUTE", operation, value, routeConfiguration={"vhost": inner})


@pytest.mark.parametrize(
    ("operation", "match", "expected"),
    [
        ("ADD", {}, ["one", "two", "new"]),
        ("INSERT_FIRST", {}, ["new", "one", "two"]),
        ("INSERT_FIRST", {"name": "two"}, ["new", "one", "two"]),
        ("INSERT_FIRST", {"name": "none"}, ["one", "two"]),
        ("INSERT_BEFORE", {"name": "two"}, ["one", "new", "two"]),
        ("INSERT_AFTER", {"name": "one"}, ["one", "new", "two"]),
        ("INSERT_BEFORE", {}, ["new", "one", "two"]),
        ("INSERT_AFTER", {}, ["one", "two", "new"]),
        ("REMOVE", {"name": "one"}, ["two"]),
        ("REMOVE", {"action": "REDIRECT"}, ["one"]),
        ("REMOVE", {"action": "ROUTE"}, ["two"]),
        ("REMOVE", {"action": "DIRECT_RESPONSE"}, ["one", "two"]),
        ("REMOVE", {}, []),
    ],
)
def test_routes_are_put_where_they_are_wanted(operation: str, match: Json, expected: list[str]) -> None:
    value = {"name": "new", "match": {"prefix": "/"}, "direct_response": {"status": 200}}
    found = routed(route(operation, value, **match))
    assert names(found.virtual_hosts[0].routes) == expected
    assert names(found.virtual_hosts[1].routes) == ["one"]


def test_a_route_is_merged() -> None:
    found = routed(route("MERGE", {"route": {"timeout": "3s"}}, name="one"))
    action = found.virtual_hosts[0].routes[0].route
    assert (action.cluster, action.timeout.ToJsonString()) == ("one", "3s")


def test_virtual_hosts_that_are_asked_for_are_not_put_into_their_table() -> None:
    found = routed(vhost("ADD", {"name": "new", "domains": ["*"]}), of=table(vhds={}, virtual_hosts=[]))
    assert not found.virtual_hosts


# Clusters

NAMES = ClusterNames("outbound|80|v1|a.example.com", 80, "v1", ("a.example.com",))


def clustered(patch: Json, names: ClusterNames = NAMES, **more: Any) -> Json | None:
    found = parse(Cluster(), {"name": names.name, "connect_timeout": "1s"} | more)
    return as_json(found) if patch_cluster(found, names, patch_set(patch), {OUTBOUND}) else None


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        ({}, True),
        ({"name": "outbound|80|v1|a.example.com"}, True),
        ({"name": "outbound|80||a.example.com"}, False),
        ({"service": "a.example.com"}, True),
        ({"service": "b.example.com"}, False),
        ({"service": "a.example.com", "subset": "v1", "portNumber": 80}, True),
        ({"subset": "v2"}, False),
        ({"portNumber": 81}, False),
    ],
)
def test_a_cluster_is_merged_where_it_matches(match: Json, holds: bool) -> None:
    found = clustered(change("CLUSTER", "MERGE", {"alt_stat_name": "x"}, cluster=match))
    assert found is not None
    assert ("altStatName" in found) == holds
    assert (clustered(change("CLUSTER", "REMOVE", cluster=match)) is None) == holds


def test_a_cluster_gets_a_transport_socket_or_another_or_more_in_its_own() -> None:
    def socket(name: str, **config: Any) -> Json:
        return {"name": name, "typed_config": {"@type": UPSTREAM_TLS, **config}}

    patch = change("CLUSTER", "MERGE", {"alt_stat_name": "x", "transport_socket": socket("tls", sni="new")})
    new = clustered(patch)
    assert new is not None
    assert new["transportSocket"]["typedConfig"]["sni"] == "new"
    same = clustered(patch, transport_socket=socket("tls", sni="old", max_session_keys=3))
    assert same is not None
    assert same["transportSocket"]["typedConfig"] == {"@type": UPSTREAM_TLS, "sni": "new", "maxSessionKeys": 3}
    other = clustered(patch, transport_socket=socket("other", sni="old"))
    assert other is not None
    assert other["transportSocket"]["name"] == "tls"
    matches = [{"name": "m", "match": {}, "transport_socket": socket("tls", sni="old")}]
    chosen = clustered(patch, transport_socket_matches=matches)
    assert chosen is not None
    assert "transportSocket" not in chosen
    assert chosen["transportSocketMatches"][0]["transportSocket"]["typedConfig"]["sni"] == "new"
    marked = clustered(patch, transport_socket_matches=[plain_match()], transport_socket=socket("tls"))
    assert marked is not None
    assert marked["transportSocket"]["typedConfig"]["sni"] == "new"
    assert marked["transportSocketMatches"][0]["transportSocket"]["name"] == "raw"


def plain_match() -> Json:
    return {"name": "plain", "match": {"tlsMode": "disabled"}, "transport_socket": {"name": "raw"}}


@pytest.mark.parametrize(
    ("value", "offered"),
    [
        ({"http2_protocol_options": {}}, ["istio-h2", "istio", "h2"]),
        (
            {
                "typed_extension_protocol_options": {
                    PROTOCOL_OPTIONS: {
                        "@type": f"{UPSTREAM}.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 5}},
                    }
                }
            },
            ["istio-h2", "istio", "h2"],
        ),
        ({"alt_stat_name": "x"}, ["istio-http/1.1", "istio", "http/1.1"]),
    ],
)
def test_a_cluster_that_is_made_to_speak_http2_offers_it_to_the_mesh(value: Json, offered: list[str]) -> None:
    common = {"alpn_protocols": ["istio-http/1.1", "istio", "http/1.1"]}
    socket = {"name": "tls", "typed_config": {"@type": UPSTREAM_TLS, "common_tls_context": common}}
    found = clustered(change("CLUSTER", "MERGE", value), transport_socket=socket)
    assert found is not None
    assert found["transportSocket"]["typedConfig"]["commonTlsContext"]["alpnProtocols"] == offered


# Bootstrap


def test_all_changes_of_the_bootstrap_are_merged_in_order_into_one() -> None:
    first = change("BOOTSTRAP", "MERGE", {"stats_config": {"stats_tags": [{"tag_name": "a"}]}})
    second = change(
        "BOOTSTRAP", "MERGE", {"statsConfig": {"statsTags": [{"tagName": "b"}]}, "stats_flush_interval": "5s"}
    )
    late = obj("EnvoyFilter", "late", {"configPatches": [first], "priority": 5})
    early = obj("EnvoyFilter", "early", {"configPatches": [second]})
    mesh = mesh_of([obj("Host", "web", {"addresses": ["10.9.0.1"]}), late, early])
    found = json.loads(bootstrap_patch(mesh, mesh.viewer_of("web")))
    assert found == {
        "stats_config": {"stats_tags": [{"tag_name": "b"}, {"tag_name": "a"}]},
        "stats_flush_interval": "5s",
    }
    assert bootstrap_patch(mesh_of([]), Viewer()) == ""


# Which filters, and in which order


def test_filters_are_applied_by_priority_then_those_of_the_root_namespace_then_by_age() -> None:
    def named(name: str, priority: int = 0, **more: Any) -> ApiObject:
        return obj("EnvoyFilter", name, {"priority": priority}, **more)

    filters = [
        named("young", age=9),
        named("old", age=1),
        named("root", namespace="istio-system", age=10),
        named("first", -5, age=20),
        named("root-last", 3, namespace="istio-system"),
        named("elsewhere", namespace="other"),
    ]
    mesh = mesh_of([obj("Host", "web", {"addresses": ["10.9.0.1"]}), *filters])
    assert [key.name for key in mesh.viewer_of("web").patches] == ["first", "root", "old", "young", "root-last"]
