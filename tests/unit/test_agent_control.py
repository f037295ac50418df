import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hostmesh_agent import control
from hostmesh_agent.control import TRIAL, AgentAbsentError, Asked, Control, ControlError, Verb, call

BOUND_S = 10


@asynccontextmanager
async def listening(
    path: Path, verbs: Mapping[str, Verb], asked: Mapping[str, Asked] | None = None
) -> AsyncIterator[None]:
    task = asyncio.create_task(Control(path, verbs, asked).run())
    try:
        async with asyncio.timeout(BOUND_S):
            while not is_there(path):  # noqa: ASYNC110 - the socket itself is the only sign
                await asyncio.sleep(0.01)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_there(path: Path) -> bool:
    return path.exists()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def hello() -> dict[str, Any]:
    return {"hello": "x" * 100_000}


async def test_a_verb_is_answered_however_long_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with listening(path, {"hello": hello}):
        assert mode(path) == 0o600
        assert await asyncio.to_thread(call, path, "hello") == await hello()
        with pytest.raises(ControlError, match="unknown verb 'other'"):
            await asyncio.to_thread(call, path, "other")
    assert not is_there(path)


async def test_rubbish_does_not_end_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with listening(path, {"hello": hello}):
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"\xff{[\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert await asyncio.to_thread(call, path, "hello") == await hello()


async def test_the_beginning_of_a_trial_is_not_cut_off_and_other_verbs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, loop, cut_off = tmp_path / "agent.sock", asyncio.get_running_loop(), asyncio.Event()
    monkeypatch.setattr(control, "TIMEOUT_S", 0.2)

    async def begins(_: Mapping[str, Any]) -> Mapping[str, Any]:
        begun = asyncio.Event()
        loop.call_later(1.0, begun.set)
        await begun.wait()
        return {"begun": True}

    async def hangs(_: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            await asyncio.Event().wait()
            return {}
        finally:
            cut_off.set()

    async with listening(path, {}, {TRIAL: begins, "other": hangs}):
        assert await asyncio.to_thread(call, path, TRIAL, BOUND_S) == {"begun": True}
        with pytest.raises(ControlError):
            await asyncio.to_thread(call, path, "other", BOUND_S)
        assert cut_off.is_set()


def test_no_agent_is_told_from_other_failures(tmp_path: Path) -> None:
    with pytest.raises(AgentAbsentError, match="no agent runs"):
        call(tmp_path / "agent.sock", "status")
