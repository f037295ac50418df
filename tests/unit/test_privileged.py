"""The privileged part: what it does for the agent, and what it refuses whoever has become the agent."""

import asyncio
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_agent import dns, privileged, rights
from hostmesh_api import wire
from others import let_in

ENVOYS = "0::/hostmesh.slice/hostmesh-envoy.slice/hostmesh-envoy@blue.service\n"


def ask(**request: Any) -> dict[str, Any]:
    return privileged.answer(json.dumps(request).encode() + b"\n")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that would have been run as root."""
    commands: list[tuple[str, ...]] = []

    def run(*command: str) -> dict[str, Any]:
        commands.append(command)
        return {"said": ""}

    monkeypatch.setattr(privileged, "_run", run)
    return commands


def test_the_acts_are_these_and_no_others() -> None:
    assert set(privileged.VERBS) == {
        *("start-envoy", "stop-envoy", "forget-envoy", "show-envoy", "signal-envoy"),
        *("put-names", "take-names", "tell-resolved", "ssh-servers", "holders", "probe", "ask-upgrade"),
    }


@pytest.mark.parametrize("verb", ["start-envoy", "stop-envoy", "forget-envoy", "show-envoy"])
@pytest.mark.parametrize(
    "instance",
    [
        "../../ssh",
        "blue.service hostmesh",
        "",
        "BLUE",
        "blue ",
        "--root=/tmp",
        None,
        1,
        True,
        ["blue"],
        {"blue": 1},
        "blue\n",
        "x@y.service",
    ],
)
def test_no_unit_but_the_two_of_envoys_is_touched(ran: list[tuple[str, ...]], verb: str, instance: object) -> None:
    assert ask(verb=verb, instance=instance)["error"].startswith("refused: ")
    assert ran == []


GOOD = {"package": "hostmesh-agent", "version": "1.2.3~rc1", "way": "packages", "token": "0123456789abcdef"}


def test_an_upgrade_is_asked_for_by_the_words_that_it_knows(ran: list[tuple[str, ...]]) -> None:
    assert "error" not in ask(verb="ask-upgrade", **GOOD)
    unit = r"hostmesh-upgrade@hostmesh-agent:1.2.3\x7erc1:packages:0123456789abcdef.service"
    assert ran == [("systemctl", "start", "--no-block", "--", unit)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"package": "bash"},
        {"package": "hostmesh-agent:1.0.0"},
        {"package": 1},
        {"version": "../../x"},
        {"version": "1.2.3:back"},
        {"version": "1.2.3 --force"},
        {"version": None},
        {"way": "install"},
        {"way": "packages:0123456789abcdef.service ssh"},
        {"token": "0123456789abcdef.service"},
        {"token": "x"},
        {"token": ["0123456789abcdef"]},
    ],
)
def test_no_other_unit_is_started_for_an_upgrade(ran: list[tuple[str, ...]], wrong: dict[str, object]) -> None:
    assert ask(verb="ask-upgrade", **{**GOOD, **wrong})["error"].startswith("refused: ")
    assert ran == []


def test_envoys_units_are_started_stopped_shown_and_forgotten(ran: list[tuple[str, ...]]) -> None:
    for verb, instance in (("start-envoy", "blue"), ("stop-envoy", "green"), ("forget-envoy", "blue")):
        assert "error" not in ask(verb=verb, instance=instance)
    assert ran == [
        ("systemctl", "restart", "--", "hostmesh-envoy@blue.service"),
        ("systemctl", "stop", "--", "hostmesh-envoy@green.service"),
        ("systemctl", "reset-failed", "--", "hostmesh-envoy@blue.service"),
    ]


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("dns", ["192.0.2.1"]),
        ("dns", [wire.SPLIT_DNS_ADDRESS, "192.0.2.1"]),
        ("dns", []),
        ("domain", []),
        ("domain", ["~."]),
        ("domain", ["."]),
        ("domain", ["--help"]),
        ("domain", ["mesh", "-i", "eth0"]),
        ("domain", ["a" * 300]),
        ("domain", ["mesh"] * 300),
        ("domain", "mesh"),
        ("domain", [1]),
        ("default-route", ["yes"]),
        ("dnssec", []),
        ("revert", ["eth0"]),
        ("flush-caches", []),
        ("--version", []),
        (["dns"], [wire.SPLIT_DNS_ADDRESS]),
        (None, []),
    ],
)
def test_systemd_resolved_is_told_nothing_else(ran: list[tuple[str, ...]], what: object, values: object) -> None:
    assert ask(verb="tell-resolved", what=what, values=values)["error"].startswith("refused: ")
    assert ran == []


def test_systemd_resolved_is_told_of_our_link_alone(ran: list[tuple[str, ...]]) -> None:
    for what, values in (
        ("default-route", ["no"]),
        ("domain", ["~mesh.local", "svc.cluster.local"]),
        ("dns", [wire.SPLIT_DNS_ADDRESS]),
        ("revert", []),
    ):
        assert "error" not in ask(verb="tell-resolved", what=what, values=values)
    assert {command[2] for command in ran} == {"hostmesh0"}
    assert len(ran) == 4


def status(*uids: int) -> str:
    return "Name:\tenvoy\nUid:\t" + "\t".join(map(str, uids)) + "\nGid:\t0\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("told", "cgroup", "is_it"),
    [
        (status(7, 7, 7, 7), ENVOYS, True),
        (status(7, 7, 7, 7), f"12:pids:/x\n{ENVOYS}", True),
        (status(0, 0, 0, 0), ENVOYS, False),
        (status(7, 0, 7, 7), ENVOYS, False),
        (status(7, 7, 7, 7), "0::/system.slice/ssh.service\n", False),
        (status(7, 7, 7, 7), "0::/user.slice/hostmesh.slice/hostmesh-envoy.slice/x\n", False),
        (status(7, 7, 7, 7), "0::/hostmesh.slice/hostmesh-envoy.slice/../../init.scope\n", False),
        (status(7, 7, 7, 7), "1:name=x:/hostmesh.slice/hostmesh-envoy.slice/x\n", False),
        ("", "", False),
    ],
)
def test_envoy_is_who_has_its_user_and_is_in_its_slice(told: str, cgroup: str, is_it: bool) -> None:
    assert privileged.is_envoy(told, cgroup, 7) is is_it


@pytest.mark.parametrize(
    ("pid", "number"), [(1, "TERM"), (0, "KILL"), (-1, "KILL"), ("2", "KILL"), (True, "KILL"), (2, "STOP"), (2, 9)]
)
def test_no_other_process_is_signalled_and_no_other_signal_sent(pid: object, number: object) -> None:
    assert ask(verb="signal-envoy", pid=pid, number=number)["error"].startswith("refused: ")


def test_a_process_that_is_no_envoy_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileged, "ENVOY", "nobody")
    with subprocess.Popen(["sleep", "60"]) as other:
        assert "no Envoy" in ask(verb="signal-envoy", pid=other.pid, number="KILL")["error"]
        assert other.poll() is None
        other.kill()


def test_the_resolvers_file_is_the_hosts_and_what_is_put_there_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\n")
    monkeypatch.setattr(privileged, "RESOLV_CONF", path)
    monkeypatch.setattr(privileged, "KEPT", tmp_path / "kept")
    assert ask(verb="put-names") == {"in_place": True, "detail": "", "changed": True}
    assert ask(verb="put-names") == {"in_place": True, "detail": "", "changed": False}
    assert dns.has_mesh(path.read_text())
    assert ask(verb="put-names", text="nameserver 203.0.113.1")["error"].startswith("refused: ")
    assert ask(verb="put-names", path="/etc/passwd")["error"].startswith("refused: ")
    assert ask(verb="take-names") == {"changed": True}
    assert ask(verb="take-names") == {"changed": False}
    assert path.read_text() == "nameserver 192.0.2.53\n"
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[probes]\nexec_user = "root"\n', "is root"),
        ('[probes]\nexec_user = ""\n', "runs no commands"),
        ('[probes]\nexec_user = "no-such-user"\n', "there is no user"),
    ],
)
def test_commands_of_probes_run_as_whom_the_hosts_owner_says_and_never_as_root(
    tmp_path: Path, text: str, said: str
) -> None:
    config = tmp_path / "agent.toml"
    assert privileged.probes_account(config).pw_name == "nobody"
    config.write_text(text)
    with pytest.raises(privileged.RefusedError, match=said):
        privileged.probes_account(config)


@pytest.mark.parametrize("command", [[], "id", ["id", 1], ["a\0b"], [""], None, ["x"] * 300])
def test_what_is_no_command_is_not_run(command: object) -> None:
    assert ask(verb="probe", command=command)["error"].startswith("refused: ")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b"{}\n",
        b'{"verb": 1}\n',
        b"\xff\n",
        b'{"verb": "run"}\n',
        b'{"verb": "__class__"}\n',
        b"[" * 9999,
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    assert privileged.answer(line)["error"].startswith("refused: ")


@given(st.binary(max_size=200) | st.from_regex(r'\{"verb": "[a-z-]{0,20}", "[a-z]{0,9}": .{0,20}\}').map(str.encode))
def test_no_bytes_do_anything(line: bytes) -> None:
    assert "error" in privileged.answer(line)


# Over a connection


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A socket as systemd's: each connection is one process of the privileged part."""
    place = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(8)
        place.chmod(0o666)
        let_in(tmp_path)
        accepting = subprocess.Popen(
            [sys.executable, "-c", _ACCEPT, sys.executable], stdin=listener.fileno(), pass_fds=[listener.fileno()]
        )
        yield place
        accepting.kill()
        accepting.wait()


