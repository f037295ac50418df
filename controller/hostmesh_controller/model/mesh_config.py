"""MeshConfig: the settings of the whole mesh, by Istio's names and with Istio's defaults.

A spec holds a value for every field, so readers ask it without knowing who set it; `over` lays one over another.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.proxy_defaults import ProxyDefaults
from hostmesh_controller.model.schema import (
    AnyDuration,
    Count,
    ExportTo,
    Flag,
    Integer,
    Label,
    PositiveDuration,
    Spec,
    as_fault,
    check_label,
    fault,
)
from hostmesh_controller.model.virtual_service import Retries

_KUBERNETES: Final = "it belongs to Kubernetes' ingress; use a Gateway and a VirtualService"
_FIXED_PORT: Final = "the port is the same on every host of the mesh"
_AMBIENT: Final = "it belongs to ambient mode, which hosts do not have"


class TcpKeepalive(Spec):
    """None is the kernel's own setting; no part set turns keep-alive on with them."""

    probes: Count | None = None
    time: PositiveDuration | None = None
    interval: PositiveDuration | None = None


class Distribute(Spec):
    """How the traffic of a locality is spread, in percent."""

    from_: str = Field(alias="from")
    to: Mapping[str, Annotated[Integer, Field(ge=1, le=100)]]


class Failover(Spec):
    """Which region steps in for which."""

    from_: str = Field(alias="from")
    to: str


class LocalityLbSetting(Spec):
    """Nearer endpoints first (the default), or the given shares."""

    distribute: tuple[Distribute, ...] = ()
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: Flag = True


class OutboundTrafficPolicy(Spec):
    """Whether destinations that the mesh does not know can be called."""

    refused: ClassVar[Mapping[str, str]] = {
        "tls": "it is for mode ALLOW_ANY_DYNAMIC_DNS, which is for a later release",
    }

    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY"] = "ALLOW_ANY"


class InboundTrafficPolicy(Spec):
    """PASSTHROUGH: the program is called at the address the caller used; LOCALHOST: at 127.0.0.1."""

    mode: Literal["PASSTHROUGH", "LOCALHOST"] = "PASSTHROUGH"


class PathNormalization(Spec):
    """How paths are written before a rule looks at them. DEFAULT is BASE."""

    normalization: Literal["DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] = "DEFAULT"


class MeshTls(Spec):
    """TLS between the mesh's own proxies. TLS_AUTO is TLSV1_2."""

    refused: ClassVar[Mapping[str, str]] = {
        "ecdhCurves": "Istio has no curves for the mesh's own TLS either",
        "cipherSuites": "the mesh's own TLS uses Envoy's safe defaults",
    }

    min_protocol_version: Literal["TLS_AUTO", "TLSV1_2", "TLSV1_3"] = "TLS_AUTO"


def _connect_timeout(value: Duration) -> Duration:
    if not 0.001 <= value.total_seconds() <= 3600:
        raise fault("duration", "must be between 1ms and 1h")
    return value


def _trust_domain(value: str) -> str:
    with as_fault("trust-domain"):
        # A last dot is allowed, as in other full names.
        for label in value.removesuffix(".").split("."):
            check_label(label)
    return value


class MeshConfigSpec(Spec):
    """All mesh-wide settings. None of `trust_domain` and `root_namespace`: the controller's own configuration."""

    refused: ClassVar[Mapping[str, str]] = {
        "proxyListenPort": _FIXED_PORT,
        "proxyInboundListenPort": _FIXED_PORT,
        "proxyHttpPort": "an HTTP proxy port is for a later release",
        "hboneIdleTimeout": _AMBIENT,
        "ingressClass": _KUBERNETES,
        "ingressService": _KUBERNETES,
        "ingressControllerMode": _KUBERNETES,
        "ingressSelector": _KUBERNETES,
    }

    outbound_traffic_policy: OutboundTrafficPolicy = OutboundTrafficPolicy()
    inbound_traffic_policy: InboundTrafficPolicy = InboundTrafficPolicy()
    connect_timeout: Annotated[PositiveDuration, AfterValidator(_connect_timeout)] = Duration("10s")
    tcp_keepalive: TcpKeepalive | None = None
    default_http_retry_policy: Retries | None = None
    locality_lb_setting: LocalityLbSetting = LocalityLbSetting()
    access_log_file: str = ""
    access_log_format: str = ""
    access_log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    trust_domain: Annotated[str, AfterValidator(_trust_domain)] | None = None
    trust_domain_aliases: tuple[Annotated[str, AfterValidator(_trust_domain)], ...] = ()
    default_service_export_to: tuple[ExportTo, ...] = ("*",)
    default_virtual_service_export_to: tuple[ExportTo, ...] = ("*",)
    default_destination_rule_export_to: tuple[ExportTo, ...] = ("*",)
    protocol_detection_timeout: AnyDuration = Duration("0")
    dns_refresh_rate: PositiveDuration = Duration("60s")
    enable_auto_mtls: Flag = True
    root_namespace: Label | None = None
    h2_upgrade_policy: Literal["DO_NOT_UPGRADE", "UPGRADE"] = "DO_NOT_UPGRADE"
    inbound_cluster_stat_name: str = ""
    outbound_cluster_stat_name: str = ""
    path_normalization: PathNormalization = PathNormalization()
    mesh_mtls: MeshTls = Field(default=MeshTls(), alias="meshMTLS")
    verify_certificate_at_client: Flag = True
    default_config: ProxyDefaults = ProxyDefaults()
