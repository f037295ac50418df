"""Formats of access logs: what is taken here Envoy takes, what is refused here Envoy would refuse."""

import json
import subprocess
from pathlib import Path

import pytest

from golden.live import envoy_binary
from hostmesh_controller.model.log_format import ALONE, WITH_ARGUMENT, check_log_format

_ARGUMENTS = {"METADATA": "ROUTE:istio:config", "COALESCE": '{"operators": ["PROTOCOL"]}', "CEL": "request.method"}
_WITHOUT_QUERY = {
    "name": "envoy.formatter.req_without_query",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery"},
}
"""The one operator that Envoy must be told to know; the translation does."""
_TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"


def taken_by_envoy(text: str, directory: Path) -> bool:
    written = {"text_format_source": {"inline_string": text}, "formatters": [_WITHOUT_QUERY]}
    log = {"@type": _FILE_LOG, "path": "/dev/null", "log_format": written}
    proxy = {
        "@type": _TCP_PROXY,
        "stat_prefix": "x",
        "cluster": "none",
        "access_log": [{"name": "file", "typed_config": log}],
    }
    listener = {
        "name": "one",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
    }
    clusters = [{"name": "none", "type": "STATIC"}]
    (directory / "one.json").write_text(
        json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters}})
    )
    command: list[str] = [str(envoy_binary()), "--mode", "validate", "-c", "one.json", "-l", "off"]
    return subprocess.run(command, cwd=directory, capture_output=True, timeout=30).returncode == 0


def test_envoy_knows_every_operator_that_is_known_here(tmp_path: Path) -> None:
    with_arguments = [f"%{name}({_ARGUMENTS.get(name, 'x')})%" for name in sorted(WITH_ARGUMENT)]
    text = " ".join([*(f"%{name}%" for name in sorted(ALONE)), *with_arguments])
    assert check_log_format(text) == text
    assert taken_by_envoy(text, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE%\n',
        "%START_TIME(%Y/%m/%dT%H:%M:%S%z)%",
        "100%% of %REQ(USER-AGENT):10%",
        "plain",
    ],
)
def test_what_is_taken_here_is_taken_by_envoy(text: str, tmp_path: Path) -> None:
    assert check_log_format(text) == text
    assert taken_by_envoy(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("%RESPONSE_COD%", "did you mean 'RESPONSE_CODE'"),
        ("%REQ%", "needs an argument"),
        ("100%", "%% for a percent sign"),
        ("%PROTOCOL", "is no operator"),
    ],
)
def test_what_envoy_would_refuse_is_refused_with_the_cure(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        check_log_format(text)
    assert not taken_by_envoy(text, tmp_path)
