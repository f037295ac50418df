"""Services that have no address in the mesh: their callers dial anything, and say by name whom they mean."""

from collections.abc import Iterable
from typing import Final

from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, RouteMatch, VirtualHost
from envoy.extensions.filters.http.dynamic_forward_proxy.v3.dynamic_forward_proxy_pb2 import FilterConfig
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.sni_dynamic_forward_proxy_pb2 import (
    FilterConfig as SniFilterConfig,
)

from hostmesh_controller.mesh.records import Resolution, Service
from hostmesh_controller.names import PASSTHROUGH, VirtualHostName
from hostmesh_controller.xds.cluster_discovery import dynamic_cache
from hostmesh_controller.xds.connections import prefixes_of
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.route_action import set_timeout

ALLOW_ANY: Final = "allow_any"
"""Istio's name of the route, which access logs show."""


def by_host_header(services: Iterable[Service], port: int) -> bool:
    """Tell whether requests on a port must be looked into whatever is dialled: a service is known by its name alone."""
    # The cheaper question first: services without any address are few.
    unaddressed = (service for service in services if service.vip4 is None and service.vip6 is None)
    return any(not prefixes_of(service) and _speaks_http(service, port) for service in unaddressed)


def _speaks_http(service: Service, port: int) -> bool:
    found = service.port(port)
    return found is not None and found.protocol.is_http


def passed_on(name: VirtualHostName) -> VirtualHost:
    """Return the virtual host of a name that is no service's: its requests go where they were dialled to."""
    action = RouteAction(cluster=PASSTHROUGH)
    set_timeout(action, None)
    route = Route(name=ALLOW_ANY, match=RouteMatch(prefix="/"), route=action)
    return VirtualHost(name=str(name), domains=[name.header], routes=[route], include_request_attempt_count=True)


def is_looked_up(service: Service) -> bool:
    """Tell whether the name that a caller says is looked up: the service is a pattern of such names."""
    return service.resolution is Resolution.DYNAMIC_DNS


def http_lookup(services: Iterable[Service]) -> list[HttpFilter]:
    """Return the filter that looks the host of a request up, if a service on the port needs it.

    It leaves requests alone that go to other clusters.
    """
    if not any(map(is_looked_up, services)):
        return []
    config = FilterConfig(dns_cache_config=dynamic_cache())
    return [HttpFilter(name="envoy.filters.http.dynamic_forward_proxy", typed_config=any_of(config))]


def tls_lookup(service: Service, port: int) -> list[Filter]:
    """Return the filter that looks the server name of a TLS handshake up, if the service needs it."""
    if not is_looked_up(service):
        return []
    config = SniFilterConfig(dns_cache_config=dynamic_cache(), port_value=port)
    return [Filter(name="envoy.filters.network.sni_dynamic_forward_proxy", typed_config=any_of(config))]
