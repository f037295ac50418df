"""What the agent keeps in force on a real kernel, against other tools and through its own end."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import generation, repairs, resolution
from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope
from hostmesh_agent.config import AgentConfig, DnsSettings
from hostmesh_agent.converge import InForce
from hostmesh_agent.enforce import Enforcement
from hostmesh_agent.leave import leave
from netns.space import Space, nft, snapshot

BOUND_S = 10
RESOLV_CONF = "nameserver 192.0.2.1\n"
FLOOR = HostFloor(envoy_uid=65534)
REQUEST = CaptureRequest(
    Scope.MESH, frozenset({8080}), frozenset({"240.240.0.0/16"}), frozenset({"240.240.0.0/16"}), dns=True
)
IN_FORCE = InForce(frozenset({8080}), outbound=True)


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(RESOLV_CONF)
    return path


@pytest.fixture
def enforcement(host: Space, resolv_conf: Path, tmp_path: Path) -> Enforcement:
    return Enforcement(dns=True, resolv_conf=resolv_conf, state_dir=tmp_path)


def test_rules_and_names_are_put_in_force_together_and_taken_back(enforcement: Enforcement, resolv_conf: Path) -> None:
    before = snapshot()
    enforced = enforcement.put(REQUEST, FLOOR)
    assert (enforced.capture.state, enforced.in_force, enforced.dns_in_place) == ("on", IN_FORCE, True)
    assert resolv_conf.read_text() != RESOLV_CONF
    enforced = enforcement.put(None, FLOOR)
    assert (enforced.capture.state, enforced.in_force, enforced.dns_in_place) == ("off", InForce(), False)
    assert resolv_conf.read_text() == RESOLV_CONF
    assert snapshot() == before


def test_rules_that_another_tool_flushed_count_as_in_force_and_are_put_back(enforcement: Enforcement) -> None:
    first = enforcement.put(REQUEST, FLOOR)
    enforcement.put(REQUEST, FLOOR)
    nft("flush ruleset")
    assert enforcement.look() == IN_FORCE
    assert enforcement.put(REQUEST, FLOOR) == first


def test_what_was_narrowed_does_not_count_as_in_force_any_more(enforcement: Enforcement) -> None:
    enforcement.put(REQUEST, FLOOR)
    narrow = replace(REQUEST, inbound_ports=frozenset())
    assert enforcement.put(narrow, FLOOR).in_force == InForce(frozenset(), outbound=True)
    nft("flush ruleset")
    assert enforcement.look() == InForce(frozenset(), outbound=True)


def test_an_agent_that_starts_again_knows_what_is_in_force(
    enforcement: Enforcement, resolv_conf: Path, tmp_path: Path
) -> None:
    enforcement.put(REQUEST, FLOOR)
    assert Enforcement(dns=True, resolv_conf=resolv_conf, state_dir=tmp_path).look() == IN_FORCE


def test_names_are_left_alone_where_the_host_wants_that(host: Space, resolv_conf: Path, tmp_path: Path) -> None:
    enforced = Enforcement(dns=False, resolv_conf=resolv_conf, state_dir=tmp_path).put(REQUEST, FLOOR)
    assert (enforced.capture.state, enforced.dns_in_place) == ("on", False)
    assert resolv_conf.read_text() == RESOLV_CONF


def test_a_resolver_that_is_left_alone_is_told_to_be_that_in_the_end(
    enforcement: Enforcement, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolution, "DANGLES_FOR_S", 0.0)
    resolv_conf.unlink()
    resolv_conf.symlink_to("nowhere")
    enforced = enforcement.put(REQUEST, FLOOR)
    assert (enforced.capture.state, enforced.dns_in_place, enforced.dns_left_alone) == ("on", False, True)
    assert "which is not there" in enforced.dns_detail


def test_what_cannot_be_planned_is_an_error_and_changes_nothing(enforcement: Enforcement) -> None:
    enforcement.put(REQUEST, FLOOR)
    before = snapshot()
    assert enforcement.put(REQUEST, HostFloor(envoy_uid=0)).capture.state == "error"
    assert snapshot() == before


async def test_a_change_by_another_tool_is_heard_and_changes_the_number(host: Space) -> None:
    heard = asyncio.Event()
    first = generation.generation()
    assert first is not None
    assert generation.generation() == first
    watching = asyncio.create_task(generation.watch(heard.set))
    await asyncio.sleep(0)  # lets it begin to listen
    nft("add table inet other")
    async with asyncio.timeout(BOUND_S):
        await heard.wait()
    assert generation.generation() != first
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_who_takes_the_rules_again_and_again_is_named_and_not_fought(
    host: Space, resolv_conf: Path, tmp_path: Path
) -> None:
    # Without an owner, as on kernels that have none.
    enforcement = Enforcement(dns=True, resolv_conf=resolv_conf, state_dir=tmp_path)
    heard = asyncio.Event()
    watching = asyncio.create_task(generation.watch(heard.set, enforcement.changed_by))
    await asyncio.sleep(0)  # lets it begin to listen
    await asyncio.to_thread(enforcement.put, REQUEST, FLOOR)
    enforced = await asyncio.to_thread(enforcement.put, REQUEST, FLOOR)
    for _ in range(repairs.LIMIT):
        assert enforced.capture.state == "on"
        heard.clear()
        nft("delete element inet hostmesh inbound_ports { 8080 }")
        async with asyncio.timeout(BOUND_S):
            await heard.wait()
        enforced = await asyncio.to_thread(enforcement.put, REQUEST, FLOOR)
    heard.clear()
    nft("delete element inet hostmesh inbound_ports { 8080 }")
    async with asyncio.timeout(BOUND_S):
        await heard.wait()
    enforced = await asyncio.to_thread(enforcement.put, REQUEST, FLOOR)
    assert enforced.capture.state == "error"
    assert "nft (pid " in enforced.repair_waits
    assert enforcement.drift[0] == "- set inbound_ports: 8080"
    assert enforcement.drift[-1].startswith("by nft (pid ")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.parametrize("purge", [False, True])
def test_leave_undoes_everything_without_agent_and_controller(
    host: Space, resolv_conf: Path, tmp_path: Path, purge: bool
) -> None:
    before = snapshot()
    config = AgentConfig(
        state_dir=tmp_path / "state", run_dir=tmp_path / "run", dns=DnsSettings(resolv_conf=resolv_conf)
    )
    config.envoy_dir.mkdir(parents=True)
    (config.state_dir / "cache").mkdir()
    config.run_dir.mkdir()
    Enforcement(dns=True, resolv_conf=resolv_conf, state_dir=config.state_dir).put(REQUEST, FLOOR)
    told: list[str] = []
    assert leave(config, purge=purge, tell=told.append)
    assert "capture: removed" in told
    assert snapshot() == before
    assert resolv_conf.read_text() == RESOLV_CONF
    assert config.state_dir.exists() is not purge
    if not purge:
        assert [each.name for each in config.state_dir.iterdir()] == ["agent.lock"]
    assert leave(config, purge=purge, tell=told.append)
