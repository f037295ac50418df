"""The HTTP routes of a VirtualService, with those of its delegates in their places, as Istio merges them."""

from collections.abc import Iterable, Iterator
from typing import Any

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.virtual_services import is_visible, virtual_service_spec
from hostmesh_controller.model.delegation import MAPPINGS, TEXTS, conflict
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.virtual_service import Destination, HttpMatch, HttpRoute
from hostmesh_controller.names import expand, gateway_name

_INHERITED = (
    *("rewrite", "direct_response", "timeout", "retries", "fault", "cors_policy", "headers"),
    *("mirror", "mirrors", "mirror_percent", "mirror_percentage"),
)
"""What a delegate's route takes from the root's where it has none itself."""


def delegates_of(item: ApiObject) -> tuple[ObjectKey, ...]:
    """Return the VirtualServices that a VirtualService delegates to, existing or not, each once."""
    delegates = (http.delegate for http in virtual_service_spec(item).http if http.delegate is not None)
    return tuple(dict.fromkeys(_key(item, each.namespace, each.name) for each in delegates))


def http_routes(mesh: Mesh, item: ApiObject) -> tuple[HttpRoute, ...]:
    """Return the routes of a VirtualService; hosts and gateways in them have their full names.

    A route whose delegate does not exist, is not visible or has hosts is left out, so is a delegate's route that takes
    other requests than the root's.
    """
    keys = delegates_of(item)
    inputs = (item, *(mesh.objects.get(key) for key in keys))
    return mesh.memo.get(("http routes", item.key, keys), inputs, lambda: tuple(_routes(mesh, item)))


def _key(item: ApiObject, namespace: str | None, name: str) -> ObjectKey:
    return ObjectKey("VirtualService", namespace or item.key.namespace, name)


def _routes(mesh: Mesh, item: ApiObject) -> Iterator[HttpRoute]:
    domain = mesh.settings.domain
    for http in virtual_service_spec(item).http:
        root = full_names(http, item.key.namespace, domain)
        if http.delegate is None:
            yield root
            continue
        delegate = mesh.objects.get(_key(item, http.delegate.namespace, http.delegate.name))
        if delegate is None or virtual_service_spec(delegate).hosts:
            continue
        if not is_visible(mesh, delegate, item.key.namespace):
            continue
        for each in virtual_service_spec(delegate).http:
            merged = merged_route(root, full_names(each, delegate.key.namespace, domain))
            if merged is not None:
                yield merged


def full_names(http: HttpRoute, namespace: str, domain: str) -> HttpRoute:
    """Return a route in which destinations and gateways have their full names."""

    def full(destination: Destination) -> Destination:
        return full_destination(destination, namespace, domain)

    def bound(match: HttpMatch) -> HttpMatch:
        gateways = tuple(gateway_name(name, namespace) for name in match.gateways)
        return match.model_copy(update={"gateways": gateways}) if gateways else match

    return http.model_copy(
        update={
            "match": tuple(map(bound, http.match)),
            "route": tuple(each.model_copy(update={"destination": full(each.destination)}) for each in http.route),
            "mirror": full(http.mirror) if http.mirror is not None else None,
            "mirrors": tuple(each.model_copy(update={"destination": full(each.destination)}) for each in http.mirrors),
        }
    )


def full_destination(destination: Destination, namespace: str, domain: str) -> Destination:
    """Return a destination as an object of `namespace` writes it, with its full name."""
    return destination.model_copy(update={"host": expand(destination.host, namespace, domain)})


def merged_route(root: HttpRoute, delegate: HttpRoute) -> HttpRoute | None:
    """Return a delegate's route in the place of the root's, or None if no request can be for both."""
    match = merged_matches(root.match, delegate.match)
    if match is None:
        return None
    update: dict[str, Any] = {"match": match, "name": _joined(root.name, delegate.name)}
    for field in _INHERITED:
        if getattr(delegate, field) in (None, ()):
            update[field] = getattr(root, field)
    return delegate.model_copy(update=update)


def merged_matches(root: tuple[HttpMatch, ...], delegate: tuple[HttpMatch, ...]) -> tuple[HttpMatch, ...] | None:
    """Return the requests that both take, or None if one of the delegate's matches is for none of the root's."""
    if not root or not delegate:
        return root or delegate
    result: list[HttpMatch] = []
    for match in delegate:
        found = [_merged_match(each, match) for each in root if not conflict(each, match)]
        if not found:
            return None
        result += found
    return tuple(result)


def _merged_match(root: HttpMatch, delegate: HttpMatch) -> HttpMatch:
    update: dict[str, Any] = {"name": _joined(root.name, delegate.name)}
    for field in (*TEXTS, "port", "source_namespace", "gateways", "stat_prefix"):
        if getattr(delegate, field) in (None, "", ()):
            update[field] = getattr(root, field)
    for field in (*MAPPINGS, "source_labels"):
        update[field] = {**getattr(root, field), **getattr(delegate, field)}
    return delegate.model_copy(update=update)


def _joined(root: str | None, delegate: str | None) -> str | None:
    return f"{root}-{delegate}" if root and delegate else delegate or root


def destination_hosts(routes: Iterable[HttpRoute]) -> tuple[str, ...]:
    """Return the host names to which routes send requests or copies of them, each once."""
    found = (destination.host for http in routes for destination in destinations(http))
    return tuple(dict.fromkeys(found))


def destinations(http: HttpRoute) -> Iterator[Destination]:
    """Yield where a route sends requests, then where it sends copies."""
    yield from (each.destination for each in http.route)
    yield from mirrors(http)


def mirrors(http: HttpRoute) -> Iterator[Destination]:
    """Yield where a route sends copies."""
    if http.mirror is not None:
        yield http.mirror
    yield from (each.destination for each in http.mirrors)
