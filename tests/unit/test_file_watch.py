"""Files that other programs write: what is heard of, and how often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

from hostmesh_agent import file_watch
from hostmesh_agent.file_watch import FileWatch

BOUND_S = 10


@asynccontextmanager
async def watched(*files: Path) -> AsyncIterator[tuple[FileWatch, asyncio.Queue[float]]]:
    heard: asyncio.Queue[float] = asyncio.Queue()
    watch = FileWatch(lambda: heard.put_nowait(asyncio.get_running_loop().time()))
    watch.look(frozenset(files))
    await told(heard)  # of what may have happened before
    yield watch, heard
    watch.close()


async def told(heard: asyncio.Queue[float]) -> float:
    async with asyncio.timeout(BOUND_S):
        return await heard.get()


async def test_each_way_to_change_a_file_is_heard_of_and_no_other_file(tmp_path: Path) -> None:
    path, other = tmp_path / "resolv.conf", tmp_path / "hosts"
    async with watched(path) as (watch, heard):
        other.write_text("1")
        other.with_name("new").write_text("2")
        other.with_name("new").replace(other)
        ways = (
            lambda: path.write_text("made"),
            lambda: path.write_text("written in place"),
            lambda: other.rename(path),
            path.unlink,
            lambda: path.symlink_to("nowhere"),
        )
        for way in ways:
            way()
            await told(heard)
            # As each step does.
            watch.look(frozenset({path}))
        assert heard.empty()


async def test_who_writes_without_end_is_told_of_once_a_pause(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    async with watched(path) as (_, heard):
        times: list[float] = []
        async with asyncio.timeout(BOUND_S):
            while len(times) < 3:
                path.write_text("again")
                await asyncio.sleep(0.001)
                while not heard.empty():
                    times.append(heard.get_nowait())
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert min(pauses) >= file_watch.PAUSE_S


async def test_a_directory_that_is_made_anew_is_watched_again_and_one_that_is_not_there_is_no_error(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "resolv.conf"
    async with watched(path) as (watch, heard):
        for _ in range(2):
            path.parent.mkdir()
            watch.look(frozenset({path}))
            path.write_text("new")
            await told(heard)
            path.unlink()
            await told(heard)
            path.parent.rmdir()
        watch.look(frozenset())
        path.parent.mkdir()
        path.write_text("nobody listens")
        watch.look(frozenset({path}))
        await told(heard)
        path.unlink()
        await told(heard)
        assert heard.empty()


async def test_a_change_is_heard_of_though_other_files_are_watched_from_then_on(tmp_path: Path) -> None:
    path, led = tmp_path / "resolv.conf", tmp_path / "of-the-network"
    async with watched(path, led) as (watch, heard):
        path.write_text("a file where there was a link")
        # The loop had no turn in which it could hear of it.
        watch.look(frozenset({path}))
        await told(heard)
