"""Several rollouts over the same hosts: one after the other, and none undoes another."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from hostmesh_api.v1.hostmesh_pb2 import (
    EnvoyState,
    HostFacts,
    HostReport,
)
from hostmesh_controller.mesh import HostRuntime
from hostmesh_controller.reports import bounded
from hostmesh_controller.rollout.progress import Stage
from rollout_fleet import NEW, Agent, Fleet, a_fleet, good, put_agent, rollout


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
