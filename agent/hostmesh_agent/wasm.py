"""Configurations of Wasm plugins (ECDS): which module one needs, and what Envoy is told once it is there, or is not.

What the controller sends names an address, which Envoy cannot call; what Envoy gets names a file of this host. Pure.
"""

from dataclasses import dataclass
from typing import Any, Final

from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_api.delta import Resource
from hostmesh_api.wire import WASM_PULL_POLICY

_TYPE: Final = "type.googleapis.com/"
_HTTP: Final = f"{_TYPE}envoy.extensions.filters.http.wasm.v3.Wasm"
_NETWORK: Final = f"{_TYPE}envoy.extensions.filters.network.wasm.v3.Wasm"
_STRUCTS: Final = frozenset({f"{_TYPE}udpa.type.v1.TypedStruct", f"{_TYPE}xds.type.v3.TypedStruct"})
_OUR_VARIABLES: Final = "ISTIO_META_"
"""What begins like this is for the agent, not for the module."""
ALWAYS: Final = "Always"


@dataclass(frozen=True, slots=True)
class Want:
    """The module of one plugin. `sha256` "": whatever is at the address; `version` is that of the configuration."""

    name: str
    version: str
    url: str
    sha256: str
    always: bool
    fail_open: bool


def want_of(resource: Resource) -> Want | None:
    """Return the module that a configuration names by an address; None for what Envoy can use as it is."""
    opened = _opened(resource)
    if opened is None:
        return None
    plugin = opened.plugin
    remote = plugin.vm_config.code.remote
    return Want(
        name=resource.name,
        version=resource.version,
        url=remote.http_uri.uri,
        sha256=remote.sha256,
        always=plugin.vm_config.environment_variables.key_values.get(WASM_PULL_POLICY) == ALWAYS,
        fail_open=_fails_open(plugin),
    )


def with_file(resource: Resource, path: str, sha256: str) -> Resource:
    """Return the configuration with the module's file in place of its address."""
    opened = _opened(resource)
    if opened is None:
        return resource
    machine = opened.plugin.vm_config
    machine.code.local.filename = path
    variables = machine.environment_variables.key_values
    for each in [name for name in variables if name.startswith(_OUR_VARIABLES)]:
        del variables[each]
    if not machine.environment_variables.ByteSize():
        machine.ClearField("environment_variables")
    return opened.packed(opened.filter, sha256[:12])


def without_module(resource: Resource) -> Resource:
    """Return what stands for a plugin that cannot be had: it refuses everything, or (FAIL_OPEN) lets it pass."""
    opened = _opened(resource)
    if opened is None:
        return resource
    passes = _fails_open(opened.plugin)
    return opened.packed(_rbac(network=opened.network, passes=passes), "open" if passes else "closed")


@dataclass(frozen=True, slots=True)
class _Opened:
    """A configuration, unpacked. `filter` is the Wasm filter, `plugin` the part of it that both kinds share."""

    wrapped: ResourceMessage
    config: Any
    filter: Any
    plugin: Any
    network: bool

    def packed(self, config: Any, suffix: str) -> Resource:
        """Return the resource with another configuration: another version, though the controller's is the same."""
        name, version = self.wrapped.name, f"{self.wrapped.version}.{suffix}"
        self.config.typed_config.type_url = _TYPE + config.DESCRIPTOR.full_name
        self.config.typed_config.value = config.SerializeToString(deterministic=True)
        self.wrapped.version = version
        self.wrapped.resource.value = self.config.SerializeToString(deterministic=True)
        return Resource(name, version, self.wrapped.SerializeToString(deterministic=True))


def _opened(resource: Resource) -> _Opened | None:
    # Loaded when the first plugin comes: most hosts have none.
    from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig

    wrapped = ResourceMessage.FromString(resource.body)
    config = TypedExtensionConfig()
    if not wrapped.resource.Unpack(config):
        return None
    found = _filter(config.typed_config)
    if found is None:
        return None
    if found.config.vm_config.code.WhichOneof("specifier") != "remote":
        return None
    network = found.DESCRIPTOR.full_name == _NETWORK.removeprefix(_TYPE)
    return _Opened(wrapped, config, found, found.config, network)


def _filter(packed: Any) -> Any:
    """Return the Wasm filter that is packed, as itself or as a free-form struct with its type; None for others."""
    type_url, struct = packed.type_url, None
    if type_url in _STRUCTS:
        from udpa.type.v1.typed_struct_pb2 import TypedStruct

        # Both kinds have the same fields.
        struct = TypedStruct.FromString(packed.value)
        type_url = struct.type_url
    found: Any
    if type_url == _HTTP:
        from envoy.extensions.filters.http.wasm.v3.wasm_pb2 import Wasm as HttpWasm

        found = HttpWasm()
    elif type_url == _NETWORK:
        from envoy.extensions.filters.network.wasm.v3.wasm_pb2 import Wasm as NetworkWasm

        found = NetworkWasm()
    else:
        return None
    if struct is None:
        found.ParseFromString(packed.value)
        return found
    from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

    try:
        return ParseDict(MessageToDict(struct.value), found)
    except ParseError:
        # Envoy says what is wrong with it.
        return None


def _fails_open(plugin: Any) -> bool:
    from envoy.extensions.wasm.v3.wasm_pb2 import FailurePolicy

    if plugin.failure_policy == FailurePolicy.UNSPECIFIED:
        return bool(plugin.fail_open)
    return bool(plugin.failure_policy == FailurePolicy.FAIL_OPEN)


def _rbac(*, network: bool, passes: bool) -> Any:
    """Return a filter with Istio's names: no rules let everything pass, and empty rules nothing."""
    prefix = "wasm-default-allow" if passes else "wasm-default-deny"
    result: Any
    if network:
        from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac

        result = network_rbac.RBAC(stat_prefix=prefix)
    else:
        from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac

        result = http_rbac.RBAC(rules_stat_prefix=prefix)
    if not passes:
        result.rules.SetInParent()
    return result
