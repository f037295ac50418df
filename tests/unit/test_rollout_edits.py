"""A Rollout that is edited: another version, other hosts, or both, while hosts have the former one."""

from pathlib import Path

import pytest

from hostmesh_api.v1.hostmesh_pb2 import WantedUpdate
from hostmesh_controller.rollout.progress import Mark, Stage
from rollout_fleet import CANARY, MANY, NEW, OLD, Agent, a_fleet, answers_503, good, put_more, relabel, rollout

NEWER = "1.42.0"


@pytest.mark.parametrize("component", ["envoy", "agent"])
async def test_a_version_that_mends_a_bad_one_begins_on_hosts_that_are_back(
    component: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(agent: Agent, wanted: WantedUpdate) -> None:
        (answers_503 if wanted.version == NEW else good)(agent, wanted)

    async with a_fleet(tmp_path, monkeypatch, 20, component) as fleet:
        put_more(tmp_path, NEWER)
        await fleet.live(bad, lambda: len(fleet.ever_told) == CANARY)
        first = fleet.ever_told
        # They have it, and nobody has seen that it is bad.
        applied = await fleet.app.apply(rollout(component, version=NEWER))
        assert applied.status_code == 200, applied.text
        await fleet.keeper.look()
        assert fleet.keeper.view("next").progress.marked(Mark.RETURNING) == first
        shown = (await fleet.app.root.get("/v1/rollouts/next")).json()
        assert "go back to what they had" in shown["problems"][0]
        await fleet.live(bad, lambda: fleet.stage is Stage.DONE)
        assert {fleet.agents[host].took_on for host in first} == {OLD}
        assert {each.version for each in fleet.agents.values()} == {NEWER, OLD}
        assert all(each.before == OLD for each in fleet.keeper.view("next").progress.hosts.values())


async def test_a_bad_version_after_a_bad_one_touches_the_canary_of_a_thousand_hosts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, MANY) as fleet:
        put_more(tmp_path, NEWER)
        await fleet.live(answers_503, lambda: len(fleet.ever_told) == CANARY)
        assert (await fleet.app.apply(rollout(version=NEWER))).status_code == 200
        await fleet.live(answers_503, lambda: fleet.stage is Stage.HALTED)
        await fleet.live(answers_503, lambda: not fleet.keeper.view("next").progress.marked(Mark.RETURNING))
        await fleet.heard()
        for version in (NEW, NEWER):
            assert sum(version in agent.ever for agent in fleet.agents.values()) == CANARY
        assert {agent.version for agent in fleet.agents.values()} == {OLD}


async def test_a_resume_of_one_that_says_itself_that_it_is_paused_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        root = fleet.app.root
        await fleet.app.apply(rollout() + "  paused: true\n")
        await root.post("/v1/rollouts/next/pause")
        refused = await root.post("/v1/rollouts/next/resume")
        assert (refused.status_code, "spec.paused" in refused.text) == (409, True)
        assert fleet.keeper.view("next").progress.paused
        await fleet.app.apply(rollout())
        assert not (await root.post("/v1/rollouts/next/resume")).json()["paused"]
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)


async def test_nothing_else_is_made_of_a_rollout_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.live(good, lambda: len(fleet.ever_told) == CANARY)
        for other in (rollout("agent"), rollout("envoy", "packages")):
            refused = await fleet.app.apply(other)
            assert (refused.status_code, "hostmesh rollout abort next" in refused.text) == (409, True)
        assert (await fleet.app.apply(rollout().replace("60s", "30s"))).status_code == 200
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        assert (await fleet.app.apply(rollout("agent"))).status_code == 200


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
