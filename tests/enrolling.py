"""Joining, and asking for certificates as anybody may."""

from collections.abc import Awaitable

import grpc
import pytest

import pki
from hostmesh_agent import enrol
from hostmesh_agent.state import State
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import HostFacts

TIMEOUT_S = 10


async def join(join_string: JoinString, state: State, *, force: bool = False) -> None:
    await enrol.join(join_string, state, HostFacts(hostname="web-1"), pki.now, force=force, pause_s=0.01)


async def status_of(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details() or ""
