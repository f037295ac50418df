"""EnvoyFilter: changes to what Envoy is told, after everything else.

What a value means is checked by the translation, which knows Envoy's messages.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.patterns import check_regex
from hostmesh_controller.model.schema import Integer, Spec, Unsigned, as_fault, at_most_one, fault
from hostmesh_controller.model.service_entry import WorkloadSelector

ApplyTo = Literal[
    "LISTENER",
    "FILTER_CHAIN",
    "NETWORK_FILTER",
    "HTTP_FILTER",
    "ROUTE_CONFIGURATION",
    "VIRTUAL_HOST",
    "HTTP_ROUTE",
    "CLUSTER",
    "EXTENSION_CONFIG",
    "BOOTSTRAP",
    "LISTENER_FILTER",
]
Operation = Literal[
    "MERGE",
    "ADD",
    "REMOVE",
    "INSERT_BEFORE",
    "INSERT_AFTER",
    "INSERT_FIRST",
    "REPLACE",
    "MERGE_AND_REPLACE_LIST",
]
_HTTP_CONNECTION_MANAGERS: Final = frozenset(
    {"envoy.filters.network.http_connection_manager", "envoy.http_connection_manager"}
)
MAX_VERSION_CHARS: Final = 1024
"""Of an expression for the proxy's version (Istio's limit)."""
FILTERS: Final = frozenset({"LISTENER_FILTER", "NETWORK_FILTER", "HTTP_FILTER"})
PUTS: Final = frozenset({"ADD", "REPLACE", "INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST"})
"""Operations that make the value an item of its own."""
_WAYPOINT: Final = "waypoints are proxies of ambient mode, which hosts do not have"


def _version(value: str) -> str:
    # As in Istio, a longer one is taken and means no proxy: `checks.envoy_values` tells.
    if 0 < len(value) <= MAX_VERSION_CHARS:
        with as_fault("regex"):
            check_regex(value)
    return value


class ProxyMatch(Spec):
    """`proxy_version` is a regular expression (RE2) of Istio's version of the proxy."""

    proxy_version: Annotated[str, AfterValidator(_version)] = ""
    metadata: Mapping[str, str] = Field(default_factory=dict)


class SubFilterMatch(Spec):
    """A filter inside the HTTP connection manager."""

    name: str = ""


class FilterMatch(Spec):
    """A network filter by name."""

    name: str = ""
    sub_filter: SubFilterMatch | None = None


class FilterChainMatch(Spec):
    """A filter chain; what is "" or 0 is not asked for. `application_protocols` is a comma-separated list."""

    name: str = ""
    sni: str = ""
    transport_protocol: str = ""
    application_protocols: str = ""
    filter: FilterMatch | None = None
    destination_port: Unsigned = 0

    refused: ClassVar[Mapping[str, str]] = {"transportSocket": "Istio ignores it; match by transportProtocol"}


class ListenerMatch(Spec):
    """A listener by name or port; what is "" or 0 is not asked for."""

    refused: ClassVar[Mapping[str, str]] = {"portName": "Istio ignores it; match by portNumber"}

    port_number: Unsigned = 0
    filter_chain: FilterChainMatch | None = None
    listener_filter: str = ""
    name: str = ""


class RouteMatch(Spec):
    """A route by name or by what it does."""

    name: str = ""
    action: Literal["ANY", "ROUTE", "REDIRECT", "DIRECT_RESPONSE"] = "ANY"


class VirtualHostMatch(Spec):
    """A virtual host by name (`host:port`) or by one of its domains."""

    name: str = ""
    domain_name: str = ""
    route: RouteMatch | None = None


class RouteConfigurationMatch(Spec):
    """A table of routes; `port_name` and `gateway` (namespace/name) are for gateways."""

    port_number: Unsigned = 0
    port_name: str = ""
    gateway: str = ""
    vhost: VirtualHostMatch | None = None
    name: str = ""


class ClusterMatch(Spec):
    """A cluster by its name or by the parts of it; what is "" or 0 is not asked for."""

    port_number: Unsigned = 0
    service: str = ""
    subset: str = ""
    name: str = ""


class WaypointRouteMatch(Spec):
    """A route by name."""

    name: str = ""


