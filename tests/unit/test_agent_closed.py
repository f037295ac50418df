"""What the agent keeps is closed to other users: after a join, a rotation, a restore, and whatever the umask."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pki
from enrolling import join
from hostmesh_agent import enrol
from hostmesh_agent.capture import Owner
from hostmesh_agent.cli import call
from hostmesh_agent.config import AgentConfig, EnvoySettings
from hostmesh_agent.run import prepare
from hostmesh_agent.state import State, StateError, keep_closed
from identity_servers import Controller

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
OTHER = 4242


@pytest.fixture
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {str(each.relative_to(directory)): stat.S_IMODE(each.lstat().st_mode) for each in directory.rglob("*")}


@pytest.mark.usefixtures("_no_umask")
async def test_keys_are_roots_alone_after_a_join_and_a_rotation_whatever_the_umask(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    expected = {
        "host.json": 0o600,
        "spare.json": 0o600,
        "identity": 0o700,
        "identity/key.pem": 0o600,
        "identity/chain.pem": 0o600,
        "identity/bundle.pem": 0o600,
    }
    assert modes(state.directory) == expected
    before = (state.directory / "identity/key.pem").read_bytes()
    await enrol.renew_host(state, pki.now)
    assert (state.directory / "identity/key.pem").read_bytes() != before
    assert modes(state.directory) == expected
    assert stat.S_IMODE(state.directory.stat().st_mode) == 0o711


@pytest.mark.parametrize("name", ["host.json", "identity/key.pem", "identity/chain.pem", "identity/bundle.pem"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_a_restore_left_open_is_not_used_and_the_cure_is_named(
    tmp_path: Path, name: str, mode: int
) -> None:
    state = pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "controller"))
    path = state.directory / name
    path.chmod(mode)
    read = state.host if name == "host.json" else state.files
    cure = rf"is open to others \(mode {mode:04o}\): run `chmod 600 {path}`; if it was read"
    with pytest.raises(StateError, match=cure):
        read()


async def prepared(config: AgentConfig) -> None:
    """Do what an agent does first; what comes behind the directories is not ours to test."""
    with pytest.raises(Exception, match="no user 'no-such-user'"):
        await prepare(config, Owner())


async def test_directories_that_a_restore_left_open_are_closed_when_the_agent_starts(tmp_path: Path) -> None:
    state = pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "controller"))
    run_dir = tmp_path / "run"
    wrong = [state.directory, state.directory / "identity", state.directory / "cache", run_dir]
    wrong.append(state.directory / "workload-api")
    for each in wrong:
        each.mkdir(exist_ok=True)
        each.chmod(0o777)
    await prepared(AgentConfig(state_dir=state.directory, run_dir=run_dir, envoy=EnvoySettings(user="no-such-user")))
    assert [stat.S_IMODE(each.stat().st_mode) for each in wrong] == [0o755, 0o700, 0o700, 0o755, 0o700]


@as_root
def test_a_directory_of_another_user_is_refused_with_the_cure(tmp_path: Path) -> None:
    os.chown(tmp_path, OTHER, -1)
    with pytest.raises(StateError, match=f"is uid {OTHER}'s, who could change what is in it: run `chown 0` on it"):
        keep_closed(tmp_path)


def test_a_link_in_a_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o777)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StateError, match="it must be a directory of uid"):
        keep_closed(tmp_path / "link")


@pytest.mark.usefixtures("_no_umask")
def test_what_the_command_makes_on_its_way_is_nobody_elses_to_write(tmp_path: Path) -> None:
    toml = tmp_path / "agent.toml"
    toml.write_text(f'state_dir = "{tmp_path}/var/lib/mesh"\nrun_dir = "{tmp_path}/run/mesh"\n[dns]\nenabled = false\n')
    call(["--config", str(toml), "run"])
    found = modes(tmp_path / "var")
    assert {"lib", "lib/mesh"} <= found.keys()
    assert {name: mode for name, mode in found.items() if mode & 0o022} == {}


_TRY = """
import os, socket, sys
os.setgroups([]); os.setresgid(4242, 4242, 4242); os.setresuid(4242, 4242, 4242)
def tried(path):
    try:
        if path.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(path)
        else:
            open(path).close()
    except PermissionError:
        return "refused"
    return "reached"
print(*map(tried, sys.argv[1:]))
"""


@as_root
async def test_another_user_reads_no_key_and_no_cache(controller: Controller, tmp_path: Path) -> None:
    for each in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        each.chmod(0o755)  # pytest's own directories are closed to others
    state = State(tmp_path / "agent")
    await join(controller.join_string(), state)
    paths = [str(state.directory / name) for name in ("host.json", "identity/key.pem", "identity/chain.pem")]
    command = [sys.executable, "-c", _TRY, *paths]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["refused"] * len(paths), done.stderr
