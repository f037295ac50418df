"""What serves: WorkloadGroup, and the front of ServiceEntry and WorkloadEntry, which have modules of their own."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from hostmesh_controller.model.probes import ExecProbe, GrpcProbe, HttpProbe, Probe, ProbeHeader, TcpProbe
from hostmesh_controller.model.schema import LabelKey, LabelValue, Spec
from hostmesh_controller.model.service_entry import EntryPort, ServiceEntrySpec, WorkloadSelector
from hostmesh_controller.model.workload_entry import UNIX, Workload, WorkloadEntrySpec

__all__ = [
    "GROUP_ANNOTATION",
    "UNIX",
    "EntryPort",
    "ExecProbe",
    "GroupMetadata",
    "GrpcProbe",
    "HttpProbe",
    "Probe",
    "ProbeHeader",
    "ServiceEntrySpec",
    "TcpProbe",
    "Workload",
    "WorkloadEntrySpec",
    "WorkloadGroupSpec",
    "WorkloadSelector",
]

GROUP_ANNOTATION: Final = "istio.io/autoRegistrationGroup"
"""Annotation of a WorkloadEntry: the WorkloadGroup of its namespace that it was made from. Istio's name."""


class GroupMetadata(Spec):
    """Labels and annotations that every workload of a group gets."""

    labels: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=256)] = Field(default_factory=dict)
    annotations: Annotated[Mapping[LabelKey, str], Field(max_length=256)] = Field(default_factory=dict)


class WorkloadGroupSpec(Spec):
    """What the workloads of one kind have in common."""

    metadata: GroupMetadata = GroupMetadata()
    template: Workload
    probe: Probe | None = None
