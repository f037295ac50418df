"""Envoy as a unit, against a small systemd: it starts and forgets as the real one does (tests/hosts has that)."""

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from shipping.parts import script

from hostmesh_agent import envoy_unit, launch, process, rights, workdir
from hostmesh_agent.artifact import Installed
from hostmesh_agent.config import AgentConfig, EnvoySettings
from hostmesh_agent.envoy import Supervisor
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.envoy_unit import AsChild, AsUnit, UnitProcess
from hostmesh_agent.lifecycle import Phase
from hostmesh_agent.places import Instance

USER = "nobody"
BOUND_S = 20
UNIT = "hostmesh-envoy@blue.service"
PROGRAM = """#!/bin/sh
echo "[critical] hello from $$"
while [ ! -e exit ]; do sleep 0.05; done
exit "$(cat exit)"
"""
# Of each unit a directory: `pid` while it runs, `code` and `status` once it has failed, `ended` is the last pid.
SYSTEMD = """#!{python} -IS
import os, signal, sys, time
TOP, RUNS, RUN_DIR, USER = "{top}", "{launcher}", "{run_dir}", "{user}"
CLEAN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)
verb, unit = sys.argv[1], sys.argv[-1]
place = os.path.join(TOP, unit)
os.makedirs(place, exist_ok=True)
with open(os.path.join(TOP, "asked"), "a") as log:
    print(*sys.argv[1:2], unit, file=log)

def file(name):
    return os.path.join(place, name)

def read(name):
    try:
        with open(file(name)) as found:
            return found.read()
    except FileNotFoundError:
        return ""

def write(name, text):
    with open(file(name + ".new"), "w") as new:
        new.write(str(text))
    os.rename(file(name + ".new"), file(name))

def forget(*names):
    for name in names:
        try:
            os.unlink(file(name))
        except FileNotFoundError:
            pass

def wait(condition):
    until = time.monotonic() + 10
    while not condition():
        if time.monotonic() > until:
            sys.exit("took too long")
        time.sleep(0.005)

def stop():
    if read("pid"):
        os.kill(int(read("pid")), signal.SIGTERM)
        wait(lambda: not read("pid"))

def start():
    forget("code", "status", "ended")
    if os.fork():
        wait(lambda: read("pid") or read("ended"))
        return
    os.setsid()
    pid = os.fork()
    if not pid:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for each in range(3):
                os.dup2(null, each)
            # As who we are: another user may not reach the interpreter of a developer.
            instance = unit.partition("@")[2].partition(".")[0]
            os.execve(RUNS, [RUNS, os.path.join(RUN_DIR, "launch", instance + ".json")], dict(PATH="/usr/bin:/bin"))
        finally:
            os._exit(203)
    write("pid", pid)
    for each in range(3):
        os.close(each)
    ended = os.waitid(os.P_PID, pid, os.WEXITED)
    clean = ended.si_status == 0 if ended.si_code == os.CLD_EXITED else ended.si_status in CLEAN
    if not clean:
        write("code", ended.si_code)
        write("status", ended.si_status)
    write("ended", pid)
    forget("pid")
    os._exit(0)

if verb == "restart":
    stop()
    start()
elif verb == "stop":
    stop()
elif verb == "reset-failed":
    forget("code", "status", "ended")
elif verb == "show":
    pid, failed = read("pid"), read("code")
    print("LoadState=" + (read("load") or "loaded"))
    print("User=" + USER)
    print("ActiveState=" + ("active" if pid else "failed" if failed else "inactive"))
    print("MainPID=" + (pid or "0"))
    print("ExecMainPID=" + (pid or (read("ended") if failed else "0")))
    print("ExecMainCode=" + (read("code") or "0"))
    print("ExecMainStatus=" + (read("status") or "0"))
else:
    sys.exit("no such verb: " + verb)
"""


