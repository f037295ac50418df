"""Whether systemd-resolved is there to be told, for an agent that may not look into other users' processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

from hostmesh_agent import resolved
from others import let_in

RESOLVED: Final = "system.slice/systemd-resolved.service"
AGENT: Final = "system.slice/hostmesh-agent.service"
NOBODY: Final = 65534
_LISTENS: Final = """
import socket, sys
from pathlib import Path
for each in sys.argv[2:]:
    Path(each, "cgroup.procs").write_text("0")
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen(8)
    print("ready", flush=True)
    sys.stdin.read()
"""


def hierarchies() -> list[Path]:
    """Return where cgroups can be made: v2, and what systemd uses beside v1."""
    places = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd")]
    return [each for each in places if (each / "cgroup.procs").exists() and os.access(each, os.W_OK)]


@pytest.fixture
def groups() -> Iterator[list[Path]]:
    """A part of the cgroup tree, as another service manager has it."""
    if os.geteuid() != 0 or not hierarchies():
        pytest.skip("needs root and cgroups")
    tops = [each / f"hostmesh-test-{os.getpid()}" for each in hierarchies()]
    with ExitStack() as stack:
        for top in tops:
            for each in (top, top / "system.slice", top / RESOLVED, top / AGENT, top / "other.service"):
                each.mkdir()
                stack.callback(each.rmdir)
        yield tops


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    let_in(tmp_path)
    monkeypatch.setattr(resolved, "RUN", tmp_path)
    return tmp_path


def seen(ours: list[Path]) -> bool:
    """Tell what somebody without rights finds, who is in these cgroups."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            for each in ours:
                (each / "cgroup.procs").write_text("0")
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os._exit(0 if resolved.runs() else 1)
        os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 0


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (RESOLVED, AGENT, True),
        ("other.service", AGENT, False),
        (RESOLVED, "other.service", False),
    ],
)
def test_systemd_resolved_without_its_stub_is_seen_without_rights(
    groups: list[Path], run_dir: Path, theirs: str, ours: str, told: bool
) -> None:
    place = run_dir / "io.systemd.Resolve"
    command = [sys.executable, "-c", _LISTENS, str(place), *(str(top / theirs) for top in groups)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout is not None
        assert listening.stdout.readline() == "ready\n"
        place.chmod(0o666)
        assert seen([top / ours for top in groups]) is told
        # Who has the rights goes by the network.
        assert resolved.runs()
        listening.communicate(timeout=30)
    assert not seen([top / ours for top in groups])


def test_a_socket_of_another_machine_below_is_not_taken_for_the_hosts_own() -> None:
    host = "0::/system.slice/hostmesh-agent.service\n"
    below = "0::/machine.slice/box.scope/payload/system.slice/systemd-resolved.service\n"
    assert not resolved.of_one_manager(below, host)
    assert resolved.of_one_manager("0::/system.slice/systemd-resolved.service\n", host)
    hybrid = "3:cpu:/\n1:name=systemd:{}\n0::{}\n".format
    assert resolved.of_one_manager(
        hybrid(*["/system.slice/systemd-resolved.service"] * 2), hybrid(*["/agents.slice/hostmesh-agent.service"] * 2)
    )
    assert not resolved.of_one_manager("", "")
    assert not resolved.of_one_manager("5:pids:/system.slice/systemd-resolved.service\n", host)
