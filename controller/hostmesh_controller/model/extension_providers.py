"""MeshConfig's extensionProviders: the external authorizers that CUSTOM policies name."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hostmesh_controller.model.domains import is_ip
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.route_fields import HeaderName, HeaderValue
from hostmesh_controller.model.schema import (
    Flag,
    Label,
    MeshPort,
    PositiveDuration,
    Spec,
    as_fault,
    at_most_one,
    check_host,
    check_label,
    fault,
    given,
)

_LATER: Final = "a later release: the providers so far are envoyExtAuthzHttp and envoyExtAuthzGrpc"
_BODY_MAX: Final = 2**32 - 1
_STATUSES: Final = frozenset(
    str(number)
    for number in (
        *(100, *range(200, 209), 226, *range(300, 306), 307, 308),
        *(*range(400, 418), *range(421, 425), 426, 428, 429, 431, *range(500, 509), 510, 511),
    )
)
"""Those that Envoy has a name for (envoy.type.v3.StatusCode)."""


def _service(value: str) -> str:
    namespace, slash, host = value.rpartition("/")
    with as_fault("host-name"):
        if slash:
            check_label(namespace)
        if is_ip(host) or "*" in host:
            raise ValueError(f"{value!r} is not the name of a service: write [NAMESPACE/]HOST, with the full host name")
        check_host(host)
    return value


def _status(value: str) -> str:
    if value and value not in _STATUSES:
        raise fault("status", f"{value!r} is not an HTTP status that Envoy gives, such as '503'")
    return value


def _path_prefix(value: str) -> str:
    if value and (not value.startswith("/") or any(char in value for char in "?# \t\r\n")):
        raise fault("path", f"{value!r} is not the beginning of a path: it starts with '/'")
    return value


def _header_pattern(value: str) -> str:
    if value in {"", "*"}:
        raise fault("header-name", "write a header's name, or one with '*' at its start or end; '*' alone is too wide")
    return value


def _number(value: object) -> object:
    # Istio reads these settings as protobuf's JSON, where a number may be text; its guides write ports in quotes.
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


Service = Annotated[str, AfterValidator(_service)]
ProviderPort = Annotated[MeshPort, BeforeValidator(_number)]
Status = Annotated[str, AfterValidator(_status)]
HeaderPatterns = tuple[Annotated[str, AfterValidator(_header_pattern)], ...]


class RequestBody(Spec):
    """How much of a request's body the authorizer is shown."""

    max_request_bytes: Annotated[int, Field(strict=True, ge=1, le=_BODY_MAX), BeforeValidator(_number)]
    allow_partial_message: Flag = False
    pack_as_bytes: Flag = False


class Authorizer(Spec):
    """What both kinds have: where the authorizer is, and what happens when it does not answer."""

    service: Service
    port: ProviderPort
    timeout: PositiveDuration = Duration("600s")
    fail_open: Flag = False
    status_on_error: Status = ""
    include_request_body_in_check: RequestBody | None = None


class HttpAuthorizer(Authorizer):
    """An authorizer that is asked by HTTP; of headers it sees, and may set, those that are listed."""

    path_prefix: Annotated[str, AfterValidator(_path_prefix)] = ""
    include_headers_in_check: HeaderPatterns = ()
    include_request_headers_in_check: HeaderPatterns = ()
    include_additional_headers_in_check: Mapping[HeaderName, HeaderValue] = Field(default_factory=dict)
    headers_to_upstream_on_allow: HeaderPatterns = ()
    headers_to_downstream_on_deny: HeaderPatterns = ()
    headers_to_downstream_on_allow: HeaderPatterns = ()


class GrpcAuthorizer(Authorizer):
    """An authorizer that speaks Envoy's gRPC protocol for it; it can judge TCP connections too."""


class ExtensionProvider(Spec):
    """A provider by its name; exactly one kind of it."""

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            *("zipkin", "lightstep", "datadog", "stackdriver", "opencensus", "skywalking", "opentelemetry"),
            *("prometheus", "envoyFileAccessLog", "envoyHttpAls", "envoyTcpAls", "envoyOtelAls", "sds"),
        ),
        _LATER,
    )

    name: Label
    envoy_ext_authz_http: HttpAuthorizer | None = None
    envoy_ext_authz_grpc: GrpcAuthorizer | None = None

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "ExtensionProvider":
        at_most_one(self, "envoy_ext_authz_http", "envoy_ext_authz_grpc")
        if not given(self, "envoy_ext_authz_http", "envoy_ext_authz_grpc"):
            raise fault("missing", "give envoyExtAuthzHttp or envoyExtAuthzGrpc")
        return self

    @property
    def authorizer(self) -> Authorizer:
        found = self.envoy_ext_authz_http or self.envoy_ext_authz_grpc
        assert found is not None
        return found


def _distinct(values: tuple[ExtensionProvider, ...]) -> tuple[ExtensionProvider, ...]:
    seen: set[str] = set()
    for index, each in enumerate(values):
        if each.name in seen:
            raise fault("duplicate", f"provider {each.name!r} is there twice", index, "name")
        seen.add(each.name)
    return values


ExtensionProviders = Annotated[tuple[ExtensionProvider, ...], AfterValidator(_distinct)]
