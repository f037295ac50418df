"""ProxyConfig: settings of the Envoys of some workloads."""

from collections.abc import Mapping
from typing import ClassVar

from hostmesh_controller.model.schema import Count, Spec
from hostmesh_controller.model.security import PolicySelector


class ProxyConfigSpec(Spec):
    """`concurrency` is Envoy's worker threads: 0 is one for each core, None is the mesh's setting."""

    refused: ClassVar[Mapping[str, str]] = {
        "environmentVariables": "Envoy is started by the host's init system, not injected; set them in its unit",
        "image": "hosts run Envoy from a package, not from an image; the agent's configuration says which",
    }

    selector: PolicySelector | None = None
    concurrency: Count | None = None