class Systemd:
    """The small one. `launcher` is what the unit runs."""

    def __init__(self, top: Path, user: str) -> None:
        self.top = top / "systemd"
        self.top.mkdir()
        self.run_dir = top / "run"
        self.run_dir.mkdir(mode=0o711)
        self.run_dir.chmod(0o711)
        self.launcher = top / "envoy-exec"
        self._program(
            self.launcher, script(sys.executable, str(Path(launch.__file__).parents[1]), "hostmesh_agent/launch.py")
        )
        self.systemctl = str(top / "systemctl")
        names = {"python": sys.executable, "top": self.top, "launcher": self.launcher, "run_dir": self.run_dir}
        text = SYSTEMD
        for name, value in {**names, "user": user}.items():
            text = text.replace(f"{{{name}}}", str(value))
        self._program(Path(self.systemctl), text)

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return (self.top / "asked").read_text().splitlines()

    def main_pid(self) -> int:
        found = self.top / UNIT / "pid"
        return int(found.read_text()) if found.exists() else 0


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that Envoy's user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="hostmesh-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        process.stop_recorded(path / "envoy", 2)


@pytest.fixture
def command(top: Path) -> EnvoyCommand:
    path = top / "program"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    root = os.geteuid() == 0
    owner = workdir.account(USER) if root else workdir.Account(os.geteuid(), os.getegid(), switch=False)
    return EnvoyCommand(Installed(path, "0.0.0", "0" * 64), b"{}", top / "envoy", owner, 1, "warning", 4096)


@pytest.fixture
def systemd(top: Path) -> Iterator[Systemd]:
    made = Systemd(top, USER)
    yield made
    if made.main_pid():
        with suppress(ProcessLookupError):
            os.kill(made.main_pid(), signal.SIGKILL)


def unit(command: EnvoyCommand, systemd: Systemd) -> AsUnit:
    workdir.prepare(command.directory, command.owner)
    return AsUnit(Instance.BLUE, command.directory, systemd.run_dir, systemd.systemctl)


@pytest.mark.parametrize("umask", [0o022, 0o177])
def test_systemd_starts_it_and_the_agent_alone_says_what_it_is(
    command: EnvoyCommand, systemd: Systemd, umask: int
) -> None:
    starter = unit(command, systemd)
    before = os.umask(umask)
    try:
        started = starter.spawn(command, "")
    finally:
        os.umask(before)
    try:
        assert isinstance(started, UnitProcess)
        assert started.pid == systemd.main_pid()
        record = process.read_record(command.directory)
        assert record is not None
        assert (record.pid, record.sha256, record.runs()) == (started.pid, "0" * 64, True)
        assert command.differences(record) == ""
        # What root becomes is written where nobody else writes.
        spec = systemd.run_dir / "launch/blue.json"
        assert (spec.stat().st_uid, spec.stat().st_mode & 0o777) == (os.geteuid(), 0o644)
        assert spec.parent.stat().st_mode & 0o777 == 0o755
        assert json.loads(spec.read_text())["uid"] is None
    finally:
        started.close()


@pytest.mark.parametrize(
    ("how", "told", "forgotten"),
    [
        (signal.SIGKILL, "killed by SIGKILL", True),
        (signal.SIGSEGV, "killed by SIGSEGV", True),
        (signal.SIGTERM, envoy_unit.IN_ORDER, False),
        (7, "exit code 7", True),
    ],
)
def test_it_is_told_how_it_ended_and_systemd_forgets_that_it_failed(
    command: EnvoyCommand, systemd: Systemd, how: int, told: str, forgotten: bool
) -> None:
    started = unit(command, systemd).spawn(command, "")
    if isinstance(how, signal.Signals):
        started.signal(how)
    else:
        (command.directory / "exit").write_text(str(how))
        (command.directory / "exit").chmod(0o644)
    assert started.wait(10)
    assert started.exit_status() == told
    assert (f"reset-failed {UNIT}" in systemd.asked) == forgotten
    started.close()


def test_one_that_ends_at_once_is_told_with_its_last_words(command: EnvoyCommand, systemd: Systemd) -> None:
    gone = replace(command, installed=replace(command.installed, path=Path("/nonexistent/envoy")))
    try:
        started = unit(command, systemd).spawn(gone, "")
    except OSError as error:
        told = str(error)
    else:  # it was seen while it lived
        assert started.wait(10)
        told = f"{started.exit_status()}: {workdir.last_words(command.directory)}"
        started.close()
    assert re.search(rf"exit code 126 \(journalctl -u {UNIT} says why\): .*cannot be started.*nonexistent", told)
    assert process.open_recorded(command.directory) is None


