"""The two Envoys of a host at work, with programs in their place that run and say nothing.

So each counts as one that hangs, and a new one never serves; what they are started from is looked at.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hostmesh_agent import life_file, process, workdir
from hostmesh_agent.artifact import Installed
from hostmesh_agent.cgroup import EnvoyGroup
from hostmesh_agent.config import AgentConfig, EnvoySettings
from hostmesh_agent.envoys import Envoys
from hostmesh_agent.likeness import fingerprint
from hostmesh_agent.next_envoy import NextEnvoy, first_command
from hostmesh_agent.places import BLUE, GREEN, INSTANCE_METADATA, Doorway, Instance
from hostmesh_agent.upgrade import Life, Refused, Stage
from waiting import until

USER = "nobody"
HUNG_AFTER_S = 1


class NoSource:
    """Serves neither."""

    def judged_by(self, instance: Instance) -> None: ...

    def lacks(self, instance: Instance) -> tuple[str, ...]:
        return ()

    def doorways(self) -> frozenset[Doorway]:
        return frozenset()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory that Envoy's user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="hostmesh-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        for each in Instance:
            process.stop_recorded(AgentConfig(state_dir=path).directory_of(each), 2)


def program(state_dir: Path, version: str, text: str = "exec sleep 600") -> Installed:
    """Return a program in the place of an Envoy of this version."""
    path = state_dir / version
    path.write_text(f"#!/bin/sh\n# {version}\n{text}\n")
    path.chmod(0o755)
    return Installed(path, version, hashlib.sha256(path.read_bytes()).hexdigest())


def owner() -> workdir.Account:
    if os.geteuid() == 0:
        return workdir.account(USER)
    return workdir.Account(os.geteuid(), os.getegid(), switch=False)


class Agent:
    """What an agent has of the two Envoys, with `installed` to be started."""

    def __init__(self, state_dir: Path, installed: Installed, hung_after_s: int = 600) -> None:
        self.config = AgentConfig(state_dir=state_dir, envoy=EnvoySettings(hung_after_s=hung_after_s))
        self.following = NextEnvoy(
            self.config, "web-1", first_command(self.config, "web-1", owner(), installed, as_unit=False)
        )
        self.envoys = Envoys(
            self.config, self.following, NoSource(), lambda: None, self._leads, EnvoyGroup(None), "as a child"
        )

    async def _leads(self) -> bool:
        return True

    def version(self, instance: Instance) -> str:
        """Return the version of an Envoy that runs; "" if none does."""
        directory = self.config.directory_of(instance)
        record = process.read_record(directory)
        return record.version if record is not None and record.runs() else ""

    @asynccontextmanager
    async def runs(self) -> AsyncIterator["Agent"]:
        """Be killed at the end: nothing is done then."""
        task = asyncio.create_task(self.envoys.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def has_served(state_dir: Path, version: str) -> None:
    """Let an earlier agent have started this version."""
    async with Agent(state_dir, program(state_dir, version)).runs() as agent:
        await until(lambda: agent.version(BLUE) == version, "it runs")


async def test_one_that_hangs_after_a_failed_upgrade_is_replaced_by_its_like(state_dir: Path) -> None:
    await has_served(state_dir, "v1")
    agent = Agent(state_dir, program(state_dir, "v2"), HUNG_AFTER_S)
    put_back = (Refused(fingerprint(agent.following.command), "bad"),)
    life_file.write(state_dir, Life(refused=put_back))
    agent = Agent(state_dir, program(state_dir, "v2"), HUNG_AFTER_S)
    async with agent.runs():
        await until(lambda: agent.version(GREEN) != "", "another one is started")
        assert agent.version(GREEN) == "v1"
        assert agent.envoys.life.stage is Stage.WARMING
        said = json.loads((agent.config.directory_of(GREEN) / workdir.BOOTSTRAP).read_bytes())
        metadata = said["dynamic_resources"]["ads_config"]["grpc_services"][0]["initial_metadata"]
        assert metadata == [{"key": INSTANCE_METADATA, "value": "green"}], "it is in its own place"
    pid = process.read_record(agent.config.directory_of(GREEN))
    following = Agent(state_dir, program(state_dir, "v2"), HUNG_AFTER_S)
    async with following.runs():
        await until(lambda: following.envoys.document()["other_pid"] is not None, "the next agent goes on")
        assert process.read_record(agent.config.directory_of(GREEN)) == pid, "with the one that was begun"
