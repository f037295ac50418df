"""Refusals of a configuration: what a host refused before it was told another version is not held against that."""

from pathlib import Path

import pytest

from hostmesh_api.v1.hostmesh_pb2 import WantedUpdate
from hostmesh_controller.rollout.progress import Stage
from hostmesh_controller.rollout_keeper import RolloutKeeper
from rollout_fleet import CANARY, Agent, a_fleet, good


def with_another_stream(agent: Agent, wanted: WantedUpdate) -> None:
    """An agent that changes ends its stream, and the next one is told all anew."""
    good(agent, wanted)
    agent.connect()


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_refusal_that_a_new_stream_brings_again_halts_no_rollout(
    restarts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 20, "agent") as fleet:
        for agent in fleet.meant:
            agent.refusal = "no such filter"
            agent.hear(good)
        await fleet.live(with_another_stream, lambda: len(fleet.ever_told) == CANARY)
        if restarts:
            controller = fleet.app.controller
            parts = controller.store, controller.registrar, controller.hub, controller.mirror, fleet.clock
            fleet.keeper = RolloutKeeper(*parts)
            await fleet.keeper.open()
        await fleet.live(with_another_stream, lambda: fleet.stage is not Stage.RUNNING)
        assert fleet.stage is Stage.DONE, fleet.keeper.view("next").progress.reason


async def test_a_refusal_that_is_new_halts_it_at_the_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses_more(agent: Agent, wanted: WantedUpdate) -> None:
        with_another_stream(agent, wanted)
        agent.refusal = "no such filter; no such listener"

    async with a_fleet(tmp_path, monkeypatch, 20, "agent") as fleet:
        # One that refuses nothing before, and one that refuses something else.
        for agent in fleet.meant[10:]:
            agent.refusal = "no such filter"
            agent.hear(good)
        await fleet.live(refuses_more, lambda: fleet.stage is not Stage.RUNNING)
        progress = fleet.keeper.view("next").progress
        assert (progress.stage, len(fleet.ever_told)) == (Stage.HALTED, CANARY)
        assert "it refuses its configuration: no such filter" in progress.reason
