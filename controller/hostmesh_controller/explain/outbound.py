"""The way of a call from the program to an endpoint."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final

from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from hostmesh_api.v1.hostmesh_pb2 import Capture
from hostmesh_api.wire import ADMIN_PORT, AGENTS_PORT, DNS_ADDRESS, JOIN_PORT, ROUTE_TYPE, VIRTUAL_HOST_TYPE
from hostmesh_controller.explain.call import Call
from hostmesh_controller.explain.chains import Connection, chain_for
from hostmesh_controller.explain.destination import Destination, Targets, destinations
from hostmesh_controller.explain.routing import route_for, virtual_host_for
from hostmesh_controller.explain.sight import Sight, filters_of, origin_of
from hostmesh_controller.explain.story import Step, Story
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.visibility import service_at, service_named
from hostmesh_controller.names import (
    BLACK_HOLE,
    VIRTUAL_OUTBOUND,
    TcpName,
    VirtualHostName,
    candidates,
    canonical_address,
    is_v6,
    port_listener,
)
from hostmesh_controller.xds.dns import answers

SSH_PORT: Final = 22
NEVER_CAPTURED: Final = {
    SSH_PORT: "SSH is never captured",
    AGENTS_PORT: "the controller's ports are never captured",
    JOIN_PORT: "the controller's ports are never captured",
    ADMIN_PORT: "the controller's ports are never captured",
}


class UnknownHostError(Exception):
    """There is no Host of that name."""


class _EndError(Exception):
    """The way ends here: a verdict, and whether the call reached a program."""

    def __init__(self, verdict: str, *, reached: bool = False) -> None:
        super().__init__(verdict)
        self.verdict = verdict
        self.reached = reached


def explain(mesh: Mesh, host: str, call: Call) -> Story:
    """Return what a call from a host meets, by the configuration that the host's agent and Envoy are sent.

    Raises:
        UnknownHostError: the mesh has no such Host.
    """
    if host not in mesh.hosts:
        raise UnknownHostError(f"there is no Host {host!r}")
    walk = _Walk(Sight(mesh, host), call)
    try:
        return walk.go()
    except _EndError as end:
        return Story(tuple(walk.steps), end.verdict, end.reached)


@dataclass(slots=True)
class _Walk:
    sight: Sight
    call: Call
    steps: list[Step] = field(default_factory=list)
    service: Service | None = None

    def go(self) -> Story:
        address = self._name()
        self._capture(address)
        listener = self._listener(address)
        chain = self._chain(listener, address)
        targets = self._filters(chain, address)
        found = list(self._destinations(targets))
        reached = any(each.reached for each in found)
        return Story(tuple(self.steps), _verdict(self.call, found), reached)

    def _name(self) -> str:
        address = canonical_address(self.call.host)
        mesh, viewer = self.sight.mesh, self.sight.mesh.viewer_of(self.sight.host)
        if address is not None:
            self.service = service_at(mesh, address, self.call.port, viewer)
            of = f"it is an address of {_named(self.service)}" if self.service else "no service of the mesh has it"
            self.steps.append(Step("name", address, of))
            return address
        names = candidates(self.call.host.lower(), viewer.namespace, mesh.settings.domain)
        self.service = next(filter(None, (service_named(mesh, name, viewer) for name in names)), None)
        known = answers(self.service) if self.service and not self.service.is_wildcard else ()
        if self.service is not None and known:
            first = next((each for each in known if not is_v6(each)), known[0])
            why = f"{_named(self.service)}; answered by Envoy's DNS ({DNS_ADDRESS})"
            details = {"service": self.service.id.hostname, "addresses": list(known)}
            self.steps.append(Step("name", f"{self.call.host} is {self.service.id.hostname}, {first}", why, details))
            return first
        why = f"{_named(self.service)} has no address of its own" if self.service else "no service has this name"
        if self.call.address is None:
            text = f"{why} for a host of namespace {viewer.namespace}: the host's own resolver answers"
            self.steps.append(Step("name", self.call.host, text))
            raise _EndError("what the name resolves to is not known here: give --address")
        self.steps.append(Step("name", f"{self.call.host}, {self.call.address}", f"{why}; the address was given"))
        return self.call.address

    def _capture(self, address: str) -> None:
        capture = self.sight.config().capture
        everything = capture.scope == Capture.ALL
        covering = next((each for each in capture.outbound_prefixes if ip_address(address) in ip_network(each)), None)
        scope = "all" if everything else "mesh"
        details = {"scope": scope, "table": "inet hostmesh"}
        if self.call.port in NEVER_CAPTURED:
            self._not_captured(NEVER_CAPTURED[self.call.port], details)
        if ip_address(address).is_loopback:
            self._not_captured("loopback addresses are never captured", details)
        if not everything and covering is None:
            self._not_captured("the host's capture scope is mesh, and this address is not one of the mesh's", details)
        why = f"{address} is in {covering}" if covering else "the host's capture scope is all"
        self.steps.append(Step("capture", "redirected to Envoy, port 15001", why, details))

    def _not_captured(self, why: str, details: dict[str, str]) -> None:
        self.steps.append(Step("capture", "not captured", why, details))
        raise _EndError("the call goes where the program sends it; Envoy does not see it", reached=True)

    def _listener(self, address: str) -> Listener:
        taken = self.sight.listener(VIRTUAL_OUTBOUND)
        if taken is None:
            raise _EndError("the host has no outbound listener")
        for name in (f"{address}_{self.call.port}", port_listener(self.call.port)):
            found = self.sight.listener(name)
            if found is not None:
                why = f"HTTP may be spoken on port {self.call.port} somewhere in the mesh"
                self.steps.append(Step("listener", found.name, f"{VIRTUAL_OUTBOUND} hands over to it: {why}"))
                return found
        why = f"no listener is for port {self.call.port} alone"
        self.steps.append(Step("listener", taken.name, why))
        return taken

    def _chain(self, listener: Listener, address: str) -> FilterChain:
        chain = chain_for(listener, self._connection(listener, address))
        if chain is None:
            self.steps.append(Step("filter chain", "none", "no chain takes the connection"))
            raise _EndError("Envoy closes the connection")
        looks = [name for name in ("server name", "first bytes") if name in _looks(listener)]
        why = f"by destination{' and ' + ' and '.join(looks) if looks else ''}"
        self.steps.append(Step("filter chain", chain.name or "(unnamed)", why))
        return chain

    def _connection(self, listener: Listener, address: str) -> Connection:
        looks = _looks(listener)
        protocols: tuple[str, ...] = ()
        if "first bytes" in looks and self.call.is_http:
            protocols = ("h2c",) if self.call.scheme == "grpc" else ("http/1.1",)
        tls = "server name" in looks and self.call.is_tls
        name = self.call.host if tls and canonical_address(self.call.host) is None else ""
        return Connection(address, self.call.port, name, "tls" if tls else "raw_buffer", protocols)

    def _filters(self, chain: FilterChain, address: str) -> Targets:
        for message in filters_of(chain):
            if isinstance(message, HttpConnectionManager):
                return self._http(message)
            if isinstance(message, TcpProxy):
                return self._tcp(message, address)
        raise _EndError("the chain has no filter that passes the connection on")

    def _tcp(self, proxy: TcpProxy, address: str) -> Targets:
        if proxy.HasField("weighted_clusters"):
            return Targets(tuple((each.name, each.weight) for each in proxy.weighted_clusters.clusters), http=False)
        if proxy.cluster == BLACK_HOLE and proxy.HasField("on_demand"):
            # The chain's other filter names the cluster by the destination that was dialled.
            return Targets(((str(TcpName(address, self.call.port)), 1),), http=False)
        return Targets(((proxy.cluster, 1),), http=False)

    def _http(self, manager: HttpConnectionManager) -> Targets:
        if not self.call.is_http:
            raise _EndError("Envoy expects HTTP here and refuses anything else: name the port tcp or tls")
        host = self._virtual_host(manager)
        if host is None:
            why = f"no service of the mesh is called {self.call.authority} on port {self.call.port}"
            self.steps.append(Step("virtual host", "none", why))
            raise _EndError("Envoy answers 404")
        self.steps.append(Step("virtual host", host.name, f"the host header is {self.call.authority}"))
        route = route_for(host, self.call)
        if route is None:
            self.steps.append(Step("route", "none", "no route matches the request"))
            raise _EndError("Envoy answers 404")
        place = list(host.routes).index(route) + 1
        origin = origin_of(route.metadata) or "the service's own route, no VirtualService holds"
        why = f"{origin}; the first that matches, {place} of {len(host.routes)}"
        self.steps.append(Step("route", route.name or "(unnamed)", why, _route_details(route)))
        return _outcome(route)

    def _virtual_host(self, manager: HttpConnectionManager) -> VirtualHost | None:
        table: RouteConfiguration | None = manager.route_config
        if manager.HasField("rds"):
            table = self.sight.message(ROUTE_TYPE, manager.rds.route_config_name, RouteConfiguration)
        if table is None:
            return None
        if not table.HasField("vhds"):
            return virtual_host_for(table.virtual_hosts, self.call.authority)
        # On demand: the table is empty, and what is asked for has the header's name.
        name = str(VirtualHostName(int(table.name), self.call.authority))
        return self.sight.message(VIRTUAL_HOST_TYPE, name, VirtualHost)

    def _destinations(self, targets: Targets) -> Iterator[Destination]:
        for found in destinations(self.sight, self.call, targets):
            self.steps.extend(found.steps)
            yield found


def _looks(listener: Listener) -> set[str]:
    names = {each.name for each in listener.listener_filters}
    found = set()
    if any("tls_inspector" in name for name in names):
        found.add("server name")
    if any("http_inspector" in name for name in names):
        found.add("first bytes")
    return found


def _outcome(route: Route) -> Targets:
    kind = route.WhichOneof("action")
    if kind == "redirect":
        raise _EndError("Envoy answers with a redirect", reached=True)
    if kind == "direct_response":
        raise _EndError(f"Envoy answers {route.direct_response.status} itself", reached=True)
    action: RouteAction = route.route
    if action.WhichOneof("cluster_specifier") == "weighted_clusters":
        return Targets(tuple((each.name, each.weight.value) for each in action.weighted_clusters.clusters), http=True)
    return Targets(((action.cluster, 1),), http=True)


def _route_details(route: Route) -> dict[str, object]:
    action = route.route
    details: dict[str, object] = {}
    if action.HasField("timeout") and action.timeout.ToTimedelta():
        details["timeout_s"] = action.timeout.ToTimedelta().total_seconds()
    if action.HasField("retry_policy"):
        details["retries"] = action.retry_policy.num_retries.value
        details["retry_on"] = action.retry_policy.retry_on
    if action.request_mirror_policies:
        details["mirrors"] = [each.cluster for each in action.request_mirror_policies]
    if route.typed_per_filter_config:
        details["filters"] = sorted(route.typed_per_filter_config)
    return details


def _named(service: Service | None) -> str:
    return str(service.id.source) if service is not None else "nothing"


def _verdict(call: Call, found: list[Destination]) -> str:
    reached = [each for each in found if each.reached]
    if not reached:
        reasons = list(dict.fromkeys(each.verdict for each in found))
        return "; ".join(reasons) or "there is nowhere to go"
    where = ", ".join(f"{each.cluster} ({each.share:.0%})" if len(found) > 1 else each.cluster for each in reached)
    failing = [each for each in found if not each.reached]
    rest = "".join(f"; {each.share:.0%} fail: {each.verdict}" for each in failing)
    return f"{call.scheme} reaches {where}{rest}"
