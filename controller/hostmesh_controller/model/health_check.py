"""HealthCheck: callers ask the endpoints of a service whether they are well."""

import re
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, model_validator

from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.exports import RuleExportTo
from hostmesh_controller.model.route_fields import HeaderName, HeaderValue, Line, RouteHost
from hostmesh_controller.model.schema import (
    Port,
    PositiveDuration,
    Spec,
    Unsigned,
    at_most_one,
    fault,
    given,
)

_RANGE: Final = re.compile(r"([1-5][0-9][0-9])(?:-([1-5][0-9][0-9]))?")


def _path(value: str) -> str:
    if not value.startswith("/") or not value.isprintable() or " " in value:
        raise fault("path", f"{value!r} is not the path of a request: it starts with '/'")
    return value


def _statuses(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
        return value
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None or (found[2] is not None and found[1] > found[2]):
        raise fault("status", "expected a status such as 204, or a range such as '200-299'")
    assert isinstance(value, str)
    return value


def _as_written(value: int | str) -> int | str:
    return value


Statuses = Annotated[
    int | str, PlainValidator(_statuses), PlainSerializer(_as_written, return_type=int | str, when_used="json")
]


class HttpCheck(Spec):
    """A GET request. No `expected_statuses`: 200. `host` None: the service's name."""

    path: Annotated[str, AfterValidator(_path)]
    host: Line | None = None
    expected_statuses: Annotated[tuple[Statuses, ...], Field(min_length=1)] | None = None
    headers: Mapping[HeaderName, HeaderValue] = Field(default_factory=dict)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The expected statuses as ranges, both ends included."""
        found = [str(item).split("-") for item in self.expected_statuses or (200,)]
        return tuple((int(ends[0]), int(ends[-1])) for ends in found)


class TcpCheck(Spec):
    """Well is who accepts a connection."""


class GrpcCheck(Spec):
    """gRPC's health protocol; "" asks for the server as a whole."""

    service: str = ""


class HealthCheckSpec(Spec):
    """Checks of the service `host` (short names resolve in the namespace); no `ports` are all of its ports."""

    host: RouteHost
    ports: tuple[Port, ...] = ()
    http: HttpCheck | None = None
    tcp: TcpCheck | None = None
    grpc: GrpcCheck | None = None
    interval: PositiveDuration = Duration("10s")
    timeout: PositiveDuration = Duration("1s")
    healthy_threshold: Annotated[Unsigned, Field(ge=1)] = 1
    unhealthy_threshold: Annotated[Unsigned, Field(ge=1)] = 3
    export_to: RuleExportTo = ()

    @model_validator(mode="after")
    def _one_way(self) -> "HealthCheckSpec":
        at_most_one(self, "http", "tcp", "grpc")
        if not given(self, "http", "tcp", "grpc"):
            raise fault("missing", "give one of http, tcp and grpc")
        for index, port in enumerate(self.ports):
            if port in self.ports[:index]:
                raise fault("duplicate", f"port {port} is there twice", "ports", index)
        return self
