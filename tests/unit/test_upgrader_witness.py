"""Whether an agent of another version comes up: what is looked at, and what is made of it."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from hostmesh_agent.upgrader import witness
from hostmesh_agent.upgrader.witness import Look, Witness

OLD, NEW = "0.1.0", "0.2.0"


def verdict_of(looks: Callable[[float], Look], *, connected: bool = True, reachable: bool = True) -> tuple[str, float]:
    state, now = Witness(NEW, connected, 0.0, before="old"), 0.0
    while True:
        state, verdict = state.step(looks(now), now, lambda _: reachable)
        if verdict is not None:
            return verdict, now
        now += 1.0
        assert now < 1000


GOOD = Look(True, "new", NEW, connected=True)


def test_an_agent_that_is_ready_stays_and_reaches_the_controller_is_well() -> None:
    verdict, at = verdict_of(lambda now: GOOD if now > 5 else Look(True, "old", OLD, connected=True))
    assert (verdict, 40 <= at <= 60) == ("", True)


@pytest.mark.parametrize(
    ("looks", "why"),
    [
        (lambda now: Look(False, f"run {now // 3}"), "it ended 3 times"),
        (lambda now: Look(False, "new"), "it was not ready"),
        (lambda now: Look(True, "old", OLD, connected=True), "it was not ready"),
        (lambda now: Look(True, f"run {now // 35}", NEW, connected=True), "it ended 3 times"),
        (lambda now: Look(True, "new"), "does not answer"),
        (lambda now: Look(True, "new", OLD, connected=True), "says that it is 0.1.0"),
        (lambda now: Look(True, "new", NEW), "did not reach the controller"),
    ],
    ids=["crashes", "never ready", "never began", "hangs after READY", "does not answer", "another", "is cut off"],
)
def test_an_agent_that_does_not_come_up_is_found_out(looks: Callable[[float], Look], why: str) -> None:
    verdict, at = verdict_of(looks)
    assert (why in verdict, at <= 200) == (True, True), verdict


def test_an_agent_is_not_blamed_for_a_controller_that_is_away() -> None:
    cut_off = Look(True, "new", NEW)
    assert verdict_of(lambda _: cut_off, reachable=False)[0] == ""
    verdict, at = verdict_of(lambda _: cut_off, connected=False)
    assert (verdict, at < 60) == ("", True)


@pytest.mark.parametrize("said", [b"", b"[" * 100_000, b"7\n", b'{"agent": []}\n', b"\xff\xfe\n"])
def test_an_agent_that_says_nonsense_says_nothing(said: bytes, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ThreadPoolExecutor() as pool:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(100)
                connection.sendall(said)

        answering = pool.submit(answer)
        assert witness.look(path).version == ""
        answering.result(10)
