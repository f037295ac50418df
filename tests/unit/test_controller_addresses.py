"""Where the controllers are, while name servers answer, are silent, or say something else."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pki
from hostmesh_agent import controller_addresses
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.controller_addresses import WITHIN_S, ControllerAddresses
from hostmesh_agent.host_floor import HostFloors
from hostmesh_agent.uplink import Uplink
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from name_server import NameServer, name_server
from waiting import until

NAME = "mesh.example.com:8443"
FOUND = frozenset({("10.9.9.1", 8443)})


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    with name_server(monkeypatch) as names:
        names.names["mesh.example.com"] = ["10.9.9.1"]
        yield names


def test_without_a_name_server_the_last_addresses_count_and_are_there_at_once(
    tmp_path: Path, names: NameServer
) -> None:
    known = ControllerAddresses(tmp_path)
    assert known.look([NAME]) == FOUND
    names.dark = True
    for each in (known, ControllerAddresses(tmp_path)):
        begun = time.monotonic()
        assert each.look([NAME, "10.9.9.2:15012", "other.example.com:1"]) == FOUND | {("10.9.9.2", 15012)}
        assert time.monotonic() - begun < WITHIN_S + 1
        assert not each.complete


def test_addresses_that_a_name_has_no_more_are_forgotten_unless_more_are_wanted(
    tmp_path: Path, names: NameServer
) -> None:
    known = ControllerAddresses(tmp_path)
    known.look([NAME])
    names.names["mesh.example.com"] = ["10.9.9.2"]
    assert known.look([NAME], more=True) == FOUND | {("10.9.9.2", 8443)}
    assert known.look([NAME]) == {("10.9.9.2", 8443)}
    assert known.look(["10.9.9.3:1"]) == {("10.9.9.3", 1)}


@pytest.mark.parametrize("text", ["{", "[]", '{"a:1": [["x", 1]]}', '{"a:1": 7}'])
def test_remembered_addresses_that_are_damaged_are_none(tmp_path: Path, text: str, names: NameServer) -> None:
    path = tmp_path / controller_addresses.FILE
    path.write_text(text)
    path.chmod(0o600)
    assert ControllerAddresses(tmp_path).look([NAME]) == FOUND
    assert ControllerAddresses(tmp_path)._known == {NAME: tuple(FOUND)}


def test_a_question_leaves_nothing_behind_and_a_disk_that_refuses_costs_nothing(
    tmp_path: Path, names: NameServer
) -> None:
    assert ControllerAddresses(tmp_path, writes=False).look([NAME]) == FOUND
    assert list(tmp_path.iterdir()) == []
    assert ControllerAddresses(tmp_path / "gone").look([NAME]) == FOUND


async def test_a_controller_whose_name_is_told_late_is_looked_up_with_the_next_attempt_to_connect(
    tmp_path: Path, names: NameServer
) -> None:
    state = pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "authority"), endpoint=NAME)
    config = AgentConfig(state_dir=state.directory, run_dir=tmp_path)
    uplink, changes = Uplink(state), list[str]()
    floors = HostFloors(config, 900, uplink, lambda: False, lambda: changes.append("step"), pause_s=0.0)
    names.dark = True
    floor = await floors.look(HostConfig())
    assert floor.controller == frozenset()
    floors.take(floor)
    running = asyncio.create_task(floors.run())
    names.dark = False
    async with uplink.connect():
        await until(lambda: changes == ["step"], "a step is due")
    assert floors.now == replace(floor, controller=FOUND)
    names.names["mesh.example.com"] = ["10.9.9.7"]
    async with uplink.connect():
        await until(lambda: changes == ["step", "step"], "another step is due")
    # An attempt to connect is to one of those that were told before, maybe.
    assert floors.now == replace(floor, controller=FOUND | {("10.9.9.7", 8443)})
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_names_are_asked_for_no_more_often_than_the_pause_says_and_not_while_the_controller_is_reached(
    tmp_path: Path, names: NameServer
) -> None:
    state = pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "authority"), endpoint=NAME)
    config = AgentConfig(state_dir=state.directory, run_dir=tmp_path)
    uplink = Uplink(state)
    floors = HostFloors(config, 900, uplink, lambda: True, lambda: None, pause_s=0.0)
    floors.take(await floors.look(HostConfig()))
    running = asyncio.create_task(floors.run())
    for _ in range(3):
        async with uplink.connect():
            await until(lambda: not uplink.tried.is_set(), "the attempt is noted")
    assert names.asked == ["mesh.example.com"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
