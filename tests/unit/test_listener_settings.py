"""What mesh-wide settings make of every listener."""

from typing import Any

import pytest
from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType
from envoy.extensions.access_loggers.file.v3.file_pb2 import FileAccessLog
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from google.protobuf.json_format import MessageToDict

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.model.documents import read_spec
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.xds.messages import message_of

NAMES = ("virtualInbound", "virtualOutbound", "0.0.0.0_80")


def the_mesh(**config: Any) -> Mesh:
    return mesh_of(
        [
            obj("Host", "one", {"addresses": ["10.0.0.1"]}),
            obj("WorkloadEntry", "one", {"address": "10.0.0.1", "labels": {"app": "one"}}),
            obj(
                "Service",
                "one",
                {
                    "selector": {"app": "one"},
                    "ports": [{"name": "http", "port": 80}, {"name": "tcp", "port": 90}, {"name": "any", "port": 91}],
                },
            ),
            obj("MeshConfig", "default", config),
        ]
    )


def listener(mesh: Mesh, name: str) -> Listener:
    found = xds.resource(mesh, "one", wire.LISTENER_TYPE, name)
    assert found is not None
    message = message_of(found)
    assert isinstance(message, Listener)
    return message


def filters(mesh: Mesh, kind: type[Any], names: tuple[str, ...] = NAMES) -> list[Any]:
    result = []
    for name in names:
        found = listener(mesh, name)
        for chain in (*found.filter_chains, found.default_filter_chain):
            for each in chain.filters:
                if each.typed_config.Is(kind.DESCRIPTOR):
                    result.append(kind())
                    each.typed_config.Unpack(result[-1])
    assert result
    return result


def files(of: Any) -> list[AccessLog]:
    """Return the logs of a filter that are files: the others count calls."""
    return [log for log in of.access_log if log.name == "envoy.access_loggers.file"]


def log_format(**config: Any) -> dict[str, Any]:
    mesh = the_mesh(accessLogFile="/dev/stdout", **config)
    found = FileAccessLog()
    files(filters(mesh, HttpConnectionManager)[0])[0].typed_config.Unpack(found)
    assert found.path == "/dev/stdout"
    made: dict[str, Any] = MessageToDict(found.log_format)
    return made


def test_without_an_access_log_file_nothing_is_logged() -> None:
    mesh = the_mesh()
    assert not any(files(each) for each in filters(mesh, HttpConnectionManager) + filters(mesh, TcpProxy))
    assert not any(listener(mesh, name).access_log for name in NAMES)


def test_every_request_and_connection_is_logged_and_at_the_listener_what_no_chain_takes() -> None:
    mesh = the_mesh(accessLogFile="/var/log/mesh.log")
    for each in filters(mesh, HttpConnectionManager) + filters(mesh, TcpProxy):
        [log] = files(each)
        # Envoy tells each minute of what lasts, for the counters of calls; that is no line of a log.
        assert set(log.filter.log_type_filter.types) == {AccessLogType.DownstreamPeriodic, AccessLogType.TcpPeriodic}
        assert log.filter.log_type_filter.exclude
    for name in NAMES:
        [log] = listener(mesh, name).access_log
        assert list(log.filter.response_flag_filter.flags) == ["NR"]


def test_the_default_formats_are_istios() -> None:
    text = log_format()["textFormatSource"]["inlineString"]
    assert text.startswith('[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_C')
    assert text.endswith("%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n")
    fields = log_format(accessLogEncoding="JSON")["jsonFormat"]
    assert fields["response_code"] == "%RESPONSE_CODE%"
    assert len(fields) == 24


def test_a_format_of_ones_own_ends_its_line_and_has_what_its_words_need() -> None:
    made = log_format(accessLogFormat="%REQ_WITHOUT_QUERY(:PATH)%")
    assert made["textFormatSource"]["inlineString"] == "%REQ_WITHOUT_QUERY(:PATH)%\n"
    assert [each["name"] for each in made["formatters"]] == ["envoy.formatter.req_without_query"]
    own = log_format(accessLogEncoding="JSON", accessLogFormat='{"code": "%RESPONSE_CODE%"}')
    assert own["jsonFormat"] == {"code": "%RESPONSE_CODE%"}


def test_a_json_format_that_is_no_object_is_refused() -> None:
    for text in ("%RESPONSE_CODE%", "[1]"):
        _, [fault] = read_spec({"accessLogEncoding": "JSON", "accessLogFormat": text}, MeshConfigSpec)
        assert fault.path == ("accessLogFormat",)
        assert "JSON object" in fault.message


@pytest.mark.parametrize(
    ("way", "normalized", "merged", "unescaped"),
    [
        ("DEFAULT", True, False, False),
        ("NONE", False, False, False),
        ("BASE", True, False, False),
        ("MERGE_SLASHES", True, True, False),
        ("DECODE_AND_MERGE_SLASHES", True, True, True),
    ],
)
def test_paths_are_written_as_the_mesh_wants_it(way: str, normalized: bool, merged: bool, unescaped: bool) -> None:
    for each in filters(the_mesh(pathNormalization={"normalization": way}), HttpConnectionManager):
        assert each.normalize_path.value is normalized
        assert each.merge_slashes is merged
        action = each.path_with_escaped_slashes_action
        assert (action == HttpConnectionManager.UNESCAPE_AND_FORWARD) is unescaped


def test_a_protocol_is_looked_for_as_long_as_the_mesh_says_and_never_for_ever() -> None:
    assert listener(the_mesh(protocolDetectionTimeout="5s"), "virtualInbound").listener_filters_timeout.seconds == 5
    for name in ("virtualInbound", "0.0.0.0_91"):
        for config in ({}, {"protocolDetectionTimeout": "0s"}):
            found = listener(the_mesh(**config), name)
            assert found.continue_on_listener_filters_timeout
            assert 0 < found.listener_filters_timeout.ToMilliseconds() <= 2000
    assert listener(the_mesh(protocolDetectionTimeout="100ms"), "0.0.0.0_91").listener_filters_timeout.nanos == 10**8
