"""VirtualService: where requests for a host go, and what happens to them on the way."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from hostmesh_controller.model.domains import WILDCARD, is_ip, is_partial_wildcard
from hostmesh_controller.model.exports import RuleExportTo
from hostmesh_controller.model.http_actions import (
    CorsPolicy,
    Delegate,
    Destination,
    DirectBody,
    DirectResponse,
    Fault,
    FaultAbort,
    FaultDelay,
    HeaderOperations,
    Headers,
    HttpRedirect,
    HttpRewrite,
    HttpRouteDestination,
    MirrorPolicy,
    Percentage,
    PortSelector,
    RegexRewrite,
    ResponseHeaderOperations,
    Retries,
)
from hostmesh_controller.model.http_match import AbsentMatch, HttpMatch, StringMatch
from hostmesh_controller.model.route_fields import (
    GENERATED_SERVER_NAME,
    Gateway,
    MillisecondDuration,
    VirtualHost,
    check_server_name,
)
from hostmesh_controller.model.schema import Integer, Spec, fault
from hostmesh_controller.model.tcp_routes import (
    ConnectionMatch,
    L4Match,
    RouteDestination,
    TcpRoute,
    TlsMatch,
    TlsRoute,
    check_weights,
)
from hostmesh_controller.names import MESH, host_matches, hosts_overlap

__all__ = [
    "AbsentMatch",
    "ConnectionMatch",
    "CorsPolicy",
    "Delegate",
    "Destination",
    "DirectBody",
    "DirectResponse",
    "Fault",
    "FaultAbort",
    "FaultDelay",
    "HeaderOperations",
    "Headers",
    "HttpMatch",
    "HttpRedirect",
    "HttpRewrite",
    "HttpRoute",
    "HttpRouteDestination",
    "L4Match",
    "MirrorPolicy",
    "Percentage",
    "PortSelector",
    "RegexRewrite",
    "ResponseHeaderOperations",
    "Retries",
    "RouteDestination",
    "StringMatch",
    "TcpRoute",
    "TlsMatch",
    "TlsRoute",
    "VirtualServiceSpec",
]

_AUTHORITY: Final = frozenset({":authority", "host"})


class HttpRoute(Spec):
    """The first route with a match that holds is taken; a route without matches takes everything.

    With `delegate` another VirtualService has the routes. `mirror_percentage`, or else the old `mirror_percent`, is of
    `mirror`; neither given: all requests.
    """

    name: str | None = None
    match: tuple[HttpMatch, ...] = ()
    route: tuple[HttpRouteDestination, ...] = ()
    redirect: HttpRedirect | None = None
    direct_response: DirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HttpRewrite | None = None
    timeout: MillisecondDuration | None = None
    retries: Retries | None = None
    fault: Fault | None = None
    mirror: Destination | None = None
    mirrors: tuple[MirrorPolicy, ...] = ()
    mirror_percentage: Percentage | None = None
    mirror_percent: Annotated[Integer, Field(ge=0, le=100)] | None = None
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None

    @model_validator(mode="before")
    @classmethod
    def _old_spelling(cls, value: Any) -> Any:
        # Istio's schema has this one field in both spellings.
        if isinstance(value, Mapping) and "mirror_percent" in value:
            rest = {key: each for key, each in value.items() if key != "mirror_percent"}
            return {"mirrorPercent": value["mirror_percent"]} | rest
        return value

    @model_validator(mode="after")
    def _one_outcome(self) -> "HttpRoute":
        written = {"direct_response": "directResponse"}
        names = [written.get(name, name) for name in self._outcomes()]
        if not names:
            raise fault("missing", "give one of route, redirect, directResponse and delegate")
        if len(names) > 1:
            raise fault("one-of", f"only one of {', '.join(names)} may be set", names[1])
        if names[0] in {"redirect", "directResponse"}:
            for field in ("rewrite", "fault"):
                if getattr(self, field) is not None:
                    raise fault("one-of", f"{field} cannot be set beside {names[0]}", field)
        check_weights([route.weight for route in self.route])
        return self

    def _outcomes(self) -> Iterator[str]:
        for name in ("route", "redirect", "direct_response", "delegate"):
            value = getattr(self, name)
            if value is not None and value != ():
                yield name

    @model_validator(mode="after")
    def _mirrors_are_told_once(self) -> "HttpRoute":
        if self.mirror is not None and self.mirrors:
            raise fault("one-of", "only one of mirror, mirrors may be set", "mirrors")
        return self

    @model_validator(mode="after")
    def _prefix_is_there_to_replace(self) -> "HttpRoute":
        if self.redirect is None or not self.redirect.prefix_rewrite:
            return self
        for index, match in enumerate(self.match):
            if match.uri is not None and match.uri.prefix is None:
                message = "redirect.prefixRewrite replaces a prefix: match the uri by prefix"
                raise fault("redirect", message, "match", index, "uri")
        return self

    @model_validator(mode="after")
    def _authority_is_set_once(self) -> "HttpRoute":
        request = self.headers.request if self.headers else None
        operations: tuple[tuple[str, Mapping[str, str]], ...] = ()
        if request is not None:
            operations = (("set", request.set), ("add", request.add))
        current = self.rewrite.authority if self.rewrite else None
        for field, values in operations:
            for name, value in values.items():
                if name.lower() in _AUTHORITY:
                    if current:
                        message = f"the authority is already {current!r}; set it once"
                        raise fault("one-of", message, "headers", "request", field, name)
                    current = value
        return self


class VirtualServiceSpec(Spec):
    """Routes of the hosts; short names resolve in the VirtualService's namespace.

    Without hosts it is a delegate: its http routes are used by others. Without gateways it is for `mesh`, the proxies
    of the hosts.
    """

    hosts: tuple[VirtualHost, ...] = ()
    gateways: tuple[Gateway, ...] = ()
    http: tuple[HttpRoute, ...] = ()
    tls: tuple[TlsRoute, ...] = ()
    tcp: tuple[TcpRoute, ...] = ()
    export_to: RuleExportTo = ()

    @property
    def is_delegate(self) -> bool:
        """Whether other VirtualServices use it."""
        return not self.hosts

    @property
    def for_mesh(self) -> bool:
        """Whether the proxies of the hosts use it."""
        return not self.gateways or MESH in self.gateways

    @model_validator(mode="after")
    def _some_route(self) -> "VirtualServiceSpec":
        if not self.http and not self.tcp and not self.tls:
            raise fault("missing", "give http, tls or tcp routes")
        return self

    @model_validator(mode="after")
    def _hosts_are_told_apart(self) -> "VirtualServiceSpec":
        for index, host in enumerate(self.hosts):
            if host == WILDCARD and self.for_mesh:
                message = "'*' would take every host of the mesh; name the hosts, or bind to gateways without 'mesh'"
                raise fault("host-name", message, "hosts", index)
            if host.startswith(GENERATED_SERVER_NAME) and (self.for_mesh or not self.tls):
                message = f"{host!r} is a server name: only tls routes of gateways can have it"
                raise fault("host-name", message, "hosts", index)
            for other in self.hosts[:index]:
                if host == other:
                    raise fault("duplicate-host", f"host {host!r} is there twice", "hosts", index)
                if hosts_overlap(host, other):
                    raise fault("duplicate-host", f"host {host!r} overlaps {other!r}", "hosts", index)
        return self

    @model_validator(mode="after")
    def _delegates_have_http_only(self) -> "VirtualServiceSpec":
        if not self.is_delegate:
            return self
        for field in ("gateways", "tls", "tcp"):
            if getattr(self, field):
                message = f"without hosts it is a delegate, which has http routes only: give hosts or remove {field}"
                raise fault("delegate", message, field)
        for index, http in enumerate(self.http):
            if http.delegate is not None:
                raise fault("delegate", "a delegate cannot delegate again", "http", index, "delegate")
        return self

    @model_validator(mode="after")
    def _server_names_are_of_the_hosts(self) -> "VirtualServiceSpec":
        for index, route in enumerate(self.tls):
            for place, match in enumerate(route.match):
                for position, name in enumerate(match.sni_hosts):
                    wrong = self._server_name_fault(name)
                    if wrong:
                        raise fault("sni", wrong, "tls", index, "match", place, "sniHosts", position)
        return self

    def _server_name_fault(self, name: str) -> str | None:
        if is_ip(name):
            return None
        try:
            check_server_name(name)
        except ValueError as error:
            return str(error)
        if is_partial_wildcard(name):
            return f"{name!r}: server names are matched by whole labels, as in '*.example.com'"
        if name.startswith(GENERATED_SERVER_NAME) and self.for_mesh:
            return f"{name!r}: only gateways are called by the server names of clusters"
        if not any(host_matches(host, name) for host in self.hosts):
            return f"{name!r} is covered by none of the hosts: {', '.join(self.hosts)}"
        return None
