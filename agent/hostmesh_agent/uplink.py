"""The one connection to the controller: the relay opens it and keeps it, the reports go along."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
import structlog

from hostmesh_agent import enrol
from hostmesh_agent.state import State, StateError
from hostmesh_api.tcp_keepalive import Heartbeat, watch
from hostmesh_api.v1.hostmesh_pb2 import FetchRequest, HostConfig, HostReport, ReportResponse
from hostmesh_api.v1.hostmesh_pb2_grpc import ArtifactsStub, ReportingStub

if TYPE_CHECKING:
    from hostmesh_api.v1.hostmesh_pb2_grpc import ArtifactsAsyncStub, ReportingAsyncStub  # exist in the stubs only

REPORT_TIMEOUT_S: Final = 10.0
HEARTBEAT: Final = Heartbeat(idle_s=10, again_s=2, give_up_ms=15_000)
"""1,000 quiet hosts send 100 packets a second for it."""
FETCH_TIMEOUT_S: Final = 60.0
"""Half a MiB over a line that others use too."""
Answer = TypeVar("Answer")

log = structlog.get_logger(__name__)


class NotConnectedError(Exception):
    """The controller is not reached at the moment."""


class Uplink:
    """Remembers the channel that the relay uses; each attempt takes the next endpoint in turn.

    `record` is what the host knows of itself and its controllers.
    """

    def __init__(self, state: State) -> None:
        """Raises NotJoinedError, StateError."""
        self.record = state.host()
        self._state = state
        self._attempts = 0
        self.tried = asyncio.Event()
        """A connection was tried since somebody cleared this."""
        self._stub: ReportingAsyncStub | None = None
        self._artifacts: ArtifactsAsyncStub | None = None

    def connect(self) -> grpc.aio.Channel:
        """Return a new channel with the identity that is on disk now; the relay closes it.

        Raises:
            StateError: the host has not joined, or its files cannot be used.
        """
        self.record = self._state.host()
        self.tried.set()
        endpoints = self.record.agents_endpoints
        channel = enrol.channel(self._state, endpoints[self._attempts % len(endpoints)])
        self._attempts += 1
        # Made now and not when it is needed: making a stub of a channel that was closed meanwhile is a segmentation
        # fault in grpcio 1.85 (it registers the method without a look at the channel's state).
        self._stub = ReportingStub(channel)
        self._artifacts = ArtifactsStub(channel)
        return channel

    def reached(self) -> int:
        """Let the kernel watch the connection; return of how many sockets.

        A controller that gave it up while packets to this host were lost cannot say so, and an agent that waits for
        news would notice with its next report only, which in a large mesh is up to ten minutes later.
        """
        ports = {int(each.rpartition(":")[2]) for each in self.record.agents_endpoints}
        return watch(lambda found: found.getpeername()[1] in ports, HEARTBEAT)

    async def follow(self, told: HostConfig) -> None:
        """Keep where the controller that is reached says that it is: it may move one day. An older one does not say.

        What led to it is always among what it says: its certificate is for no more.
        """
        agents, joining = tuple(told.agents_endpoints), tuple(told.join_endpoints)
        record = replace(self.record, agents_endpoints=agents, join_endpoints=joining)
        if not agents or record == self.record:
            return
        try:
            await asyncio.to_thread(self._state.save_host, record)
        except StateError as error:
            # Asked again with each look.
            log.warning("where the controller is cannot be written", error=str(error))
            return
        self.record = record
        log.info("controller is called elsewhere", endpoints=record.agents_endpoints)

    async def report(self, report: HostReport) -> ReportResponse:
        """Send the report.

        Raises:
            NotConnectedError: there is no connection, or it was closed meanwhile.
            grpc.aio.AioRpcError: it was not delivered, or refused.
        """
        stub = self._stub
        if stub is None:
            raise NotConnectedError("the controller has not been reached yet")
        return await _asked(lambda: stub.Report(report, timeout=REPORT_TIMEOUT_S, wait_for_ready=True))

    async def fetch(self, request: FetchRequest) -> bytes:
        """Return a piece of an artifact. Raises as `report` does."""
        stub = self._artifacts
        if stub is None:
            raise NotConnectedError("the controller has not been reached yet")
        return (await _asked(lambda: stub.Fetch(request, timeout=FETCH_TIMEOUT_S, wait_for_ready=True))).data


async def _asked(call: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        return await call()
    except grpc.aio.UsageError as error:
        raise NotConnectedError("the controller is not connected") from error
    except asyncio.CancelledError:
        # The relay closes the channel: that looks like a cancellation of ours, and is none.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise NotConnectedError("the connection to the controller was closed") from None
