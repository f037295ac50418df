"""PeerAuthentication: what a workload demands of those who call it."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hostmesh_controller.model.schema import LabelKey, LabelValue, PortKey, Spec, fault

MtlsMode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]


class Mtls(Spec):
    """UNSET inherits from the wider policy: port, workload, namespace, mesh."""

    mode: MtlsMode = "UNSET"


class PolicySelector(Spec):
    """Labels a workload must have, all of them; empty selects every workload of the namespace."""

    match_labels: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=4096)] = Field(default_factory=dict)


class PeerAuthenticationSpec(Spec):
    """Mutual TLS of a mesh (in the root namespace), a namespace, or the selected workloads.

    `port_level_mtls` maps the workload's own port numbers.
    """

    selector: PolicySelector | None = None
    mtls: Mtls | None = None
    port_level_mtls: Annotated[Mapping[PortKey, Mtls], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _ports_need_a_selector(self) -> "PeerAuthenticationSpec":
        if self.port_level_mtls is not None and not (self.selector and self.selector.match_labels):
            raise fault("port-level", "portLevelMtls needs a selector with matchLabels", "portLevelMtls")
        return self
