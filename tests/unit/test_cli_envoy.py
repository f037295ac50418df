"""What `hostmesh-agent envoy …` and `drain` say, and how they end, by what the agent answers."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from hostmesh_agent import chosen_binary, cli, cli_envoy, control, exits

BOUND_S: Final = 10.0
OLD, NEW = "1" * 64, "2" * 64


class Replies:
    """An agent's answers: of each verb those given, in order, the last one for ever."""

    def __init__(self, replies: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._left = {verb: list(each) for verb, each in replies.items()}

    def verb(self, name: str) -> control.Verb:
        async def answer() -> Mapping[str, Any]:
            left = self._left[name]
            return left.pop(0) if len(left) > 1 else left[0]

        return answer

    def verbs(self) -> Mapping[str, control.Verb]:
        return {each: self.verb(each) for each in self._left}


@contextmanager
def agent(directory: Path, replies: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[None]:
    """Answer on the control socket."""
    loop = asyncio.new_event_loop()
    path = directory / "agent.sock"
    task = loop.create_task(control.Control(path, Replies(replies).verbs()).run())

    def serve() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)

    ready = threading.Event()
    loop.call_later(0, _when(path, loop, ready))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(BOUND_S)
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(BOUND_S)
        loop.close()


def _when(path: Path, loop: asyncio.AbstractEventLoop, ready: threading.Event) -> Callable[[], None]:
    def look() -> None:
        if path.exists():
            ready.set()
        else:
            loop.call_later(0.01, look)

    return look


def call(directory: Path, *words: str) -> int:
    file = directory / "agent.toml"
    file.write_text(f'state_dir = "{directory}"\nrun_dir = "{directory}"\n')
    return cli.call(["--config", str(file), *words])


def told(stage: str, sha256: str = OLD, **more: Any) -> Mapping[str, Any]:
    envoy = {
        "stage": stage,
        "instance": "blue",
        "state": "live",
        "version": sha256[:1],
        "sha256": sha256,
        "asked": False,
        "put_back": "",
        "restart_needed": "",
    }
    return {"envoy": {**envoy, **more}}


BEGUN = {"begun": True, "why_not": "", "sha256": NEW}
WARMS = (told("steady", asked=True), told("warming", asked=True))


@pytest.mark.parametrize(
    ("then", "code", "said"),
    [
        ((told("probation", NEW), told("draining", NEW)), exits.DONE, "Envoy 2 serves"),
        ((told("steady", asked=True), told("warming", asked=True), told("steady", NEW)), exits.DONE, "Envoy 2 serves"),
        ((told("steady", state="down"), told("steady", NEW)), exits.DONE, "Envoy 2 serves"),
        ((told("steady", state="held"),), exits.DONE, "the next one is what was asked for"),
        ((told("steady", put_back="bad", state="down"),), exits.FAILED, "put back: bad"),
        ((told("steady"),), exits.FAILED, "Envoy 1 serves: by now another one is wanted than was asked for"),
        ((told("steady", NEW, restart_needed="its arguments"),), exits.FAILED, "started otherwise: its arguments"),
    ],
)
def test_an_upgrade_is_done_once_what_was_asked_for_serves_and_nothing_else_is_wanted(
    then: Sequence[Mapping[str, Any]], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with agent(tmp_path, {control.ENVOY_UPGRADE: [BEGUN], control.STATUS: [*WARMS, *then]}):
        assert call(tmp_path, "envoy", "upgrade") == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


def test_an_upgrade_that_does_not_begin_leaves_the_choice_of_the_binary_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen_binary.choose(tmp_path, Path("/first"), OLD)
    before = chosen_binary.choice(tmp_path)
    words = ("envoy", "upgrade", "--binary", "/second", "--sha256", NEW)
    assert call(tmp_path, *words) == exits.FAILED
    assert chosen_binary.choice(tmp_path) == before, "no agent runs"
    with agent(tmp_path, {control.ENVOY_UPGRADE: [{"begun": False, "why_not": "/second: no such file"}]}):
        assert call(tmp_path, *words) == exits.FAILED
        assert call(tmp_path, "envoy", "upgrade", "--reset") == exits.FAILED
    assert chosen_binary.choice(tmp_path) == before
    assert "nothing is changed: /second: no such file" in capsys.readouterr().err
    serves_already = {"begun": False, "why_not": "the running Envoy is what would be started now"}
    with agent(tmp_path, {control.ENVOY_UPGRADE: [serves_already]}):
        assert call(tmp_path, *words) == exits.DONE
    assert chosen_binary.choice(tmp_path) == {"binary": "/second", "sha256": NEW}


@pytest.mark.parametrize(
    ("serves", "code", "said"),
    [
        ("blue", exits.DONE, "the earlier Envoy is put back"),
        ("green", exits.FAILED, "the new Envoy had shown already that it is good: Envoy 2 serves"),
    ],
)
def test_a_rollback_is_done_once_the_earlier_one_serves(
    serves: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = {"begun": True, "why_not": "", "instance": "blue"}
    then = [told("probation", NEW, instance="green"), told("draining", NEW, instance=serves)]
    with agent(tmp_path, {control.ENVOY_ROLLBACK: [begun], control.STATUS: then}):
        assert call(tmp_path, "envoy", "rollback") == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


ANSWERS = {"failing": "", "calls": 0, "begun": 9}


def test_a_drain_of_which_the_controller_was_not_told_has_not_worked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = {control.DRAIN: [{"told": False, **ANSWERS, "failing": "away"}]}
    with agent(tmp_path, replies):
        assert call(tmp_path, "drain", "--within", "0") == exits.FAILED
    assert "the controller does not know of it yet: away" in capsys.readouterr().err


def test_a_host_that_shuts_down_tries_a_controller_anew_that_was_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    was_away, told = {"told": False, **ANSWERS, "failing": "away"}, {"told": True, **ANSWERS}
    with agent(tmp_path, {control.DRAIN_UNTIL_BOOT: [was_away, was_away, told]}):
        assert call(tmp_path, "drain", "--until-boot") == exits.DONE
    assert "nobody calls" in capsys.readouterr().out
    with agent(tmp_path, {control.DRAIN_UNTIL_BOOT: [was_away]}):
        assert call(tmp_path, "drain", "--until-boot") == exits.FAILED, "it does not wait for a minute"


def test_an_undrain_waits_until_the_controller_is_told_and_says_so_where_it_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    not_told = {"drained": False, "told": False, "failing": "away"}
    with agent(tmp_path, {control.UNDRAIN: [not_told, not_told | {"told": True}]}):
        assert call(tmp_path, "undrain") == exits.DONE
    assert "are called again\n" in capsys.readouterr().out
    monkeypatch.setattr(cli_envoy, "TOLD_WITHIN_S", 0.0)
    with agent(tmp_path, {control.UNDRAIN: [not_told], control.UNDRAIN_UNTIL_BOOT: [not_told]}):
        assert call(tmp_path, "undrain") == exits.FAILED
        assert "the controller does not know it yet: away" in capsys.readouterr().err
        assert call(tmp_path, "undrain", "--until-boot") == exits.DONE, "a boot does not wait"
    assert "as soon as the controller knows it" in capsys.readouterr().out
