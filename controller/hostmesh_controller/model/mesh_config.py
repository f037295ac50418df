"""MeshConfig: the settings of the whole mesh, by Istio's names and with Istio's defaults.

A spec holds a value for every field, so readers ask it without knowing who set it; `laid_over` joins two of them.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.connection_pool import TcpKeepalive
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.extension_providers import ExtensionProviders
from hostmesh_controller.model.http_actions import InboundRetries, Retries
from hostmesh_controller.model.localities import LocalityLbSetting
from hostmesh_controller.model.log_format import check_log_format
from hostmesh_controller.model.proxy_defaults import ProxyDefaults
from hostmesh_controller.model.route_fields import Line
from hostmesh_controller.model.schema import (
    AnyDuration,
    ExportTo,
    Flag,
    Label,
    PositiveDuration,
    Spec,
    as_fault,
    check_label,
    fault,
)

_INGRESS: Final = "it is for Kubernetes' Ingress objects; use a Gateway and a VirtualService"
_KUBERNETES: Final = "it is about Kubernetes' own objects, which hosts do not have"
_AMBIENT: Final = "it is for ambient mode, which hosts do not have"
_FIXED_PORT: Final = "the port is the same on every host of the mesh"
_TELEMETRY: Final = "a later release: of telemetry there is accessLogFile so far"
_PROVIDERS: Final = "a later release: the kinds that name providers are not there yet"
_CA: Final = "the controller is the mesh's CA; `hostmesh ca` manages its roots"

_REFUSED: Final[Mapping[str, str]] = {
    "proxyListenPort": _FIXED_PORT,
    "proxyInboundListenPort": _FIXED_PORT,
    "proxyHttpPort": "a later release: Envoy as an explicit HTTP proxy",
    "hboneIdleTimeout": _AMBIENT,
    "ingressClass": _INGRESS,
    "ingressService": _INGRESS,
    "ingressControllerMode": _INGRESS,
    "ingressSelector": _INGRESS,
    "enableTracing": _TELEMETRY,
    "enableEnvoyAccessLogService": _TELEMETRY,
    "disableEnvoyListenerLog": _TELEMETRY,
    "configSources": "the controller's own store and files are its sources",
    "caCertificates": _CA,
    "ca": _CA,
    "certificates": _CA,
    "zoneAwareLbSetting": "a later release: set it in DestinationRules",
    "serviceSettings": "there is one cluster, the mesh; use exportTo",
    "serviceScopeConfigs": _AMBIENT,
    "serviceEntryVisibility": "a later release: use exportTo",
    "enablePrometheusMerge": "metrics of the programs on a host are scraped from them, not through Envoy's agent",
    "defaultProviders": _PROVIDERS,
    "discoverySelectors": _KUBERNETES,
    "tlsDefaults": "a later release: set TLS versions in Gateways",
    "defaultTrafficPolicy": "a later release: set it in DestinationRules",
}


class OutboundTrafficPolicy(Spec):
    """Whether destinations that the mesh does not know can be called."""

    refused: ClassVar[Mapping[str, str]] = {
        "tls": "it is for mode ALLOW_ANY_DYNAMIC_DNS, which comes in a later release"
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
        "cipherSuites": "a later release: the mesh's own TLS uses Envoy's defaults, which are safe",
    }

    min_protocol_version: Literal["TLS_AUTO", "TLSV1_2", "TLSV1_3"] = "TLS_AUTO"


_CONNECT_TIMEOUT_MAX: Final = timedelta(hours=1)


def _whole_ms(value: Duration) -> Duration:
    if value % timedelta(milliseconds=1):
        raise fault("duration", f"{value} is no multiple of 1ms")
    return value


def _connect_timeout(value: Duration) -> Duration:
    if value > _CONNECT_TIMEOUT_MAX:
        raise fault("duration", f"{value} is too long: at most 1h")
    return _whole_ms(value)


def _trust_domain(value: str) -> str:
    with as_fault("trust-domain"):
        # A last dot is allowed, as in other full names.
        for label in value.removesuffix(".").split("."):
            check_label(label)
    return value


def _log_format(value: str) -> str:
    with as_fault("log-format"):
        return check_log_format(value)


class MeshConfigSpec(Spec):
    """All mesh-wide settings. None of `trust_domain` and `root_namespace`: the controller's own configuration."""

    refused: ClassVar[Mapping[str, str]] = _REFUSED

    outbound_traffic_policy: OutboundTrafficPolicy = OutboundTrafficPolicy()
    inbound_traffic_policy: InboundTrafficPolicy = InboundTrafficPolicy()
    connect_timeout: Annotated[PositiveDuration, AfterValidator(_connect_timeout)] = Duration("10s")
    tcp_keepalive: TcpKeepalive | None = None
    default_http_retry_policy: Retries | None = None
    default_inbound_http_retry_policy: InboundRetries | None = None
    locality_lb_setting: LocalityLbSetting = LocalityLbSetting(enabled=True)
    access_log_file: str = ""
    access_log_format: Annotated[str, AfterValidator(_log_format)] = ""
    access_log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    trust_domain: Annotated[str, AfterValidator(_trust_domain)] | None = None
    trust_domain_aliases: tuple[Annotated[str, AfterValidator(_trust_domain)], ...] = ()
    default_service_export_to: tuple[ExportTo, ...] = ("*",)
    default_virtual_service_export_to: tuple[ExportTo, ...] = ("*",)
    default_destination_rule_export_to: tuple[ExportTo, ...] = ("*",)
    protocol_detection_timeout: Annotated[AnyDuration, AfterValidator(_whole_ms)] = Duration("0")
    dns_refresh_rate: PositiveDuration = Duration("60s")
    enable_auto_mtls: Flag = True
    root_namespace: Label | None = None
    h2_upgrade_policy: Literal["DO_NOT_UPGRADE", "UPGRADE"] = "DO_NOT_UPGRADE"
    inbound_cluster_stat_name: Line = ""
    outbound_cluster_stat_name: Line = ""
    path_normalization: PathNormalization = PathNormalization()
    mesh_mtls: MeshTls = Field(default=MeshTls(), alias="meshMTLS")
    verify_certificate_at_client: Flag = True
    default_config: ProxyDefaults = ProxyDefaults()
    extension_providers: ExtensionProviders = ()

    @model_validator(mode="after")
    def _the_log_can_be_written(self) -> "MeshConfigSpec":
        if (
            self.access_log_encoding == "JSON"
            and self.access_log_format
            and not _is_json_object(self.access_log_format)
        ):
            message = 'with accessLogEncoding JSON it is a JSON object, such as {"code": "%RESPONSE_CODE%"}'
            raise fault("value", message, "accessLogFormat")
        return self


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def laid_over(above: MeshConfigSpec, below: MeshConfigSpec) -> MeshConfigSpec:
    """Return the settings of `above` where it has any, else those of `below`.

    A field is taken as a whole, except for `default_config`, whose fields are taken one by one, as in Istio.
    """
    own = {name: getattr(above, name) for name in above.model_fields_set}
    if "default_config" in own:
        proxy = {name: getattr(above.default_config, name) for name in above.default_config.model_fields_set}
        own["default_config"] = below.default_config.model_copy(update=proxy)
    return below.model_copy(update=own)
