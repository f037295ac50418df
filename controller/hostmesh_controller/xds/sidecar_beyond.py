"""Requests for what a viewer does not see, where they are not simply passed on: refused, or sent to a proxy."""

from typing import Final

from envoy.config.route.v3.route_components_pb2 import (
    DirectResponseAction,
    Route,
    RouteAction,
    RouteMatch,
    VirtualHost,
)

from hostmesh_controller.mesh.sidecars import Beyond
from hostmesh_controller.names import VirtualHostName
from hostmesh_controller.xds.route_action import set_timeout

BLOCK_ALL: Final = "block_all"
ALLOW_ANY: Final = "allow_any"
"""Istio's names of the routes, which access logs show."""
_BAD_GATEWAY: Final = 502


def beyond_virtual_host(name: VirtualHostName, beyond: Beyond) -> VirtualHost | None:
    """Return the virtual host of a host header that is no service's, or None where there is nothing to say of it."""
    match = RouteMatch(prefix="/")
    if beyond.closed:
        route = Route(name=BLOCK_ALL, match=match, direct_response=DirectResponseAction(status=_BAD_GATEWAY))
    elif beyond.proxy:
        action = RouteAction(cluster=beyond.proxy)
        set_timeout(action, None)
        route = Route(name=ALLOW_ANY, match=match, route=action)
    else:
        return None
    return VirtualHost(name=str(name), domains=[name.header], routes=[route])
