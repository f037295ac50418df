"""Hosts that are away while a version is rolled out get it when they come back, little by little."""

from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from hostmesh_controller.rollout.progress import Mark, Stage
from rollout_fleet import CANARY, NEW, a_fleet, come_back, good, is_put_back, leave_the_line

ABSENT = [f"h{number}" for number in range(30, 40)]


async def test_absent_hosts_keep_no_rollout_open_and_get_it_when_they_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40, "agent") as fleet:
        for name in ABSENT:
            leave_the_line(fleet.agents[name])
        began = fleet.clock.at
        await fleet.live(good, lambda: fleet.stage is Stage.DONE, 400)
        # They were waited for, as long as the Rollout says.
        assert fleet.clock.at - began >= timedelta(minutes=30)
        answer = (await fleet.app.root.get("/v1/rollouts/next")).json()
        assert (answer["stage"], sorted(answer["absent"])) == ("done", sorted(ABSENT))
        assert len(fleet.ever_told) == 30
        for name in ABSENT:
            await come_back(fleet.agents[name])
        await fleet.live(good, lambda: not fleet.keeper.view("next").progress.in_hand and len(fleet.ever_told) == 40)
        assert {fleet.agents[name].version for name in ABSENT} == {NEW}
        assert (await fleet.app.root.get("/v1/rollouts/next")).json()["absent"] == []
        await fleet.heard()
        for agent in fleet.agents.values():
            agent.hear(good)
        assert all(each.wanted is not None and each.wanted.settled for each in fleet.agents.values() if each.ever)


async def test_an_absent_host_that_fails_goes_back_alone_and_no_other_absent_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40, "agent") as fleet:
        for name in ABSENT:
            leave_the_line(fleet.agents[name])
        await fleet.live(good, lambda: fleet.stage is Stage.DONE, 400)
        first, *others = (fleet.agents[name] for name in ABSENT)
        await come_back(first)
        await fleet.live(is_put_back, lambda: fleet.keeper.view("next").progress.reason != "")
        for each in others:
            await come_back(each)
        await fleet.live(is_put_back, lambda: fleet.keeper.view("next").progress.marked(Mark.RETURNED) == [first.host])
        later = fleet.clock.at + timedelta(minutes=10)
        await fleet.live(good, lambda: fleet.clock.at >= later)
        assert len(fleet.ever_told) == 31
        view = fleet.keeper.view("next")
        assert (view.progress.stage, "which was absent" in view.progress.reason) == (Stage.DONE, True)
        assert sum(each.version == NEW for each in fleet.agents.values()) == 30
        resumed = await fleet.app.root.post("/v1/rollouts/next/resume")
        assert resumed.status_code == 200, resumed.text
        await fleet.live(good, lambda: not fleet.keeper.view("next").progress.in_hand and len(fleet.ever_told) == 40)
        assert sum(each.version == NEW for each in fleet.agents.values()) == 40


async def test_one_host_alone_never_stands_for_hosts_that_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that fails during the canary, for hours: when it is back, all get it little by little."""
    async with a_fleet(tmp_path, monkeypatch, 40, "agent") as fleet:
        await fleet.live(good, lambda: len(fleet.ever_told) == CANARY)
        rest = [each for each in fleet.agents.values() if not each.ever and each.host != "other"]
        for each in rest:
            leave_the_line(each)
        await fleet.live(good, lambda: fleet.stage is Stage.DONE, 400)
        assert len(fleet.ever_told) == CANARY
        for each in rest:
            await come_back(each)
        sizes: list[int] = []

        def all_have_it() -> bool:
            sizes.append(len(fleet.keeper.view("next").progress.hosts))
            return len(fleet.ever_told) == 40

        await fleet.live(good, all_have_it, 200)
        grown = list(dict.fromkeys(sizes))
        assert all(after <= 2 * before for before, after in pairwise(grown)), grown
