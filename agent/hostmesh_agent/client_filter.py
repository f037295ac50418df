"""The inbound listener for an Envoy that may not use its clients' addresses: without the filter that would. Pure.

With it every inbound connection of such an Envoy would fail.
"""

from typing import Final

from hostmesh_agent.listening import ports_of
from hostmesh_agent.wire_fields import inside, rewritten
from hostmesh_api.delta import Resource
from hostmesh_api.wire import INBOUND_PORT

_TYPE: Final = b"/envoy.extensions.filters.listener.original_src.v3.OriginalSrc"
# Of envoy.service.discovery.v3.Resource, google.protobuf.Any, Listener and ListenerFilter.
_RESOURCE: Final = 2
_TYPE_URL: Final = 1
_ANY_VALUE: Final = 2
_LISTENER_FILTERS: Final = 9
_TYPED_CONFIG: Final = 3


def without_clients(resource: Resource) -> Resource:
    """Return a listener with Envoy's own address towards programs. What cannot be read stays: Envoy says what is wrong.

    What is not the listener of captured connections stays too.
    """
    if _TYPE not in resource.body:
        return resource
    try:
        body = rewritten(resource.body, {_RESOURCE: lambda any_: rewritten(any_, {_ANY_VALUE: _without})})
    except ValueError:
        return resource
    return resource._replace(body=body)


def _without(listener: bytes) -> bytes:
    return rewritten(listener, {_LISTENER_FILTERS: _kept}) if INBOUND_PORT in ports_of(listener) else listener


def _kept(listener_filter: bytes) -> bytes | None:
    types = [each for config in inside(listener_filter, _TYPED_CONFIG) for each in inside(config, _TYPE_URL)]
    return None if any(each.endswith(_TYPE) for each in types) else listener_filter