def test_an_agent_that_follows_a_killed_one_finds_it_with_and_without_a_record(
    command: EnvoyCommand, systemd: Systemd
) -> None:
    first = unit(command, systemd).spawn(command, "")
    first.close()
    following = unit(command, systemd)
    process.remove_record(command.directory)
    assert following.find() is None
    following.recover()
    found = following.find()
    assert found is not None
    record, running = found
    assert (record.pid, isinstance(running, UnitProcess)) == (first.pid, True)
    assert command.differences(record) == ""
    running.signal(signal.SIGKILL)
    assert running.wait(10)
    assert running.exit_status() == "killed by SIGKILL"
    running.close()
    following.recover()
    assert following.find() is None


def test_a_child_of_an_agent_before_is_taken_over_as_what_it_is(command: EnvoyCommand, systemd: Systemd) -> None:
    workdir.prepare(command.directory, command.owner)
    child = AsChild(command.directory).spawn(command, "")

    def recorded() -> bool:
        return process.recorded_runs(command.directory)

    for _ in range(1000):
        if recorded() or child.wait(0.01):
            break
    found = unit(command, systemd).find()
    assert found is not None
    assert not isinstance(found[1], UnitProcess)
    found[1].close()
    child.signal(signal.SIGKILL)
    assert child.wait(10)
    child.exit_status()
    child.close()


def test_what_the_unit_has_no_right_for_is_started_as_a_child(command: EnvoyCommand, systemd: Systemd) -> None:
    wanted = replace(command, more_rights=(launch.NET_ADMIN,))
    started = unit(command, systemd).spawn(wanted, "")
    assert systemd.main_pid() == 0
    assert not isinstance(started, UnitProcess)
    started.signal(signal.SIGKILL)
    assert started.wait(10)
    started.exit_status()
    started.close()


async def test_a_supervisor_keeps_a_unit_running(command: EnvoyCommand, systemd: Systemd) -> None:
    news = asyncio.Event()
    supervisor = Supervisor(lambda: command, news.set, unit(command, systemd))
    task = asyncio.create_task(supervisor.run())

    async def another(than: int | None) -> int:
        async with asyncio.timeout(BOUND_S):
            while (pid := supervisor.status().view.pid) in (None, than):
                news.clear()
                await news.wait()
        return pid or 0

    try:
        first = await another(None)
        os.kill(first, signal.SIGKILL)
        second = await another(first)
        assert second == systemd.main_pid()
        assert supervisor.status().view.last_exit.startswith("killed by SIGKILL")
        supervisor.request_stop()
        async with asyncio.timeout(BOUND_S):
            await task
        assert (supervisor.status().view.phase, systemd.main_pid()) == (Phase.STOPPED, 0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/hostmesh-agent.service\n")
    return tmp_path / "proc"


def test_it_is_a_unit_where_the_agent_is_one_and_the_unit_is_made_for_this_host(
    systemd: Systemd, proc: Path, tmp_path: Path
) -> None:
    config = AgentConfig(envoy=EnvoySettings(user=USER))

    def why(config: AgentConfig = config, runs: Path = tmp_path, systemctl: str = systemd.systemctl) -> str:
        return envoy_unit.why_not(config, proc, runs, systemctl)

    assert why() == ""
    assert "builtin" in why(replace(config, envoy=replace(config.envoy, supervisor="builtin")))
    assert why(runs=tmp_path / "none") == "systemd does not run here"
    assert "'nobody', agent.toml says 'proxy'" in why(replace(config, envoy=replace(config.envoy, user="proxy")))
    assert "/run/hostmesh" in why(replace(config, run_dir=Path("/run/other")))
    assert "systemctl" in why(systemctl=str(tmp_path / "systemctl"))
    (systemd.top / UNIT / "load").write_text("not-found")
    assert why() == f"there is no {UNIT}"
    (proc / "self/cgroup").write_text("0::/user.slice/user-0.slice\n")
    assert why() == "the agent does not run as hostmesh-agent.service"


def test_a_systemd_that_does_not_start_it_is_not_waited_for_for_ever(
    command: EnvoyCommand, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights.Own, "within_s", 0.2)
    Path(systemd.systemctl).write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(OSError, match="no answer within"):
        unit(command, systemd).spawn(command, "")
