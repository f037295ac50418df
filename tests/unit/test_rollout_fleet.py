"""A thousand simulated agents at a real controller: a bad version reaches the canary, and nobody else."""

from datetime import timedelta
from pathlib import Path

import pytest

from hostmesh_controller.rollout.progress import Mark, Stage
from hostmesh_controller.rollout_keeper import RolloutKeeper
from rollout_fleet import (
    CANARY,
    MANY,
    NEW,
    OLD,
    Behaviour,
    a_fleet,
    answers_503,
    crashes,
    ends_again_and_again,
    good,
    hangs,
    is_put_back,
    never_comes_up,
    rollout,
)

BAD = [
    *(("envoy", "mirror", each) for each in (crashes, hangs, answers_503)),
    *(("agent", "mirror", each) for each in (is_put_back, hangs, never_comes_up, answers_503, ends_again_and_again)),
    *(("envoy", "packages", each) for each in (crashes, answers_503)),
    ("agent", "packages", is_put_back),
]


@pytest.mark.parametrize(
    ("component", "source", "bad"), BAD, ids=lambda each: each if isinstance(each, str) else each.__name__
)
async def test_a_bad_version_touches_the_canary_of_a_thousand_hosts(
    component: str, source: str, bad: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, MANY, component, source) as fleet:
        await fleet.live(bad, lambda: fleet.stage is Stage.HALTED)
        gone = bad in {hangs, never_comes_up}
        await fleet.live(bad, lambda: gone or not fleet.keeper.view("next").progress.marked(Mark.RETURNING))
        for _ in range(20):
            fleet.clock.at += timedelta(minutes=1)
            await fleet.keeper.look()
        await fleet.heard()
        for agent in fleet.agents.values():
            agent.hear(bad)
        assert len(fleet.ever_told) == CANARY
        told_back = [agent for agent in fleet.agents.values() if agent.wanted is not None]
        # One that is cut off does not hear it yet.
        assert len(told_back) == CANARY
        assert bad is never_comes_up or all(agent.wanted is not None and agent.wanted.back for agent in told_back)
        assert {agent.version for agent in fleet.agents.values()} == {OLD}
        assert "rollout.halted" in await fleet.audited()
        answer = (await fleet.app.root.get("/v1/rollouts/next")).json()
        assert (answer["stage"], answer["hosts_total"]) == ("halted", MANY)
        assert answer["reason"]


@pytest.mark.parametrize(("component", "source"), [("envoy", "mirror"), ("agent", "mirror"), ("agent", "packages")])
async def test_a_good_version_reaches_all_a_thousand_and_no_other_host(
    component: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    async with a_fleet(tmp_path, monkeypatch, MANY, component, source) as fleet:

        def done() -> bool:
            sizes.append(len(fleet.keeper.view("next").progress.hosts))
            return fleet.stage is Stage.DONE

        await fleet.live(good, done)
        assert [each for each in dict.fromkeys(sizes) if each] == [CANARY, MANY // 10, MANY // 2, MANY]
        assert fleet.agents["other"].ever == []
        await fleet.heard()
        for agent in fleet.agents.values():
            agent.hear(good)
        settled = [agent for agent in fleet.agents.values() if agent.wanted is not None and agent.wanted.settled]
        assert len(settled) == MANY


async def test_a_restart_of_the_controller_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        before = fleet.keeper.view("next").progress
        controller = fleet.app.controller
        again = RolloutKeeper(controller.store, controller.registrar, controller.hub, controller.mirror, fleet.clock)
        await again.open()
        assert again.view("next").progress == before
        fleet.keeper = again
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        assert all(agent.ever == [NEW] for agent in fleet.agents.values() if agent.host != "other")


async def test_operators_pause_resume_and_abort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        root = fleet.app.root
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        assert (await root.post("/v1/rollouts/next/pause")).json()["paused"]
        later = fleet.clock.at + timedelta(minutes=5)
        await fleet.live(good, lambda: fleet.clock.at >= later)
        assert len(fleet.keeper.view("next").progress.hosts) == 5
        assert not (await root.post("/v1/rollouts/next/resume")).json()["paused"]
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 20)
        assert (await root.post("/v1/rollouts/next/abort")).json()["stage"] == "aborted"
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.marked(Mark.RETURNED)) == 20)
        assert {agent.version for agent in fleet.agents.values()} == {OLD}
        again = await root.post("/v1/rollouts/next/resume")
        assert (again.status_code, "apply it again" in again.text) == (409, True)
        assert (await root.post("/v1/rollouts/none/pause")).status_code == 404
        actions = await fleet.audited()
        assert [each for each in actions if each in {"rollout.pause", "rollout.resume", "rollout.abort"}] == [
            "rollout.pause",
            "rollout.resume",
            "rollout.abort",
        ]


