"""What the API's routes work with."""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Final, cast

from fastapi import Depends, Request

from hostmesh_controller.config import Config
from hostmesh_controller.expulsion import Expulsion
from hostmesh_controller.hub import Hub
from hostmesh_controller.metrics import Metrics
from hostmesh_controller.observations import Observations
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.rollout_keeper import RolloutKeeper
from hostmesh_controller.rotation import RootRotation
from hostmesh_controller.store import Store

USE_KEPT: Final = timedelta(minutes=1)
"""How exact the last use of an API token is known."""


class Uses:
    """When each API token was last kept as used: a write for each request would cost more than the request."""

    def __init__(self) -> None:
        self._kept: dict[str, datetime] = {}

    def due(self, token_id: str, now: datetime) -> bool:
        """Tell whether the use of a token has to be kept now."""
        kept = self._kept.get(token_id)
        if kept is not None and now - kept < USE_KEPT:
            return False
        self._kept[token_id] = now
        return True


@dataclass(frozen=True, slots=True)
class Parts:
    config: Config
    store: Store
    registrar: Registrar
    expulsion: Expulsion
    hub: Hub
    observations: Observations
    metrics: Metrics
    rotation: RootRotation
    rollouts: RolloutKeeper
    ready: Callable[[], bool]
    """True when every port is open."""
    now: Callable[[], datetime]
    reading: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "documents"))
    """Where documents are read: one at a time, and not among the threads that agents' calls need. YAML can take 10 s
    for each MiB."""
    uses: Uses = field(default_factory=Uses)

    @property
    def root_der(self) -> bytes:
        """The root that join strings pin."""
        return self.rotation.authority.root_der


def parts_of(request: Request) -> Parts:
    return cast("Parts", request.app.state.parts)


Using = Annotated[Parts, Depends(parts_of)]
