"""Kubernetes' own kinds that meshes are described with: Namespace, ServiceAccount, Service."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from hostmesh_controller.model.protocols import Protocol, service_protocol
from hostmesh_controller.model.schema import (
    ClusterIp,
    LabelKey,
    LabelValue,
    MeshPort,
    OptionalPortName,
    Spec,
    TargetPort,
    Unsigned,
    fault,
)

_NO_CLOUD: Final = "a host has no cloud's load balancer; use a Gateway"
_NO_NODES: Final = "there are no nodes that take this address; use clusterIP or a ServiceEntry with addresses"


class NamespaceSpec(Spec):
    """Nothing of a Namespace but its metadata means anything here; kubectl writes finalizers."""

    finalizers: tuple[str, ...] = ()


class ServiceAccountSpec(Spec):
    """A ServiceAccount has no spec: its name is the identity."""


class ServicePort(Spec):
    """A port of a Service. `target_port` is a number, the name of a workload's port, or None (the same number)."""

    name: OptionalPortName = ""
    port: MeshPort
    target_port: TargetPort | None = None
    protocol: Literal["TCP", "UDP"] = "TCP"
    app_protocol: str | None = None
    node_port: Unsigned | None = None

    @property
    def mesh_protocol(self) -> Protocol:
        """What the port speaks."""
        return service_protocol(self.port, self.name, self.protocol, self.app_protocol)


class ServiceSpec(Spec):
    """A name, its ports, and the labels of the workloads behind it.

    `cluster_ip` may be an address, "None" (headless), or "" (a virtual address is given). What kubectl fills in
    with defaults that mean nothing outside Kubernetes is accepted at those defaults.
    """

    not_yet: ClassVar[frozenset[str]] = frozenset({"externalName", "trafficDistribution"})
    refused: ClassVar[Mapping[str, str]] = {
        "externalIPs": _NO_NODES,
        "loadBalancerIP": _NO_CLOUD,
        "loadBalancerClass": _NO_CLOUD,
        "loadBalancerSourceRanges": _NO_CLOUD,
        "healthCheckNodePort": _NO_CLOUD,
        "allocateLoadBalancerNodePorts": _NO_CLOUD,
        "publishNotReadyAddresses": "a workload that is not ready is never called",
        "sessionAffinityConfig": "use a DestinationRule with consistentHash.useSourceIp",
    }

    ports: Annotated[tuple[ServicePort, ...], Field(max_length=256)] = ()
    selector: Mapping[LabelKey, LabelValue] = Field(default_factory=dict)
    cluster_ip: Annotated[ClusterIp, Field(alias="clusterIP")] = ""
    cluster_ips: Annotated[tuple[ClusterIp, ...], Field(alias="clusterIPs")] = ()
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    session_affinity: Literal["None"] = "None"
    internal_traffic_policy: Literal["Cluster"] = "Cluster"
    external_traffic_policy: Literal["Cluster"] = "Cluster"
    ip_families: tuple[Literal["IPv4", "IPv6"], ...] = ()
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None

    @model_validator(mode="after")
    def _ports_are_told_apart(self) -> "ServiceSpec":
        names: set[str] = set()
        numbers: set[tuple[int, str]] = set()
        for index, port in enumerate(self.ports):
            if (port.port, port.protocol) in numbers:
                raise fault(
                    "duplicate-port", f"port {port.port}/{port.protocol} is there twice", "ports", index, "port"
                )
            if port.name in names and port.name:
                raise fault("duplicate-port", f"port name {port.name!r} is there twice", "ports", index, "name")
            if not port.name and len(self.ports) > 1:
                raise fault("port-name", "a name is needed where a Service has several ports", "ports", index)
            numbers.add((port.port, port.protocol))
            names.add(port.name)
        return self
