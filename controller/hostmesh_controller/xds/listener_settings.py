"""What mesh-wide settings make of a listener: access logs, how paths are written, how long a protocol is looked for."""

from collections.abc import Callable
from typing import Final

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.xds.access_log import access_log, listener_log
from hostmesh_controller.xds.encoding import any_of, duration

_PLAIN: Final = frozenset({"DEFAULT", "BASE"})
"""What filters are made with."""


def settled(listener: Listener, config: MeshConfigSpec) -> Listener:
    """Return the listener, changed in place, as the mesh-wide settings want it."""
    log = access_log(config)
    if log is not None or config.path_normalization.normalization not in _PLAIN:
        _change_filters(listener, lambda found: _changed(found, log, config))
    of_listener = listener_log(config)
    if of_listener is not None:
        listener.access_log.append(of_listener)
    detection_s = config.protocol_detection_timeout.total_seconds()
    if listener.continue_on_listener_filters_timeout and detection_s:
        listener.listener_filters_timeout.CopyFrom(duration(detection_s))
    return listener


def _change_filters(listener: Listener, change: Callable[[Filter], Filter]) -> None:
    # Chains share most of their filters: each is changed once.
    done: dict[bytes, Filter] = {}
    for chain in (*listener.filter_chains, listener.default_filter_chain):
        for found in chain.filters:
            key = found.SerializeToString(deterministic=True)
            if key not in done:
                done[key] = change(found)
            found.CopyFrom(done[key])


def _changed(found: Filter, log: AccessLog | None, config: MeshConfigSpec) -> Filter:
    result = Filter()
    result.CopyFrom(found)
    http, tcp = HttpConnectionManager(), TcpProxy()
    if result.typed_config.Is(HttpConnectionManager.DESCRIPTOR):
        result.typed_config.Unpack(http)
        if log is not None:
            http.access_log.append(log)
        _normalize(http, config.path_normalization.normalization)
        result.typed_config.CopyFrom(any_of(http))
    elif result.typed_config.Is(TcpProxy.DESCRIPTOR):
        result.typed_config.Unpack(tcp)
        if log is not None:
            tcp.access_log.append(log)
        result.typed_config.CopyFrom(any_of(tcp))
    return result


def _normalize(http: HttpConnectionManager, way: str) -> None:
    """Set how paths are written before routes and policies look at them, as Istio does."""
    http.normalize_path.value = way != "NONE"
    http.merge_slashes = way in {"MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"}
    if way == "DECODE_AND_MERGE_SLASHES":
        http.path_with_escaped_slashes_action = HttpConnectionManager.UNESCAPE_AND_FORWARD
