"""Several rollouts over the same hosts: one after the other, and none undoes another."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from hostmesh_api.v1.hostmesh_pb2 import (
    EnvoyState,
    HostFacts,
    HostReport,
    WantedUpdate,
)
from hostmesh_controller.mesh import HostRuntime
from hostmesh_controller.reports import bounded
from hostmesh_controller.rollout.progress import Stage
from hostmesh_controller.rollout_keeper import RolloutKeeper
from rollout_fleet import CANARY, NEW, Agent, Fleet, a_fleet, answers_503, good, put_agent, put_more, relabel, rollout
from waiting import until


async def test_a_newer_rollout_is_not_undone_by_one_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10, "agent") as fleet:
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        put_agent(tmp_path, "1.42.0")
        # By its name it comes before the other.
        applied = await fleet.app.apply(rollout("agent", name="aaa", version="1.42.0"))
        assert applied.status_code == 200, applied.text
        await fleet.live(good, lambda: fleet.keeper.view("aaa").progress.stage is Stage.DONE)
        later = fleet.clock.at + timedelta(hours=2)
        await fleet.keeper.look()
        fleet.clock.at = later
        await fleet.keeper.look()
        told = fleet.app.controller.hub.mesh.runtime
        async with asyncio.timeout(30):
            while {each.version for name in fleet.ever_told for each in told[name].updates} != {"1.42.0"}:
                await asyncio.sleep(0.002)
                told = fleet.app.controller.hub.mesh.runtime
        assert {fleet.agents[name].version for name in fleet.ever_told} == {"1.42.0"}
        assert all(agent.ever == [NEW, "1.42.0"] for agent in fleet.agents.values() if agent.ever)


SECOND, THIRD = "1.42.0", "1.43.0"


async def two_are_done(directory: Path, fleet: Fleet) -> None:
    """The first to all, and then the second; these agents carry out every order that they hear."""
    put_more(directory, SECOND, THIRD)
    await fleet.live(good, lambda: fleet.stage is Stage.DONE)
    applied = await fleet.app.apply(rollout(fleet.component, name="second", version=SECOND))
    assert applied.status_code == 200, applied.text
    await fleet.live(good, lambda: fleet.keeper.view("second").progress.stage is Stage.DONE)
    await all_hear(fleet)
    assert {agent.version for agent in fleet.meant} == {SECOND}


async def all_hear(fleet: Fleet) -> None:
    fleet.clock.at += timedelta(seconds=10)
    await fleet.keeper.look()
    await fleet.heard()
    for agent in fleet.agents.values():
        agent.hear(good)


async def test_a_newer_rollout_that_is_deleted_brings_no_older_version_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await two_are_done(tmp_path, fleet)
        gone = await fleet.app.root.delete("/v1/objects/Rollout/-/second")
        assert gone.status_code == 200, gone.text
        await all_hear(fleet)
        assert {(agent.version, tuple(agent.ever)) for agent in fleet.meant} == {(SECOND, (NEW, SECOND))}
        # Nor does a controller that begins anew.
        controller = fleet.app.controller
        again = RolloutKeeper(controller.store, controller.registrar, controller.hub, controller.mirror, fleet.clock)
        await again.open()
        assert again.view("next").progress.hosts == {}


async def test_a_newer_rollout_that_is_edited_tells_its_canary_and_nobody_hears_of_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10, "agent") as fleet:
        await two_are_done(tmp_path, fleet)
        applied = await fleet.app.apply(rollout("agent", name="second", version=THIRD))
        assert applied.status_code == 200, applied.text
        await all_hear(fleet)
        versions = sorted(agent.version for agent in fleet.meant)
        assert versions == [SECOND] * (10 - CANARY) + [THIRD] * CANARY
        assert all(NEW not in agent.ever[1:] for agent in fleet.meant)


@pytest.mark.parametrize("how", ["removed", "rebuilt", "relabelled"])
async def test_a_rollout_that_is_done_tells_nothing_to_a_host_that_is_another_by_now(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        await all_hear(fleet)
        agent = fleet.agents["h3"]
        fleet.clock.at += timedelta(minutes=1)
        if how == "removed":
            assert (await fleet.app.root.delete("/v1/objects/Host/-/h3")).status_code == 200
        if how in {"removed", "relabelled"}:
            await relabel(fleet.app, "h3", "edge")
        if how in {"removed", "rebuilt"}:
            await fleet.app.controller.registrar.states.joined("h3")
        agent.version, agent.wanted = "1.50.0", None
        if how == "removed":
            agent.connect()
        await agent.report()
        await all_hear(fleet)
        assert (agent.version, agent.ever) == ("1.50.0", [NEW])
        assert "h3" not in fleet.keeper.view("next").progress.hosts


async def test_a_rollout_that_is_done_sees_by_itself_that_a_host_joins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        await all_hear(fleet)
        fleet.clock.at += timedelta(minutes=1)
        await fleet.app.controller.registrar.states.joined("h3")
        hub = fleet.app.controller.hub
        running = asyncio.ensure_future(fleet.keeper.run())
        try:
            await until(lambda: not hub.mesh.runtime["h3"].updates, "it is told nothing")
        finally:
            running.cancel()


async def test_a_rollout_that_waits_for_one_that_has_halted_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behaves(agent: Agent, wanted: WantedUpdate) -> None:
        (answers_503 if wanted.version == NEW else good)(agent, wanted)

    async with a_fleet(tmp_path, monkeypatch, 20) as fleet:
        put_more(tmp_path, SECOND)
        await fleet.live(behaves, lambda: fleet.stage is Stage.HALTED)
        await fleet.app.apply(rollout(name="second", version=SECOND))
        await fleet.live(behaves, lambda: len(fleet.keeper.view("second").progress.hosts) == 20 - CANARY)
        (said,) = fleet.keeper.view("second").problems
        assert ("Rollout next goes first on 5 hosts" in said, "abort it" in said) == (True, True)
        assert (await fleet.app.root.post("/v1/rollouts/next/abort")).status_code == 200
        await fleet.live(behaves, lambda: fleet.keeper.view("second").progress.stage is Stage.DONE)
        assert {agent.version for agent in fleet.meant} == {SECOND}


@pytest.mark.parametrize("is_good", [True, False])
async def test_a_second_rollout_over_the_same_hosts_waits_and_has_waves_of_its_own(
    is_good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behaves(agent: Agent, wanted: WantedUpdate) -> None:
        (good if is_good or wanted.version == NEW else answers_503)(agent, wanted)

    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        put_more(tmp_path, SECOND)
        await fleet.live(behaves, lambda: len(fleet.ever_told) == 20)
        await fleet.app.apply(rollout(name="second", version=SECOND))
        await fleet.keeper.look()
        shown = (await fleet.app.root.get("/v1/rollouts/second")).json()
        assert (shown["stage"], shown["hosts"], shown["hosts_total"]) == ("running", [], 40)
        assert "Rollout next goes first on 40 hosts" in shown["problems"][0]
        sizes: list[int] = []

        def ends() -> bool:
            progress = fleet.keeper.view("second").progress
            sizes.append(len(progress.hosts))
            assert fleet.stage is Stage.DONE or not progress.hosts
            return progress.stage is not Stage.RUNNING

        await fleet.live(behaves, ends, 200)
        second = fleet.keeper.view("second").progress
        if is_good:
            assert list(dict.fromkeys(sizes)) == [0, 5, 20, 40]
            assert (second.stage, dict(second.absent)) == (Stage.DONE, {})
        else:
            assert (second.stage, max(sizes)) == (Stage.HALTED, CANARY)
            assert sum(SECOND in agent.ever for agent in fleet.meant) == CANARY


async def test_a_rollout_of_envoy_and_one_of_the_agent_take_turns_on_a_host_and_both_reach_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 20, "agent") as fleet:
        applied = await fleet.app.apply(rollout("envoy", name="proxy"))
        assert applied.status_code == 200, applied.text
        proxies = {name: Agent(name, fleet.app) for name in fleet.agents}
        both: list[str] = []

        async def step(_: int) -> bool:
            await fleet.keeper.look()
            views = {each.name: each.progress for each in fleet.keeper.views()}
            both.extend(views["next"].in_hand & views["proxy"].in_hand)
            return all(each.stage is Stage.DONE and not each.absent and not each.in_hand for each in views.values())

        for number in range(300):
            if await step(number):
                break
            await settle(fleet, proxies)
            fleet.clock.at += timedelta(seconds=10)
        views = {each.name: each.progress for each in fleet.keeper.views()}
        assert {name: len(each.hosts) for name, each in views.items()} == {"next": 20, "proxy": 20}, views
        assert both == []


async def settle(fleet: Fleet, proxies: dict[str, Agent]) -> None:
    """Let hosts whose agent and whose Envoy may change do as they are told, and tell both in one report."""
    runtime = fleet.app.controller.hub.mesh.runtime
    wanted = {
        (host, each.component) for view in fleet.keeper.views() for host in view.progress.hosts for each in [view.spec]
    }
    async with asyncio.timeout(30):
        while not all(
            any(each.component == component for each in runtime.get(host, HostRuntime()).updates)
            for host, component in wanted
        ):
            await asyncio.sleep(0.002)
            runtime = fleet.app.controller.hub.mesh.runtime
    for name, agent in fleet.agents.items():
        made = HostReport(facts=HostFacts(machine="x86_64"))
        for update in runtime.get(name, HostRuntime()).updates:
            one = agent if update.component == "agent" else proxies[name]
            one.version = update.version
            made.updates.add(
                component=update.component,
                version=update.version,
                rollout=update.rollout,
                attempt=update.attempt,
                state="done",
            )
        made.facts.agent_version = agent.version
        made.envoy.CopyFrom(EnvoyState(state="live", version=proxies[name].version))
        await fleet.app.controller.registrar.states.reported(name, bounded(made), frozenset())