async def test_without_an_artifact_nobody_is_told_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        (tmp_path / "mirror" / "envoy" / NEW / "x86_64" / "manifest.sig").unlink()
        await fleet.live(good, lambda: True)
        answer = (await fleet.app.root.get("/v1/rollouts/next")).json()
        assert answer["hosts"] == []
        assert "hostmesh rollout sign" in answer["problems"][0]


async def test_a_rollout_for_labels_that_no_host_has_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.app.apply(rollout(name="mistaken").replace("tier: web", "tier: wev"))
        await fleet.live(good, lambda: True)
        answer = (await fleet.app.root.get("/v1/rollouts/mistaken")).json()
        assert (answer["stage"], answer["hosts"]) == ("running", [])
        assert answer["problems"] == [
            "no Host has the labels {tier: wev} (metadata.labels of the Host, not of its workloads)"
        ]


async def test_a_rollout_at_work_is_not_deleted_unless_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        root = fleet.app.root
        refused = await root.delete("/v1/objects/Rollout/-/next")
        assert (refused.status_code, "hostmesh rollout abort next" in refused.text) == (409, True)
        await root.post("/v1/rollouts/next/abort")
        refused = await root.delete("/v1/objects/Rollout/-/next")
        assert (refused.status_code, "5 of its hosts have not gone back yet" in refused.text) == (409, True)
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.marked(Mark.RETURNED)) == 5)
        assert (await root.delete("/v1/objects/Rollout/-/next")).status_code == 200
        await fleet.keeper.look()
        assert fleet.keeper.views() == []
        assert fleet.app.controller.store.rollouts() == []


async def test_a_rollout_that_is_deleted_all_the_same_tells_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        key = {"kind": "Rollout", "namespace": "", "name": "next"}
        gone = await fleet.app.root.post("/v1/delete", json={"keys": [key], "confirmed": True})
        assert gone.status_code == 409, gone.text
        gone = await fleet.app.root.post("/v1/delete", json={"keys": [key], "abandon": True})
        assert gone.status_code == 200, gone.text
        await fleet.keeper.look()
        await fleet.heard()
        assert fleet.keeper.views() == []


async def test_rollouts_are_an_administrators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 1) as fleet:
        editor = await fleet.app.as_role("editor")
        for call in (
            fleet.app.outside.get("/v1/rollouts", headers=editor),
            fleet.app.outside.post("/v1/rollouts/next/abort", headers=editor),
            fleet.app.outside.post(
                "/v1/apply", json={"sources": [{"name": "a", "text": rollout(name="mine")}]}, headers=editor
            ),
        ):
            assert (await call).status_code == 403


@pytest.mark.parametrize("stream", ["stands", "ends"])
async def test_a_canary_that_was_well_and_falls_silent_halts_the_rollout(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.marked(Mark.WELL)) == CANARY)
        silent = fleet.agents[fleet.ever_told[0]]
        silent.silent = True
        if stream == "ends":
            assert silent.connection is not None
            fleet.app.controller.hub.disconnect(silent.connection)
        await fleet.live(good, lambda: fleet.stage is Stage.HALTED)
        assert (len(fleet.ever_told), silent.host in fleet.keeper.view("next").progress.reason) == (CANARY, True)


async def test_a_controller_that_was_away_for_long_holds_it_against_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == CANARY)
        controller = fleet.app.controller
        fleet.clock.at += timedelta(hours=5)
        again = RolloutKeeper(controller.store, controller.registrar, controller.hub, controller.mirror, fleet.clock)
        await again.open()
        fleet.keeper = again
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
