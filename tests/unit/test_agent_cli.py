"""The command as a person calls it; what needs a controller is in the lab's tests."""

import json
import os
import socket
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pki
from hostmesh_agent import bugreport, cli, hold, lock
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.lock import LockedError
from hostmesh_api.joinstring import JoinString


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


def test_the_version_is_told_on_stdout_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.call(["--version"])
    assert caught.value.code == 0
    told = capsys.readouterr()
    assert (told.out.startswith("hostmesh-agent "), told.err) == (True, "")


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
import tarfile
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


# Joining


def started(config: Path, *words: str, text_in: str | None = None) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": ":".join(each for each in sys.path if each)}
    command = [sys.executable, "-c", "from hostmesh_agent.cli import main; main()", "--config", str(config), "join"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    if text_in is not None and process.stdin is not None:
        process.stdin.write(text_in)
        process.stdin.close()
    return process


def test_the_token_cannot_be_read_in_the_command_line_while_the_agent_joins(config: Path, tmp_path: Path) -> None:
    root = pki.new_authority(tmp_path / "authority").root_der
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        text = JoinString((where,), root, "s" * 43).encode()
        with started(config, text, "--name", "web-1") as joining:
            silent.settimeout(20)
            connection, _ = silent.accept()  # the agent calls: it is at work
            shown = Path(f"/proc/{joining.pid}/cmdline").read_bytes()
            joining.kill()
            connection.close()
    assert text.encode() not in shown
    assert text[4:40].encode() not in shown
    words = shown.split(b"\0")
    assert words[-4] == b"x" * len(text)
    assert words[-3:] == [b"--name", b"web-1", b""]


def test_a_join_string_comes_from_a_file_or_from_stdin_as_well(config: Path, tmp_path: Path) -> None:
    root = pki.new_authority(tmp_path / "authority").root_der
    text = JoinString(("127.0.0.1:1",), root, "").encode()
    (tmp_path / "string").write_text(text + "\n")
    for words, text_in in ((("-",), text + "\n"), (("--file", str(tmp_path / "string")), None)):
        with started(config, *words, text_in=text_in) as joining:
            assert joining.wait(30) == 2
            assert joining.stderr is not None
            assert "the join string has no token: say how this host proves who it is" in joining.stderr.read()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), 'give the join string, "-" to read it from stdin, or --file'),
        (("STRING", "--file", "/x"), 'give the join string, "-" to read it from stdin, or --file'),
        (("--file", "/none/x"), "/none/x: cannot be read: No such file"),
        (("STRING", "--attest", "x509pop"), "--attest x509pop needs --certificate and --key"),
        (("nonsense", "--root", "ROOT"), "endpoint 'nonsense' is not host:port"),
        (("127.0.0.1:1", "--root", "/none/x"), "/none/x: cannot be read"),
        (("127.0.0.1:1", "--root", "ROOT"), "has no token"),
    ],
)
def test_a_join_that_cannot_be_says_why(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    authority = pki.new_authority(tmp_path / "authority")
    (tmp_path / "root.pem").write_bytes(authority.bundle_pem)
    string = JoinString(("127.0.0.1:1",), authority.root_der, "").encode()
    stands = {"STRING": string, "ROOT": str(tmp_path / "root.pem")}
    assert cli.call(["--config", str(config), "join", *(stands.get(each, each) for each in words)]) == 2
    assert said in capsys.readouterr().err


def test_evidence_is_made_only_when_a_controller_has_asked_for_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = pki.new_authority(tmp_path / "authority")
    string = JoinString(("127.0.0.1:1",), authority.root_der, "").encode()
    words = ["join", string, "--attest", "ssh", "--key", str(tmp_path / "none")]
    assert cli.call(["--config", str(config), *words]) == 1
    assert "no controller answered" in capsys.readouterr().err


def test_resume_says_that_agent_toml_wants_nothing_captured(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    off = config.parent / "state" / hold.OFF
    off.parent.mkdir()
    off.touch()
    text = config.read_text()
    config.write_text(f"{text}[capture]\nenabled = false\n")
    assert cli.call(["--config", str(config), "capture", "resume"]) == 1
    assert "take enabled = false out of agent.toml, then: systemctl restart hostmesh-agent" in capsys.readouterr().err
    assert not off.exists()
    config.write_text(text)
    assert cli.call(["--config", str(config), "capture", "resume"]) == 0
    assert capsys.readouterr().out == "the agent will capture again when it runs\n"


def test_resume_says_that_the_agent_was_started_with_another_agent_toml(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    socket_file = config.parent / "run" / "agent.sock"
    socket_file.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_file))
        listener.listen(2)

        def answer() -> None:
            for reply in ({}, {}, {"capture": {"not_wanted": hold.DISABLED}}):
                with listener.accept()[0] as asked, asked.makefile("rwb") as file:
                    file.readline()
                    file.write(json.dumps(reply).encode() + b"\n")

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(answer)
            assert cli.call(["--config", str(config), "capture", "resume"]) == 1
            done.result(timeout=10)
    assert "restart it" in capsys.readouterr().err


def test_what_cannot_wait_is_done_though_agent_toml_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(config.read_text() + "[capture]\nexclude_inbound_port = [80]\n[floor]\nmtls_ports = [8443]\n")
    seen: list[AgentConfig] = []

    def verb(_: object, config: AgentConfig) -> int:
        seen.append(config)
        return 0

    for name in ("cli_wait._guard", "cli_capture._clear", "cli_bugreport._bugreport"):
        monkeypatch.setattr(f"hostmesh_agent.{name}", verb)
    for words in (["guard"], ["capture", "clear"], ["bugreport"]):
        assert cli.call(["--config", str(config), *words]) == 0
        assert "did you mean 'exclude_inbound_ports'?" in capsys.readouterr().err
    assert [each.floor.mtls_ports for each in seen] == [(8443,)] * 3
    assert cli.call(["--config", str(config), "leave"]) == 2


def test_a_bugreport_says_that_the_owners_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\nenvoi = 1\n')
    # Rules and logs of the machine are nothing of this.
    monkeypatch.setattr(bugreport, "COMMANDS", {})
    report = tmp_path / "report.tar.gz"
    assert cli.call(["--config", str(config), "bugreport", "--output", str(report)]) == 0
    with tarfile.open(report) as opened:
        (name,) = (each for each in opened.getnames() if each.endswith("/doctor.json"))
        file = opened.extractfile(name)
        assert file is not None
        found = {each["code"]: each["what"] for each in json.load(file)}
    assert found["HM-A107"] == f"{config}: envoi: unknown key; did you mean 'envoy'?"


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        ("LoadState=loaded", 1, "unit web.service does not run, and rules know a unit by its processes"),
        ("LoadState=not-found", 2, "systemd knows no unit web.service"),
    ],
)
def test_a_unit_that_is_stopped_is_no_wrong_call(
    told: str, code: int, said: str, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As systemctl(1) prints it of such units.
    systemctl = config.with_name("systemctl")
    systemctl.write_text(f"#!/bin/sh\nprintf '%s\\n' MainPID=0 ControlGroup= {told}\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(config.parent), prepend=os.pathsep)
    words = ["--config", str(config), "capture", "explain", "10.0.0.5:443", "--unit", "web.service"]
    assert cli.call(words) == code
    assert said in capsys.readouterr().err
