"""EnvoyFilter patches, and resources to apply them to."""

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.json_format import ParseDict

from golden.objects import mesh_of, obj
from hostmesh_controller.envoy_types import message_class
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.xds.patch_listeners import patch_listener
from hostmesh_controller.xds.patch_set import OUTBOUND, PatchSet, patches_of

TYPE = "type.googleapis.com/envoy.extensions"
HCM = "envoy.filters.network.http_connection_manager"
HCM_TYPE = f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"
TCP = "envoy.filters.network.tcp_proxy"
TCP_TYPE = f"{TYPE}.filters.network.tcp_proxy.v3.TcpProxy"
ROUTER = "envoy.filters.http.router"
ROUTER_TYPE = f"{TYPE}.filters.http.router.v3.Router"
LUA_TYPE = f"{TYPE}.filters.http.lua.v3.Lua"
TLS_TYPE = f"{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"
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


# HTTP filters


def http(operation: str, sub_filter: str | None, name: str = "new", **more: Any) -> Json:
    inner: Json = {"name": HCM} | ({"subFilter": {"name": sub_filter}} if sub_filter else {})
    value = {"name": name, "typed_config": {"@type": LUA_TYPE, "inline_code": "x"}}
    return change("HTTP_FILTER", operation, value, listener={"filterChain": {"filter": inner}}, **more)
