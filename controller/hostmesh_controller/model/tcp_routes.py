"""Routes of a VirtualService for connections: by their destination, or by the server name of a TLS handshake."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final

from pydantic import Field, model_validator

from hostmesh_controller.model.http_actions import Destination
from hostmesh_controller.model.http_match import check_namespace
from hostmesh_controller.model.route_fields import Gateway, MatchPort, Subnet
from hostmesh_controller.model.schema import Count, LabelKey, LabelValue, Spec, fault

_WEIGHTS_MAX: Final = 2**32 - 1
"""Envoy's limit of their sum."""


def check_weights(weights: Sequence[int | None]) -> None:
    """Refuse weights of the destinations of a route that say nothing, or too much.

    Raises:
        PydanticCustomError: they sum to 0, or to more than Envoy can count.
    """
    if len(weights) > 1 and not any(weights):
        raise fault("weights", "the weights of the destinations sum to 0", "route")
    if sum(weight or 0 for weight in weights) > _WEIGHTS_MAX:
        raise fault("weights", f"the weights of the destinations sum to more than {_WEIGHTS_MAX}", "route")


class ConnectionMatch(Spec):
    """All that is given must hold. `port` is the service's port that was called; the rest is as for HTTP."""

    destination_subnets: tuple[Subnet, ...] = ()
    port: MatchPort = None
    source_labels: Mapping[LabelKey, LabelValue] = Field(default_factory=dict)
    source_namespace: str | None = None
    gateways: tuple[Gateway, ...] = ()

    @model_validator(mode="after")
    def _source_is_a_namespace(self) -> "ConnectionMatch":
        check_namespace(self.source_namespace)
        return self


class L4Match(ConnectionMatch):
    """A match of a TCP connection."""

    refused: ClassVar[Mapping[str, str]] = {
        "sourceSubnet": "Istio's proxies ignore it too; use sourceLabels or sourceNamespace"
    }


class TlsMatch(ConnectionMatch):
    """A match of a TLS connection; `sni_hosts` are covered by the hosts of the VirtualService."""

    sni_hosts: Annotated[tuple[str, ...], Field(min_length=1)]


class RouteDestination(Spec):
    """`weight` None is 0 beside others, and everything alone."""

    destination: Destination
    weight: Count | None = None


class ConnectionRoute(Spec):
    """What routes of both kinds have."""

    route: Annotated[tuple[RouteDestination, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _some_weight(self) -> "ConnectionRoute":
        check_weights([route.weight for route in self.route])
        return self


class TcpRoute(ConnectionRoute):
    """The first route with a match that holds is taken; a route without matches takes everything."""

    match: tuple[L4Match, ...] = ()


class TlsRoute(ConnectionRoute):
    """The first route with a match that holds is taken."""

    match: Annotated[tuple[TlsMatch, ...], Field(min_length=1)]
