"""Envoy's bootstrap: the small static part. Everything else comes from the relay.

Pure and deterministic: the same inputs give the same bytes, so that comparing bytes tells whether a running Envoy
was started with what would be written today.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hostmesh_agent.places import BLUE, INSTANCE_METADATA, PORTS, Instance
from hostmesh_agent.rehearsal import clusters, listeners
from hostmesh_agent.stats_tags import stats_config
from hostmesh_api.wire import RELAY_CLUSTER

NODE_CLUSTER: Final = "hostmesh"
ADMIN_SOCKET: Final = "admin.sock"
"""Relative to Envoy's working directory."""

DOOR: Final = "hostmesh-door"
"""The listener behind the ports that the second Envoy itself listens on."""

ADMIN_PATHS: Final = (
    "ready",
    "server_info",
    "memory",
    "listeners",
    "clusters",
    "certs",
    "init_dump",
    "stats",
    "stats/prometheus",
    "drain_listeners",
    "logging",
)
"""What the admin socket answers. Not config_dump, quitquitquit, runtime_modify: nothing on the host needs them."""

AGENTS_OWN: Final = frozenset({"node", "admin", "dynamic_resources"})
"""Who the host is, how the agent looks at Envoy, and where Envoy's configuration comes from: no patch changes it."""
_ONE_OF: Final = {"stats_flush_interval": frozenset({"stats_flush_on_admin", "stats_eviction_interval"})}
"""Fields that Envoy takes instead of others, or that must fit each other."""
_EVICTION_READINGS: Final = 180
"""Counters of callers that did not change during so many readings are forgotten at the end of the next so many: the
agent reads every 10 s. An address that called once makes room for others within an hour or so."""
_ENVOYS_FLUSH_S: Final = 5
"""Envoy counts flushes, of which it makes one at each reading, but wants to be told in this unit: its own default."""
_FILES_PER_CONNECTION: Final = 2
_FILES_RESERVED: Final = 512
_MIN_CONNECTIONS: Final = 256
_SOCKET_MODE: Final = 0o600
_SOCKET_MODE_OF_GROUP: Final = 0o660
"""For an Envoy that is a unit: an agent that is not root is in the group of its user."""
_CAPITAL: Final = re.compile(r"(?<!^)([A-Z])")


@dataclass(frozen=True, slots=True)
class BootstrapInput:
    """`max_files` is Envoy's limit of open files: it bounds the connections that are accepted.

    `patch` is what EnvoyFilters change, as JSON of Envoy's Bootstrap in its own field names; "" for nothing.
    `instance` is which of the two Envoys it is for; `ipv6`: the host has IPv6. `by_group`: the agent gets at
    Envoy's sockets by Envoy's group, whoever it is.
    """

    host: str
    xds_socket: Path
    max_files: int
    patch: str = ""
    instance: Instance = BLUE
    ipv6: bool = False
    by_group: bool = False


