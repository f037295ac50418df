"""What the routes of a VirtualService do, scenario by scenario as Istio's own translation is tested."""

from typing import Any

import pytest
from envoy.config.route.v3.route_components_pb2 import RedirectAction, RetryPolicy
from envoy.extensions.filters.http.cors.v3.cors_pb2 import CorsPolicy
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from google.protobuf.message import Message

from golden.objects import obj
from hostmesh_controller.xds.filters import CORS, FAULT
from routing import read, route, to

SET_AND_ADD = {
    "request": {"set": {"x-set": "v1", ":authority": "{authority}"}, "add": {"x-add": "v2"}, "remove": ["x-gone"]},
    "response": {"set": {"x-set": "v1"}, "add": {"x-add": "v2"}, "remove": ["x-gone"]},
}


def operations(authority: str) -> dict[str, Any]:
    request = {**SET_AND_ADD["request"], "set": {"x-set": "v1", ":authority": authority}}
    return {**SET_AND_ADD, "request": request}


OPERATED: dict[str, list[Any]] = {
    "request_headers_to_add": [
        {"header": {"key": "x-set", "value": "v1"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
        {"header": {"key": "x-add", "value": "v2"}},
    ],
    "request_headers_to_remove": ["x-gone"],
    "response_headers_to_add": [
        {"header": {"key": "x-set", "value": "v1"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
        {"header": {"key": "x-add", "value": "v2"}},
    ],
    "response_headers_to_remove": ["x-gone"],
}


def operated(message: Message) -> dict[str, Any]:
    return {key: value for key, value in read(message).items() if key in OPERATED}


def test_headers_of_one_destination_are_the_routes_own_after_the_routes() -> None:
    http = to(headers=operations("route.example.com"))
    http["route"][0]["headers"] = operations("destination.example.com")
    found = route(http)
    assert operated(found) == {key: value * 2 for key, value in OPERATED.items()}
    assert found.route.host_rewrite_literal == "route.example.com"
    del http["headers"]
    assert route(http).route.host_rewrite_literal == "destination.example.com"


def test_headers_of_weighted_destinations_are_theirs() -> None:
    http = {
        "route": [
            {
                "destination": {"host": "one", "subset": color},
                "weight": 50,
                "headers": operations(f"{color}.example.com"),
            }
            for color in ("blue", "green")
        ]
    }
    found = route(http)
    assert operated(found) == {}
    clusters = found.route.weighted_clusters.clusters
    assert [each.name.split("|")[2] for each in clusters] == ["blue", "green"]
    assert [each.host_rewrite_literal for each in clusters] == ["blue.example.com", "green.example.com"]
    assert all(operated(each) == OPERATED for each in clusters)
    assert found.decorator.operation == "acme:8080/*"


def test_a_weight_of_zero_is_left_out_beside_others_and_everything_alone() -> None:
    zero = {"destination": {"host": "one"}, "weight": 0}
    other = {"destination": {"host": "two"}, "weight": 7}
    found = route({"route": [zero, other]}).route.weighted_clusters.clusters
    assert [(each.name, each.weight.value) for each in found] == [("outbound|81||two.default.svc.cluster.local", 7)]
    assert route({"route": [zero]}).route.cluster == "outbound|8080||one.default.svc.cluster.local"


def redirect(called: int = 8080, *, tls: bool = False, **more: Any) -> RedirectAction:
    return route({"redirect": more}, port=called, tls=tls).redirect


def test_a_redirect_is_what_istio_makes_of_it() -> None:
    assert (
        redirect(redirectCode=308, authority="example.org", uri="/").response_code == RedirectAction.PERMANENT_REDIRECT
    )
    assert redirect(uri="/replace-full-path").path_redirect == "/replace-full-path"
    found = redirect(prefixRewrite="/", authority="foo.example.com")
    assert (found.prefix_rewrite, found.host_redirect) == ("/", "foo.example.com")
    assert found.response_code == RedirectAction.MOVED_PERMANENTLY


@pytest.mark.parametrize(
    ("redirection", "port", "tls", "expected"),
    [
        ({"port": 8443}, 80, False, 8443),
        ({"port": 80}, 8080, False, 0),
        ({"port": 443, "scheme": "https"}, 80, False, 0),
        ({"port": 80, "scheme": "https"}, 80, False, 80),
        ({"port": 443}, 443, True, 0),
        ({"derivePort": "FROM_REQUEST_PORT"}, 8080, False, 8080),
        ({"derivePort": "FROM_REQUEST_PORT"}, 80, False, 0),
        ({"derivePort": "FROM_REQUEST_PORT", "scheme": "https"}, 80, False, 80),
        ({"derivePort": "FROM_PROTOCOL_DEFAULT", "scheme": "https"}, 8080, False, 0),
    ],
)
def test_a_redirect_names_a_port_only_where_it_must(
    redirection: dict[str, Any], port: int, tls: bool, expected: int
) -> None:
    assert redirect(port, tls=tls, **redirection).port_redirect == expected


def test_answers_of_the_proxy_have_headers_too() -> None:
    headers = {"response": {"set": {"Strict-Transport-Security": "max-age=31536000"}}}
    found = route({"directResponse": {"status": 200, "body": {"string": "hello"}}, "headers": headers})
    assert (found.direct_response.status, found.direct_response.body.inline_string) == (200, "hello")
    assert found.response_headers_to_add[0].header.key == "Strict-Transport-Security"
    found = route({"directResponse": {"status": 204, "body": {"bytes": "aGVsbG8="}}})
    assert found.direct_response.body.inline_bytes == b"hello"
    assert route({"redirect": {"uri": "/"}, "headers": headers}).response_headers_to_add


def test_a_rewrite_replaces_what_was_matched() -> None:
    found = route(to(match=[{"uri": {"prefix": "/old"}}], rewrite={"uri": "/new", "authority": "bar.example.org"}))
    assert (found.route.prefix_rewrite, found.route.host_rewrite_literal) == ("/new", "bar.example.org")
    rewrite = {"uriRegexRewrite": {"match": "^/service/([^/]+)(/.*)$", "rewrite": r"\2/instance/\1"}}
    found = route(to(match=[{"uri": {"prefix": "/service"}}], rewrite=rewrite))
    assert found.route.regex_rewrite.pattern.regex == "^/service/([^/]+)(/.*)$"
    assert found.route.regex_rewrite.substitution == r"\2/instance/\1"


def retries(**more: Any) -> RetryPolicy:
    return route(to(retries=more)).route.retry_policy


def test_retries_are_what_istio_makes_of_them() -> None:
    found = retries(attempts=4, retryOn="5xx,503,gateway-error", perTryTimeout="2s", backoff="50ms")
    assert found.num_retries.value == 4
    assert found.retry_on == "5xx,gateway-error,retriable-status-codes"
    assert list(found.retriable_status_codes) == [503]
    assert found.per_try_timeout.seconds == 2
    assert found.retry_back_off.base_interval.nanos == 50_000_000
    assert retries(attempts=1, retryOn="retriable-status-codes,503").retry_on == "retriable-status-codes"
    assert retries(attempts=1).retry_on.startswith("connect-failure,")
    assert not route(to(retries={"attempts": 0})).route.HasField("retry_policy")


def test_retries_go_elsewhere_as_is_said() -> None:
    assert len(retries(attempts=1).retry_host_predicate) == 1
    assert not retries(attempts=1, retryIgnorePreviousHosts=False).retry_host_predicate
    assert not retries(attempts=1).HasField("retry_priority")
    found = retries(attempts=1, retryRemoteLocalities=True).retry_priority
    assert found.name == "envoy.retry_priorities.previous_priorities"


def test_the_mesh_says_how_routes_are_retried_that_do_not_say_it() -> None:
    config = obj("MeshConfig", "default", {"defaultHttpRetryPolicy": {"attempts": 7}})
    assert route(to(), more=(config,)).route.retry_policy.num_retries.value == 7
    assert route(to(retries={"attempts": 1}), more=(config,)).route.retry_policy.num_retries.value == 1


@pytest.mark.parametrize(
    ("http", "shares"),
    [
        ({"mirror": {"host": "two"}}, [(100, "HUNDRED")]),
        ({"mirror": {"host": "two"}, "mirrorPercent": 50}, [(50, "HUNDRED")]),
        ({"mirror": {"host": "two"}, "mirrorPercent": 50, "mirrorPercentage": {"value": 12.5}}, [(125_000, "MILLION")]),
        ({"mirror": {"host": "two"}, "mirrorPercentage": {"value": 0}}, []),
        ({"mirror": {"host": "two"}, "mirrorPercent": 0}, []),
        (
            {
                "mirrors": [
                    {"destination": {"host": "two"}},
                    {"destination": {"host": "two"}, "percentage": {"value": 0}},
                    {"destination": {"host": "two"}, "percentage": {"value": 33.33337}},
                ]
            },
            [(100, "HUNDRED"), (333_333, "MILLION")],
        ),
    ],
)
def test_copies_are_made_of_a_share(http: dict[str, Any], shares: list[tuple[int, str]]) -> None:
    found = route(to(**http)).route.request_mirror_policies
    values = [read(each.runtime_fraction.default_value) for each in found]
    assert [(each["numerator"], each.get("denominator", "HUNDRED")) for each in values] == shares
    assert {each.cluster for each in found} <= {"outbound|81||two.default.svc.cluster.local"}
    assert all(each.disable_shadow_host_suffix_append for each in found)


def test_faults_without_a_percentage_are_of_no_request() -> None:
    found = HTTPFault()
    config = route(to(fault={"delay": {"fixedDelay": "2s"}, "abort": {"httpStatus": 418}})).typed_per_filter_config[
        FAULT
    ]
    assert config.Unpack(found)
    assert found.delay.fixed_delay.seconds == 2
    assert found.delay.percentage.numerator == 0
    assert not found.abort.HasField("percentage")


def test_faults_have_their_percentage() -> None:
    found = HTTPFault()
    fault = {
        "delay": {"fixedDelay": "2s", "percent": 7},
        "abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 0.5}},
    }
    assert route(to(fault=fault)).typed_per_filter_config[FAULT].Unpack(found)
    assert read(found.delay.percentage) == {"numerator": 7}
    assert found.abort.grpc_status == 14
    assert read(found.abort.percentage) == {"numerator": 5000, "denominator": "MILLION"}


def cors(**more: Any) -> CorsPolicy:
    found = CorsPolicy()
    assert route(to(corsPolicy=more)).typed_per_filter_config[CORS].Unpack(found)
    return found


def test_a_cors_policy_is_what_istio_makes_of_it() -> None:
    found = cors(
        allowOrigins=[{"exact": "a"}, {"prefix": "b"}, {"regex": "c"}],
        allowMethods=["GET", "POST"],
        allowHeaders=["x", "y"],
        exposeHeaders=["z"],
        maxAge="2m",
        allowCredentials=True,
    )
    assert read(found) == {
        "allow_origin_string_match": [{"exact": "a"}, {"prefix": "b"}, {"safe_regex": {"regex": "c"}}],
        "allow_methods": "GET,POST",
        "allow_headers": "x,y",
        "expose_headers": "z",
        "max_age": "120",
        "allow_credentials": True,
        "filter_enabled": {"default_value": {"numerator": 100}},
        "forward_not_matching_preflights": True,
    }
    assert cors(allowOrigin=["a"]).allow_origin_string_match[0].exact == "a"
    assert not cors(unmatchedPreflights="IGNORE").forward_not_matching_preflights.value


def test_what_is_hashed_is_on_the_route_and_retries_stay_there() -> None:
    settings = {
        "subsets": [
            {"name": "v1", "trafficPolicy": {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-sub"}}}},
            {"name": "v2"},
        ],
        "trafficPolicy": {"loadBalancer": {"consistentHash": {"httpCookie": {"name": "session", "ttl": "0s"}}}},
    }
    rule = obj("DestinationRule", "one", {"host": "one", **settings})
    found = route(to(), more=(rule,)).route
    assert [each.cookie.name for each in found.hash_policy] == ["session"]
    assert not found.retry_policy.retry_host_predicate
    destinations = [{"destination": {"host": "one", "subset": name}, "weight": 1} for name in ("v1", "v2")]
    found = route({"route": destinations}, more=(rule,)).route
    assert [each.header.header_name or each.cookie.name for each in found.hash_policy] == ["x-sub", "session"]
    assert found.retry_policy.retry_host_predicate
