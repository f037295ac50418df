"""What the API's routes work with."""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, cast

from fastapi import Depends, Request

from hostmesh_controller.config import Config
from hostmesh_controller.hub import Hub
from hostmesh_controller.metrics import Metrics
from hostmesh_controller.observations import Observations
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.rotation import RootRotation
from hostmesh_controller.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    config: Config
    store: Store
    registrar: Registrar
    hub: Hub
    observations: Observations
    metrics: Metrics
    rotation: RootRotation
    ready: Callable[[], bool]
    """True when every port is open."""
    now: Callable[[], datetime]
    reading: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "documents"))
    """Where documents are read: one at a time, and not among the threads that agents' calls need. YAML can take 10 s
    for each MiB."""

    @property
    def root_der(self) -> bytes:
        """The root that join strings pin."""
        return self.rotation.authority.root_der


def parts_of(request: Request) -> Parts:
    return cast("Parts", request.app.state.parts)


Using = Annotated[Parts, Depends(parts_of)]
