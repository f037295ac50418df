"""Single fields: durations, names, protocols."""

import copy
import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_controller.model import Duration, Protocol, entry_protocol, service_protocol
from hostmesh_controller.model.patterns import check_header_value, check_regex
from hostmesh_controller.model.schema import (
    check_host,
    check_label,
    check_label_key,
    check_label_value,
    check_subdomain,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5s", 1.5),
        ("100ms", 0.1),
        ("1h2m", 3720),
        ("1h2m3.5s", 3723.5),
        (".5s", 0.5),
        ("1.s", 1),
        ("0", 0),
        ("0s", 0),
        ("250us", 0.00025),
        ("1500000ns", 0.0015),
    ],
)
def test_a_duration_is_read_as_go_reads_it_and_written_as_it_was_written(text: str, seconds: float) -> None:
    duration = Duration(text)
    assert duration == timedelta(seconds=seconds)
    assert str(duration) == text


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.5", "s", "-1s", "+1s", "1 s", "1S", "1d", "1s ", "1e3s", "1h-2m", "9" * 70 + "s", "9999999h", "٣s"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        Duration(text)


def test_durations_of_one_length_are_equal_however_they_are_written() -> None:
    assert Duration("90s") == Duration("1m30s")
    assert hash(Duration("90s")) == hash(Duration("1m30s"))


def test_a_duration_that_envoy_would_refuse_as_too_long_is_refused() -> None:
    assert Duration("9223372035s") < timedelta(seconds=9223372036)
    with pytest.raises(ValueError, match="292 years"):
        Duration("9223372036s")


def test_a_duration_survives_copying_and_pickling() -> None:
    duration = Duration("1m30s")
    assert str(copy.deepcopy(duration)) == "1m30s"
    assert str(pickle.loads(pickle.dumps(duration))) == "1m30s"


@given(st.integers(min_value=0, max_value=10**12))
def test_any_number_of_milliseconds_is_exact(milliseconds: int) -> None:
    assert Duration(f"{milliseconds}ms") == timedelta(milliseconds=milliseconds)


def test_names_follow_rfc_1123() -> None:
    assert check_label("a-1") == "a-1"
    assert check_subdomain("a.b-1.c") == "a.b-1.c"
    assert check_host("*.example.com") == "*.example.com"
    assert check_label_key("app.kubernetes.io/name") == "app.kubernetes.io/name"
    assert check_label_value("") == ""


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 64, "a/b", "ä", "a\n", "..", "a b"])
def test_what_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid name"):
        check_label(name)


@pytest.mark.parametrize("name", ["", ".", "a..b", ".a", "a.", "../etc", "a" * 254, "a.b\n"])
def test_what_is_no_subdomain_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid name"):
        check_subdomain(name)


@pytest.mark.parametrize("host", ["", "*", "*a.b", "a.*.b", "a|b", "http://a", "a:80", "a b"])
def test_what_is_no_host_name_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        check_host(host)


@pytest.mark.parametrize("value", ["-a", "a-", "a b", "a" * 64, "a/b", "a\n"])
def test_what_is_no_label_value_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="label value"):
        check_label_value(value)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("http", Protocol.HTTP),
        ("http-web", Protocol.HTTP),
        ("HTTP-web", Protocol.HTTP),
        ("http2-x", Protocol.HTTP2),
        ("grpc", Protocol.GRPC),
        ("grpc-web", Protocol.HTTP),
        ("grpc-web-ui", Protocol.HTTP),
        ("grpc-x", Protocol.GRPC),
        ("tcp-x", Protocol.TCP),
        ("tls", Protocol.TLS),
        ("https-x", Protocol.HTTPS),
        ("mysql", Protocol.TCP),
        ("redis-cache", Protocol.TCP),
        ("mongo", Protocol.TCP),
        ("web", Protocol.UNSUPPORTED),
        ("httpx", Protocol.UNSUPPORTED),
        ("", Protocol.UNSUPPORTED),
    ],
)
def test_the_prefix_of_a_port_name_tells_its_protocol(name: str, protocol: Protocol) -> None:
    assert service_protocol(8080, name) is protocol


def test_app_protocol_wins_over_the_name_and_udp_over_both() -> None:
    assert service_protocol(80, "tcp-x", app_protocol="http") is Protocol.HTTP
    assert service_protocol(80, "tcp-x", app_protocol="kubernetes.io/h2c") is Protocol.HTTP2
    assert service_protocol(80, "http", app_protocol="example.com/own") is Protocol.UNSUPPORTED
    assert service_protocol(53, "http", "UDP", "http") is Protocol.UDP


def test_ports_where_the_server_speaks_first_are_tcp_unless_declared() -> None:
    assert service_protocol(3306, "db") is Protocol.TCP
    assert service_protocol(3306, "http") is Protocol.HTTP


def test_a_service_entry_declares_its_protocol_or_names_it() -> None:
    assert entry_protocol("HTTP2") is Protocol.HTTP2
    assert entry_protocol("grpc") is Protocol.GRPC
    assert entry_protocol("", "http-x") is Protocol.HTTP
    assert entry_protocol("", "x") is Protocol.UNSUPPORTED


@pytest.mark.parametrize(
    "pattern",
    [
        "/a/.*",
        "^(a|b)+$",
        "[]a]",
        "[^]a]",
        "[[:alpha:]]+",
        r"\(",
        r"[\]]",
        r"\Q(*\E",
        "(?P<n>x)",
        "(?i)a",
        "a{2,3}",
        "{",
        "^*",
        "a*?b+?c??",
        "(?:a)*",
        "a||b",
        r"\d{1000}",
    ],
)
def test_regular_expressions_of_re2_pass(pattern: str) -> None:
    assert check_regex(pattern) == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "(",
        ")",
        "a)(",
        "[",
        "[a",
        "[]",
        "[^]",
        "*",
        "+a",
        "a|*",
        "(*)",
        "\\",
        r"(a)\1",
        "(?=a)",
        "(?<!a)",
        "(?>a)",
        "a{1001}",
        "a{1,1001}",
        "a{2,1}",
        "a**",
        "a*+",
        "(?P=n)",
        "(?#c)",
        r"\Z",
        "x" * 1025,
    ],
)
def test_what_re2_would_refuse_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"regular expression|RE2|without|repeat|backslash"):
        check_regex(pattern)


@pytest.mark.parametrize("value", ["", "a", "%%", "100%%", "%REQ(x-id)%", "%START_TIME(%s)%", "%REQ(A?B):3% é\t"])
def test_header_values_may_have_envoy_s_commands(value: str) -> None:
    assert check_header_value(value) == value


@pytest.mark.parametrize("value", ["%", "100%", "%REQ(x", "%foo%", "a\nb", "a\x00", "x" * 20_000])
def test_header_values_that_envoy_refuses_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"'%%'|line break|control character|at most"):
        check_header_value(value)
