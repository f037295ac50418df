"""Figures that do not depend on the machine hold with few proxies as with many."""

from collections.abc import Iterator

import pytest

from bench import connect, push
from bench.figure import Figure
from bench.stage import Stage

PROXIES = 30
"""More than the callers of the rare service."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(PROXIES) as stage:
        yield stage


def one(figures: list[Figure], what: str) -> Figure:
    (found,) = [figure for figure in figures if what in figure.what]
    return found


def test_no_stream_fails_when_everybody_connects_at_once(stage: Stage) -> None:
    assert one(list(connect.storm(stage)), "failed streams").value == 0


def test_a_push_to_a_proxy_takes_few_bytes(stage: Stage) -> None:
    assert one(list(push.push(stage)), "bytes per proxy").kept


def test_a_change_is_sent_to_those_it_concerns_and_to_nobody_else(stage: Stage) -> None:
    (messages,) = push.few(stage)

    assert messages.value == 20


def test_a_restarted_controller_resends_nothing(stage: Stage) -> None:
    assert one(list(connect.restart(stage)), "resent").value == 0
