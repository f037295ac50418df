"""Which route takes a request: Envoy's matching, for the matchers that routes here are made of."""

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl

from envoy.config.route.v3.route_components_pb2 import (
    HeaderMatcher,
    QueryParameterMatcher,
    Route,
    RouteMatch,
    VirtualHost,
)
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from hostmesh_controller.explain.call import Call
from hostmesh_controller.names import ANY_DOMAIN, domain_closeness


def route_for(host: VirtualHost, call: Call) -> Route | None:
    """Return the first route of a virtual host that takes the request; None: it is answered 404."""
    return next((route for route in host.routes if takes(route.match, call)), None)


def virtual_host_for(hosts: Iterable[VirtualHost], authority: str) -> VirtualHost | None:
    """Return the virtual host of a host header: exact, then the longest suffix or prefix wildcard, then `*`."""
    hosts = tuple(hosts)
    for wanted in (authority, authority.rpartition(":")[0] if ":" in authority else authority):
        found = [(domain_closeness(domain, wanted), host) for host in hosts for domain in host.domains]
        best = max((closeness for closeness, _ in found), default=0)
        if best > ANY_DOMAIN:
            return next(host for closeness, host in found if closeness == best)
    return next((host for host in hosts if "*" in host.domains), None)


def takes(match: RouteMatch, call: Call) -> bool:
    """Tell whether a request is what a route asks for; a share of requests (`runtimeFraction`) counts as all."""
    return (
        _path(match, call.path.partition("?")[0])
        and all(_header(each, call) for each in match.headers)
        and all(_query(each, call) for each in match.query_parameters)
        # The call has no token, so it has no claims.
        and all(each.invert for each in match.dynamic_metadata)
        and (not match.HasField("grpc") or call.scheme == "grpc")
    )


def _path(match: RouteMatch, path: str) -> bool:
    kind = match.WhichOneof("path_specifier")
    fold = match.HasField("case_sensitive") and not match.case_sensitive.value
    wanted = getattr(match, kind) if kind in {"prefix", "path", "path_separated_prefix"} else ""
    seen = path.lower() if fold else path
    wanted = wanted.lower() if fold else wanted
    if kind == "prefix":
        return seen.startswith(wanted)
    if kind == "path":
        return seen == wanted
    if kind == "path_separated_prefix":
        return seen == wanted or seen.startswith(f"{wanted}/")
    if kind == "safe_regex":
        return _regex(match.safe_regex.regex, path)
    return False


def _header(matcher: HeaderMatcher, call: Call) -> bool:
    value = _header_value(matcher.name, call)
    kind = matcher.WhichOneof("header_match_specifier")
    if value is None and matcher.treat_missing_header_as_empty:
        value = ""
    if kind == "present_match":
        holds = (value is not None) == matcher.present_match
    elif value is None:
        # Without the header nothing can be said of its value: also the inverted match does not hold.
        return False
    elif kind == "string_match":
        holds = text_holds(matcher.string_match, value)
    else:
        holds = True
    return holds != matcher.invert_match


def _header_value(name: str, call: Call) -> str | None:
    pseudo = {":authority": call.authority, ":method": call.method, ":path": call.path, ":scheme": "http"}
    return pseudo[name] if name in pseudo else call.headers.get(name)


def _query(matcher: QueryParameterMatcher, call: Call) -> bool:
    found = dict(reversed(parse_qsl(call.path.partition("?")[2], keep_blank_values=True)))
    value = found.get(matcher.name)
    if matcher.WhichOneof("query_parameter_match_specifier") == "string_match":
        return value is not None and text_holds(matcher.string_match, value)
    return value is not None


def text_holds(matcher: StringMatcher, value: str) -> bool:
    """Tell whether a text is what a matcher asks for."""
    kind = matcher.WhichOneof("match_pattern")
    if kind == "safe_regex":
        return _regex(matcher.safe_regex.regex, value)
    wanted: str = getattr(matcher, kind) if kind in {"exact", "prefix", "suffix", "contains"} else ""
    seen, wanted = (value.lower(), wanted.lower()) if matcher.ignore_case else (value, wanted)
    if kind == "exact":
        return seen == wanted
    if kind == "prefix":
        return seen.startswith(wanted)
    if kind == "suffix":
        return seen.endswith(wanted)
    return kind == "contains" and wanted in seen


def _regex(pattern: str, text: str) -> bool:
    # RE2's patterns are Python's but for a few escapes; one that Python does not know matches nothing here.
    try:
        return re.fullmatch(pattern, text) is not None
    except re.error:
        return False
