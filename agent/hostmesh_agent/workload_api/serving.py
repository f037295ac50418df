"""All of the Workload API together, for a host whose owner wants it. What fails here harms nothing else of the host."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import structlog

from hostmesh_agent.config import AgentConfig
from hostmesh_agent.state import HostRecord, State, StateError
from hostmesh_agent.svid import Svid
from hostmesh_agent.workload_api.front import Front
from hostmesh_agent.workload_api.service import WorkloadApi
from hostmesh_agent.workload_api.svids import WorkloadSvids

log = structlog.get_logger(__name__)


class Serving:
    """The certificates, the socket and the service. `issue` and `now` are as those of WorkloadSvids."""

    def __init__(
        self,
        config: AgentConfig,
        state: State,
        record: HostRecord,
        issue: Callable[[str], Awaitable[Svid]],
        now: Callable[[], datetime],
    ) -> None:
        self._socket = config.workload_socket
        self._svids = WorkloadSvids(state, (os.geteuid(), os.getegid()), issue, now)
        front = Front(config.workload_socket, config.workload_api_dir)
        self._api = WorkloadApi(config.workload_api, self._svids, front, record.trust_domain)
        self._failure = ""

    async def apply(self, spiffe_ids: Sequence[str]) -> None:
        """Serve the identities of the host's workloads; a disk that refuses is a problem, and no reason to stop."""
        try:
            await self._svids.apply(spiffe_ids)
        except StateError as error:
            self._failure = str(error)
            log.error("workload api: certificates cannot be kept", reason=str(error))
        else:
            self._failure = ""

    async def run(self) -> None:
        """Serve and renew until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._svids.run(), name="workload certificates")
            group.create_task(self._api.run(), name="workload api")

    def look_again(self) -> None:
        """Look at once at what is due and at what is missing: the clock was set, or the machine has slept."""
        self._svids.look_again()

    def status(self) -> dict[str, Any]:
        """Return what the agent's status says of it."""
        return {
            "socket": f"unix://{self._socket}",
            "identities": [
                {"name": name, "not_after": None if each is None else each.not_after.isoformat(timespec="seconds")}
                for name, each in sorted(self._svids.validities().items())
            ],
        }

    def problems(self) -> Iterator[str]:
        """Yield what the owner of the host should know."""
        if self._failure:
            yield f"the workload API's certificates cannot be kept: {self._failure}"
        for each in self._api.strangers():
            yield (
                f"workload_api.workloads names {each} in agent.toml, and no workload of this host has that namespace "
                "and service account"
            )
