"""Follows the package hostmesh-envoy: what an upgrade of it brings is what would be started now.

The package's own scripts touch no process. With `envoy.upgrade = "auto"` the running Envoy is exchanged for it, else
status says that another one is there (`hostmesh-agent envoy upgrade`).
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import chosen_binary, packaged_envoy
from hostmesh_agent.artifact import ArtifactError, Installed
from hostmesh_agent.config import AgentConfig

LOOK_S: Final = 10.0
"""One stat each time."""

log = structlog.get_logger(__name__)


class BinaryWatch:
    """Looks whether the package has changed since the agent began.

    Args:
        config: of the host.
        take: is given what to start from now on.
        home: where the package is.
    """

    def __init__(
        self,
        config: AgentConfig,
        take: Callable[[Installed], None],
        home: Path = packaged_envoy.HOME,
    ) -> None:
        self._config = config
        self._take = take
        self._home = home
        self._seen = packaged_envoy.mark(home)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Take what the package brings if it has changed; what cannot be used changes nothing."""
        found = packaged_envoy.mark(self._home)
        if found == self._seen:
            return
        self._seen = found
        if not found:
            return  # removed: what runs is a copy
        try:
            installed = await asyncio.to_thread(chosen_binary.install, self._config, self._home)
        except ArtifactError as error:
            log.error("the package's Envoy is not taken", reason=str(error))
            return
        log.info("the package brings an Envoy", version=installed.version)
        self._take(installed)
