"""Fetches what an order needs from the controller, as long as the order stands.

A controller that is away is waited for.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import grpc

from hostmesh_agent import artifact_fetch
from hostmesh_agent.artifact_fetch import FetchError
from hostmesh_agent.update_order import Order
from hostmesh_agent.uplink import NotConnectedError
from hostmesh_api.manifest import Manifest
from hostmesh_api.v1.hostmesh_pb2 import FetchRequest

FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 30.0
_FINAL: Final = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT}


class SupersededError(Exception):
    """Something else is wanted by now."""


class Fetch:
    """Fetches one file at a time.

    Args:
        state_dir: below which files are put.
        ask: the controller for a piece; raises NotConnectedError or an RPC's error.
        still: raises SupersededError where an order of a component is not wanted any more.
    """

    def __init__(
        self,
        state_dir: Path,
        ask: Callable[[FetchRequest], Awaitable[bytes]],
        still: Callable[[str, Order], None],
    ) -> None:
        self._state_dir = state_dir
        self._ask = ask
        self.still = still
        self.news = asyncio.Event()
        """Set when something else is wanted."""

    async def file(self, order: Order, manifest: Manifest, kind: str = "") -> Path:
        """Return a program, or a package of a kind, whole and as it was signed.

        Raises:
            FetchError: it cannot be had.
            SupersededError: it is not wanted any more.
        """
        return await artifact_fetch.fetch(
            manifest.file(kind), self._state_dir, lambda at: self._piece(order, manifest, kind, at)
        )

    async def _piece(self, order: Order, manifest: Manifest, kind: str, offset: int) -> bytes:
        request = FetchRequest(
            component=manifest.component,
            version=manifest.version,
            machine=manifest.machine,
            offset=offset,
            package=kind,
        )
        pause_s = FIRST_PAUSE_S
        while True:
            self.still(manifest.component, order)
            try:
                return await self._ask(request)
            except NotConnectedError:
                pass
            except grpc.aio.AioRpcError as error:
                if error.code() in _FINAL:
                    raise FetchError(f"the controller does not give it: {error.details()}") from error
            await self._pause(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _pause(self, pause_s: float) -> None:
        self.news.clear()
        try:
            async with asyncio.timeout(pause_s):
                await self.news.wait()
        except TimeoutError:
            return
