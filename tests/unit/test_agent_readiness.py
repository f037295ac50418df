"""`hostmesh-agent wait`: what programs may count on, and the reason where they may not."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import pki
from hostmesh_agent import readiness
from hostmesh_agent.cli import call

Change = Callable[[dict[str, Any]], object]


def ready() -> dict[str, Any]:
    return {
        "agent": {"running": True},
        "problems": ["the controller is not connected: not reached yet"],
        "configuration": {"listeners_wanted": ["inbound", "outbound"]},
        "envoy": {"state": "live", "listeners": ["inbound", "outbound", "dns"], "last_exit": ""},
        "capture": {"state": "on", "error": "", "waiting_for": [], "not_wanted": ""},
        "certificates": [{"name": "agent", "serial": "1"}],
        "dns": {"in_place": True, "detail": ""},
    }


@pytest.mark.parametrize("what", readiness.WHATS)
def test_a_host_that_serves_from_its_disk_is_ready_without_the_controller(what: str) -> None:
    assert readiness.lacks(ready(), what) == []


CASES: list[tuple[Change, str, str]] = [
    (lambda status: status["configuration"].update(listeners_wanted=[]), "envoy", "there is no configuration yet"),
    (lambda status: status["envoy"].update(state="down", last_exit="SIGSEGV"), "envoy", "Envoy is down (SIGSEGV)"),
    (lambda status: status["envoy"].update(listeners=["inbound"]), "envoy", "Envoy does not have outbound yet"),
    (lambda status: status["capture"].update(waiting_for=["port 80: x"]), "capture", "capture waits: port 80: x"),
    (lambda status: status["capture"].update(state="error", error="EPERM"), "capture", "capture: EPERM"),
    (lambda status: status["certificates"].append({"name": "w", "missing": "x"}), "ready", "w has no certificate: x"),
    (lambda status: status["dns"].update(in_place=False, detail="read-only"), "ready", "names: read-only"),
    (lambda status: status["agent"].update(running=False), "envoy", "the controller is not connected: not reached yet"),
]


@pytest.mark.parametrize(("change", "first", "reason"), CASES)
def test_what_is_lacking_is_said_to_those_who_need_it(change: Change, first: str, reason: str) -> None:
    status = ready()
    change(status)
    order = ("envoy", "capture", "ready")
    for what in order:
        expected = [reason] if order.index(what) >= order.index(first) else []
        assert readiness.lacks(status, what) == expected


def test_capture_that_the_owner_does_not_want_is_not_waited_for() -> None:
    status = ready()
    status["capture"].update(state="off", not_wanted="capture clear was called", waiting_for=["x"])
    assert readiness.lacks(status, "ready") == []


def test_a_resolver_that_is_knowingly_left_alone_is_not_waited_for_but_one_that_failed_is() -> None:
    status = ready()
    status["dns"].update(in_place=False, detail="programs go past it", left_alone=True)
    assert readiness.lacks(status, "ready") == []
    status["dns"].update(detail="systemd-resolved was not told", left_alone=False)
    assert readiness.lacks(status, "ready") == ["names: systemd-resolved was not told"]


class Agent:
    """Answers on the control socket, each time with the next of its states and then with the last."""

    def __init__(self, path: Path, states: list[dict[str, Any]]) -> None:
        self._states = states
        self.asked = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as file:
                file.readline()
                file.write(json.dumps(self._states[min(self.asked, len(self._states) - 1)]).encode() + b"\n")
                self.asked += 1

    def close(self) -> None:
        self._socket.close()


def configured(tmp_path: Path, joined: bool = True) -> list[str]:
    if joined:
        pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "controller"))
    (tmp_path / "run").mkdir()
    (tmp_path / "agent.toml").write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')
    return ["--config", str(tmp_path / "agent.toml")]


def test_wait_ends_when_the_host_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = configured(tmp_path)
    waiting = ready()
    waiting["capture"]["waiting_for"] = ["inbound port 80: Envoy does not have it yet"]
    with ExitStack() as stack:
        agent = Agent(tmp_path / "run/agent.sock", [waiting, waiting, ready()])
        stack.callback(agent.close)
        assert call([*options, "wait", "--timeout", "30", "--for", "envoy"]) == 0
        assert agent.asked == 1
        assert call([*options, "wait", "--timeout", "30"]) == 0
        assert agent.asked == 3
    assert capsys.readouterr() == ("", "")


def test_wait_says_what_is_lacking_when_its_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = configured(tmp_path)
    assert call([*options, "wait", "--timeout", "0.3"]) == 1
    assert "not ready: no agent runs" in capsys.readouterr().err
    waiting = ready()
    waiting["envoy"]["state"] = "starting"
    with ExitStack() as stack:
        agent = Agent(tmp_path / "run/agent.sock", [waiting])
        stack.callback(agent.close)
        assert call([*options, "wait", "--timeout", "0"]) == 1
        assert agent.asked == 1
    assert "not ready: Envoy is starting" in capsys.readouterr().err


def test_a_host_that_has_not_joined_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call([*configured(tmp_path, joined=False), "wait", "--timeout", "3600"]) == 1
    assert "has not joined" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon", "100000"])
def test_a_time_to_wait_that_is_none_is_refused(tmp_path: Path, seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        call([*configured(tmp_path), "wait", "--timeout", seconds])
