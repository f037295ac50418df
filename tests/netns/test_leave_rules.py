"""A `leave` while the rules belong to an agent that is ending, or that cannot be ended."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

import pki
from hostmesh_agent import holders, leave
from hostmesh_agent.capture import Owner, kernel, nft, plan
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.state import State
from netns.space import Space
from netns.test_capture_doors import FLOOR, REQUEST
from netns.test_capture_kernel import environment

_ENDS_SLOWLY: Final = """
import sys, time
from pathlib import Path
from hostmesh_agent import lock
with lock.held(Path(sys.argv[1]), 0):
    print("ready", flush=True)
    time.sleep(1)
time.sleep(1)  # an interpreter that ends
"""


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    found = AgentConfig(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 192.0.2.1\n")
    pki.joined(found.state_dir, pki.new_authority(tmp_path / "authority"), endpoint="127.0.0.1:1")
    return replace(found, dns=replace(found.dns, resolv_conf=resolver))


def test_rules_of_an_agent_that_ends_before_it_is_found_are_removed(
    host: Space, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner()
    nft.write(plan(REQUEST, FLOOR).table, owner)

    def ends_by_itself(test: holders.Test, _grace_s: float = 0.0) -> list[int]:
        if test is holders.holds_netfilter:
            owner.close()
        return []

    monkeypatch.setattr(holders, "end", ends_by_itself)
    told: list[str] = []
    assert leave.leave(config, purge=True, tell=told.append), told
    assert kernel.read() is None
    assert not config.state_dir.exists()


def test_nothing_is_taken_back_while_the_agents_process_lives_though_it_has_let_go_of_its_lock(
    host: Space, config: AgentConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "hostmesh-agent"
    program.write_text(_ENDS_SLOWLY)
    command = [sys.executable, str(program), str(config.state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        seen: list[int | None] = []
        steps = leave._steps

        def looks(found: AgentConfig) -> Iterator[leave.Step]:
            seen.append(agent.poll())
            return steps(found)

        monkeypatch.setattr(leave, "_steps", looks)
        told: list[str] = []
        assert leave.leave(config, purge=True, tell=told.append), told
    assert seen == [0]


def test_while_rules_lead_to_envoy_it_stays_and_leave_can_be_called_again(
    host: Space, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave, "_RULES_ARE_FREE_WITHIN_S", 0.1)
    stopped: list[AgentConfig] = []
    stop_envoy = leave._stop_envoy

    def stops(found: AgentConfig) -> str:
        stopped.append(found)
        return stop_envoy(found)

    monkeypatch.setattr(leave, "_stop_envoy", stops)
    owner = Owner()
    nft.write(plan(REQUEST, FLOOR).table, owner)
    told: list[str] = []
    assert not leave.leave(config, purge=True, tell=told.append)
    assert "Envoy and the identity stay" in told[-1]
    assert State(config.state_dir).host().host
    assert not stopped
    owner.close()
    assert leave.leave(config, purge=True, tell=told.append), told
    assert stopped
    assert not config.state_dir.exists()
