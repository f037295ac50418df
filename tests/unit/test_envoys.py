"""The two Envoys of a host at work, with programs in their place that run and say nothing.

So each counts as one that hangs, and a new one never serves; what they are started from is looked at.
"""

import asyncio
import hashlib
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hostmesh_agent import chosen_binary, control, life_file, process, workdir
from hostmesh_agent.artifact import Installed
from hostmesh_agent.bootstrap import ADMIN_SOCKET
from hostmesh_agent.cgroup import EnvoyGroup
from hostmesh_agent.config import AgentConfig, EnvoySettings
from hostmesh_agent.control import Verb
from hostmesh_agent.drained import Drained
from hostmesh_agent.envoy_verbs import EnvoyVerbs
from hostmesh_agent.envoys import Envoys
from hostmesh_agent.likeness import fingerprint
from hostmesh_agent.next_envoy import NextEnvoy, first_command
from hostmesh_agent.places import BLUE, GREEN, INSTANCE_METADATA, Doorway, Instance
from hostmesh_agent.upgrade import Life, Refused, Stage
from hostmesh_api.v1.hostmesh_pb2 import EnvoySettings as MeshSettings
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


@dataclass
class Reports:
    """To a controller that takes as many as a test says."""

    delivered: int = 0
    failing: str = ""

    def changed(self) -> None: ...


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
        settings = EnvoySettings(binary=installed.path, sha256=installed.sha256, hung_after_s=hung_after_s)
        self.config = AgentConfig(state_dir=state_dir, envoy=settings)
        self.reports = Reports()
        self.following = NextEnvoy(
            self.config, "web-1", first_command(self.config, "web-1", owner(), installed, as_unit=False)
        )
        self.envoys = Envoys(
            self.config, self.following, NoSource(), lambda: None, self._leads, EnvoyGroup(None), "as a child"
        )

    def verbs(self) -> Mapping[str, Verb]:
        """Return what the owner of the host may ask for."""
        drained = Drained(self.config.state_dir, self.config.state_dir)
        return EnvoyVerbs(self.config, self.envoys, drained, self.reports).verbs()

    async def _leads(self) -> bool:
        return True

    def want_threads(self, concurrency: int) -> None:
        """Let the mesh want Envoy to be started otherwise."""
        assert self.following.take_settings(MeshSettings(concurrency=concurrency))
        self.envoys.command_changed()

    def arguments(self, instance: Instance) -> str:
        """Return the sum of what an Envoy was started with."""
        record = process.read_record(self.config.directory_of(instance))
        return "" if record is None else record.command_sha256

    async def warms(self) -> None:
        """Wait until a new one is started like what is wanted."""
        wanted = self.following.command
        await until(lambda: self.arguments(GREEN) == wanted.command_sha256(), "the new one is as it is wanted")
        await until(lambda: self.envoys.life.stage is Stage.WARMING)

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


async def test_an_upgrade_by_hand_goes_on_where_something_else_is_wanted_by_now(state_dir: Path) -> None:
    await has_served(state_dir, "v1")
    async with Agent(state_dir, program(state_dir, "v2")).runs() as agent:
        await until(lambda: agent.envoys.status().restart_needed != "", "it is another")
        assert agent.envoys.upgrade() == ""
        await agent.warms()
        agent.want_threads(3)
        await agent.warms()
        assert agent.envoys.document()["asked"]
    async with Agent(state_dir, program(state_dir, "v3")).runs() as agent:
        await agent.warms()
        assert agent.version(GREEN) == "v3", "nor does it end with the agent"


