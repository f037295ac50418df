"""The end of an Envoy waits for what is under way, and not for ever."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hostmesh_agent import drain
from hostmesh_agent.admin import Admin
from hostmesh_agent.config import EnvoySettings

BOUND_S = 10.0


@asynccontextmanager
async def admin(path: Path, connections: list[int]) -> AsyncIterator[list[str]]:
    """Serve the admin interface of an Envoy that has so many connections each time it is asked; the last for ever."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        asked.append(target)
        body = b"OK"
        if target.startswith("/stats"):
            now = connections.pop(0) if len(connections) > 1 else connections[0]
            names = ("listener.0.0.0.0_15006.downstream_cx_active", "http.x.downstream_cx_active")
            stats = [*({"name": name, "value": now} for name in names)]
            stats.append({"name": "listener.admin.downstream_cx_active", "value": 1})
            body = json.dumps({"stats": stats}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, str(path))
    async with server:
        yield asked


async def test_it_ends_as_soon_as_nothing_is_under_way(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with admin(path, [2, 1, 0]) as asked, asyncio.timeout(BOUND_S):
        assert await drain.drained(Admin(path), BOUND_S)
    assert asked[0] == "/drain_listeners?graceful&skip_exit"
    assert len(asked) == 4


async def test_it_ends_when_the_time_is_over_and_at_once_where_there_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with admin(path, [1]), asyncio.timeout(BOUND_S):
        assert not await drain.drained(Admin(path), 0.2)
    assert not await drain.drained(Admin(tmp_path / "nobody.sock"), BOUND_S)


@pytest.mark.parametrize(("wanted_ms", "expected_s"), [(1500, 1.5), (0, 0.0), (10**9, drain.LONGEST_S)])
def test_how_long_it_waits_is_what_the_mesh_said_last(tmp_path: Path, wanted_ms: int, expected_s: float) -> None:
    assert drain.noted_s(tmp_path) == drain.DEFAULT_S
    drain.note(tmp_path, wanted_ms)
    assert drain.noted_s(tmp_path) == expected_s


def test_the_hosts_own_word_on_threads_goes_before_the_meshs() -> None:
    assert EnvoySettings().workers(16) == 4
    assert EnvoySettings().workers(16, 2) == 2
    assert EnvoySettings().workers(16, 0) == 16
    assert EnvoySettings(concurrency=3).workers(16, 2) == 3


def test_how_long_an_end_waits_is_noted_and_where_nothing_can_be_written_the_agent_lives(tmp_path: Path) -> None:
    drain.note(tmp_path, 1500)
    written = (tmp_path / drain.FILE).stat()
    drain.note(tmp_path, 1500)
    assert (tmp_path / drain.FILE).stat().st_ino == written.st_ino, "what is there is not written again"
    assert drain.noted_s(tmp_path) == 1.5
    drain.note(tmp_path / "no such directory", 1500)
    assert drain.noted_s(tmp_path / "no such directory") == drain.DEFAULT_S
