"""What one Envoy of the two shows of itself to the agent: answers, listeners, connections, calls."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from hostmesh_agent import rehearsal, verdict
from hostmesh_agent.admin import Admin, AdminError
from hostmesh_agent.bootstrap import ADMIN_SOCKET
from hostmesh_agent.drain import open_connections
from hostmesh_agent.places import PORTS, Instance
from hostmesh_agent.verdict import Counts

ANSWERS_WITHIN_S: Final = 2.0
CALLS_AT_ONCE: Final = 5
MAX_FAILED_CALLS: Final = 2
"""Of the agent's own calls through an Envoy. They go over sockets of this host: none should fail."""
OWN_LISTENERS: Final = "hostmesh-"
_WARMING: Final = "cluster_manager.warming_clusters"


class Look:
    """Asks one Envoy; remembers since when it is silent, and how its rehearsal went."""

    def __init__(self, instance: Instance, directory: Path) -> None:
        self._port = PORTS[instance].outbound
        self._directory = directory
        self._admin = Admin(directory / ADMIN_SOCKET, ANSWERS_WITHIN_S)
        self._rehearsing = Admin(directory / rehearsal.SOCKET, ANSWERS_WITHIN_S)
        self._silent_since: float | None = None
        self._calls = self._failed_calls = 0
        self.last_failure = ""

    @property
    def silent_s(self) -> float:
        """For how long it has not answered; 0 if it does."""
        return 0.0 if self._silent_since is None else asyncio.get_running_loop().time() - self._silent_since

    def forget_silence(self) -> None:
        """Begin anew: it does not run, or only now."""
        self._silent_since = None

    async def ask(self) -> None:
        """Ask whether it answers at all, be it that it does not serve yet."""
        began = asyncio.get_running_loop().time()
        try:
            await self._admin.request("GET", "/ready")
        except AdminError:
            self._silent_since = self._silent_since or began
        else:
            self._silent_since = None

    async def listeners(self) -> frozenset[str] | None:
        """Return the names of its active listeners, without the agent's own; None: it does not say."""
        try:
            return frozenset(each for each in await self._admin.listeners() if not each.startswith(OWN_LISTENERS))
        except AdminError:
            return None

    async def unready(self, wanted: frozenset[str]) -> Sequence[str]:
        """Say what it lacks to serve as one does that has the listeners `wanted`; empty if nothing."""
        listeners = await self.listeners()
        if listeners is None:
            return ("its admin interface does not answer",)
        missing = sorted(wanted - listeners)
        if missing:
            return (f"its listeners {', '.join(missing)} are not active",)
        try:
            if not await self._admin.live():
                return ("it does not say that it is ready",)
            warming = (await self._admin.stats(_WARMING)).get(_WARMING, 0)
        except AdminError as error:
            return (str(error),)
        if warming:
            return (f"{warming} clusters are warming",)
        return () if await self._accepts() else (f"nobody listens on its port {self._port}",)

    async def _accepts(self) -> bool:
        """Tell whether its port can be reached from here: what it says of itself may be true elsewhere."""
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True

    async def rehearse(self) -> str:
        """Make a few calls through it; return what is wrong with its answers so far, "" if nothing."""
        found = await asyncio.gather(*(self._call() for _ in range(CALLS_AT_ONCE)))
        self._calls += len(found)
        wrong = [each for each in found if each]
        self._failed_calls += len(wrong)
        if self._failed_calls <= MAX_FAILED_CALLS:
            return ""
        return f"{self._failed_calls} of the agent's own {self._calls} calls through it failed: {(wrong or ['?'])[-1]}"

    async def _call(self) -> str:
        try:
            status, body = await self._rehearsing.request("GET", "/")
        except AdminError as error:
            return str(error)
        return "" if (status, body) == (200, rehearsal.WORDS) else f"HTTP {status}"

    async def counts(self) -> Counts | None:
        """Return what it has counted of the calls that it served; None: it does not say."""
        try:
            return verdict.counts(await self._admin.stats(verdict.PATTERN))
        except AdminError:
            return None

    async def calls(self) -> tuple[int, int] | None:
        """Return how many calls and TCP connections to this host's programs are under way, and how many ever began.

        None: it does not say. Idle connections are not among them: callers keep those, and call nobody over them.
        """
        try:
            found = await self._admin.stats("inbound.*upstream_rq_(active|total)$")
        except AdminError:
            return None
        inbound = {name: value for name, value in found.items() if name.startswith("cluster.inbound")}
        under_way = sum(value for name, value in inbound.items() if name.endswith("_active"))
        return under_way, sum(value for name, value in inbound.items() if name.endswith("_total"))

    async def connections(self) -> int | None:
        """Return how many connections are open to its listeners; None: it does not say."""
        try:
            return open_connections(await self._admin.stats("downstream_cx_active"))
        except AdminError:
            return None

    async def drain(self) -> None:
        """Ask it to let go of its connections; if it does not hear, its time ends as well."""
        with suppress(AdminError):
            await self._admin.drain()
