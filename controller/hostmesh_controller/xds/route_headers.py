"""What a route changes in the headers of requests and answers."""

from collections.abc import Iterable, Mapping
from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.config.route.v3.route_components_pb2 import Route, WeightedCluster

from hostmesh_controller.model.virtual_service import HeaderOperations, Headers

_AUTHORITY: Final = frozenset({"host", ":authority"})


def set_headers(to: Route | WeightedCluster.ClusterWeight, headers: Headers | None) -> None:
    """Append the operations to those that are there already."""
    if headers is None:
        return
    if headers.request is not None:
        to.request_headers_to_add.extend(_added(headers.request))
        to.request_headers_to_remove.extend(_plain_names(headers.request.remove))
    if headers.response is not None:
        to.response_headers_to_add.extend(_added(headers.response))
        to.response_headers_to_remove.extend(_plain_names(headers.response.remove))


def authority_of(headers: Headers | None) -> str:
    """Return what the host of requests is set to, or ""; `set` goes before `add`."""
    request = headers.request if headers is not None else None
    if request is None:
        return ""
    return _authority(request.set) or _authority(request.add)


def _authority(values: Mapping[str, str]) -> str:
    return next((value for name, value in values.items() if name.lower() in _AUTHORITY), "")


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
    return [name for name in names if not name.startswith(":") and name.lower() != "host"]
