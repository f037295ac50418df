"""Who stands in the way of `leave` is found in /proc, and nobody else is ended."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostmesh_agent import holders

READER = """
import sys
file = open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""
LOCKER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def started(*command: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd)


@pytest.fixture
def locker(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with started(sys.executable, "-c", LOCKER, str(tmp_path / "lock"), "hostmesh-agent") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_holder_of_a_lock_is_found_and_who_only_has_the_file_open_is_not(
    tmp_path: Path, locker: "subprocess.Popen[str]"
) -> None:
    with started(sys.executable, "-c", READER, str(tmp_path / "lock")) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        assert holders.found(holders.holds_lock(tmp_path / "lock")) == [locker.pid]
        reader.kill()
    assert holders.found(holders.holds_lock(tmp_path / "no-such")) == []


def test_a_stopped_process_is_ended_and_its_lock_is_free(tmp_path: Path, locker: "subprocess.Popen[str]") -> None:
    os.kill(locker.pid, signal.SIGSTOP)
    assert holders.end(holders.holds_lock(tmp_path / "lock")) == [locker.pid]
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_envoy_is_one_whose_program_and_place_are_in_the_state_directory(tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    state, other = tmp_path / "state", tmp_path / "state-of-another"
    for each in (state, other):
        (each / "envoy").mkdir(parents=True)
        shutil.copy(Path(sleep).resolve(), each / "program")
    with (
        started(str(state / "program"), "60", cwd=state / "envoy") as ours,
        started(str(other / "program"), "60", cwd=other / "envoy") as anothers,
        started(sleep, "60", cwd=state / "envoy") as looking_around,
        started(str(state / "program"), "60", cwd=tmp_path) as elsewhere,
    ):
        try:
            shutil.rmtree(state)  # a `leave` that was cut short
            assert holders.end(holders.is_envoy_of(state), grace_s=5) == [ours.pid]
            assert ours.wait(5) == -signal.SIGTERM
            assert [process.poll() for process in (anothers, looking_around, elsewhere)] == [None, None, None]
        finally:
            for process in (ours, anothers, looking_around, elsewhere):
                process.kill()


def test_command_lines_of_ours_are_told_from_others() -> None:
    assert holders.is_agent(["/usr/bin/python3", "/usr/bin/hostmesh-agent", "run"])
    assert holders.is_agent(["python", "-c", "from hostmesh_agent.deadman import main; main(1)"])
    assert not holders.is_agent(["hostmesh-controller", "run"])
    assert not holders.is_agent([])
