"""Access logs as mesh-wide settings ask for them: Istio's formats, in a file on the host.

`/dev/stdout` is the log that the agent keeps of Envoy.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog, AccessLogFilter, LogTypeFilter, ResponseFlagFilter
from envoy.config.core.v3.base_pb2 import DataSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.core.v3.substitution_format_string_pb2 import JsonFormatOptions, SubstitutionFormatString
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType
from envoy.extensions.access_loggers.file.v3.file_pb2 import FileAccessLog
from envoy.extensions.formatter.req_without_query.v3.req_without_query_pb2 import ReqWithoutQuery

from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.xds.encoding import any_of

FILE: Final = "envoy.access_loggers.file"
TEXT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "
    '"%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% '
    '%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" '
    '"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" '
    "%UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% "
    "%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
"""Istio's default, to which tools that read these lines are made."""
JSON: Final[Mapping[str, str]] = {
    "start_time": "%START_TIME%",
    "route_name": "%ROUTE_NAME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}
_NO_ROUTE: Final = "NR"
# Of those that last Envoy tells each minute, for the counters of calls. A log has one line of each, at its end.
_ENDED: Final = AccessLogFilter(
    log_type_filter=LogTypeFilter(types=[AccessLogType.DownstreamPeriodic, AccessLogType.TcpPeriodic], exclude=True)
)


def access_log(config: MeshConfigSpec) -> AccessLog | None:
    """Return the log of every request and connection, or None if none is wanted."""
    if not config.access_log_file:
        return None
    sink = FileAccessLog(path=config.access_log_file, log_format=_format(config))
    return AccessLog(name=FILE, typed_config=any_of(sink), filter=_ENDED)


def listener_log(config: MeshConfigSpec) -> AccessLog | None:
    """Return the log of connections that no filter chain takes, which nothing else would tell of."""
    found = access_log(config)
    if found is not None:
        found.filter.CopyFrom(AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=[_NO_ROUTE])))
    return found


def _format(config: MeshConfigSpec) -> SubstitutionFormatString:
    result, written = SubstitutionFormatString(), config.access_log_format
    if config.access_log_encoding == "JSON":
        result.json_format.update(_json(written) or {name: _named(text, config) for name, text in JSON.items()})
        result.json_format_options.CopyFrom(JsonFormatOptions(sort_properties=False))
    else:
        text = f"{written.removesuffix(chr(10))}\n" if written else _named(TEXT, config)
        result.text_format_source.CopyFrom(DataSource(inline_string=text))
    if "%REQ_WITHOUT_QUERY" in written:
        formatter = TypedExtensionConfig(
            name="envoy.formatter.req_without_query", typed_config=any_of(ReqWithoutQuery())
        )
        result.formatters.append(formatter)
    return result


def _json(written: str) -> dict[str, Any]:
    # The file's encoding and the object's format may not fit each other: then Istio's format holds, as in Istio.
    try:
        found = json.loads(written)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(text: str, config: MeshConfigSpec) -> str:
    """Return a default format in which clusters have Istio's names, also those that are named after an address."""
    renamed = config.outbound_cluster_stat_name or config.inbound_cluster_stat_name
    return text if renamed else text.replace("%UPSTREAM_CLUSTER_RAW%", "%UPSTREAM_CLUSTER%")
