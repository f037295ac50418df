"""Where the controllers are, while name servers answer, are silent, or say something else."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostmesh_agent import controller_addresses
from hostmesh_agent.controller_addresses import WITHIN_S, ControllerAddresses
from name_server import NameServer, name_server

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
