"""The host's floor while the agent runs: looked at with each HostConfig, and where the controllers are more often.

A controller whose addresses are others now, or were not known when the configuration came (DNS was dark), is captured
like anybody. Where only what is registered may be called it is refused then, and no configuration would ever come
again. So its addresses are looked up with the attempts to connect, and while there are none.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from hostmesh_agent import client_addresses
from hostmesh_agent.capture import HostFloor
from hostmesh_agent.capture import floor as kernel_floor
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.controller_addresses import ControllerAddresses
from hostmesh_agent.uplink import Uplink
from hostmesh_api.v1.hostmesh_pb2 import HostConfig

PAUSE_S: Final = 5.0
"""Between two looks: a thousand hosts without their controller must not be a load for the name servers."""
UNKNOWN_S: Final = 30.0
"""How often names without any address are asked for while a controller is reached at another one."""

log = structlog.get_logger(__name__)


class HostFloors:
    """Looks until cancelled.

    Args:
        config: of the host.
        envoy_uid: as whom Envoy runs.
        uplink: tells when a connection to the controller is tried, and where.
        connected: tells whether the controller is reached.
        changed: is called when a step is due: the controllers are elsewhere.
    """

    def __init__(
        self,
        config: AgentConfig,
        envoy_uid: int,
        uplink: Uplink,
        connected: Callable[[], bool],
        changed: Callable[[], None],
        pause_s: float = PAUSE_S,
    ) -> None:
        self._config = config
        self._envoy_uid = envoy_uid
        self._uplink = uplink
        self._connected = connected
        self._changed = changed
        self._pause_s = pause_s
        self._addresses = ControllerAddresses(config.state_dir)
        self._told: tuple[str, ...] = ()
        self._controller: frozenset[tuple[str, int]] = frozenset()
        self._looking = asyncio.Lock()
        self._looked_at_s = -pause_s
        self._taken: HostFloor | None = None

    @property
    def now(self) -> HostFloor | None:
        """What the host insists on; None before the first configuration counts."""
        return None if self._taken is None else replace(self._taken, controller=self._controller)

    async def look(self, told: HostConfig) -> HostFloor:
        """Return the floor for a configuration, as the host is now."""
        self._told = tuple(told.agents_endpoints)
        controller = await self._look_up()
        settings = self._config.capture
        mtls_only = self._config.floor.mtls_only
        floor = await asyncio.to_thread(kernel_floor.look, self._envoy_uid, controller, settings, mtls_only=mtls_only)
        if told.capture.transparent:
            why_not = await asyncio.to_thread(client_addresses.why_not, settings)
            if floor.backend != "nftables":
                why_not = f"the {floor.backend} back end has no such rules: it needs nf_tables"
            floor = replace(floor, not_transparent=why_not)
        return floor

    def take(self, floor: HostFloor) -> None:
        """Let it count: so does its configuration."""
        self._taken = floor

    async def run(self) -> None:
        tried = self._uplink.tried
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._addresses.complete else UNKNOWN_S):
                    await tried.wait()
            await asyncio.sleep(max(0.0, self._looked_at_s + self._pause_s - time.monotonic()))
            tried.clear()
            if self._connected() and self._addresses.complete:
                continue
            before = self._controller
            found = await self._look_up(more=True)
            if found != before and self._taken is not None:
                log.info("controller is elsewhere", addresses=sorted(found - before))
                self._changed()

    async def _look_up(self, *, more: bool = False) -> frozenset[tuple[str, int]]:
        async with self._looking:
            endpoints = (*self._told, *self._uplink.record.agents_endpoints)
            self._controller = await asyncio.to_thread(self._addresses.look, endpoints, more=more)
            self._looked_at_s = time.monotonic()
            return self._controller
