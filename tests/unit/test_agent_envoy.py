"""The supervisor with real processes: a program that ends on demand, and the real Envoy."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import artifact, bootstrap, launch, process, workdir
from hostmesh_agent.admin import Admin, AdminError
from hostmesh_agent.artifact import Installed
from hostmesh_agent.envoy import Supervisor, files_limit
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.envoy_unit import AsChild
from hostmesh_agent.lifecycle import Phase

USER = "nobody"
BOUND_S = 15

# A program in Envoy's place: says hello, and ends as the file `exit` in its working directory says.
PROGRAM = """#!/bin/sh
echo "[critical] hello from $$"
while [ ! -e exit ]; do sleep 0.05; done
exit "$(cat exit)"
"""

BOOTSTRAP = {
    "admin": json.loads(bootstrap.build(bootstrap.BootstrapInput("h", Path("/x"), 1024)))["admin"],
    "static_resources": {
        "listeners": [
            {
                "name": "here",
                "address": {"pipe": {"path": "here.sock"}},
                "filter_chains": [
                    {
                        "filters": [
                            {
                                "name": "echo",
                                "typed_config": {
                                    "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"
                                },
                            }
                        ]
                    }
                ],
            }
        ]
    },
}


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory that Envoy's user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="hostmesh-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        process.stop_recorded(path / "envoy", 2)


def owner() -> workdir.Account:
    if os.geteuid() == 0:
        return workdir.account(USER)
    return workdir.Account(os.geteuid(), os.getegid(), switch=False)


def command(state_dir: Path, installed: Installed, bootstrap: bytes = b"{}") -> EnvoyCommand:
    return EnvoyCommand(installed, bootstrap, state_dir / "envoy", owner(), 1, "warning", files_limit())


@pytest.fixture
def program(state_dir: Path) -> EnvoyCommand:
    path = state_dir / "program"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return command(state_dir, Installed(path, "0.0.0", "0" * 64))


@pytest.fixture
def envoy(state_dir: Path) -> EnvoyCommand:
    return command(state_dir, artifact.install(None, None, state_dir), json.dumps(BOOTSTRAP).encode())


class Watched:
    """A running supervisor whose state can be waited for."""

    def __init__(self, wanted: EnvoyCommand) -> None:
        self.wanted = wanted
        self._news = asyncio.Event()
        self.supervisor = Supervisor(lambda: self.wanted, self._news.set, AsChild(self.wanted.directory))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def phase(self, wanted: Phase) -> int:
        await self.until(lambda: self.supervisor.status().view.phase is wanted)
        return self.supervisor.status().view.pid or 0

    async def running(self) -> int:
        await self.until(lambda: self.supervisor.status().view.pid is not None)
        return self.supervisor.status().view.pid or 0


@asynccontextmanager
async def supervised(wanted: EnvoyCommand) -> AsyncIterator[Watched]:
    """Like an agent that is killed: nothing is done at the end."""
    watched = Watched(wanted)
    task = asyncio.create_task(watched.supervisor.run())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


NET_BIND_SERVICE = "0000000000000400"


async def test_envoy_runs_as_its_own_user_with_no_capability_but_low_ports_and_nothing_of_the_agents(
    envoy: EnvoyCommand,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can switch the user")
    inherited = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        async with supervised(envoy) as agent:
            pid = await agent.phase(Phase.LIVE)
    finally:
        os.close(inherited)
    check_privileges(pid, envoy)


def check_privileges(pid: int, envoy: EnvoyCommand) -> None:
    status = status_of(pid)
    assert status["Uid"].split() == [str(envoy.owner.uid)] * 4
    assert status["Gid"].split() == [str(envoy.owner.gid)] * 4
    assert status["Groups"] == ""
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {NET_BIND_SERVICE}
    assert status["NoNewPrivs"] == "1"
    # Those that are closed meanwhile lead nowhere.
    open_files = {str(each.resolve()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    assert "/etc/hostname" not in open_files
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").resolve() == envoy.directory
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert f"Max open files            {envoy.max_files} " in limits
    admin = (envoy.directory / "admin.sock").stat()
    assert (admin.st_uid, admin.st_mode & 0o777) == (envoy.owner.uid, 0o600)


async def test_the_admin_client_reads_listeners_by_name(envoy: EnvoyCommand) -> None:
    async with supervised(envoy) as agent:
        await agent.phase(Phase.LIVE)
        admin = Admin(envoy.directory / "admin.sock")
        assert await admin.listeners() == {"here"}
        assert (await admin.server_info()).state == "LIVE"
        assert "1.40.0" in (await admin.server_info()).version
        assert (await admin.request("GET", "/config_dump"))[0] == 403
        assert (await admin.request("POST", "/quitquitquit"))[0] == 403
        assert (await admin.stats("^listener_manager.total_listeners_active$")) == {
            "listener_manager.total_listeners_active": 1
        }


async def test_an_absent_envoy_is_an_admin_error(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="No such file"):
        await Admin(tmp_path / "admin.sock").live()


async def test_a_killed_envoy_is_back_at_once_and_its_death_is_told(envoy: EnvoyCommand) -> None:
    async with supervised(envoy) as agent:
        first = await agent.phase(Phase.LIVE)
        os.kill(first, signal.SIGKILL)
        await agent.until(lambda: agent.supervisor.status().view.pid not in (None, first))
        await agent.phase(Phase.LIVE)
        view = agent.supervisor.status().view
        assert view.restarts == 1
        assert view.last_exit.startswith("killed by SIGKILL")
        assert not view.crash_looping


async def test_the_next_agent_adopts_the_running_envoy_and_restarts_it_when_it_ends(envoy: EnvoyCommand) -> None:
    async with supervised(envoy) as agent:
        first = await agent.phase(Phase.LIVE)
    async with supervised(envoy) as agent:
        assert await agent.phase(Phase.LIVE) == first
        status = agent.supervisor.status()
        assert status.view.adopted
        assert (status.version, status.restart_needed) == ("1.40.0", "")
        os.kill(first, signal.SIGKILL)
        await agent.until(lambda: agent.supervisor.status().view.pid not in (None, first))
        await agent.phase(Phase.LIVE)


async def test_an_adopted_envoy_with_another_bootstrap_goes_on_and_is_reported(envoy: EnvoyCommand) -> None:
    async with supervised(envoy) as agent:
        first = await agent.phase(Phase.LIVE)
    changed = replace(envoy, bootstrap=envoy.bootstrap + b" ", concurrency=2)
    async with supervised(changed) as agent:
        assert await agent.phase(Phase.LIVE) == first
        assert agent.supervisor.status().restart_needed == (
            "its bootstrap is another; its arguments, user, limits or capabilities are others"
        )


async def test_an_envoy_that_the_mesh_wants_otherwise_goes_on_and_the_status_says_so(envoy: EnvoyCommand) -> None:
    async with supervised(envoy) as agent:
        first = await agent.phase(Phase.LIVE)
        agent.wanted = replace(envoy, concurrency=3, drain_s=7)
        agent.supervisor.command_changed()
        assert agent.supervisor.status().restart_needed == "its arguments, user, limits or capabilities are others"
        agent.wanted = envoy
        agent.supervisor.command_changed()
        assert agent.supervisor.status().restart_needed == ""
        assert await agent.phase(Phase.LIVE) == first


async def test_envoys_log_can_be_written_by_an_access_log_to_stdout(program: EnvoyCommand) -> None:
    async with supervised(program) as agent:
        await agent.running()
        info = (program.directory / workdir.LOG).stat()
        assert not program.owner.switch or (info.st_gid, info.st_mode & 0o777) == (program.owner.gid, 0o660)


def test_envoy_outlives_an_agent_that_is_killed(envoy: EnvoyCommand, state_dir: Path) -> None:
    script = f"""
