"""DestinationRule: how to talk to a service once a route has chosen it."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.schema import (
    Count,
    ExportTo,
    Flag,
    Integer,
    LabelKey,
    LabelValue,
    Port,
    PositiveDuration,
    Spec,
    Unsigned,
    as_fault,
    check_host,
    check_label_value,
    fault,
)


class LoadBalancer(Spec):
    """None and UNSPECIFIED are LEAST_REQUEST, and so is the old LEAST_CONN."""

    not_yet: ClassVar[frozenset[str]] = frozenset(
        {"backendUtilization", "consistentHash", "localityLbSetting"}
        | {"warmup", "warmupDurationSecs", "zoneAwareLbSetting"}
    )

    simple: Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"] | None = None


class TcpSettings(Spec):
    """Limits of connections. None is Istio's default: 2^32 - 1 connections, 10 s to connect."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"idleTimeout", "maxConnectionDuration", "tcpKeepalive"})

    max_connections: Count | None = None
    connect_timeout: PositiveDuration | None = None


class HttpSettings(Spec):
    """Limits of requests. None is Istio's default: no limit, and an idle timeout of 1 h."""

    not_yet: ClassVar[frozenset[str]] = frozenset(
        {"h2UpgradePolicy", "http2KeepAlive", "maxConcurrentStreams", "useClientProtocol"}
    )

    http1_max_pending_requests: Count | None = None
    http2_max_requests: Count | None = None
    max_requests_per_connection: Count | None = None
    max_retries: Count | None = None
    idle_timeout: PositiveDuration | None = None


class ConnectionPool(Spec):
    """Circuit breakers."""

    tcp: TcpSettings | None = None
    http: HttpSettings | None = None


class OutlierDetection(Spec):
    """When an endpoint that fails is left out for a while. None is Istio's default."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"outlierDetectionHttpErrorCodes"})

    consecutive_5xx_errors: Unsigned | None = Field(default=None, alias="consecutive5xxErrors")
    consecutive_errors: Integer | None = None
    consecutive_gateway_errors: Unsigned | None = None
    consecutive_local_origin_failures: Unsigned | None = None
    split_external_local_origin_errors: Flag = False
    interval: PositiveDuration | None = None
    base_ejection_time: PositiveDuration | None = None
    max_ejection_percent: Annotated[Integer, Field(ge=0, le=100)] | None = None
    min_health_percent: Annotated[Integer, Field(ge=0, le=100)] | None = None


class ClientTls(Spec):
    """TLS towards the service. Paths are of files on the calling host; None of them set: the system's roots."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"caCrl", "credentialName"})

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: str | None = None
    private_key: str | None = None
    ca_certificates: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    sni: str | None = None
    insecure_skip_verify: Flag = False

    @model_validator(mode="after")
    def _files_fit_the_mode(self) -> "ClientTls":
        if self.mode == "MUTUAL" and not self.client_certificate:
            raise fault("missing", "mode MUTUAL needs clientCertificate", "clientCertificate")
        if self.mode == "MUTUAL" and not self.private_key:
            raise fault("missing", "mode MUTUAL needs privateKey", "privateKey")
        if self.mode == "ISTIO_MUTUAL":
            for field, written in (
                ("client_certificate", "clientCertificate"),
                ("private_key", "privateKey"),
                ("ca_certificates", "caCertificates"),
            ):
                if getattr(self, field) is not None:
                    raise fault("one-of", "mode ISTIO_MUTUAL uses the mesh's own certificates; remove this", written)
        return self


class PortSelector(Spec):
    """A port of the service by its number."""

    number: Port


class PortPolicy(Spec):
    """Settings of one port; they replace the ones of the whole service, they are not merged."""

    port: PortSelector
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None


class TrafficPolicy(Spec):
    """Settings of a service or a subset; a subset's settings replace the service's, part by part."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"proxyProtocol", "retryBudget", "tunnel"})

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    port_level_settings: Annotated[tuple[PortPolicy, ...], Field(max_length=4096)] = ()


def _rule_host(value: str) -> str:
    with as_fault("host-name"):
        return value if value == "*" else check_host(value)


def _subset_name(value: str) -> str:
    # The name becomes a part of cluster names such as outbound|80|v1|reviews, where '|' divides.
    if not value:
        raise fault("name", "a subset needs a name")
    with as_fault("name"):
        return check_label_value(value)


class Subset(Spec):
    """The endpoints whose labels have all of these."""

    name: Annotated[str, AfterValidator(_subset_name)]
    labels: Mapping[LabelKey, LabelValue] = Field(default_factory=dict)
    traffic_policy: TrafficPolicy | None = None


class DestinationRuleSpec(Spec):
    """Settings of the service `host` (a short name resolves in the rule's namespace) and its subsets."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"workloadSelector"})

    host: Annotated[str, AfterValidator(_rule_host)]
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[ExportTo, ...] = ()

    @model_validator(mode="after")
    def _subsets_are_told_apart(self) -> "DestinationRuleSpec":
        seen: set[str] = set()
        for index, subset in enumerate(self.subsets):
            if subset.name in seen:
                raise fault("duplicate-subset", f"subset {subset.name!r} is there twice", "subsets", index, "name")
            seen.add(subset.name)
        return self
