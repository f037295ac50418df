"""The shared connection, while the relay closes it under the reports."""

import asyncio
import socket
from contextlib import closing
from dataclasses import astuple
from pathlib import Path

import pytest

import pki
from hostmesh_agent.state import HostRecord, State, StateError
from hostmesh_agent.uplink import HEARTBEAT, NotConnectedError, Uplink
from hostmesh_api.v1.hostmesh_pb2 import HostConfig, HostReport

BOUND_S = 10


@pytest.fixture
def uplink(tmp_path: Path) -> Uplink:
    authority = pki.new_authority(tmp_path / "authority")
    # A port on which nobody listens.
    return Uplink(pki.joined(tmp_path / "state", authority, endpoint="127.0.0.1:1"))


async def test_before_the_first_connection_there_is_none(uplink: Uplink) -> None:
    with pytest.raises(NotConnectedError):
        await uplink.report(HostReport())


async def test_a_report_on_a_closed_connection_is_an_error_and_no_crash(uplink: Uplink) -> None:
    async with uplink.connect():
        pass
    for _ in range(20):
        with pytest.raises(NotConnectedError):
            await uplink.report(HostReport())


async def test_closing_the_connection_ends_a_report_without_cancelling_the_reporter(uplink: Uplink) -> None:
    channel = uplink.connect()
    reporting = asyncio.create_task(uplink.report(HostReport()))
    await asyncio.sleep(0)  # the call has begun
    await channel.close(None)
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(NotConnectedError):
            await reporting


async def test_a_report_that_is_cancelled_is_cancelled(uplink: Uplink) -> None:
    async with uplink.connect():
        reporting = asyncio.create_task(uplink.report(HostReport()))
        await asyncio.sleep(0)
        reporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reporting


async def test_the_kernel_watches_the_connection_to_the_controller_and_no_other(tmp_path: Path) -> None:
    authority = pki.new_authority(tmp_path / "authority")
    with socket.create_server(("127.0.0.1", 0)) as controller, socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = f"127.0.0.1:{controller.getsockname()[1]}"
        uplink = Uplink(pki.joined(tmp_path / "state", authority, endpoint=endpoint))
        with (
            closing(socket.create_connection(controller.getsockname())) as ours,
            closing(socket.create_connection(other.getsockname())) as foreign,
        ):
            async with uplink.connect():
                assert uplink.reached() == 1
            assert watched(ours) == (1, *astuple(HEARTBEAT))
            assert watched(foreign)[0] == 0


def told(*endpoints: str) -> HostConfig:
    joining = [f"{each.rpartition(':')[0]}:15013" for each in endpoints]
    return HostConfig(agents_endpoints=endpoints, join_endpoints=joining)


async def test_where_the_controller_says_it_is_outlives_the_agent(uplink: Uplink, tmp_path: Path) -> None:
    await uplink.follow(told("mesh.example.com:15012", "127.0.0.1:1"))
    kept = State(tmp_path / "state").host()
    assert kept == uplink.record
    assert kept.agents_endpoints == ("mesh.example.com:15012", "127.0.0.1:1")
    assert kept.join_endpoints == ("mesh.example.com:15013", "127.0.0.1:15013")


async def test_a_controller_that_does_not_say_where_it_is_changes_nothing(uplink: Uplink) -> None:
    before = uplink.record
    await uplink.follow(HostConfig())
    assert uplink.record == before


async def test_a_disk_that_refuses_costs_nothing_and_is_asked_again(
    uplink: Uplink, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = uplink.record
    with monkeypatch.context() as patched:
        patched.setattr(State, "save_host", refuses)
        await uplink.follow(told("10.9.9.9:15012"))
    assert uplink.record == before
    await uplink.follow(told("10.9.9.9:15012"))
    assert uplink.record.agents_endpoints[0] == "10.9.9.9:15012"


def refuses(_state: State, _record: HostRecord) -> None:
    raise StateError("no space left on device")


def watched(found: socket.socket) -> tuple[int, ...]:
    tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
    return (
        found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        *(found.getsockopt(socket.IPPROTO_TCP, each) for each in tcp),
    )