import asyncio, json, sys
from pathlib import Path
from hostmesh_agent import artifact, workdir
from hostmesh_agent.envoy import Supervisor
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.envoy_unit import AsChild
owner = workdir.Account({envoy.owner.uid}, {envoy.owner.gid}, switch={envoy.owner.switch})
installed = artifact.install(None, None, Path({str(state_dir)!r}))
command = EnvoyCommand(installed, {envoy.bootstrap!r}, Path({str(envoy.directory)!r}),
    owner, 1, "warning", {envoy.max_files})
def tell():
    view = supervisor.status().view
    print(view.phase, view.pid, flush=True)
async def main():
    global supervisor
    supervisor = Supervisor(lambda: command, tell, AsChild(command.directory))
    await supervisor.run()
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": ":".join(each for each in sys.path if each)}
    agent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    bound = threading.Timer(BOUND_S, agent.kill)
    bound.start()
    with agent:
        assert agent.stdout is not None
        pid = next(int(line.split()[1]) for line in agent.stdout if line.startswith("live"))
        agent.kill()
        agent.wait(BOUND_S)
    bound.cancel()
    assert status_of(pid)["State"].startswith(("S", "R"))
    assert process.stop_recorded(envoy.directory, 5)
    assert not process.stop_recorded(envoy.directory, 5)


