"""The one connection to the controller: the relay opens it and keeps it, the reports go along."""

import asyncio
from typing import TYPE_CHECKING, Final

import grpc

from hostmesh_agent import enrol
from hostmesh_agent.state import State
from hostmesh_api.tcp_keepalive import Heartbeat, watch
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ReportResponse
from hostmesh_api.v1.hostmesh_pb2_grpc import ReportingStub

if TYPE_CHECKING:
    from hostmesh_api.v1.hostmesh_pb2_grpc import ReportingAsyncStub  # exists in the stubs only

REPORT_TIMEOUT_S: Final = 10.0
HEARTBEAT: Final = Heartbeat(idle_s=10, again_s=2, give_up_ms=15_000)
"""1,000 quiet hosts send 100 packets a second for it."""


class NotConnectedError(Exception):
    """The controller is not reached at the moment."""


class Uplink:
    """Remembers the channel that the relay uses; each attempt takes the next endpoint in turn."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._attempts = 0
        self._stub: ReportingAsyncStub | None = None

    def connect(self) -> grpc.aio.Channel:
        """Return a new channel with the identity that is on disk now; the relay closes it.

        Raises:
            StateError: the host has not joined, or its files cannot be used.
        """
        channel = enrol.channel(self._state, self._attempts)
        self._attempts += 1
        # Made now and not when it is needed: making a stub of a channel that was closed meanwhile is a segmentation
        # fault in grpcio 1.85 (it registers the method without a look at the channel's state).
        self._stub = ReportingStub(channel)
        return channel

    def reached(self) -> int:
        """Let the kernel watch the connection; return of how many sockets.

        A controller that gave it up while packets to this host were lost cannot say so, and an agent that waits for
        news would notice with its next report only, which in a large mesh is up to ten minutes later.
        """
        ports = {int(each.rpartition(":")[2]) for each in self._state.host().agents_endpoints}
        return watch(lambda found: found.getpeername()[1] in ports, HEARTBEAT)

    async def report(self, report: HostReport) -> ReportResponse:
        """Send the report.

        Raises:
            NotConnectedError: there is no connection, or it was closed meanwhile.
            grpc.aio.AioRpcError: it was not delivered, or refused.
        """
        if self._stub is None:
            raise NotConnectedError("the controller has not been reached yet")
        try:
            return await self._stub.Report(report, timeout=REPORT_TIMEOUT_S, wait_for_ready=True)
        except grpc.aio.UsageError as error:
            raise NotConnectedError("the controller is not connected") from error
        except asyncio.CancelledError:
            # The relay closes the channel: that looks like a cancellation of ours, and is none.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise NotConnectedError("the connection to the controller was closed") from None