_ACCEPT = """
import socket, subprocess, sys
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    subprocess.Popen([sys.argv[1], "-m", "hostmesh_agent.privileged"], stdin=connection.fileno())
    connection.close()
"""


def test_over_a_connection_it_is_the_kernel_that_says_who_asks(served: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with pytest.raises(rights.RightsError, match="refused: it is none of the acts"):
        rights.Helped(served).ask("run", command=["id"])
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
        try:
            rights.Helped(served).ask("show-envoy", instance="blue")
        except rights.RightsError as error:
            os._exit(0 if "uid 65534 may not ask" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def logged(**request: Any) -> str:
    """Return what the journal of a host has of one act, done by a process of its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "hostmesh_agent.privileged"]
        process = subprocess.Popen(command, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True)
        ours.sendall(json.dumps(request).encode() + b"\n")
        _, text = process.communicate(timeout=30)
    return text


def test_each_act_leaves_a_line_of_who_asked_for_what_and_what_came_of_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    ended = subprocess.Popen(["true"])
    ended.wait()
    line = logged(verb="signal-envoy", pid=ended.pid, number="TERM")
    said = f'signal-envoy {{"pid": {ended.pid}, "number": "TERM"}}: nothing to do'
    assert line == f"<6>uid 0, process {os.getpid()}: {said}\n"
    said = 'stop-envoy {"instance": "ssh"}: refused: instance: is neither blue nor green'
    assert logged(verb="stop-envoy", instance="ssh") == f"<5>uid 0, process {os.getpid()}: {said}\n"


def test_what_only_looks_and_is_asked_again_and_again_leaves_no_line() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert logged(verb="ssh-servers") == ""
    assert logged(verb="holders", inodes=[1]) == ""


@pytest.mark.parametrize(
    ("request_", "reply", "line"),
    [
        ({"verb": "stop-envoy", "instance": "blue"}, {"said": ""}, '<6>W: stop-envoy {"instance": "blue"}: done'),
        ({"verb": "put-names"}, {"in_place": True, "changed": True}, "<6>W: put-names {}: done"),
        ({"verb": "put-names"}, {"in_place": True, "changed": False}, ""),
        ({"verb": "take-names"}, {"changed": True}, "<6>W: take-names {}: done"),
        ({"verb": "take-names"}, {"changed": False}, ""),
        ({"verb": "probe", "command": ["true"]}, {"code": 0}, ""),
        ({"verb": "probe", "command": ["true"]}, {"error": "x"}, '<5>W: probe {"command": ["true"]}: x'),
        ({"verb": "stop\n<5>W: x"}, {"error": "refused: a\nb"}, "<5>W: stop <5>W: x {}: refused: a b"),
    ],
)
def test_the_line_of_an_act(request_: dict[str, Any], reply: dict[str, Any], line: str) -> None:
    assert privileged.line_of("W", json.dumps(request_).encode() + b"\n", reply) == line


def test_no_line_is_without_end_and_no_bytes_make_two() -> None:
    domains = [f"d{number}.example" for number in range(256)]
    asked = json.dumps({"verb": "tell-resolved", "what": "domain", "values": domains}).encode()
    line = privileged.line_of("W", asked, {"said": ""})
    assert line.endswith("…: done")
    assert len(line) < 400
    for data in (b"", b"[]", b"{", b'{"verb": 1}', b"\xff\n\n", b"[" * 9999):
        assert privileged.line_of("W", data, {"error": "refused"}) == "<5>W: refused"


def test_whose_a_socket_is_is_told_for_sockets_alone(served: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    helped = rights.Helped(served)
    with socket.socket() as mine:
        inode = os.fstat(mine.fileno()).st_ino
        # One that it sees itself is not asked for; one that is nobody's is nobody's.
        assert helped.holders({inode, 0, 1}, dict) == {inode: os.getpid()}
        assert helped.holders({inode}, lambda: {inode: 7}) == {inode: 7}
    for inodes in (["1"], "1", None, [True], [1.5], list(range(4097))):
        with pytest.raises(rights.RightsError, match="refused: "):
            helped.ask("holders", inodes=inodes)


def test_programs_are_unknown_while_the_privileged_part_is_away(tmp_path: Path) -> None:
    assert rights.Helped(tmp_path / "none").holders({1, 2}, lambda: {1: 7}) == {1: 7}


def test_a_probes_command_runs_without_rights_and_ends_with_the_one_who_asked(served: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    helped = rights.Helped(served)
    nobody = pwd.getpwnam("nobody").pw_uid

    async def own() -> int:
        raise AssertionError("it is the privileged part that does it")

    async def run(*command: str, within_s: float = 10) -> int:
        async with asyncio.timeout(within_s):
            return await helped.probe(command, own)

    assert asyncio.run(run("sh", "-c", "exit 7")) == 7
    assert asyncio.run(run("sh", "-c", f'[ "$(id -u)" = {nobody} ] && [ "$(id -G)" = "$(id -g)" ]')) == 0
    assert asyncio.run(run("/nonexistent")) == 127
    with pytest.raises(TimeoutError):
        asyncio.run(run("sleep", "4717", within_s=1.5))
    until = time.monotonic() + 10
    while subprocess.run(["pgrep", "-f", "^sleep 4717"], capture_output=True).returncode == 0:
        assert time.monotonic() < until


def test_who_is_root_has_the_rights_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "s"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not rights.here(place).helped
    place.touch()
    assert rights.here(place).helped
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not rights.here(place).helped


def test_a_privileged_part_that_is_away_or_hangs_up_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(rights.RightsError, match="does not answer"):
        rights.Helped(tmp_path / "none").ask("put-names")
    place = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(1)
        child = os.fork()
        if not child:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()
            os._exit(0)
        with pytest.raises(rights.RightsError, match="hung up"):
            rights.Helped(place).ask("put-names")
        os.waitpid(child, 0)


def test_an_agent_that_may_not_signal_envoy_has_it_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def refused(descriptor: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", refused)

    def ask(self: rights.Helped, verb: str, **more: Any) -> dict[str, Any]:
        asked.append((verb, more))
        return {}

    monkeypatch.setattr(rights.Helped, "ask", ask)
    rights.Helped(Path("/x")).signal(3, 42, signal.SIGTERM)
    assert asked == [("signal-envoy", {"pid": 42, "number": "TERM"})]
