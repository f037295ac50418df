"""Which requests the routes of a VirtualService take, scenario by scenario as Istio's own translation is tested."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from routing import header, match, read, route, routes, to

GATEWAY = "default/some-gateway"


def test_a_plain_route_has_istios_defaults() -> None:
    found = route(to())
    assert found.name == ""
    assert found.match.prefix == "/"
    assert found.decorator.operation == "one.default.svc.cluster.local:8484/*"
    origin = found.metadata.filter_metadata["istio"].fields["config"].string_value
    assert origin == "/apis/networking.istio.io/v1/namespaces/default/virtual-service/acme"
    action = found.route
    assert action.cluster == "outbound|8484||one.default.svc.cluster.local"
    assert action.HasField("timeout")
    assert action.timeout == Duration()
    assert read(action.retry_policy) == {
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "num_retries": 2,
        "host_selection_retry_max_attempts": "5",
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
    }


def test_a_timeout_is_a_grpc_callers_too() -> None:
    action = route(to(timeout="10s")).route
    assert action.timeout.seconds == 10
    assert action.max_grpc_timeout.seconds == 10
    assert not action.HasField("max_stream_duration")


@pytest.mark.parametrize(
    ("http", "one_match", "name"),
    [
        ({}, {}, ""),
        ({"name": "route"}, {}, "route"),
        ({"name": "route"}, {"name": "part"}, "route.part"),
        ({}, {"name": "part"}, ".part"),
    ],
)
def test_routes_are_named_as_in_istio(http: dict[str, Any], one_match: dict[str, Any], name: str) -> None:
    assert route(to(match=[{"uri": {"exact": "/"}, **one_match}], **http)).name == name


@pytest.mark.parametrize(
    ("https", "names"),
    [
        # What takes everything ends the list, wherever it stands.
        (
            [
                to(
                    name="route",
                    match=[
                        {"name": "non-catch-all", "uri": {"prefix": "/route/v1"}},
                        {"name": "catch-all", "uri": {"prefix": "/"}},
                        {"name": "never", "uri": {"prefix": "/never"}},
                    ],
                ),
                to(name="later"),
            ],
            ["route.non-catch-all", "route.catch-all"],
        ),
        ([to(name="first"), to(name="second", match=[{"uri": {"prefix": "/a"}}])], ["first"]),
        ([to(name="any", match=[{"uri": {"regex": ".*"}}]), to(name="later")], ["any"]),
        ([to(name="a", match=[{"uri": {"prefix": "/"}, "headers": {"x": {}}}]), to(name="b")], ["a", "b"]),
        ([to(name="a", match=[{"queryParams": {"x": {"exact": "1"}}}]), to(name="b")], ["a", "b"]),
        # A match for another port is none.
        (
            [
                to(name="1", match=[{"name": "8080", "port": 8080}]),
                to(name="2", match=[{"headers": {"cookie": {"exact": "canary"}}}]),
                to(name="3"),
            ],
            ["1.8080"],
        ),
        ([to(name="1", match=[{"port": 81}]), to(name="2")], ["2"]),
        ([to(name="1", match=[{"port": 81}, {"port": 82}])], []),
    ],
)
def test_order_and_ports_decide_which_routes_there_are(https: list[dict[str, Any]], names: list[str]) -> None:
    assert [each.name for each in routes(*https)] == names


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({"sourceLabels": {"app": "web"}}, True),
        ({"sourceLabels": {"app": "web", "version": "v2"}}, False),
        ({"sourceNamespace": "default"}, True),
        ({"sourceNamespace": "other"}, False),
        ({"sourceLabels": {"app": "web"}, "sourceNamespace": "other"}, False),
        ({"gateways": ["mesh"]}, True),
        ({"gateways": ["some-gateway"]}, False),
        ({"gateways": ["some-gateway", "mesh"]}, True),
        # Where gateways are named, the source is not asked for.
        ({"gateways": ["mesh"], "sourceLabels": {"app": "other"}}, True),
    ],
)
def test_a_match_can_be_for_some_callers(wanted: dict[str, Any], holds: bool) -> None:
    assert bool(routes(to(match=[wanted]))) is holds


def test_a_gateway_has_the_routes_that_name_it_or_nobody() -> None:
    https = (
        to(name="edge", match=[{"uri": {"prefix": "/a"}, "gateways": ["some-gateway"]}]),
        to(name="mesh", match=[{"uri": {"prefix": "/b"}, "gateways": ["mesh"]}]),
        to(name="any", match=[{"uri": {"prefix": "/c"}}]),
    )
    assert [each.name for each in routes(*https, gateways=(GATEWAY,))] == ["edge", "any"]


def test_a_path_is_matched_as_it_is_written() -> None:
    assert match(uri={"exact": "/a"}) == {"path": "/a", "case_sensitive": True}
    assert match(uri={"prefix": "/a"}) == {"prefix": "/a", "case_sensitive": True}
    assert match(uri={"regex": r"\/(.?)\/status"}) == {
        "safe_regex": {"regex": r"\/(.?)\/status"},
        "case_sensitive": True,
    }
    assert match(uri={"prefix": "/A"}, ignoreUriCase=True) == {"prefix": "/A", "case_sensitive": False}


@pytest.mark.parametrize("value", [{}, {"regex": "*"}])
def test_a_header_can_be_asked_to_be_there_or_not(value: dict[str, str]) -> None:
    if value:
        # Only of what must not hold Istio's validation takes this.
        found = header(withoutHeaders={"FOO-HEADER": value})
        assert (found.name, found.present_match, found.invert_match) == ("FOO-HEADER", True, True)
        assert not found.treat_missing_header_as_empty
        return
    found = header(headers={"FOO-HEADER": value})
    assert (found.name, found.present_match, found.invert_match) == ("FOO-HEADER", True, False)


def test_a_header_that_must_not_hold_may_be_missing() -> None:
    found = header(withoutHeaders={"x": {"regex": r"BAR .+?\..+?"}})
    assert found.string_match.safe_regex.regex == r"BAR .+?\..+?"
    assert found.invert_match
    assert found.treat_missing_header_as_empty


def test_what_is_not_the_path_is_a_header_and_headers_come_in_order() -> None:
    wanted = {
        "headers": {"b": {"exact": "1"}, "a": {"prefix": "2"}},
        "method": {"exact": "GET"},
        "authority": {"prefix": "x."},
        "scheme": {"exact": "https"},
    }
    found = route(to(match=[wanted])).match
    assert [each.name for each in found.headers] == ["a", "b", ":method", ":authority", ":scheme"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"exact": "foo"}, {"name": "token", "string_match": {"exact": "foo"}}),
        ({"prefix": "foo-"}, {"name": "token", "string_match": {"prefix": "foo-"}}),
        ({"regex": "BAR.*"}, {"name": "token", "string_match": {"safe_regex": {"regex": "BAR.*"}}}),
        ({}, {"name": "token", "present_match": True}),
    ],
)
def test_a_query_parameter_is_matched(value: dict[str, str], expected: dict[str, Any]) -> None:
    assert match(queryParams={"token": value})["query_parameters"] == [expected]


def test_statistics_have_the_name_that_the_match_gives() -> None:
    https = to(match=[{"uri": {"prefix": "/foo"}, "statPrefix": "foo"}, {"uri": {"prefix": "/baz"}}])
    assert [each.stat_prefix for each in routes(https)] == ["foo", ""]