async def test_during_a_change_no_other_binary_is_taken_by_hand(state_dir: Path) -> None:
    await has_served(state_dir, "v1")
    agent = Agent(state_dir, program(state_dir, "v2"))
    async with agent.runs():
        upgrade = agent.verbs()[control.ENVOY_UPGRADE]
        await until(lambda: agent.envoys.status().restart_needed != "", "it is another")
        begun = await upgrade()
        assert (begun["begun"], begun["sha256"]) == (True, agent.following.command.installed.sha256)
        await agent.warms()
        third = program(state_dir, "v3")
        chosen_binary.choose(agent.config.state_dir, third.path, third.sha256)
        assert "being changed already" in (await upgrade())["why_not"]
        assert agent.following.command.installed.sha256 == begun["sha256"]
        third.path.write_text("another one")
        chosen_binary.choose(agent.config.state_dir, third.path, "0" * 64)
        assert "not the pinned Envoy" in (await upgrade())["why_not"]


async def test_what_was_put_back_is_not_told_once_a_person_tries_it_again(state_dir: Path) -> None:
    await has_served(state_dir, "v1")
    agent = Agent(state_dir, program(state_dir, "v2"))
    others = (Refused("another", "worse"), Refused(fingerprint(agent.following.command), "bad"))
    life_file.write(state_dir, Life(refused=others))
    async with Agent(state_dir, program(state_dir, "v2")).runs() as agent:
        await until(lambda: agent.envoys.status().restart_needed != "", "it is another")
        assert agent.envoys.document()["put_back"] == "bad"
        with capture_logs() as said:
            assert agent.envoys.upgrade() == ""
            document = agent.envoys.document()
            assert (document["put_back"], document["asked"]) == ("", True)
            await agent.warms()
        assert [each["put_back"] for each in said if each["event"] == "envoys change"] == [""], (
            "nothing is put back now"
        )


@pytest.mark.parametrize("verb", [control.DRAIN, control.UNDRAIN])
async def test_an_agent_that_starts_has_still_to_tell_whether_its_host_is_drained(state_dir: Path, verb: str) -> None:
    """Also where the mark is there: the agent before may have ended before it had told."""
    for _ in range(2):
        agent = Agent(state_dir, program(state_dir, "v1"))
        ask = agent.verbs()[verb]
        assert (await ask())["told"] is False
        assert (await ask())["told"] is False
    agent.reports.delivered = 1
    assert (await ask())["told"] is True


async def test_an_undrain_is_told_once_a_report_was_made_after_it(state_dir: Path) -> None:
    agent = Agent(state_dir, program(state_dir, "v1"))
    verbs = agent.verbs()
    await verbs[control.DRAIN]()
    agent.reports.delivered = 7
    assert (await verbs[control.DRAIN]())["told"] is True
    for delivered, told in ((7, False), (8, False), (9, True)):
        agent.reports.delivered = delivered
        assert (await verbs[control.UNDRAIN]())["told"] is told


async def test_a_rollback_names_who_serves_then_and_a_second_one_has_nothing_to_put_back(state_dir: Path) -> None:
    await has_served(state_dir, "v1")
    agent = Agent(state_dir, program(state_dir, "v2"))
    async with agent.runs():
        rollback = agent.verbs()[control.ENVOY_ROLLBACK]
        await until(lambda: agent.envoys.status().restart_needed != "", "it is another")
        assert (await rollback())["begun"] is False
        assert agent.envoys.upgrade() == ""
        await agent.warms()
        assert await rollback() == {"begun": True, "why_not": "", "instance": "blue"}
        await until(lambda: agent.envoys.life.stage is Stage.STEADY, "it is put back")
        assert agent.envoys.document()["put_back"] == "it was called back"
        assert "no earlier Envoy runs" in (await rollback())["why_not"]
        await until(lambda: agent.version(GREEN) == "", "the new one is ended")
        assert agent.version(BLUE) == "v1"


async def test_there_is_no_rollback_to_one_that_hangs(state_dir: Path) -> None:
    await has_served(state_dir, "v1")
    agent = Agent(state_dir, program(state_dir, "v2"), HUNG_AFTER_S)
    async with agent.runs():
        await until(lambda: agent.envoys.life.hung, "it is replaced")
        assert agent.envoys.rollback() == "the earlier Envoy hangs: there is no way back to it"