class WaypointMatch(Spec):
    """Refused, whatever it says, after what is wrong in it."""

    port_number: Unsigned | None = None
    filter: FilterMatch | None = None
    route: WaypointRouteMatch | None = None

    @model_validator(mode="after")
    def _port(self) -> "WaypointMatch":
        if self.port_number is not None and not 1 <= self.port_number <= 65535:
            raise fault("port", f"must be between 1 and 65535, found {self.port_number}", "portNumber")
        return self


class ObjectMatch(Spec):
    """All that is given must hold; nothing given matches everything."""

    context: Literal["ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY", "WAYPOINT"] = "ANY"
    proxy: ProxyMatch | None = None
    listener: ListenerMatch | None = None
    route_configuration: RouteConfigurationMatch | None = None
    cluster: ClusterMatch | None = None
    waypoint: WaypointMatch | None = None

    @model_validator(mode="after")
    def _one_object(self) -> "ObjectMatch":
        at_most_one(self, "listener", "route_configuration", "cluster", "waypoint")
        if (self.context == "WAYPOINT") != (self.waypoint is not None):
            field = "waypoint" if self.waypoint is not None else "context"
            raise fault("one-of", f"only support waypointMatch when context is WAYPOINT ({_WAYPOINT})", field)
        if self.waypoint is not None:
            raise fault("not-supported", f"not supported: {_WAYPOINT}", "waypoint")
        return self


class Patch(Spec):
    """`value` is Envoy's own configuration, of the kind that `apply_to` names."""

    operation: Operation
    value: Mapping[str, Any] | None = None
    filter_class: Literal["UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"] = "UNSPECIFIED"

    @model_validator(mode="after")
    def _value_is_there(self) -> "Patch":
        if self.operation != "REMOVE" and self.value is None:
            raise fault("missing", f"operation {self.operation} needs a value", "value")
        return self


_KIND_OF_MATCH: Final[Mapping[str, str]] = {
    **dict.fromkeys(("LISTENER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER"), "listener"),
    **dict.fromkeys(("ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE"), "routeConfiguration"),
    "CLUSTER": "cluster",
}


class ConfigPatch(Spec):
    """One change. None of `match` is everywhere."""

    apply_to: ApplyTo
    match: ObjectMatch | None = None
    patch: Patch

    @model_validator(mode="after")
    def _parts_line_up(self) -> "ConfigPatch":
        if self.match is None:
            return self
        found = {
            "listener": self.match.listener,
            "routeConfiguration": self.match.route_configuration,
            "cluster": self.match.cluster,
        }
        wanted = _KIND_OF_MATCH.get(self.apply_to)
        for written, given in found.items():
            if wanted is not None and given is not None and written != wanted:
                raise fault("match", f"applyTo {self.apply_to} needs a {wanted} match, not {written}", "match", written)
        if wanted == "listener":
            self._check_filter(self.match.listener)
        return self

    def _check_filter(self, listener: ListenerMatch | None) -> None:
        chain = listener.filter_chain if listener is not None else None
        if chain is None or chain.filter is None:
            return
        place = ("match", "listener", "filterChain", "filter")
        if not chain.filter.name:
            raise fault("missing", "the filter match needs a name", *place)
        sub_filter = chain.filter.sub_filter
        if sub_filter is None:
            return
        if self.apply_to != "HTTP_FILTER":
            raise fault("match", "a subFilter match is for applyTo HTTP_FILTER only", *place, "subFilter")
        if chain.filter.name not in _HTTP_CONNECTION_MANAGERS:
            needed = "envoy.filters.network.http_connection_manager"
            raise fault("match", f"a subFilter is inside {needed}: name that", *place, "name")
        if not sub_filter.name:
            raise fault("missing", "the subFilter match needs a name", *place, "subFilter")


class EnvoyFilterSpec(Spec):
    """Changes to the selected workloads' Envoys, lower priority first; in the root namespace to the whole mesh."""

    refused: ClassVar[Mapping[str, str]] = {
        "targetRefs": "it selects Kubernetes' gateways and ambient waypoints; use workloadSelector"
    }

    workload_selector: WorkloadSelector | None = None
    config_patches: tuple[ConfigPatch, ...] = ()
    priority: Integer = 0
