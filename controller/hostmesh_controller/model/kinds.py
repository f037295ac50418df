"""The kinds of the configuration API."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from hostmesh_controller.model.authorization_policy import AuthorizationPolicySpec
from hostmesh_controller.model.capture_policy import CapturePolicySpec
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.envoy_filter import EnvoyFilterSpec
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.health_check import HealthCheckSpec
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.proxy_config import ProxyConfigSpec
from hostmesh_controller.model.rate_limit import RateLimitSpec
from hostmesh_controller.model.request_authentication import RequestAuthenticationSpec
from hostmesh_controller.model.rollout import RolloutSpec
from hostmesh_controller.model.schema import Spec
from hostmesh_controller.model.secret import SecretSpec
from hostmesh_controller.model.security import PeerAuthenticationSpec
from hostmesh_controller.model.services import NamespaceSpec, ServiceAccountSpec, ServiceSpec
from hostmesh_controller.model.sidecar import SidecarSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.wasm_plugin import WasmPluginSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec, WorkloadGroupSpec

NETWORKING: Final = "networking.istio.io"
EXTENSIONS: Final = "extensions.istio.io"
SECURITY: Final = "security.istio.io"
HOSTMESH: Final = "hostmesh.io"


@dataclass(frozen=True, slots=True)
class KindInfo:
    """A kind. `versions` are the ones accepted, the current one first; `group` is "" for Kubernetes' core."""

    kind: str
    group: str
    versions: tuple[str, ...]
    plural: str
    short_names: tuple[str, ...]
    namespaced: bool
    spec_model: type[Spec]

    @property
    def api_versions(self) -> tuple[str, ...]:
        """The accepted values of `apiVersion`, the current one first."""
        return tuple(f"{self.group}/{version}" if self.group else version for version in self.versions)


_NETWORKING_VERSIONS = ("v1", "v1beta1", "v1alpha3")
_SECURITY_VERSIONS = ("v1", "v1beta1")
_V1 = ("v1",)

_ALL = (
    KindInfo("Namespace", "", _V1, "namespaces", ("ns",), False, NamespaceSpec),
    KindInfo("Service", "", _V1, "services", ("svc",), True, ServiceSpec),
    KindInfo("ServiceAccount", "", _V1, "serviceaccounts", ("sa",), True, ServiceAccountSpec),
    KindInfo("Secret", "", _V1, "secrets", (), True, SecretSpec),
    KindInfo("ServiceEntry", NETWORKING, _NETWORKING_VERSIONS, "serviceentries", ("se",), True, ServiceEntrySpec),
    KindInfo("WorkloadEntry", NETWORKING, _NETWORKING_VERSIONS, "workloadentries", ("we",), True, WorkloadEntrySpec),
    KindInfo("WorkloadGroup", NETWORKING, _NETWORKING_VERSIONS, "workloadgroups", ("wg",), True, WorkloadGroupSpec),
    KindInfo("Host", HOSTMESH, _V1, "hosts", (), False, HostSpec),
    KindInfo("VirtualService", NETWORKING, _NETWORKING_VERSIONS, "virtualservices", ("vs",), True, VirtualServiceSpec),
    KindInfo(
        "DestinationRule", NETWORKING, _NETWORKING_VERSIONS, "destinationrules", ("dr",), True, DestinationRuleSpec
    ),
    KindInfo(
        "PeerAuthentication", SECURITY, _SECURITY_VERSIONS, "peerauthentications", ("pa",), True, PeerAuthenticationSpec
    ),
    KindInfo(
        "AuthorizationPolicy",
        SECURITY,
        _SECURITY_VERSIONS,
        "authorizationpolicies",
        ("ap",),
        True,
        AuthorizationPolicySpec,
    ),
    KindInfo(
        "RequestAuthentication",
        SECURITY,
        _SECURITY_VERSIONS,
        "requestauthentications",
        ("ra",),
        True,
        RequestAuthenticationSpec,
    ),
    KindInfo("Gateway", NETWORKING, _NETWORKING_VERSIONS, "gateways", ("gw",), True, GatewaySpec),
    KindInfo("Sidecar", NETWORKING, _NETWORKING_VERSIONS, "sidecars", (), True, SidecarSpec),
    KindInfo("EnvoyFilter", NETWORKING, ("v1alpha3",), "envoyfilters", ("ef",), True, EnvoyFilterSpec),
    KindInfo("ProxyConfig", NETWORKING, ("v1beta1", "v1"), "proxyconfigs", (), True, ProxyConfigSpec),
    KindInfo("WasmPlugin", EXTENSIONS, ("v1alpha1",), "wasmplugins", (), True, WasmPluginSpec),
    KindInfo("MeshConfig", HOSTMESH, _V1, "meshconfigs", (), False, MeshConfigSpec),
    KindInfo("CapturePolicy", HOSTMESH, _V1, "capturepolicies", ("cp",), True, CapturePolicySpec),
    KindInfo("RateLimit", HOSTMESH, _V1, "ratelimits", ("rl",), True, RateLimitSpec),
    KindInfo("HealthCheck", HOSTMESH, _V1, "healthchecks", ("hc",), True, HealthCheckSpec),
    KindInfo("Rollout", HOSTMESH, _V1, "rollouts", ("ro",), False, RolloutSpec),
)

KINDS: Final[Mapping[str, KindInfo]] = MappingProxyType({info.kind: info for info in _ALL})
"""Every kind that can be stored, by its name."""

NOT_YET: Final = frozenset({"Telemetry", "TrafficExtension"})
"""Kinds of Istio or of hostmesh's plan that are not implemented."""

KUBERNETES_ONLY: Final = frozenset(
    {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Pod", "Job", "CronJob", "ConfigMap", "Ingress"}
    | {"PersistentVolume", "PersistentVolumeClaim", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Node"}
    | {"HorizontalPodAutoscaler", "NetworkPolicy", "CustomResourceDefinition", "Endpoints", "EndpointSlice"}
)
"""Kubernetes' kinds that come in the same files and have no meaning for hosts that run their own programs."""


def kind_named(name: str) -> KindInfo | None:
    """Return the kind of that name, plural or short name, in any case; None if there is none."""
    wanted = name.lower()
    for info in _ALL:
        if wanted in {info.kind.lower(), info.plural, *info.short_names}:
            return info
    return None