def max_connections(max_files: int) -> int:
    """Downstream connections that fit into the open files: each has a downstream and an upstream socket."""
    return max(_MIN_CONNECTIONS, (max_files - _FILES_RESERVED) // _FILES_PER_CONNECTION)


def build(wanted: BootstrapInput) -> bytes:
    """Return the bootstrap as JSON, with sorted keys."""
    mode = _SOCKET_MODE_OF_GROUP if wanted.by_group else _SOCKET_MODE
    document = {
        "node": {"id": wanted.host, "cluster": NODE_CLUSTER},
        "admin": _admin(mode),
        "dynamic_resources": _dynamic_resources(wanted.instance),
        "static_resources": {
            "clusters": [_relay_cluster(wanted.xds_socket), *clusters()],
            "listeners": [*listeners(mode), *_door(PORTS[wanted.instance].door, ipv6=wanted.ipv6)],
        },
        "layered_runtime": runtime(),
        "overload_manager": _overload_manager(max_connections(wanted.max_files)),
        # No sink is configured: flushing only when somebody reads keeps an idle Envoy idle.
        "stats_flush_on_admin": True,
        "stats_eviction_interval": f"{_EVICTION_READINGS * _ENVOYS_FLUSH_S}s",
        "stats_config": stats_config(),
    }
    if wanted.patch:
        document = patched(document, json.loads(wanted.patch))
    return _bytes(document)


def for_instance(content: bytes, instance: Instance, *, ipv6: bool) -> bytes:
    """Return a bootstrap that was built for either of the two as it is for one of them; patches stay as they are.

    Raises:
        ValueError, LookupError, TypeError: it is no bootstrap of `build`.
    """
    document = json.loads(content)
    (service,) = document["dynamic_resources"]["ads_config"]["grpc_services"]
    service["initial_metadata"] = _said(instance)
    static = document["static_resources"]
    found = [each for each in static["listeners"] if each["name"] != DOOR]
    own = len(listeners(_SOCKET_MODE))
    static["listeners"] = [*found[:own], *_door(PORTS[instance].door, ipv6=ipv6), *found[own:]]
    return _bytes(document)


def _bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def patched(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return a bootstrap with a patch merged into it: lists grow, single values are replaced.

    What the agent itself depends on stays as it is, whatever the patch says.
    """
    named = {field_name(name): value for name, value in patch.items()}
    allowed = {name: value for name, value in named.items() if name not in AGENTS_OWN}
    for chosen, others in _ONE_OF.items():
        if chosen in allowed:
            document = {name: value for name, value in document.items() if name not in others}
    merged: dict[str, Any] = _merged(document, allowed)
    return merged


def field_name(key: str) -> str:
    """Return a field's own name for either of the names that it may have in JSON: Envoy takes both."""
    return _CAPITAL.sub(r"_\1", key).lower()


def _merged(ours: Any, theirs: Any) -> Any:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        common = {name: _merged(ours[name], theirs[name]) for name in ours.keys() & theirs.keys()}
        return {**ours, **theirs, **common}
    if isinstance(ours, list) and isinstance(theirs, list):
        return [*ours, *theirs]
    return theirs


def _admin(mode: int) -> dict[str, Any]:
    return {
        "address": {"pipe": {"path": ADMIN_SOCKET, "mode": mode}},
        # The query string is part of what Envoy compares.
        "allow_paths": [{"safe_regex": {"regex": f"/({'|'.join(ADMIN_PATHS)})([?].*)?"}}],
        # An Envoy at its connection limit must still tell that it is.
        "ignore_global_conn_limit": True,
    }


def _door(port: int | None, *, ipv6: bool) -> list[dict[str, Any]]:
    """Return the listener that hands connections over to that of the port that was dialled, if there is to be one."""
    if port is None:
        return []
    more = [{"address": _socket("::", port)}] if ipv6 else []
    nowhere = {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": DOOR,
            "cluster": DOOR,
        },
    }
    return [
        {
            "name": DOOR,
            "address": _socket("0.0.0.0", port),  # noqa: S104 - redirects arrive at any of the host's addresses
            "additional_addresses": more,
            "use_original_dst": True,
            # Whoever dials the door itself is let go again: there is no such cluster.
            "filter_chains": [{"filters": [nowhere]}],
        }
    ]


def _socket(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _said(instance: Instance) -> list[dict[str, Any]]:
    return [] if instance is BLUE else [{"key": INSTANCE_METADATA, "value": instance.value}]


def _dynamic_resources(instance: Instance) -> dict[str, Any]:
    over_ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [
                {
                    "envoy_grpc": {
                        "cluster_name": RELAY_CLUSTER,
                        # Envoy's default backs off to 30 s; the relay is on this host and is back within seconds.
                        "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "2s"}},
                    },
                    "initial_metadata": _said(instance),
                }
            ],
        },
        "cds_config": over_ads,
        "lds_config": over_ads,
    }


def runtime() -> dict[str, Any]:
    """Return the switches of Envoy that are not as it has them by itself: those of Istio's proxies.

    Envoy would refuse a regular expression that RE2 compiles to more than 100 steps, and all of its virtual host with
    it; it would refuse paths with a fragment, and lose hosts in a coalesced update (envoyproxy/envoy issue 45212).
    """
    flags = {
        "re2.max_program_size.error_level": 32768,
        "envoy.reloadable_features.http_reject_path_with_fragment": False,
        "envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update": False,
    }
    return {"layers": [{"name": "hostmesh", "static_layer": flags}]}


def _relay_cluster(xds_socket: Path) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(xds_socket)}}}}
    return {
        "name": RELAY_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": RELAY_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


def _overload_manager(connections: int) -> dict[str, Any]:
    return {
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3"
                    ".DownstreamConnectionsConfig",
                    "max_active_downstream_connections": connections,
                },
            }
        ]
    }
