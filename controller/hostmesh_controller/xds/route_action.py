"""What happens to a request that a VirtualService's route takes."""

from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from envoy.config.core.v3.base_pb2 import DataSource, HeaderValue, HeaderValueOption
from envoy.config.route.v3.route_components_pb2 import (
    DirectResponseAction,
    RedirectAction,
    RetryPolicy,
    Route,
    RouteAction,
    WeightedCluster,
)
from envoy.extensions.filters.common.fault.v3.fault_pb2 import FaultDelay
from envoy.extensions.filters.http.fault.v3.fault_pb2 import FaultAbort, HTTPFault
from envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2 import PreviousHostsPredicate
from envoy.type.matcher.v3.regex_pb2 import RegexMatchAndSubstitute, RegexMatcher
from envoy.type.v3.percent_pb2 import FractionalPercent
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_controller.model.virtual_service import (
    Fault,
    HeaderOperations,
    HttpMatch,
    HttpRedirect,
    HttpRewrite,
    HttpRoute,
    HttpRouteDestination,
    Percentage,
    Retries,
)
from hostmesh_controller.xds.encoding import any_of, duration
from hostmesh_controller.xds.filters import FAULT

Clusters = Sequence[tuple[str, HttpRouteDestination]]

RETRY_ON: Final = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
ATTEMPTS: Final = 2
_REDIRECT_CODES: Final = {
    301: RedirectAction.MOVED_PERMANENTLY,
    302: RedirectAction.FOUND,
    303: RedirectAction.SEE_OTHER,
    307: RedirectAction.TEMPORARY_REDIRECT,
    308: RedirectAction.PERMANENT_REDIRECT,
}
_GRPC_CODES: Final = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
_AUTHORITY: Final = frozenset({"host", ":authority"})


def duration_or_none(value: timedelta | None) -> Duration:
    """Return a route's timeout: Istio has none unless one is set, where Envoy's own default is 15 s."""
    return duration(value.total_seconds() if value is not None else 0)


def default_retries() -> RetryPolicy:
    """Return Istio's retries of a route that says nothing: 2, of what most likely never reached the program."""
    policy = RetryPolicy(
        retry_on=RETRY_ON,
        num_retries=UInt32Value(value=ATTEMPTS),
        retriable_status_codes=[503],
        host_selection_retry_max_attempts=5,
    )
    policy.retry_host_predicate.add(
        name="envoy.retry_host_predicates.previous_hosts", typed_config=any_of(PreviousHostsPredicate())
    )
    return policy


def outcome(route: Route, http: HttpRoute, match: HttpMatch | None, clusters: Clusters) -> None:
    """Set what happens: a redirect, an answer, or a way to one or more clusters."""
    if http.redirect is not None:
        _redirect(route.redirect, http.redirect)
    elif http.direct_response is not None:
        _direct(route.direct_response, http)
    else:
        _forward(route.route, http, match, clusters)
        if http.fault is not None:
            route.typed_per_filter_config[FAULT].CopyFrom(any_of(_fault(http.fault)))
    headers = [http.headers] if http.headers else []
    if len(clusters) == 1 and clusters[0][1].headers:
        headers.append(clusters[0][1].headers)
    for each in headers:
        _set_headers(route, each.request, each.response)


def _redirect(action: RedirectAction, redirect: HttpRedirect) -> None:
    if redirect.uri is not None:
        action.path_redirect = redirect.uri
    if redirect.authority is not None:
        action.host_redirect = redirect.authority
    if redirect.scheme is not None:
        action.scheme_redirect = redirect.scheme
    if redirect.port is not None:
        action.port_redirect = redirect.port
    elif redirect.derive_port == "FROM_PROTOCOL_DEFAULT":
        action.port_redirect = 443 if redirect.scheme == "https" else 80
    action.response_code = _REDIRECT_CODES[redirect.redirect_code or 301]


def _direct(action: DirectResponseAction, http: HttpRoute) -> None:
    assert http.direct_response is not None
    action.status = http.direct_response.status
    body = http.direct_response.body
    if body is not None and body.string is not None:
        action.body.CopyFrom(DataSource(inline_string=body.string))
    elif body is not None and body.bytes is not None:
        action.body.CopyFrom(DataSource(inline_bytes=b64decode(body.bytes)))


def _forward(action: RouteAction, http: HttpRoute, match: HttpMatch | None, clusters: Clusters) -> None:
    _set_clusters(action, clusters)
    action.timeout.CopyFrom(duration_or_none(http.timeout))
    retries = _retries(http.retries)
    if retries is not None:
        action.retry_policy.CopyFrom(retries)
    if http.rewrite is not None:
        _rewrite(action, http.rewrite, match)
    request = http.headers.request if http.headers else None
    authority = _authority(request)
    if authority is None and len(clusters) == 1 and clusters[0][1].headers:
        authority = _authority(clusters[0][1].headers.request)
    if authority is not None:
        action.host_rewrite_literal = authority


