"""The one connection to the controller: the relay opens it and keeps it, the reports go along."""

from typing import Final

import grpc

from hostmesh_agent import enrol
from hostmesh_agent.state import State
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ReportResponse
from hostmesh_api.v1.hostmesh_pb2_grpc import ReportingStub

REPORT_TIMEOUT_S: Final = 10.0


class NotConnectedError(Exception):
    """The controller has not been reached yet."""


class Uplink:
    """Remembers the channel that the relay uses; each attempt takes the next endpoint in turn."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._attempts = 0
        self._channel: grpc.aio.Channel | None = None

    def connect(self) -> grpc.aio.Channel:
        """Return a new channel with the identity that is on disk now; the relay closes it.

        Raises:
            StateError: the host has not joined, or its files cannot be used.
        """
        self._channel = enrol.channel(self._state, self._attempts)
        self._attempts += 1
        return self._channel

    async def report(self, report: HostReport) -> ReportResponse:
        """Send the report.

        Raises:
            NotConnectedError: there is no channel yet.
            grpc.aio.AioRpcError: it was not delivered, or refused.
        """
        if self._channel is None:
            raise NotConnectedError("the controller has not been reached yet")
        return await ReportingStub(self._channel).Report(report, timeout=REPORT_TIMEOUT_S, wait_for_ready=True)
