"""Which requests a VirtualService's route takes."""

from collections.abc import Iterable, Iterator, Mapping

from envoy.config.route.v3.route_components_pb2 import HeaderMatcher, QueryParameterMatcher, RouteMatch
from envoy.type.matcher.v3.metadata_pb2 import MetadataMatcher
from envoy.type.matcher.v3.regex_pb2 import RegexMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from envoy.type.matcher.v3.value_pb2 import ListMatcher, OrMatcher, ValueMatcher
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.routing_claims import routing_claim
from hostmesh_controller.model.virtual_service import HttpMatch, StringMatch
from hostmesh_controller.xds.jwt import JWT_AUTHN, PAYLOAD

_PSEUDO = ("method", "authority", "scheme")


def is_for(match: HttpMatch, viewer: Viewer, port: int, gateways: frozenset[str]) -> bool:
    """Tell whether a match can hold for a caller, on the port that it calls.

    Args:
        match: its gateways have their full names. Where it names any, its source is not asked for, as in Istio.
        viewer: the caller, or the gateway.
        port: which was called.
        gateways: what is asked for routes: `mesh`, or the names of gateways.
    """
    if match.port not in {None, port}:
        return False
    if match.gateways:
        return not gateways.isdisjoint(match.gateways)
    return viewer.selected_by(match.source_labels) and (match.source_namespace or viewer.namespace) == viewer.namespace


def path_match(match: HttpMatch | None) -> RouteMatch:
    """Return Envoy's match; None takes every request."""
    result = RouteMatch(prefix="/")
    if match is None:
        return result
    headers = [_header(name, value) for name, value in match.headers.items() if routing_claim(name) is None]
    headers += [_without(name, value) for name, value in match.without_headers.items() if routing_claim(name) is None]
    result.headers.extend(sorted(headers, key=lambda header: header.name))
    result.dynamic_metadata.extend(_claims(match.headers, without=False))
    result.dynamic_metadata.extend(_claims(match.without_headers, without=True))
    if match.uri is not None:
        _set_path(result, match.uri)
    result.case_sensitive.CopyFrom(BoolValue(value=not match.ignore_uri_case))
    for name in _PSEUDO:
        wanted = getattr(match, name)
        if wanted is not None:
            result.headers.append(_header(f":{name}", wanted))
    for name, value in sorted(match.query_params.items()):
        found = text_match(value)
        if found is None:
            result.query_parameters.append(QueryParameterMatcher(name=name, present_match=True))
        else:
            result.query_parameters.append(QueryParameterMatcher(name=name, string_match=found))
    return result


def takes_everything(match: RouteMatch) -> bool:
    """Tell whether no request can get past a match, by Istio's rule."""
    every_path = match.prefix == "/" or match.safe_regex.regex == ".*"
    return every_path and not match.headers and not match.query_parameters and not match.dynamic_metadata


def _set_path(result: RouteMatch, uri: StringMatch) -> None:
    if uri.exact is not None:
        result.path = uri.exact
    elif uri.regex is not None:
        result.safe_regex.CopyFrom(RegexMatcher(regex=uri.regex))
    elif uri.prefix is not None:
        result.prefix = uri.prefix


def text_match(value: StringMatch) -> StringMatcher | None:
    """Return Envoy's match of a text, or None where it has only to be there."""
    if value.exact is not None:
        return StringMatcher(exact=value.exact)
    if value.prefix:
        return StringMatcher(prefix=value.prefix)
    if value.regex is not None and value.regex != "*":  # Istio: anything
        return StringMatcher(safe_regex=RegexMatcher(regex=value.regex))
    return None


def text_matches(values: Iterable[StringMatch]) -> list[StringMatcher]:
    return [found for found in map(text_match, values) if found is not None]


def _header(name: str, value: StringMatch) -> HeaderMatcher:
    found = text_match(value)
    if found is None:
        return HeaderMatcher(name=name, present_match=True)
    return HeaderMatcher(name=name, string_match=found)


def _claims(matches: Mapping[str, StringMatch], *, without: bool) -> Iterator[MetadataMatcher]:
    """Yield what is asked of a token: a claim that is a text, or a list with such a text."""
    for name, value in sorted(matches.items()):
        path = routing_claim(name)
        if path is None:
            continue
        found = text_match(value)
        wanted = ValueMatcher(present_match=True) if found is None else ValueMatcher(string_match=found)
        if found is not None:
            either = OrMatcher(value_matchers=[ValueMatcher(list_match=ListMatcher(one_of=wanted)), wanted])
            wanted = ValueMatcher(or_match=either)
        keys = [MetadataMatcher.PathSegment(key=key) for key in (PAYLOAD, *path)]
        yield MetadataMatcher(filter=JWT_AUTHN, path=keys, value=wanted, invert=without)


def _without(name: str, value: StringMatch) -> HeaderMatcher:
    matcher = _header(name, value)
    matcher.invert_match = True
    # A header that is not there does not have the value either.
    matcher.treat_missing_header_as_empty = matcher.HasField("string_match")
    return matcher
