"""The command as a person calls it; what needs a controller is in the lab's tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostmesh_agent import cli, lock
from hostmesh_agent.lock import LockedError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    path = tmp_path / "agent.toml"
    path.write_text(
        f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n'
        f'[envoy]\nuser = "nobody"\n[dns]\nresolv_conf = "{tmp_path}/resolv.conf"\n'
    )
    return path


def test_a_mistake_in_the_file_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[envoi]\n")
    assert cli.call(["--config", str(path), "status"]) == 2
    assert capsys.readouterr().err == f"hostmesh-agent: {path}: envoi: unknown key; did you mean 'envoy'?\n"


def test_no_verb_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.call([])
    assert caught.value.code == 2
    assert "VERB" in capsys.readouterr().err


def test_what_is_no_join_string_is_exit_code_2_and_is_not_repeated(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(["--config", str(config), "join", "hm1.secret"]) == 2
    shown = capsys.readouterr()
    assert "secret" not in shown.err + shown.out


def test_a_host_that_has_not_joined_says_so_and_how(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["--config", str(config), "run"]) == 1
    assert "hostmesh-agent join STRING" in capsys.readouterr().err
    assert cli.call(["--config", str(config), "status", "-o", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["healthy"]
    assert not document["ready"]
    assert not document["agent"]["running"]
    assert document["host"] is None
    assert "hostmesh-agent join STRING" in document["problems"][0]
    assert cli.call(["--config", str(config), "status"]) == 1
    assert "has not joined" in capsys.readouterr().out


HOLDER = """
import sys
from pathlib import Path
from hostmesh_agent import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_agent_holds_a_state_directory_and_the_lock_ends_with_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(each for each in sys.path if each)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=str(tmp_path)), lock.held(tmp_path, 0.1):
            pass
        other.kill()
        with lock.held(tmp_path, 20):
            pass
