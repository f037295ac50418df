"""A real Envoy with the agent's own bootstrap shows that it proxies, before any program's request meets it."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import artifact, process, verdict, workdir
from hostmesh_agent.bootstrap import BootstrapInput, build
from hostmesh_agent.envoy import Supervisor, files_limit
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.envoy_unit import AsChild
from hostmesh_agent.lifecycle import Phase
from hostmesh_agent.looking import Look
from hostmesh_agent.places import BLUE, GREEN

USER = "nobody"
WAIT_S = 30.0


@pytest.fixture
def command() -> Iterator[EnvoyCommand]:
    with tempfile.TemporaryDirectory(prefix="hostmesh-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        root.chmod(0o755)
        owner = (
            workdir.account(USER) if os.geteuid() == 0 else workdir.Account(os.geteuid(), os.getegid(), switch=False)
        )
        installed = artifact.install(None, None, root)
        max_files = files_limit()
        document = json.loads(build(BootstrapInput("web-1", root / "xds.sock", max_files, instance=GREEN)))
        # Nobody serves it here, and it would wait.
        del document["dynamic_resources"]
        bootstrap = json.dumps(document).encode()
        yield EnvoyCommand(installed, bootstrap, root / "green", owner, 2, "warning", max_files)


@asynccontextmanager
async def running(command: EnvoyCommand) -> AsyncIterator[Look]:
    news = asyncio.Event()
    supervisor = Supervisor(lambda: command, news.set, AsChild(command.directory))
    task = asyncio.create_task(supervisor.run())
    try:
        async with asyncio.timeout(WAIT_S):
            while supervisor.status().view.phase is not Phase.LIVE:
                news.clear()
                await news.wait()
        yield Look(GREEN, command.directory)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        process.stop_recorded(command.directory, 5)


async def test_an_envoy_answers_the_agents_own_calls_and_does_not_count_them(command: EnvoyCommand) -> None:
    async with running(command) as look:
        assert await look.rehearse() == ""
        assert await look.listeners() == frozenset()
        counts = await look.counts()
        assert counts is not None
        assert {each.all for each in counts.values()} == {0}
        assert await look.connections() == 0
        assert await look.unready(frozenset({"in"})) == ("its listeners in are not active",)


async def test_calls_that_envoy_serves_are_counted_with_those_that_failed(command: EnvoyCommand) -> None:
    """The names of the counters are Envoy's, and the pattern reaches it unquoted."""
    renamed = replace(command, bootstrap=command.bootstrap.replace(b'"hostmesh-rehearsal', b'"other-rehearsal'))
    async with running(renamed) as look:
        await look.rehearse()
        counts = await look.counts()
        assert counts is not None
        # Five calls, each through two listeners.
        assert counts["calls that were answered with 5xx"] == verdict.Count(10, 0)
        assert counts["connections to programs and hosts that failed"].all >= 1


async def test_silence_is_measured_and_ends_with_an_answer(command: EnvoyCommand) -> None:
    absent = Look(BLUE, command.directory)
    await absent.ask()
    before = absent.silent_s
    await absent.ask()
    assert absent.silent_s >= before > 0
    async with running(command) as look:
        await look.ask()
        assert look.silent_s == 0
    absent.forget_silence()
    assert absent.silent_s == 0


async def test_calls_that_fail_are_told_with_the_reason(command: EnvoyCommand) -> None:
    found = await Look(GREEN, command.directory).rehearse()
    assert found.startswith("5 of the agent's own 5 calls through it failed: ")
