"""Leases at work: real connections and knocks on the loopback interface, and the loop's own clock."""

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import pytest

from hostmesh_controller import knock, leases, tcp_keepalive
from hostmesh_controller.lease_keeper import LeaseKeeper
from hostmesh_controller.leases import Sign
from waiting import until
from whole_controller import whole_controller

BOUND_S = 20


class World:
    """A keeper, whom it told of, and which hosts answer."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.answers: dict[str, bool | None] = {}
        self.changed = asyncio.Event()
        self.keeper = LeaseKeeper(self._told, lambda host: (host,), self._knock)

    def _told(self, host: str) -> None:
        self.told.append(host)
        self.changed.set()

    async def _knock(self, addresses: Sequence[str]) -> bool | None:
        return self.answers.get(addresses[0], True)

    async def until(self, host: str, sign: Sign) -> None:
        await until(lambda: self.keeper.leases.sign(host) is sign)


async def test_a_host_that_is_silent_is_told_once_its_lease_is_over_and_again_when_it_is_back() -> None:
    world = World()
    world.answers["h1"] = False
    running = asyncio.ensure_future(world.keeper.run())
    loop = asyncio.get_running_loop()
    for host in ("h1", "h2", "h3"):
        world.keeper.connected(host)
    began = loop.time()
    world.keeper.ended("h1")
    await world.until("h1", Sign.WITHDRAWN)
    assert loop.time() - began >= leases.LEASE_S
    assert world.told == ["h1"]
    world.changed.clear()
    world.keeper.connected("h1")
    world.keeper.reported("h1", "live")
    await asyncio.wait_for(world.changed.wait(), BOUND_S)
    assert world.keeper.leases.sign("h1") is Sign.ALIVE
    assert world.told == ["h1", "h1"]
    running.cancel()


@pytest.mark.parametrize("answer", [True, None])
async def test_a_host_that_answers_or_cannot_be_asked_keeps_its_place(answer: bool | None) -> None:
    world = World()
    world.answers["h1"] = answer
    running = asyncio.ensure_future(world.keeper.run())
    world.keeper.connected("h1")
    world.keeper.ended("h1")
    await world.until("h1", Sign.AGENT_AWAY)
    assert world.told == []
    running.cancel()


async def test_a_report_of_an_envoy_that_is_down_is_told_if_none_follows() -> None:
    world = World()
    running = asyncio.ensure_future(world.keeper.run())
    for host in ("h1", "h2"):
        world.keeper.connected(host)
        world.keeper.reported(host, "down")
    world.keeper.reported("h2", "live")
    await asyncio.wait_for(world.changed.wait(), BOUND_S)
    assert world.told == ["h1"]
    assert world.keeper.leases.is_stalled("h1")
    running.cancel()


async def test_a_kernel_answers_whether_or_not_anybody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await knock.answers(("127.0.0.1",), port) is True
    assert await knock.answers(("127.0.0.1",), port) is True
    assert await knock.answers((), port) is None


async def test_a_full_backlog_is_silence() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        held = [socket.socket() for _ in range(3)]
        for each in held:
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect(("127.0.0.1", port))
        assert await knock.answers(("127.0.0.1",), port, within_s=0.3) is False
        for each in held:
            each.close()


async def test_the_kernel_watches_the_connections_of_agents(tmp_path: Path) -> None:
    async with whole_controller(tmp_path) as whole:
        port = whole.ports[0]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: bool(_accepted(port)), "gRPC accepts the connection")
        assert _accepted(port) == [
            (1, *astuple(tcp_keepalive.HEARTBEAT)),
        ]
        writer.transport.abort()


def _accepted(port: int) -> list[tuple[int, ...]]:
    """Return how the kernel watches each connection that this process accepted on a port."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError, ValueError):
            if not stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as each:
                listens = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if each.family != socket.AF_UNIX and not listens and each.getsockname()[1] == port:
                    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
                    on = each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    found.append((on, *(each.getsockopt(socket.IPPROTO_TCP, option) for option in options)))
    return found
