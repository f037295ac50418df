"""EnvoyFilter patches of listeners, chains and filters: every operation, on listeners written here."""

import pytest

from hostmesh_controller.envoy_types import message_class
from hostmesh_controller.xds.messages import as_json
from hostmesh_controller.xds.patch_set import INBOUND
from patching import (
    HCM,
    HCM_TYPE,
    LUA_TYPE,
    ROUTER,
    TCP,
    TCP_TYPE,
    TLS_TYPE,
    TYPE,
    Json,
    change,
    hcm,
    http,
    http_filters,
    listener,
    must,
    names,
    network_filter,
    patch_set,
    patched,
)

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
