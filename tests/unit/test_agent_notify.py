"""The service manager is told when the agent is ready, that its loop turns, and how it does."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hostmesh_agent import notify
from hostmesh_agent.notify import Manager


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        yield manager, str(tmp_path / "notify")


async def told(manager: socket.socket) -> list[str]:
    return (await asyncio.to_thread(manager.recv, 4096)).decode().split("\n")


async def test_ready_is_said_once_it_is_and_the_watchdog_is_fed_by_the_loop(
    listening: tuple[socket.socket, str],
) -> None:
    manager, address = listening
    ready = asyncio.Event()
    task = asyncio.create_task(notify.run(Manager(address, 0.3), ready, lambda: "web-1:\nall is well"))
    assert await told(manager) == ["WATCHDOG=1", "STATUS=web-1: all is well"]
    assert "READY=1" not in await told(manager)
    ready.set()
    while "READY=1" not in (lines := await told(manager)):
        assert lines[0] == "WATCHDOG=1"
    for _ in range(3):
        assert await told(manager) == ["WATCHDOG=1", "STATUS=web-1: all is well"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while (lines := await told(manager))[0] != "STOPPING=1":
        assert lines[0] == "WATCHDOG=1"


async def test_a_loop_that_hangs_does_not_feed_the_watchdog(listening: tuple[socket.socket, str]) -> None:
    manager, address = listening
    ready = asyncio.Event()
    ready.set()
    task = asyncio.create_task(notify.run(Manager(address, 0.1), ready, str))
    await told(manager)
    manager.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            manager.recv(4096)
    deadline = asyncio.get_running_loop().time() + 0.5
    while asyncio.get_running_loop().time() < deadline:
        pass  # the loop hangs
    with pytest.raises(BlockingIOError):
        manager.recv(4096)
    task.cancel()


def test_an_abstract_socket_is_reached_and_a_manager_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    name = f"hostmesh-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        Manager(f"@{name}", 0.0).tell("READY=1")
        assert manager.recv(100) == b"READY=1"
    Manager(f"@{name}", 0.0).tell("READY=1")
    Manager(str(tmp_path / "nobody"), 0.0).tell("READY=1")
    Manager("", 0.0).tell("READY=1")


def test_the_environment_says_whom_to_tell_and_is_kept_from_what_the_agent_starts() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    assert notify.take(environment) == Manager("/run/x", 30.0)
    assert environment == {"PATH": "/bin"}
    assert notify.take(environment) == notify.NOBODY
    assert notify.manager({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}).watchdog_s == 0
    assert notify.manager({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"}).watchdog_s == 0


def test_systemd_is_told_not_to_start_the_agent_again_where_it_runs_and_need_not_answer(tmp_path: Path) -> None:
    told, program = tmp_path / "told", tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" > {told}\nexit 5\n')
    program.chmod(0o755)
    notify.stay_down(tmp_path, tmp_path / "absent", str(program), tmp_path)
    assert not told.exists()
    notify.stay_down(tmp_path / "another", tmp_path, str(program), tmp_path)  # a second agent of this host's
    assert not told.exists()
    notify.stay_down(tmp_path, tmp_path, str(program), tmp_path)
    assert told.read_text() == "--quiet --no-block stop hostmesh-agent.service\n"
    notify.left_well(tmp_path, tmp_path, str(program), tmp_path)
    assert told.read_text() == "--quiet reset-failed hostmesh-agent.service\n"
    notify.stay_down(tmp_path, tmp_path, str(tmp_path / "absent"), tmp_path)
