"""WasmPlugin: filters that ask for their configuration by name (ECDS), and what they are told.

The module itself is put in place by the agent, which makes of the address in a configuration a file of its host, and
of a module that cannot be had a filter that refuses everything, or lets everything pass.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Final

from envoy.config.core.v3.base_pb2 import AsyncDataSource, RemoteDataSource
from envoy.config.core.v3.config_source_pb2 import ExtensionConfigSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.core.v3.http_uri_pb2 import HttpUri
from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.extensions.filters.http.wasm.v3.wasm_pb2 import Wasm as HttpWasm
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from envoy.extensions.filters.network.wasm.v3.wasm_pb2 import Wasm as NetworkWasm
from envoy.extensions.wasm.v3.wasm_pb2 import EnvironmentVariables, FailurePolicy, PluginConfig, VmConfig
from google.protobuf.wrappers_pb2 import StringValue

from hostmesh_api.wire import WASM_PULL_POLICY
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.scopes import is_for
from hostmesh_controller.mesh.viewer import faces_of
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.wasm_plugin import TrafficSelector, WasmPluginSpec
from hostmesh_controller.xds.encoding import any_of, duration
from hostmesh_controller.xds.extension_types import NONE, Direction, Extensions, Traffic, faces_behind
from hostmesh_controller.xds.sources import ads

KIND: Final = "WasmPlugin"
PREFIX: Final = "extensions.istio.io/wasmplugin/"
"""What the names of these filters, and of their configurations, begin with (Istio's form)."""
RUNTIME: Final = "envoy.wasm.runtime.v8"
FETCH_TIMEOUT_S: Final = 30.0
"""Istio's number."""

_TYPE: Final = "type.googleapis.com/envoy.extensions.filters."
_HTTP_TYPES: Final = (f"{_TYPE}http.wasm.v3.Wasm", f"{_TYPE}http.rbac.v3.RBAC")
_NETWORK_TYPES: Final = (f"{_TYPE}network.wasm.v3.Wasm", f"{_TYPE}network.rbac.v3.RBAC")
_POLICIES: Final = {
    "FAIL_CLOSE": FailurePolicy.FAIL_CLOSED,
    "FAIL_OPEN": FailurePolicy.FAIL_OPEN,
    "FAIL_RELOAD": FailurePolicy.FAIL_RELOAD,
}


def plugins_of(mesh: Mesh, host: Host, traffic: Traffic) -> Extensions:
    """Return the filters of the WasmPlugins that hold for one kind of traffic of a host."""
    if not mesh.keys_by_kind.get(KIND):
        return NONE
    items = [each for each in _selected(mesh, host, traffic) if _matches(_spec(each), traffic)]
    if not items:
        return NONE
    ordered = sorted(items, key=_urgency)
    http = {phase: _http(ordered, phase) for phase in ("AUTHN", "AUTHZ", "STATS", "UNSPECIFIED_PHASE")}
    return Extensions(
        # A filter is its name and its type alone: what it does comes with its configuration.
        key=tuple((each.key, _spec(each).phase, _spec(each).type) for each in ordered),
        before_authn=http["AUTHN"],
        before_authz=http["AUTHZ"],
        before_stats=http["STATS"],
        last=http["UNSPECIFIED_PHASE"],
        network=tuple(_network_filter(each.key) for each in ordered if _spec(each).type == "NETWORK"),
    )


def plugin_key(name: str) -> ObjectKey | None:
    """Return the WasmPlugin of a configuration's name, or None if it is not one's."""
    namespace, dot, own = name.removeprefix(PREFIX).partition(".")
    return ObjectKey(KIND, namespace, own) if name.startswith(PREFIX) and dot else None


def is_selected(mesh: Mesh, host: Host, item: ApiObject) -> bool:
    """Tell whether a WasmPlugin is for some workload of a host."""
    return is_for(mesh, item, faces_of(mesh, host))


def configuration(item: ApiObject) -> TypedExtensionConfig:
    """Return what the filter of a WasmPlugin is told; `code` names where the module comes from, not where it is."""
    spec, name = _spec(item), _name(item.key)
    plugin = PluginConfig(
        name=f"{item.key.namespace}.{item.key.name}",
        root_id=spec.plugin_name or "",
        vm_config=_vm(spec),
        failure_policy=_POLICIES[spec.fail_strategy],
    )
    if spec.plugin_config:
        text = json.dumps(_plain(spec.plugin_config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        plugin.configuration.CopyFrom(any_of(StringValue(value=text)))
    kind = NetworkWasm if spec.type == "NETWORK" else HttpWasm
    return TypedExtensionConfig(name=name, typed_config=any_of(kind(config=plugin)))


def _vm(spec: WasmPluginSpec) -> VmConfig:
    result = VmConfig(
        runtime=RUNTIME,
        code=AsyncDataSource(
            remote=RemoteDataSource(
                # The agent reads this; there is no cluster that Envoy could call.
                http_uri=HttpUri(uri=spec.url, cluster="_", timeout=duration(FETCH_TIMEOUT_S)),
                sha256=spec.sha256,
            )
        ),
    )
    variables = EnvironmentVariables()
    for each in spec.vm_config.env if spec.vm_config is not None else ():
        if each.value_from == "HOST":
            variables.host_env_keys.append(each.name)
        else:
            variables.key_values[each.name] = each.value or ""
    if spec.image_pull_policy != "UNSPECIFIED_POLICY":
        variables.key_values[WASM_PULL_POLICY] = spec.image_pull_policy
    if variables.ByteSize():
        result.environment_variables.CopyFrom(variables)
    return result


def _plain(value: object) -> object:
    """Return free-form configuration as JSON has it; numbers are doubles there, so 1.0 is written 1."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value


def _selected(mesh: Mesh, host: Host, traffic: Traffic) -> Iterator[ApiObject]:
    """Yield the plugins of whoever the traffic belongs to: one workload inbound, the whole host else."""
    faces = faces_behind(mesh, host, traffic)
    for item in mesh.of_kind(KIND):
        if is_for(mesh, item, faces):
            yield item


def _matches(spec: WasmPluginSpec, traffic: Traffic) -> bool:
    return not spec.match or any(_fits(each, traffic) for each in spec.match)


def _fits(match: TrafficSelector, traffic: Traffic) -> bool:
    own = "SERVER" if traffic.direction is Direction.INBOUND else "CLIENT"
    ports = {port.number for port in match.ports}
    return match.mode in {"UNDEFINED", "CLIENT_AND_SERVER", own} and (not ports or traffic.port in ports)


def _urgency(item: ApiObject) -> tuple[bool, int]:
    """Sort the highest priority first, and those that have none last; they are in the order of their age before."""
    priority = _spec(item).priority
    return priority is None, -(priority or 0)


def _http(items: Iterable[ApiObject], phase: str) -> tuple[HttpFilter, ...]:
    found = (each for each in items if _spec(each).phase == phase and _spec(each).type != "NETWORK")
    return tuple(_http_filter(each.key) for each in found)


def _http_filter(key: ObjectKey) -> HttpFilter:
    return HttpFilter(name=_name(key), config_discovery=_discovery(_HTTP_TYPES))


def _network_filter(key: ObjectKey) -> Filter:
    return Filter(name=_name(key), config_discovery=_discovery(_NETWORK_TYPES))


def _discovery(types: Iterable[str]) -> ExtensionConfigSource:
    # Without a bound: what a plugin guards is not served before the plugin is there (or what stands for it).
    return ExtensionConfigSource(config_source=ads(0), type_urls=types)


def _name(key: ObjectKey) -> str:
    return f"{PREFIX}{key.namespace}.{key.name}"


def _spec(item: ApiObject) -> WasmPluginSpec:
    assert isinstance(item.spec, WasmPluginSpec)
    return item.spec
