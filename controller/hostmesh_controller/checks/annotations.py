"""Istio's annotations: known, at the right kind of object, not deprecated."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.workloads import WorkloadGroupSpec
from hostmesh_controller.suggest import did_you_mean
from hostmesh_controller.workload_annotations import problems

SUPPRESS: Final = "galley.istio.io/analyze-suppress"
"""Codes of findings that the author of an object does not want to hear of."""


class _Annotation(NamedTuple):
    kinds: tuple[str, ...]
    deprecated: bool = False


_POD: Final = _Annotation(("Pod",))
_OLD_POD: Final = _Annotation(("Pod",), deprecated=True)
_ANY: Final = _Annotation(())
_WORKLOAD: Final = _Annotation(("WorkloadEntry",))

_KNOWN: Final[Mapping[str, _Annotation]] = {
    "alpha.istio.io/canonical-serviceaccounts": _Annotation(("Service",), deprecated=True),
    "alpha.istio.io/kubernetes-serviceaccounts": _Annotation(("Service",), deprecated=True),
    "ambient.istio.io/waypoint-inbound-binding": _Annotation(("GatewayClass", "Gateway")),
    SUPPRESS: _ANY,
    "gateway.istio.io/controller-version": _ANY,
    "gateway.istio.io/name-override": _Annotation(("Gateway",)),
    "gateway.istio.io/service-account": _Annotation(("Gateway",)),
    "istio.io/autoRegistrationGroup": _WORKLOAD,
    "istio.io/connectedAt": _WORKLOAD,
    "istio.io/disconnectedAt": _WORKLOAD,
    "istio.io/workloadController": _WORKLOAD,
    "istio.io/dry-run": _Annotation(("AuthorizationPolicy",)),
    "istio.io/rev": _ANY,
    "istio.io/use-waypoint-canary-weight": _ANY,
    "kubernetes.io/ingress.class": _Annotation(("Ingress",)),
    "networking.istio.io/exportTo": _Annotation(("Service",)),
    "networking.istio.io/service-type": _Annotation(("Gateway",)),
    "networking.istio.io/traffic-distribution": _Annotation(("Service", "ServiceEntry", "Namespace")),
    "sidecar.istio.io/status": _ANY,
    "topology.istio.io/controlPlaneClusters": _Annotation(("Namespace",)),
    "traffic.istio.io/nodeSelector": _Annotation(("Service",)),
    **{
        f"sidecar.istio.io/{name}": _OLD_POD
        for name in ("discoveryAddress", "extraStatTags", "inject", "statsCompression", "statsInclusionPrefixes")
    },
    "sidecar.istio.io/statsInclusionRegexps": _OLD_POD,
    "sidecar.istio.io/statsInclusionSuffixes": _OLD_POD,
    "traffic.sidecar.istio.io/kubevirtInterfaces": _OLD_POD,
    **dict.fromkeys(
        (
            *(
                "ambient.istio.io/bypass-inbound-capture",
                "ambient.istio.io/dns-capture",
                "ambient.istio.io/redirection",
            ),
            *("inject.istio.io/templates", "istio.io/reroute-virtual-interfaces", "prometheus.istio.io/merge-metrics"),
            *("proxy.istio.io/config", "proxy.istio.io/overrides", "status.sidecar.istio.io/port"),
        ),
        _POD,
    ),
    **{
        f"readiness.status.sidecar.istio.io/{name}": _POD
        for name in ("applicationPorts", "failureThreshold", "initialDelaySeconds", "periodSeconds")
    },
    **{
        f"sidecar.istio.io/{name}": _POD
        for name in (
            *("agentLogLevel", "bootstrapOverride", "componentLogLevel", "interceptionMode", "logLevel"),
            *("nativeSidecar", "proxyCPU", "proxyCPULimit", "proxyImage", "proxyImageType", "proxyMemory"),
            *("proxyMemoryLimit", "rewriteAppHTTPProbers", "statsEvictionInterval", "statsFlushInterval"),
            *("statsHistogramBins", "statsHistogramBuckets", "userVolume", "userVolumeMount"),
        )
    },
    **{
        f"traffic.sidecar.istio.io/{name}": _POD
        for name in (
            *("excludeInboundPorts", "excludeInterfaces", "excludeOutboundIPRanges", "excludeOutboundPorts"),
            *("includeInboundPorts", "includeOutboundIPRanges", "includeOutboundPorts"),
        )
    },
}
"""Istio's annotations and the kinds they are for; no kinds: all of them."""

_IGNORED: Final = frozenset({"sidecar.istio.io/status", "gateway.istio.io/controller-version", "istio.io/rev"})
_CHECKED: Final[Mapping[str, str]] = {
    "Namespace": "Namespace",
    "Service": "Service",
    "ServiceEntry": "ServiceEntry",
    "WorkloadEntry": "Pod",
}
"""Kinds whose annotations are looked at, as what: a WorkloadEntry is to a host what a Pod is to a cluster."""


def check_annotations(item: ApiObject) -> Iterator[Finding]:
    """Yield annotations of Istio's that nobody knows, that are at the wrong kind, or that are on their way out."""
    yield from _check_own(item)
    kind = _CHECKED.get(item.key.kind)
    for name in item.metadata.annotations if kind else ():
        if not _is_istios(name) or name in _IGNORED:
            continue
        path: Path = ("metadata", "annotations", name)
        known = _KNOWN.get(name)
        if known is None:
            message = f"Istio has no such annotation{did_you_mean(name, _KNOWN)}"
            yield Finding(path, message, "unknown-annotation", istio_code="IST0108")
            continue
        if known.deprecated:
            yield Finding(path, "this annotation is deprecated; remove it", "deprecated-annotation", "info", "IST0135")
        if known.kinds and kind not in known.kinds and item.key.kind not in known.kinds:
            message = f"this annotation has a meaning at {' and '.join(known.kinds)} only; remove it"
            yield Finding(path, message, "misplaced-annotation", istio_code="IST0107")


def _check_own(item: ApiObject) -> Iterator[Finding]:
    """Yield what is wrong with ours, at a WorkloadEntry or at the WorkloadGroup that gives it to its members."""
    at: Path = ("metadata", "annotations")
    annotations = item.metadata.annotations
    if isinstance(item.spec, WorkloadGroupSpec):
        at, annotations = ("spec", *at), item.spec.metadata.annotations
    elif item.key.kind != "WorkloadEntry":
        return
    for name, message in problems(annotations):
        yield Finding((*at, name), message, "annotation", "error")


def _is_istios(name: str) -> bool:
    return name == "kubernetes.io/ingress.class" or name.partition("/")[0].endswith("istio.io")


def suppressed(item: ApiObject) -> frozenset[str]:
    """Return the codes that an object does not want to hear of; "*" is all of them."""
    text = item.metadata.annotations.get(SUPPRESS, "")
    return frozenset(part.strip() for part in text.split(",") if part.strip())
