"""A Rollout that is edited: another version, other hosts, or both, while hosts have the former one."""

from pathlib import Path

import pytest

from hostmesh_controller.rollout.progress import Mark, Stage
from rollout_fleet import CANARY, NEW, a_fleet, good, put_more, relabel, rollout

NEWER = "1.42.0"


async def test_another_version_for_other_hosts_comes_to_no_host_that_is_not_meant_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 20) as fleet:
        for name in ("h1", "h2"):
            await relabel(fleet.app, name, "edge")
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        await relabel(fleet.app, "h3", "edge")
        put_more(tmp_path, NEWER)
        # h3 had the labels once; all others but h1, h2 and h3 have the former version and are not meant any more.
        applied = await fleet.app.apply(rollout(version=NEWER).replace("tier: web", "tier: edge"))
        assert applied.status_code == 200, applied.text
        await fleet.live(good, lambda: fleet.stage is Stage.DONE and not fleet.keeper.view("next").progress.in_hand)
        has_it = sorted(agent.host for agent in fleet.agents.values() if NEWER in agent.ever)
        assert has_it == ["h1", "h2", "h3"]
        assert (await fleet.app.root.get("/v1/rollouts/next")).json()["hosts_total"] == 3


async def test_a_host_that_lost_the_labels_after_it_went_back_is_not_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 20) as fleet:
        await fleet.live(good, lambda: len(fleet.ever_told) == CANARY)
        first = fleet.ever_told[0]
        await relabel(fleet.app, first, "edge")
        fleet.agents[first].state, fleet.agents[first].reason = "failed", "it ended"
        await fleet.live(good, lambda: fleet.stage is Stage.HALTED)
        await fleet.live(good, lambda: not fleet.keeper.view("next").progress.marked(Mark.RETURNING))
        assert (await fleet.app.root.post("/v1/rollouts/next/resume")).status_code == 200
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        assert fleet.agents[first].ever == [NEW]
        assert all(len(fleet.agents[f"h{number}"].ever) >= 1 for number in range(20))
