import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hostmesh_controller.lab import process
from hostmesh_controller.lab.process import ProcessRecord


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        # Only a process that answers has its arguments in place: exec tells of its success a little before.
        running.stdin.write(b"x")
        assert running.stdout.read(1) == b"x"
        yield running
        running.kill()


def test_a_running_process_is_known_by_its_record(child: subprocess.Popen[bytes]) -> None:
    record = ProcessRecord.of(child.pid)
    assert process.alive(record)
    assert ProcessRecord.from_dict(record.to_dict()) == record


def test_a_record_of_another_start_or_boot_is_nobody(child: subprocess.Popen[bytes]) -> None:
    record = ProcessRecord.of(child.pid)
    assert not process.alive(replace(record, started_ticks=record.started_ticks - 1))
    assert not process.alive(replace(record, boot_id="another"))
    assert not process.alive(None)


def test_a_signal_never_meets_a_process_that_took_over_the_pid(child: subprocess.Popen[bytes]) -> None:
    stale = replace(ProcessRecord.of(child.pid), started_ticks=1)
    assert process.end(stale, signal.SIGKILL, wait_s=1) is False
    assert child.poll() is None


def test_end_returns_when_the_process_has_ended(child: subprocess.Popen[bytes]) -> None:
    record = ProcessRecord.of(child.pid)
    assert process.end(record, signal.SIGTERM, wait_s=10) is True
    # Its exit status is not collected yet, and it counts as ended all the same.
    assert not process.alive(record)
    assert child.wait() == -signal.SIGTERM


def test_command_line_and_executable_of_an_ended_process_are_empty(child: subprocess.Popen[bytes]) -> None:
    assert process.command_line(child.pid) == ["cat"]
    assert process.executable(child.pid) != ""
    child.kill()
    child.wait()
    assert process.command_line(child.pid) == []
    assert process.executable(child.pid) == ""


def test_processes_of_a_pid_namespace_do_not_include_the_asked_one() -> None:
    record = ProcessRecord.of(os.getpid())
    found = process.in_pid_namespace_of(record)
    assert os.getpid() not in [each.pid for each in found]
