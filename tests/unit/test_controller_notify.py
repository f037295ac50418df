"""The controller and the service manager: it is told once, in the controller's name alone."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hostmesh_controller import notify
from running_controller import START_S, free_ports, start_controller, write_config


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(5)
        yield made


def test_what_is_started_by_the_controller_cannot_speak_in_its_name(listener: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "60000000", "PATH": "/bin"}
    found = notify.take(environment)
    assert (found.watchdog_s, environment) == (60.0, {"PATH": "/bin"})
    found.tell("READY=1", "STATUS=serves")
    assert listener.recv(100) == b"READY=1\nSTATUS=serves"


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "1000000"}, 0.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_nobody_watches_unless_it_is_this_process(environment: dict[str, str], watchdog_s: float) -> None:
    assert notify.take(environment).watchdog_s == watchdog_s


def test_a_manager_that_does_not_listen_is_not_waited_for(tmp_path: Path) -> None:
    notify.Manager(str(tmp_path / "none")).tell("READY=1")
    notify.Manager().tell("READY=1")


async def test_the_watchdog_is_fed_by_the_event_loop(listener: socket.socket) -> None:
    listener.setblocking(False)
    fed = asyncio.create_task(notify.Manager(listener.getsockname(), 0.03).feed())
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(5):
            assert [await loop.sock_recv(listener, 100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    finally:
        fed.cancel()
        with suppress(asyncio.CancelledError):
            await fed


def test_the_process_says_when_it_serves_and_when_it_stops(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", listener.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    listener.settimeout(START_S)
    process = start_controller(write_config(tmp_path, free_ports()), tmp_path / "log")
    try:
        told = [listener.recv(200)]
        while not told[-1].startswith(b"READY=1\n"):
            told.append(listener.recv(200))
        assert set(told[:-1]) <= {b"WATCHDOG=1"}
        process.terminate()
        while (last := listener.recv(200)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1"
        assert process.wait(START_S) == 0
    finally:
        process.kill()
        process.wait()