def _set_clusters(action: RouteAction, clusters: Clusters) -> None:
    if len(clusters) == 1:
        action.cluster = clusters[0][0]
        return
    for name, entry in clusters:
        if not entry.weight:
            continue
        weighted = action.weighted_clusters.clusters.add(name=name, weight=UInt32Value(value=entry.weight))
        if entry.headers is not None:
            _set_headers(weighted, entry.headers.request, entry.headers.response)
            authority = _authority(entry.headers.request)
            if authority is not None:
                weighted.host_rewrite_literal = authority


def _rewrite(action: RouteAction, rewrite: HttpRewrite, match: HttpMatch | None) -> None:
    if rewrite.authority is not None:
        action.host_rewrite_literal = rewrite.authority
    if rewrite.uri_regex_rewrite is not None:
        _regex_rewrite(action, rewrite.uri_regex_rewrite.match, rewrite.uri_regex_rewrite.rewrite)
    elif rewrite.uri is not None:
        regex = match.uri.regex if match is not None and match.uri is not None else None
        if regex is not None:
            # A path that was matched by a pattern has no prefix to replace: what the pattern found is replaced.
            _regex_rewrite(action, regex, rewrite.uri)
        else:
            action.prefix_rewrite = rewrite.uri


def _regex_rewrite(action: RouteAction, pattern: str, substitution: str) -> None:
    action.regex_rewrite.CopyFrom(
        RegexMatchAndSubstitute(pattern=RegexMatcher(regex=pattern), substitution=substitution)
    )


def _retries(retries: Retries | None) -> RetryPolicy | None:
    policy = default_retries()
    if retries is None:
        return policy
    if retries.attempts == 0:
        return None
    if retries.attempts is not None:
        policy.num_retries.value = retries.attempts
    if retries.per_try_timeout is not None:
        policy.per_try_timeout.CopyFrom(duration(retries.per_try_timeout.total_seconds()))
    if retries.retry_on:
        _retry_on(policy, retries.retry_on)
    return policy


def _retry_on(policy: RetryPolicy, text: str) -> None:
    # Istio takes numbers among the conditions as status codes.
    parts = [part.strip() for part in text.split(",") if part.strip()]
    codes = [int(part) for part in parts if part.isascii() and part.isdigit()]
    conditions = [part for part in parts if not part.isdigit()]
    if codes and "retriable-status-codes" not in conditions:
        conditions.append("retriable-status-codes")
    policy.retry_on = ",".join(conditions)
    del policy.retriable_status_codes[:]
    policy.retriable_status_codes.extend(codes)


def _fault(fault: Fault) -> HTTPFault:
    result = HTTPFault()
    if fault.delay is not None:
        result.delay.CopyFrom(
            FaultDelay(
                fixed_delay=duration(fault.delay.fixed_delay.total_seconds()),
                percentage=_percent(fault.delay.percentage),
            )
        )
    if fault.abort is not None:
        result.abort.CopyFrom(FaultAbort(percentage=_percent(fault.abort.percentage)))
        if fault.abort.http_status is not None:
            result.abort.http_status = fault.abort.http_status
        elif fault.abort.grpc_status is not None:
            result.abort.grpc_status = _GRPC_CODES.get(fault.abort.grpc_status.upper(), _GRPC_CODES["UNKNOWN"])
    return result


def _percent(percentage: Percentage | None) -> FractionalPercent:
    if percentage is None:
        return FractionalPercent(numerator=100)
    return FractionalPercent(numerator=round(percentage.value * 10_000), denominator=FractionalPercent.MILLION)


def _set_headers(
    to: Route | WeightedCluster.ClusterWeight, request: HeaderOperations | None, response: HeaderOperations | None
) -> None:
    if request is not None:
        to.request_headers_to_add.extend(_added(request))
        to.request_headers_to_remove.extend(_plain_names(request.remove))
    if response is not None:
        to.response_headers_to_add.extend(_added(response))
        to.response_headers_to_remove.extend(_plain_names(response.remove))


def _added(operations: HeaderOperations) -> list[HeaderValueOption]:
    actions: list[tuple[Mapping[str, str], HeaderValueOption.HeaderAppendAction.ValueType]] = [
        (operations.set, HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD),
        (operations.add, HeaderValueOption.APPEND_IF_EXISTS_OR_ADD),
    ]
    return [
        HeaderValueOption(header=HeaderValue(key=name, value=values[name]), append_action=action)
        for values, action in actions
        for name in sorted(_plain_names(values))
    ]


def _plain_names(names: Iterable[str]) -> list[str]:
    # Envoy refuses to change these as headers: the host is rewritten instead, the others cannot be.
    return [name for name in names if not name.startswith(":") and name.lower() not in _AUTHORITY]


def _authority(operations: HeaderOperations | None) -> str | None:
    values = operations.set if operations else {}
    return next((value for name, value in values.items() if name.lower() in _AUTHORITY), None)
