"""The `defaultConfig` of a MeshConfig: settings of each Envoy, by Istio's names and with Istio's defaults."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator

from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.schema import AnyDuration, Count, PositiveDuration, Spec, fault

_AGENT: Final = "the agent of each host decides it; see its configuration"
_INIT_SYSTEM: Final = "programs on a host are started by its init system, in whatever order it is told"
_TELEMETRY: Final = "a later release: tracing, metrics and access logs by services"
_KUBERNETES: Final = "it is about injected containers, which hosts do not have"
_CONTROLLER: Final = "an agent knows its controller from the join string"
_LATER: Final = "a later release"
_LONGEST: Final = timedelta(days=30)

_REFUSED: Final[Mapping[str, str]] = {
    "configPath": _AGENT,
    "binaryPath": _AGENT,
    "customConfigFile": _AGENT,
    "proxyBootstrapTemplatePath": _AGENT,
    "proxyAdminPort": "Envoy's administration is a Unix socket that only the agent may use",
    "statusPort": "Envoy's state is asked of the agent (`hostmesh proxy`)",
    "serviceCluster": _AGENT,
    "tracingServiceName": _TELEMETRY,
    "discoveryAddress": _CONTROLLER,
    "discoveryRefreshDelay": "Istio ignores it; changes are sent when they happen",
    "controlPlaneAuthPolicy": "agents and controller always speak mutual TLS",
    "zipkinAddress": _TELEMETRY,
    "statsdUdpAddress": _TELEMETRY,
    "envoyMetricsServiceAddress": _TELEMETRY,
    "envoyMetricsService": _TELEMETRY,
    "envoyAccessLogService": _TELEMETRY,
    "tracing": _TELEMETRY,
    "extraStatTags": _TELEMETRY,
    "availabilityZone": "Istio ignores it; a Host has its locality",
    "interceptionMode": "what is captured, and how, is the host's own; see the agent's configuration",
    "sds": "Istio ignores it; certificates always come from the agent",
    "proxyMetadata": _AGENT,
    "runtimeValues": _LATER,
    "meshId": "there is one mesh, and its trust domain names it",
    "readinessProbe": "set the probe in the WorkloadGroup",
    "holdApplicationUntilProxyStarts": _INIT_SYSTEM,
    "caCertificatesPem": "the controller is the mesh's CA; `hostmesh ca` manages its roots",
    "image": _KUBERNETES,
    "privateKeyProvider": "keys are files that only Envoy may read; no accelerator is used",
    "proxyHeaders": _LATER,
    "fileFlushInterval": _LATER,
    "fileFlushMinSizeKb": _LATER,
    "statsCompression": _LATER,
    "connectionSettings": _LATER,
    "statNameLength": "Istio ignores it: names of Envoy's statistics have no limit any more",
    "proxyStatsMatcher": "all of Envoy's statistics are kept; leave some out where they are collected",
}


def _whole_seconds(value: Duration) -> Duration:
    if value % timedelta(seconds=1):
        raise fault("duration", f"{value}: Envoy drains in whole seconds")
    return value


def _within_days(value: Duration) -> Duration:
    # It is a number of 32 bits to Envoy and to the agent, of milliseconds.
    if value > _LONGEST:
        raise fault("duration", f"{value} is too long: nothing is drained for more than {_LONGEST.days} days")
    return value


class GatewayTopology(Spec):
    """`num_trusted_proxies`: how many proxies before the gateways are believed in what they say of their clients."""

    refused: ClassVar[Mapping[str, str]] = {"forwardClientCertDetails": _LATER, "proxyProtocol": _LATER}

    num_trusted_proxies: Count = 0


class ProxyDefaults(Spec):
    """`concurrency` is Envoy's worker threads: None and 0 are one for each core."""

    refused: ClassVar[Mapping[str, str]] = _REFUSED

    concurrency: Count | None = None
    gateway_topology: GatewayTopology = GatewayTopology()
    drain_duration: Annotated[PositiveDuration, AfterValidator(_whole_seconds), AfterValidator(_within_days)] = (
        Duration("45s")
    )
    termination_drain_duration: Annotated[AnyDuration, AfterValidator(_within_days)] = Duration("5s")