async def test_a_program_that_keeps_ending_is_restarted_ever_later_and_called_a_crash_loop(
    program: EnvoyCommand,
) -> None:
    program.directory.mkdir()
    (program.directory / "exit").write_text("3")
    (program.directory / "exit").chmod(0o644)
    async with supervised(program) as agent:
        await agent.until(lambda: agent.supervisor.status().view.crash_looping)
        await agent.phase(Phase.DOWN)
        view = agent.supervisor.status().view
        assert view.last_exit.startswith("exit code 3: [critical] hello from")
        (program.directory / "exit").unlink()
        await agent.running()


async def test_a_hold_keeps_envoy_down_until_it_is_gone(program: EnvoyCommand) -> None:
    program.directory.mkdir()
    (program.directory / workdir.HOLD).touch()
    async with supervised(program) as agent:
        await agent.phase(Phase.HELD)
        (program.directory / workdir.HOLD).unlink()
        await agent.running()


async def test_a_requested_stop_ends_envoy_and_the_supervisor(program: EnvoyCommand) -> None:
    watched = Watched(program)
    task = asyncio.create_task(watched.supervisor.run())
    pid = await watched.running()
    watched.supervisor.request_stop()
    async with asyncio.timeout(BOUND_S):
        await task
    assert watched.supervisor.status().view.phase is Phase.STOPPED
    with pytest.raises(ProcessLookupError):
        launch.start_ticks(pid)


async def test_a_binary_that_envoys_user_cannot_reach_is_named(program: EnvoyCommand, state_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the user of the test can reach its own files")
    os.chmod(state_dir, 0o700)  # noqa: PTH101 - a pathlib call in a coroutine is refused
    async with supervised(program) as agent:
        await agent.until(lambda: bool(agent.supervisor.status().view.last_exit))
        assert f"chmod o+x {state_dir}" in agent.supervisor.status().view.last_exit


def test_a_record_of_another_owner_boot_or_start_is_not_believed(program: EnvoyCommand) -> None:
    workdir.prepare(program.directory, program.owner)
    path = program.directory / process.RECORD
    sleeper = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        facts = {**program.spec()["facts"]}
        honest = {
            **facts,
            "pid": sleeper.pid,
            "start_ticks": launch.start_ticks(sleeper.pid),
            "boot_id": launch.boot_id(),
        }
        path.write_text(json.dumps(honest))
        found = process.open_recorded(program.directory)
        assert found is not None
        found[1].close()
        for lie in (
            {"start_ticks": launch.start_ticks(sleeper.pid) + 1},
            {"boot_id": "other"},
            {"pid": 1},
            {"pid": "x"},
        ):
            path.write_text(json.dumps({**honest, **lie}))
            assert process.open_recorded(program.directory) is None
        path.write_text(json.dumps(honest))
        if os.geteuid() == 0:
            os.chown(path, program.owner.uid, program.owner.gid)
            assert process.open_recorded(program.directory) is None
        path.unlink()
        (program.directory / "elsewhere").write_text(json.dumps(honest))
        path.symlink_to("elsewhere")
        assert process.open_recorded(program.directory) is None
    finally:
        sleeper.kill()
        sleeper.wait(5)


def test_the_log_is_bounded_and_a_link_in_its_place_is_not_followed(program: EnvoyCommand, state_dir: Path) -> None:
    workdir.prepare(program.directory, program.owner)
    path = program.directory / workdir.LOG
    writer = workdir.open_log(program.directory)
    os.write(writer, b"a" * 100 + b"b" * 100)
    assert not workdir.bound_log(program.directory, 200)
    assert workdir.bound_log(program.directory, 150)
    assert (program.directory / "envoy.log.1").read_bytes() == b"a" * 50 + b"b" * 100
    os.write(writer, b"after\n")
    os.close(writer)
    assert path.read_bytes() == b"after\n"
    assert workdir.last_words(program.directory) == "after"
    path.unlink()
    precious = state_dir / "precious"
    precious.write_text("x")
    path.symlink_to(precious)
    writer = workdir.open_log(program.directory)
    os.write(writer, b"line\n")
    os.close(writer)
    assert precious.read_text() == "x"
    assert not path.is_symlink()