@asynccontextmanager
async def calls_through(directory: Path, active: int, total: int) -> AsyncIterator[None]:
    """Serve the admin interface of an Envoy that is not ready and has so many calls to this host's programs."""
    counts = {"upstream_rq_active": active, "upstream_rq_total": total}
    stats = [{"name": f"cluster.inbound|80||.{name}", "value": value} for name, value in counts.items()]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        body = json.dumps({"stats": stats}).encode()
        status = b"200 OK" if target.startswith(b"/stats") else b"503 Service Unavailable"
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(answer, str(directory / ADMIN_SOCKET)):
        yield


async def test_a_drain_during_a_change_waits_for_the_calls_of_both(state_dir: Path) -> None:
    await has_served(state_dir, "v1")
    agent = Agent(state_dir, program(state_dir, "v2"))
    async with agent.runs():
        drain = agent.verbs()[control.DRAIN]
        await until(lambda: agent.envoys.status().restart_needed != "", "it is another")
        assert agent.envoys.upgrade() == ""
        await agent.warms()
        told = await drain()
        assert (told["calls"], told["begun"]) == (None, None), "neither says"
        directories = [agent.config.directory_of(each) for each in Instance]
        async with calls_through(directories[0], 1, 40), calls_through(directories[1], 2, 5):
            told = await drain()
        assert (told["calls"], told["begun"]) == (3, 45)


async def test_where_no_envoy_runs_the_next_one_is_what_a_person_asks_for(state_dir: Path) -> None:
    """Also where that was put back once: a person may try again."""
    second = program(state_dir, "v2")
    chosen_binary.choose(state_dir, second.path, second.sha256)
    wanted = Agent(state_dir, chosen_binary.install(AgentConfig(state_dir=state_dir))).following.command
    life_file.write(state_dir, Life(refused=(Refused(fingerprint(wanted), "bad"),)))
    agent = Agent(state_dir, program(state_dir, "v1", "exit 3"))
    async with agent.runs():
        await until(lambda: agent.envoys.status().view.crash_looping, "the first one ends again and again")
        await until(lambda: agent.envoys.status().view.pid is None)
        assert (await agent.verbs()[control.ENVOY_UPGRADE]())["begun"] is True
        await until(lambda: agent.version(BLUE) == "custom", "the next one runs")
        await until(lambda: agent.envoys.life == Life(), "nothing is refused any more")


async def test_arguments_that_were_put_back_are_not_those_of_the_next_envoy(state_dir: Path) -> None:
    """Be it the same version: neither after a crash nor in place of one that hangs."""
    await has_served(state_dir, "v1")
    agent = Agent(state_dir, program(state_dir, "v1"), HUNG_AFTER_S)
    before = agent.arguments(BLUE)
    agent.want_threads(3)
    life_file.write(state_dir, Life(refused=(Refused(fingerprint(agent.following.command), "bad"),)))
    agent = Agent(state_dir, program(state_dir, "v1"), HUNG_AFTER_S)
    agent.want_threads(3)
    async with agent.runs():
        await until(lambda: agent.version(GREEN) != "", "another one stands in")
        assert agent.arguments(GREEN) == before
        first = agent.envoys.status().view.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: agent.envoys.status().view.pid not in {None, first}, "it is started again")
        assert agent.arguments(BLUE) == before


async def test_the_record_of_an_agent_that_wrote_no_arguments_is_believed(state_dir: Path) -> None:
    await has_served(state_dir, "v1")
    path = AgentConfig(state_dir=state_dir).directory_of(BLUE) / process.RECORD
    document = json.loads(path.read_bytes())
    del document["arguments"]
    path.write_text(json.dumps(document))
    agent = Agent(state_dir, program(state_dir, "v1"))
    async with agent.runs():
        await until(lambda: agent.envoys.status().view.adopted, "it is adopted")
