"""The look at what answers: bounded, whoever is silent."""

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import pki
from hostmesh_agent import soundness
from hostmesh_agent.soundness import WITHIN_S, Where
from name_server import name_server


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "authority"))
    return tmp_path / "state" / "identity"


def test_a_look_is_bounded_though_name_servers_and_many_controllers_are_silent(
    identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as open_ones, name_server(monkeypatch) as names:
        names.dark = True
        silent = []
        for number in range(1, 8):
            # Whoever connects is taken by the kernel, and hears nothing.
            listener = open_ones.enter_context(socket.create_server((f"127.0.0.{number}", 0)))
            silent.append(f"127.0.0.{number}:{listener.getsockname()[1]}")
        where = Where(frozenset(), ("dark.example.com:15012", *silent), identity, 65534)
        begun = time.monotonic()
        found = soundness.look(where, None)
        assert time.monotonic() - begun < WITHIN_S + 1
        assert names.asked == ["dark.example.com"]
    assert (found.controller, found.past_rules) == (False, False)
    assert found.why


def test_a_server_that_is_bound_to_some_addresses_is_called_there_first() -> None:
    many = [f"10.0.0.{number}" for number in range(1, 31)] + ["2001:db8::1"]
    assert soundness._candidates(22, frozenset({"10.0.0.30"}), many) == [("10.0.0.30", 22)]
    everywhere = soundness._candidates(22, frozenset({"::", "10.0.0.29"}), many)
    assert everywhere == [(each, 22) for each in ("10.0.0.29", *many[:4], "2001:db8::1")]
    assert [each for each, _ in soundness._candidates(22, frozenset({"0.0.0.0"}), many)] == many[:4]
    assert len(soundness._candidates(22, frozenset(), many)) == 5
