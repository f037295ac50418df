"""What happens to a request that a VirtualService's route takes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from envoy.config.core.v3.base_pb2 import RuntimeFractionalPercent
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, WeightedCluster
from envoy.type.matcher.v3.regex_pb2 import RegexMatchAndSubstitute, RegexMatcher
from envoy.type.v3.percent_pb2 import FractionalPercent
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from hostmesh_controller.model.virtual_service import (
    Destination,
    HttpRewrite,
    HttpRoute,
    HttpRouteDestination,
    Percentage,
    Retries,
)
from hostmesh_controller.xds.encoding import any_of, duration
from hostmesh_controller.xds.filters import CORS, FAULT
from hostmesh_controller.xds.route_cors import cors_policy
from hostmesh_controller.xds.route_faults import faults, hundredths, millionths
from hostmesh_controller.xds.route_headers import authority_of, set_headers
from hostmesh_controller.xds.route_redirect import direct_response, redirect_action
from hostmesh_controller.xds.route_retries import retry_policy


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a route's outcome depends on besides the route.

    `port` was called, over TLS where `tls`. `retries` are the mesh's. `cluster` names the cluster of a destination,
    `hashes` tells by what of a request its endpoints are chosen (nothing: not by the request).
    """

    port: int
    tls: bool
    retries: Retries | None
    cluster: Callable[[Destination], str]
    hashes: Callable[[Destination], Sequence[RouteAction.HashPolicy]]


def set_outcome(route: Route, http: HttpRoute, around: Surroundings) -> None:
    """Set what happens: a redirect, an answer, or a way to one or more clusters."""
    set_headers(route, http.headers)
    if http.redirect is not None:
        route.redirect.CopyFrom(redirect_action(http.redirect, around.port, tls=around.tls))
    elif http.direct_response is not None:
        route.direct_response.CopyFrom(direct_response(http.direct_response))
    else:
        _forward(route, http, around)
    if http.fault is not None:
        route.typed_per_filter_config[FAULT].CopyFrom(any_of(faults(http.fault)))
    if http.cors_policy is not None:
        route.typed_per_filter_config[CORS].CopyFrom(any_of(cors_policy(http.cors_policy)))


def set_timeout(action: RouteAction, timeout: timedelta | None) -> None:
    """Set the timeout: Istio has none unless one is set, where Envoy's own default is 15 s.

    A gRPC caller's own, shorter one holds too. Envoy logs a warning per route for the field that says so, as it does
    under Istio; but it passes over `timeout` where the new field, `max_stream_duration`, is there.
    """
    wire = duration(timeout.total_seconds() if timeout is not None else 0)
    action.timeout.CopyFrom(wire)
    action.max_grpc_timeout.CopyFrom(wire)


def _forward(route: Route, http: HttpRoute, around: Surroundings) -> None:
    action = route.route
    set_timeout(action, http.timeout)
    authority = authority_of(http.headers)
    if http.rewrite is not None:
        _rewrite(action, http.rewrite)
        authority = http.rewrite.authority or authority
    if authority:
        action.host_rewrite_literal = authority
    for destination, share in _mirrors(http):
        action.request_mirror_policies.add(
            cluster=around.cluster(destination),
            runtime_fraction=RuntimeFractionalPercent(default_value=share),
            trace_sampled=BoolValue(value=False),
            # The copy is the request as it is, not one to `HOST-shadow`.
            disable_shadow_host_suffix_append=True,
        )
    hashed = _set_clusters(route, http, around)
    retries = retry_policy(http.retries if http.retries is not None else around.retries, hashed=hashed)
    if retries is not None:
        action.retry_policy.CopyFrom(retries)


def _rewrite(action: RouteAction, rewrite: HttpRewrite) -> None:
    regex = rewrite.uri_regex_rewrite
    if regex is not None:
        action.regex_rewrite.CopyFrom(
            RegexMatchAndSubstitute(pattern=RegexMatcher(regex=regex.match), substitution=regex.rewrite)
        )
    elif rewrite.uri:
        # Envoy replaces what the route's match took: the prefix, or all of an exact path or a pattern.
        action.prefix_rewrite = rewrite.uri


def _mirrors(http: HttpRoute) -> Iterator[tuple[Destination, FractionalPercent]]:
    if http.mirror is not None:
        share = _mirror_share(http.mirror_percentage, http.mirror_percent)
        if share is not None:
            yield http.mirror, share
    for each in http.mirrors:
        share = _mirror_share(each.percentage, None)
        if share is not None:
            yield each.destination, share


def _mirror_share(percentage: Percentage | None, percent: int | None) -> FractionalPercent | None:
    if percentage is not None:
        return millionths(percentage) if percentage.value > 0 else None
    if percent is None:
        return hundredths(100)
    return hundredths(percent) if percent > 0 else None


def _set_clusters(route: Route, http: HttpRoute, around: Surroundings) -> bool:
    """Set where requests go, and tell whether the endpoint follows from the request."""
    action = route.route
    if len(http.route) == 1:
        only = http.route[0]
        action.cluster = around.cluster(only.destination)
        set_headers(route, only.headers)
        authority = authority_of(only.headers)
        if authority and not action.host_rewrite_literal:
            action.host_rewrite_literal = authority
        return _add_hash(action, only, around)
    for each in http.route:
        if each.weight:
            _add_weighted(action.weighted_clusters, each, around)
            _add_hash(action, each, around)
    # As in Istio: of several destinations a retry always looks for another endpoint.
    return False


def _add_hash(action: RouteAction, entry: HttpRouteDestination, around: Surroundings) -> bool:
    policies = around.hashes(entry.destination)
    action.hash_policy.extend(policies)
    return bool(policies)


def _add_weighted(to: WeightedCluster, entry: HttpRouteDestination, around: Surroundings) -> None:
    weighted = to.clusters.add(name=around.cluster(entry.destination), weight=UInt32Value(value=entry.weight or 0))
    set_headers(weighted, entry.headers)
    authority = authority_of(entry.headers)
    if authority:
        weighted.host_rewrite_literal = authority
