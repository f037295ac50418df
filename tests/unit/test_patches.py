"""EnvoyFilter patches: every operation on everything it applies to, on resources written here."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.json_format import ParseDict

from golden.objects import mesh_of, obj
from hostmesh_controller.envoy_types import message_class
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.cluster_http import PROTOCOL_OPTIONS
from hostmesh_controller.xds.messages import as_json
from hostmesh_controller.xds.patch_bootstrap import bootstrap_patch
from hostmesh_controller.xds.patch_clusters import ClusterNames, patch_cluster
from hostmesh_controller.xds.patch_listeners import patch_listener
from hostmesh_controller.xds.patch_routes import patch_routes
from hostmesh_controller.xds.patch_set import GATEWAY, INBOUND, OUTBOUND, PatchSet, patches_of

TYPE = "type.googleapis.com/envoy.extensions"
HCM = "envoy.filters.network.http_connection_manager"
HCM_TYPE = f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"
TCP = "envoy.filters.network.tcp_proxy"
TCP_TYPE = f"{TYPE}.filters.network.tcp_proxy.v3.TcpProxy"
ROUTER = "envoy.filters.http.router"
ROUTER_TYPE = f"{TYPE}.filters.http.router.v3.Router"
LUA_TYPE = f"{TYPE}.filters.http.lua.v3.Lua"
TLS_TYPE = f"{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"
UPSTREAM = f"{TYPE}.upstreams.http.v3"
UPSTREAM_TLS = f"{TYPE}.transport_sockets.tls.v3.UpstreamTlsContext"

Json = dict[str, Any]


def patch_set(*config_patches: Json, **more: Any) -> PatchSet:
    item = obj("EnvoyFilter", "mine", {"configPatches": list(config_patches)}, **more)
    return patches_of(mesh_of([item]), Viewer(patches=(item.key,)))


def change(apply_to: str, operation: str, value: Json | None = None, **match: Any) -> Json:
    patch: Json = {"operation": operation} | ({} if value is None else {"value": value})
    return {"applyTo": apply_to, "match": match, "patch": patch} if match else {"applyTo": apply_to, "patch": patch}


def network_filter(name: str, config: Json) -> Json:
    return {"name": name, "typed_config": config}


def manager(*http_filters: str, **more: Any) -> Json:
    filters = [{"name": name, "typed_config": {"@type": ROUTER_TYPE}} for name in http_filters]
    return network_filter(HCM, {"@type": HCM_TYPE, "stat_prefix": "own", "http_filters": filters, **more})


def listener(name: str = "0.0.0.0_80", port: int = 80, **more: Any) -> Listener:
    """Two chains: HTTP for port 8080 over TLS, and TCP for port 3306; and one for all else."""
    tcp = network_filter(TCP, {"@type": TCP_TYPE, "stat_prefix": "own", "cluster": "one"})
    document = {
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "listener_filters": [{"name": "first"}, {"name": "second"}],
        "filter_chains": [
            {
                "name": "0.0.0.0_8080|mtls",
                "filter_chain_match": {
                    "destination_port": 8080,
                    "server_names": ["a.example.com"],
                    "transport_protocol": "tls",
                    "application_protocols": ["h2", "http/1.1"],
                },
                "filters": [manager("lua", ROUTER)],
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": {"@type": TLS_TYPE, "require_client_certificate": True},
                },
            },
            {"name": "tcp", "filter_chain_match": {"destination_port": 3306}, "filters": [tcp]},
        ],
        "default_filter_chain": {"name": "rest", "filters": [tcp]},
    }
    found: Listener = parse(Listener(), document | more)
    return found


def parse(message: Any, document: Mapping[str, Any]) -> Any:
    for each in (HCM_TYPE, TCP_TYPE, ROUTER_TYPE, TLS_TYPE, LUA_TYPE, UPSTREAM_TLS):
        message_class(each.rpartition("/")[2])
    return ParseDict(dict(document), message)


def patched(patches: PatchSet, *contexts: str, of: Listener | None = None) -> Listener | None:
    found = listener() if of is None else of
    return found if patch_listener(found, patches, frozenset(contexts or {OUTBOUND})) else None


def must(found: Listener | None) -> Listener:
    assert found is not None
    return found


def http_filters(found: Listener | None, chain: int = 0) -> list[str]:
    return [each.name for each in hcm(found, chain).http_filters]


def hcm(found: Listener | None, chain: int = 0) -> HttpConnectionManager:
    result = HttpConnectionManager()
    [packed] = [each for each in must(found).filter_chains[chain].filters if each.name == HCM]
    assert packed.typed_config.Unpack(result)
    return result


def names(items: Iterable[Any]) -> list[str]:
    return [each.name for each in items]


# Listeners


def test_a_listener_is_merged_and_its_lists_grow() -> None:
    value = {"per_connection_buffer_limit_bytes": 5, "listener_filters": [{"name": "third"}]}
    found = must(patched(patch_set(change("LISTENER", "MERGE", value))))
    assert found.per_connection_buffer_limit_bytes.value == 5
    assert names(found.listener_filters) == ["first", "second", "third"]


def test_merge_and_replace_list_replaces_the_lists_that_it_has_and_no_others() -> None:
    value = {"listener_filters": [{"name": "third"}]}
    found = must(patched(patch_set(change("LISTENER", "MERGE_AND_REPLACE_LIST", value))))
    assert names(found.listener_filters) == ["third"]
    assert len(found.filter_chains) == 2


def test_a_duration_is_replaced_and_not_added_to() -> None:
    base = listener(listener_filters_timeout="0.5s")
    found = must(patched(patch_set(change("LISTENER", "MERGE", {"listener_filters_timeout": "2s"})), of=base))
    assert found.listener_filters_timeout.ToJsonString() == "2s"


@pytest.mark.parametrize(
    ("match", "there"),
    [
        ({}, False),
        ({"context": "SIDECAR_OUTBOUND"}, False),
        ({"context": "ANY"}, False),
        ({"context": "GATEWAY"}, True),
        ({"context": "SIDECAR_INBOUND"}, True),
        ({"listener": {"name": "0.0.0.0_80"}}, False),
        ({"listener": {"name": "0.0.0.0_81"}}, True),
        ({"listener": {"portNumber": 80}}, False),
        ({"listener": {"portNumber": 81}}, True),
    ],
)
def test_a_listener_is_removed_where_context_name_and_port_match(match: Json, there: bool) -> None:
    assert (patched(patch_set(change("LISTENER", "REMOVE", **match))) is not None) == there


@pytest.mark.parametrize(
    ("operation", "match", "expected"),
    [
        ("ADD", "", ["first", "second", "new"]),
        ("INSERT_FIRST", "", ["new", "first", "second"]),
        ("INSERT_BEFORE", "second", ["first", "new", "second"]),
        ("INSERT_AFTER", "first", ["first", "new", "second"]),
        ("INSERT_BEFORE", "", ["new", "first", "second"]),
        ("INSERT_AFTER", "", ["first", "second", "new"]),
        ("INSERT_BEFORE", "none", ["first", "second"]),
        ("REPLACE", "first", ["new", "second"]),
        ("REPLACE", "", ["first", "second"]),
        ("REMOVE", "first", ["second"]),
        ("REMOVE", "", ["first", "second"]),
    ],
)
def test_listener_filters_are_put_where_they_are_wanted(operation: str, match: str, expected: list[str]) -> None:
    patches = patch_set(change("LISTENER_FILTER", operation, {"name": "new"}, listener={"listenerFilter": match}))
    assert names(must(patched(patches)).listener_filters) == expected


def test_a_listener_filter_is_merged_by_what_is_in_it() -> None:
    kind = f"{TYPE}.filters.listener.tls_inspector.v3.TlsInspector"
    message_class(kind.rpartition("/")[2])
    base = listener(
        listener_filters=[{"name": "tls", "typed_config": {"@type": kind, "initial_read_buffer_size": 512}}]
    )
    value = {"name": "tls", "typed_config": {"@type": kind, "enable_ja3_fingerprinting": True}}
    patches = patch_set(change("LISTENER_FILTER", "MERGE", value, listener={"listenerFilter": "tls"}))
    [found] = as_json(must(patched(patches, of=base)))["listenerFilters"]
    assert (found["typedConfig"]["enableJa3Fingerprinting"], found["typedConfig"]["initialReadBufferSize"]) == (
        True,
        512,
    )


# Filter chains


@pytest.mark.parametrize(
    ("match", "left"),
    [
        ({"name": "tcp"}, ["0.0.0.0_8080|mtls"]),
        ({"name": "0.0.0.0_8080"}, ["tcp"]),
        ({"name": "0.0.0.0_8080|mtls"}, ["tcp"]),
        ({"sni": "a.example.com"}, ["tcp"]),
        ({"sni": "b.example.com"}, ["0.0.0.0_8080|mtls", "tcp"]),
        ({"transportProtocol": "tls"}, ["tcp"]),
        ({"transportProtocol": "raw_buffer"}, ["0.0.0.0_8080|mtls", "tcp"]),
        ({"applicationProtocols": "http/1.1,h2"}, ["tcp"]),
        ({"applicationProtocols": "h2,h3"}, ["0.0.0.0_8080|mtls", "tcp"]),
        ({"destinationPort": 3306}, ["0.0.0.0_8080|mtls"]),
    ],
)
def test_a_filter_chain_is_removed_where_all_that_is_asked_for_matches(match: Json, left: list[str]) -> None:
    found = must(patched(patch_set(change("FILTER_CHAIN", "REMOVE", listener={"filterChain": match}))))
    assert names(found.filter_chains) == left
    assert found.default_filter_chain.name == "rest"


def test_all_filter_chains_can_be_removed_and_others_added() -> None:
    new = {"name": "new", "filters": [network_filter(TCP, {"@type": TCP_TYPE, "stat_prefix": "x", "cluster": "x"})]}
    found = must(patched(patch_set(change("FILTER_CHAIN", "REMOVE"), change("FILTER_CHAIN", "ADD", new))))
    assert names(found.filter_chains) == ["new"]
    assert not found.HasField("default_filter_chain")


def test_the_port_of_a_virtual_listener_is_that_of_its_chains() -> None:
    base = listener("virtualInbound", 15006)
    match = {"listener": {"name": "virtualInbound", "portNumber": 8080}}
    found = must(patched(patch_set(change("FILTER_CHAIN", "REMOVE", **match)), INBOUND, of=base))
    assert names(found.filter_chains) == ["tcp"]
    # For the listener itself it is its own.
    assert patched(patch_set(change("LISTENER", "REMOVE", **match)), INBOUND, of=base) is not None


def test_a_transport_socket_of_the_same_name_is_merged_by_what_is_in_it() -> None:
    socket = {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": TLS_TYPE, "session_timeout": "5s"}}
    match = {"listener": {"filterChain": {"sni": "a.example.com"}}}
    found = must(
        patched(patch_set(change("FILTER_CHAIN", "MERGE", {"name": "x", "transport_socket": socket}, **match)))
    )
    chain = as_json(found)["filterChains"][0]
    assert chain["transportSocket"]["typedConfig"]["requireClientCertificate"] is True
    assert chain["transportSocket"]["typedConfig"]["sessionTimeout"] == "5s"
    assert chain["name"] == "0.0.0.0_8080|mtls"  # as in Istio, nothing else of such a patch counts


# Network filters


@pytest.mark.parametrize(
    ("operation", "matched", "expected"),
    [
        ("ADD", None, [TCP, "new"]),
        ("INSERT_FIRST", None, ["new", TCP]),
        ("INSERT_BEFORE", TCP, ["new", TCP]),
        ("INSERT_AFTER", TCP, [TCP, "new"]),
        ("INSERT_BEFORE", None, ["new", TCP]),
        ("INSERT_AFTER", None, [TCP, "new"]),
        ("INSERT_BEFORE", "other", [TCP]),
        ("REPLACE", TCP, ["new"]),
        ("REPLACE", None, [TCP]),
        ("REMOVE", "other", [TCP]),
    ],
)
def test_network_filters_are_put_where_they_are_wanted(
    operation: str, matched: str | None, expected: list[str]
) -> None:
    chain: Json = {"destinationPort": 3306} | ({"filter": {"name": matched}} if matched else {})
    patches = patch_set(change("NETWORK_FILTER", operation, {"name": "new"}, listener={"filterChain": chain}))
    found = must(patched(patches))
    assert names(found.filter_chains[1].filters) == expected
    assert names(found.filter_chains[0].filters) == [HCM]


def test_a_chain_that_is_left_without_filters_goes() -> None:
    match = {"listener": {"filterChain": {"filter": {"name": TCP}}}}
    found = must(patched(patch_set(change("NETWORK_FILTER", "REMOVE", **match))))
    assert names(found.filter_chains) == ["0.0.0.0_8080|mtls"]
    assert not found.HasField("default_filter_chain")


def test_the_http_connection_manager_is_merged_by_what_is_in_it() -> None:
    value = network_filter(HCM, {"@type": HCM_TYPE, "server_name": "mine", "xff_num_trusted_hops": 2})
    match = {"listener": {"filterChain": {"filter": {"name": HCM}}}}
    found = hcm(patched(patch_set(change("NETWORK_FILTER", "MERGE", value, **match))))
    assert (found.server_name, found.xff_num_trusted_hops, found.stat_prefix) == ("mine", 2, "own")
    assert names(found.http_filters) == ["lua", ROUTER]


def test_a_merge_with_another_type_changes_nothing() -> None:
    value = network_filter("renamed", {"@type": TCP_TYPE, "stat_prefix": "x"})
    match = {"listener": {"filterChain": {"filter": {"name": HCM}}}}
    assert patched(patch_set(change("NETWORK_FILTER", "MERGE", value, **match))) == listener()


def test_a_filter_can_be_renamed_and_then_has_the_new_name_for_what_follows() -> None:
    match = {"listener": {"filterChain": {"filter": {"name": TCP}}}}
    second = {"listener": {"filterChain": {"filter": {"name": "mine"}}}}
    value = network_filter("", {"@type": TCP_TYPE, "stat_prefix": "changed"})
    patches = patch_set(
        change("NETWORK_FILTER", "MERGE", {"name": "mine"}, **match), change("NETWORK_FILTER", "MERGE", value, **second)
    )
    [found] = as_json(must(patched(patches)).filter_chains[1])["filters"]
    assert (found["name"], found["typedConfig"]["statPrefix"]) == ("mine", "changed")


# HTTP filters


def http(operation: str, sub_filter: str | None, name: str = "new", **more: Any) -> Json:
    inner: Json = {"name": HCM} | ({"subFilter": {"name": sub_filter}} if sub_filter else {})
    value = {"name": name, "typed_config": {"@type": LUA_TYPE, "inline_code": "x"}}
    return change("HTTP_FILTER", operation, value, listener={"filterChain": {"filter": inner}}, **more)


@pytest.mark.parametrize(
    ("operation", "sub_filter", "expected"),
    [
        ("ADD", None, ["lua", ROUTER, "new"]),
        ("INSERT_FIRST", None, ["new", "lua", ROUTER]),
        ("INSERT_FIRST", ROUTER, ["new", "lua", ROUTER]),
        ("INSERT_BEFORE", ROUTER, ["lua", "new", ROUTER]),
        ("INSERT_AFTER", "lua", ["lua", "new", ROUTER]),
        ("INSERT_BEFORE", None, ["new", "lua", ROUTER]),
        ("INSERT_AFTER", None, ["lua", ROUTER, "new"]),
        ("INSERT_AFTER", "none", ["lua", ROUTER]),
        ("REPLACE", "lua", ["new", ROUTER]),
        ("REPLACE", None, ["lua", ROUTER]),
        ("REMOVE", "lua", [ROUTER]),
        ("REMOVE", None, ["lua", ROUTER]),
    ],
)
def test_http_filters_are_put_where_they_are_wanted(
    operation: str, sub_filter: str | None, expected: list[str]
) -> None:
    assert http_filters(patched(patch_set(http(operation, sub_filter)))) == expected


@pytest.mark.parametrize("operation", ["ADD", "INSERT_FIRST", "INSERT_BEFORE", "INSERT_AFTER", "REPLACE"])
@pytest.mark.parametrize("where", ["LISTENER_FILTER", "NETWORK_FILTER", "HTTP_FILTER"])
def test_a_filter_without_a_name_which_envoy_would_refuse_with_its_listener_is_not_put_in(
    where: str, operation: str
) -> None:
    first: Json = {"filter": {"name": HCM} | ({"subFilter": {"name": "lua"}} if where == "HTTP_FILTER" else {})}
    of: Json = {"listenerFilter": "first"} if where == "LISTENER_FILTER" else {"filterChain": first}
    found = must(patched(patch_set(change(where, operation, {}, listener=of))))
    assert found == listener()


def test_an_http_filter_is_merged_after_all_that_is_added_removed_and_replaced() -> None:
    """As in Istio: the order among patches of one kind is kept, merges come last."""
    value = {"name": "new", "typed_config": {"@type": LUA_TYPE, "stat_prefix": "late"}}
    merge = http("MERGE", "new")
    merge["patch"]["value"] = value
    found = hcm(patched(patch_set(merge, http("INSERT_FIRST", None))))
    config = as_json(found.http_filters[0])["typedConfig"]
    assert (config["inlineCode"], config["statPrefix"]) == ("x", "late")


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
