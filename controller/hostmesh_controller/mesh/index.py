"""The immutable index of one revision of the mesh."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hostmesh_controller.mesh.compiled import order_of
from hostmesh_controller.mesh.gateways import HostGateways
from hostmesh_controller.mesh.memo import Memo
from hostmesh_controller.mesh.peers import PeerPolicy, mode_of
from hostmesh_controller.mesh.records import (
    Endpoints,
    Expulsions,
    Host,
    HostRuntime,
    Mode,
    Service,
    ServiceId,
    Settings,
    Workload,
    WorkloadKey,
)
from hostmesh_controller.mesh.table import Table
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.workloads import Probe, WorkloadGroupSpec

NO_HOST = HostRuntime()
NO_ENDPOINTS = Endpoints()
NO_VIEWER = Viewer()
LabelKey = tuple[str, str, str]
"""Namespace, label, value."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """One revision: the objects as they are configured, and the indexes over what they mean.

    Tables share what did not change with the revision before. `services_by_label` holds each service that selects
    workloads under one of the labels it demands; `tcp_routes` holds the VirtualServices that have any, `tcp_rules` the
    DestinationRules that say how long connections last or that tunnel them;
    `keys_by_kind` the kinds that are few (`of_kind`); `caller_labels` the label keys by which a rule tells callers
    apart, `labels_in_use` all of them. `gateways` holds the hosts that serve any; `bound` the VirtualServices of each
    gateway (`namespace/name`); `credential_users` the DestinationRules that name a stored credential.
    `authorization` and `request_authentications` hold the policies of each namespace, oldest first; `jwks` the keys
    that were fetched, by the URL that a rule names (`JwtRule.keys_url`). `inbound_sidecars` holds the Sidecars that
    have a word on a workload's inbound connections. `denied` holds the enrolments of each host that must be refused,
    also of hosts that are gone.
    """

    settings: Settings
    config: MeshConfigSpec = field(default_factory=MeshConfigSpec)
    vips: Mapping[str, int] = field(default_factory=dict)
    runtime: Mapping[str, HostRuntime] = field(default_factory=dict)
    jwks: Mapping[str, str] = field(default_factory=dict)
    objects: Table[ObjectKey, ApiObject] = field(default_factory=Table)
    hosts: Table[str, Host] = field(default_factory=Table)
    hosts_by_address: Table[str, frozenset[str]] = field(default_factory=Table)
    keys_by_kind: Table[str, frozenset[ObjectKey]] = field(default_factory=Table)
    viewers: Table[str, Viewer] = field(default_factory=Table)
    caller_labels: Table[ObjectKey, frozenset[str]] = field(default_factory=Table)
    labels_in_use: frozenset[str] = frozenset()
    workloads: Table[WorkloadKey, Workload] = field(default_factory=Table)
    workloads_by_address: Table[str, frozenset[WorkloadKey]] = field(default_factory=Table)
    workloads_by_host: Table[str, frozenset[WorkloadKey]] = field(default_factory=Table)
    workloads_by_label: Table[LabelKey, frozenset[WorkloadKey]] = field(default_factory=Table)
    workloads_by_group: Table[ObjectKey, frozenset[WorkloadKey]] = field(default_factory=Table)
    workloads_by_owner: Table[ObjectKey, frozenset[WorkloadKey]] = field(default_factory=Table)
    services: Table[ServiceId, Service] = field(default_factory=Table)
    services_by_hostname: Table[str, frozenset[ServiceId]] = field(default_factory=Table)
    services_by_address: Table[str, frozenset[ServiceId]] = field(default_factory=Table)
    services_by_label: Table[LabelKey, frozenset[ServiceId]] = field(default_factory=Table)
    services_by_source: Table[ObjectKey, frozenset[ServiceId]] = field(default_factory=Table)
    endpoints: Table[ServiceId, Endpoints] = field(default_factory=Table)
    policies: Mapping[str, tuple[PeerPolicy, ...]] = field(default_factory=dict)
    authorization: Mapping[str, tuple[ApiObject, ...]] = field(default_factory=dict)
    request_authentications: Table[str, tuple[ApiObject, ...]] = field(default_factory=Table)
    virtual_services: Table[str, frozenset[ObjectKey]] = field(default_factory=Table)
    tcp_routes: Table[ObjectKey, ApiObject] = field(default_factory=Table)
    destination_rules: Table[str, frozenset[ObjectKey]] = field(default_factory=Table)
    tcp_rules: Table[ObjectKey, ApiObject] = field(default_factory=Table)
    gateways: Table[str, HostGateways] = field(default_factory=Table)
    bound: Table[str, frozenset[ObjectKey]] = field(default_factory=Table)
    credential_users: Table[str, frozenset[ObjectKey]] = field(default_factory=Table)
    inbound_sidecars: Table[WorkloadKey, ObjectKey] = field(default_factory=Table)
    denied: Table[str, frozenset[str]] = field(default_factory=Table)
    expulsions: Expulsions = field(default_factory=Expulsions)
    former_identities: Mapping[ServiceId, tuple[str, ...]] = field(default_factory=dict)
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    def mode_of(self, workload: Workload, port: int) -> Mode:
        """Return the mutual TLS mode of a workload's own port."""
        return mode_of(self.policies, self.settings.root_namespace, workload, port)

    def runtime_of(self, host: str) -> HostRuntime:
        return self.runtime.get(host, NO_HOST)

    def reported_locality(self, host: str) -> str:
        """Return where a host says that it is, "" where that is not known or does not count."""
        return self.runtime_of(host).locality if self.settings.reported_locality else ""

    def endpoints_of(self, service: Service) -> Endpoints:
        return self.endpoints.get(service.id, NO_ENDPOINTS)

    def workloads_of(self, host: str) -> tuple[Workload, ...]:
        """Return the workloads on a host, by name."""
        return tuple(self.workloads[key] for key in sorted(self.workloads_by_host.get(host, ())))

    def viewer_of(self, host: str) -> Viewer:
        """Return as what a host sees the mesh."""
        return self.viewers.get(host, NO_VIEWER)

    def probe_of(self, workload: Workload) -> Probe | None:
        """Return the probe that a workload's group says it has; None: it says none."""
        group = None if workload.group is None else self.objects.get(workload.group)
        return group.spec.probe if group is not None and isinstance(group.spec, WorkloadGroupSpec) else None

    def has_probes(self, workload: Workload) -> bool:
        """Tell whether it is looked at whether a workload is healthy; if not, it counts as healthy."""
        return bool(workload.probes) or self.probe_of(workload) is not None

    def is_healthy(self, workload: Workload) -> bool:
        """Tell whether a workload can be called: its host is in use, and its program well as far as is known."""
        if workload.host is not None and self.runtime_of(workload.host).withdrawn:
            return False
        if workload.host is None or not self.has_probes(workload):
            return True
        return workload.key in self.runtime_of(workload.host).healthy

    def of_kind(self, kind: str, namespace: str | None = None) -> tuple[ApiObject, ...]:
        """Return the objects of a kind that is few (see `take_objects.MANY`), of one namespace or all, oldest first."""
        keys = self.keys_by_kind.get(kind, frozenset())
        found = (self.objects[key] for key in keys if namespace in {None, key.namespace})
        return tuple(sorted(found, key=order_of))
