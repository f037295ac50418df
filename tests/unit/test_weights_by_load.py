"""Weights from reported load: what agents tell of it, what counts of that, and what callers are sent."""

import asyncio
import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from hostmesh_agent.free_cpu import LEVELS, STEP_S, CpuTimes, FreeCpu
from hostmesh_agent.weighing import Weighing, cpu_times
from hostmesh_controller import load_steps
from hostmesh_controller.load_steps import accepted
from hostmesh_controller.mesh import HostRuntime, Touched, update
from hostmesh_controller.workload_annotations import CAPACITY
from unit.test_endpoints_away import FIRST, NAME, OUTSIDE, READY, SECOND, entry, runtimes, web, weights
from waiting import until

EVERY_S = 5


def levels(free: Callable[[int], float], seconds: int) -> list[tuple[int, int]]:
    """Return when the level was another one, and which, of a host of 4 cores on which that share is free."""
    measured, busy, idle = FreeCpu(), 0.0, 0.0
    found: list[tuple[int, int]] = []
    for now in range(0, seconds, EVERY_S):
        share = min(max(free(now), 0.0), 1.0)
        busy, idle = busy + 4 * EVERY_S * (1 - share), idle + 4 * EVERY_S * share
        if measured.sample(CpuTimes(busy, idle), float(now)):
            found.append((now, measured.level))
    return found


@pytest.mark.parametrize(("free", "level"), [(1.0, 8), (0.99, 8), (0.5, 4), (0.06, 1), (0.0, 1)])
def test_a_steady_host_tells_its_level_once(free: float, level: int) -> None:
    assert levels(lambda _: free, 3600) == [(EVERY_S, level)]


def test_noise_is_not_told_even_on_the_edge_of_two_levels() -> None:
    noise = random.Random(5)
    assert len(levels(lambda _: 0.5 + noise.uniform(-0.12, 0.12), 36_000)) <= 2


def test_a_jump_is_followed_step_by_step_and_in_a_minute_or_two() -> None:
    found = levels(lambda now: 1.0 if now < 60 else 0.0, 600)
    assert [level for _, level in found] == [8, 7, 6, 5, 4, 3, 2, 1]
    moments = [at for at, _ in found[1:]]
    assert all(later - at >= STEP_S for at, later in pairwise(moments))
    assert moments[-1] <= 60 + 120


def test_a_wave_of_twenty_seconds_is_not_told() -> None:
    # It begins with what it finds, and goes to the middle from there.
    assert max(at for at, _ in levels(lambda now: 0.5 + 0.5 * math.sin(now * math.tau / 20), 36_000)) < 120


def test_counts_that_go_back_or_stand_still_are_no_sample() -> None:
    measured = FreeCpu()
    for now, times in enumerate([CpuTimes(5, 5), CpuTimes(5, 5), CpuTimes(1, 1), CpuTimes(2, float("nan"))]):
        assert not measured.sample(times, float(now))
    assert measured.level == 0


async def test_a_host_measures_from_when_it_is_asked_until_it_is_not() -> None:
    told: list[int] = []
    counts = iter([CpuTimes(0, 0), CpuTimes(3, 1)])
    weighing = Weighing(lambda: told.append(weighing.level), lambda: next(counts))
    running = asyncio.ensure_future(weighing.run())
    await asyncio.sleep(0)
    assert weighing.level == 0
    weighing.ask(wanted=True)
    await until(lambda: told == [2])
    weighing.ask(wanted=False)
    assert weighing.level == 0
    running.cancel()


def test_the_kernel_of_this_host_is_read() -> None:
    first, second = cpu_times(), cpu_times()
    assert first.busy_s > 0
    assert second.busy_s + second.idle_s >= first.busy_s + first.idle_s > first.idle_s


# What counts of it


def test_a_level_counts_at_once_when_it_is_the_first_and_by_steps_then() -> None:
    assert accepted(0, 3, 0.0) == 3
    assert accepted(8, 7, STEP_S) == 7
    assert accepted(8, 1, STEP_S) == 7
    assert accepted(8, 1, 600.0) == 1
    assert accepted(2, 8, 0.5) == 2
    assert accepted(5, 0, 600.0) == 5


@pytest.mark.parametrize("told", [9, 4_000_000_000])
def test_no_host_has_more_than_all_of_its_cores(told: int) -> None:
    assert accepted(0, told, 0.0) == LEVELS == load_steps.LEVELS


def host(cpus: int, level: int) -> HostRuntime:
    return HostRuntime(True, READY, captured=frozenset({80}), cpus=cpus, free_eighths=level)


def test_what_is_free_is_the_weight_where_that_is_asked_for_and_a_weight_is_not_given() -> None:
    asked = {CAPACITY: "load"}
    entries = entry("v1", FIRST, asked), entry("v2", SECOND, asked), entry("v3", OUTSIDE, asked)
    assert weights(web(host(4, 2), host(2, 8), *entries)) == {FIRST: 8, SECOND: 16, OUTSIDE: 8}
    assert weights(web(host(4, 0), host(0, 0), *entries)) == {FIRST: 32, SECOND: 8, OUTSIDE: 8}
    given = entry("v1", FIRST, asked, weight=3), entry("v2", SECOND)
    assert weights(web(host(4, 2), host(2, 8), *given)) == {FIRST: 3, SECOND: 1}


def test_a_host_that_gets_busy_changes_the_endpoints_of_those_who_ask_for_it_alone() -> None:
    before = web(host(4, 8), host(4, 8), entry("v1", FIRST, {CAPACITY: "load"}))
    after, touched = update(before, {}, before.vips, runtimes(host(4, 7), host(4, 7)))
    assert weights(after) == {FIRST: 28}
    assert touched == Touched(endpoints=frozenset({NAME}))
    for capacity in ({}, {CAPACITY: "cores"}):
        plain = web(host(4, 8), host(4, 8), entry("v1", FIRST, capacity))
        assert update(plain, {}, plain.vips, runtimes(host(4, 7), host(4, 8)))[1] == Touched()
