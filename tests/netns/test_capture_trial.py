"""A trial by hand through the agent's own part for capture, from `capture clear` to the undoing, and its plan."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import arming, capture_verbs, control, hold
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.capture import CaptureError, HostFloor, Owner
from hostmesh_agent.capturing import Capturing
from hostmesh_agent.identities import AGENT
from hostmesh_agent.recognition import Recognition
from hostmesh_api.v1.hostmesh_pb2 import Capture, HostConfig
from netns.backends import each_backend, made_for
from netns.capturing_host import ENVOY_UID, CapturingHost, capturing_host, until
from netns.space import Servers, Space

FLOOR = HostFloor(envoy_uid=ENVOY_UID, ssh_servers=frozenset({22}))
CONFIG = HostConfig(capture=Capture(inbound_ports=[8080], virtual_prefixes=["240.240.0.0/16"]))
pytestmark = each_backend


class Certified:
    """What capture asks of the identities: nobody needs a certificate here."""

    def validities(self) -> Mapping[str, object]:
        return {AGENT: None}


async def active(wanted: Mapping[str, str]) -> frozenset[str]:
    return frozenset(wanted)


@pytest.fixture
def site(peer: Space, servers: Servers, tmp_path: Path) -> Iterator[CapturingHost]:
    with capturing_host(peer, servers, tmp_path) as site:
        yield site


async def test_what_is_held_is_planned_tried_and_taken_back(site: CapturingHost) -> None:
    owner = Owner()
    known = await asyncio.to_thread(Recognition, site.config, switches_user=False)
    capturing = Capturing(site.config, owner, Certified(), active, lambda: None, known)  # type: ignore[arg-type]
    (site.config.state_dir / hold.OFF).touch()
    await capturing.step(CONFIG, made_for(FLOOR))
    plan = await capturing.plan(CONFIG, made_for(FLOOR))
    assert plan.held
    assert "+ set inbound_ports: 8080" in plan.difference
    await capturing.try_out(CONFIG, made_for(FLOOR), 60)
    assert capturing.enforced.in_force.inbound_ports == {8080}
    assert capturing.state().trial_until > 0
    assert (await capturing.plan(CONFIG, made_for(FLOOR))).difference == ()
    with pytest.raises(CaptureError, match="a trial runs already"):
        await capturing.try_out(CONFIG, made_for(FLOOR), 60)
    arming.tell(site.config.run_dir, arming.UNDO, why="capture clear was called")
    site.trial_over()
    await capturing.step(CONFIG, made_for(FLOOR))
    assert capturing.enforced.capture.state == "off"
    # It was wanted: there is nothing to warn of.
    assert (capturing.state().alarm, capturing.alarms()) == ("", [])
    assert hold.is_off(site.config.state_dir)
    until(lambda: capturing._trial is None or capturing._trial.ended(), "the timer ended")
    await capturing.step(CONFIG, made_for(FLOOR))
    hold.release(site.config.state_dir)
    await capturing.step(CONFIG, made_for(FLOOR))
    assert capturing.enforced.in_force.inbound_ports == {8080}
    with pytest.raises(CaptureError, match="is not held"):
        await capturing.try_out(CONFIG, made_for(FLOOR), 60)
    owner.close()


async def test_where_agent_toml_wants_nothing_captured_a_trial_says_what_comes_first(site: CapturingHost) -> None:
    config = replace(site.config, capture=replace(site.config.capture, enabled=False))
    owner = Owner()
    known = await asyncio.to_thread(Recognition, config, switches_user=False)
    capturing = Capturing(config, owner, Certified(), active, lambda: None, known)  # type: ignore[arg-type]
    for off in (False, True):
        if off:
            (config.state_dir / hold.OFF).touch()
        with pytest.raises(
            CaptureError, match=r"enabled is false in agent.toml: first call hostmesh-agent capture clear"
        ):
            await capturing.try_out(CONFIG, made_for(FLOOR), 60)
    owner.close()


async def test_what_a_trial_undoes_is_no_other_programs_change(site: CapturingHost) -> None:
    owner = Owner()
    known = await asyncio.to_thread(Recognition, site.config, switches_user=False)
    capturing = Capturing(site.config, owner, Certified(), active, lambda: None, known)  # type: ignore[arg-type]
    (site.config.state_dir / hold.OFF).touch()
    await capturing.step(CONFIG, made_for(FLOOR))
    await capturing.try_out(CONFIG, made_for(FLOOR), 60)
    arming.tell(site.config.run_dir, arming.UNDO)
    # The kernel tells an agent of each change at once, so it looks while the timer is at work.
    while capturing._trial is not None:
        await capturing.step(CONFIG, made_for(FLOOR))
    await capturing.step(CONFIG, made_for(FLOOR))
    assert capturing.enforced.capture.state == "off"
    assert capturing.drift == ()
    owner.close()


async def test_a_trial_whose_beginner_is_gone_can_be_confirmed_after_the_next_step(site: CapturingHost) -> None:
    owner = Owner()
    known = await asyncio.to_thread(Recognition, site.config, switches_user=False)
    capturing = Capturing(site.config, owner, Certified(), active, lambda: None, known)  # type: ignore[arg-type]
    (site.config.state_dir / hold.OFF).touch()
    armed = capturing._widening.arm_trial(made_for(FLOOR), 60)
    await capturing.step(CONFIG, made_for(FLOOR))
    assert (await asyncio.to_thread(arming.tell, site.config.run_dir, arming.CONFIRM))["confirmed"]
    until(armed.ended, "the timer ended")
    armed.close()
    owner.close()


async def test_a_trial_with_nothing_to_try_leaves_what_held_capture_and_no_more(site: CapturingHost) -> None:
    owner = Owner()
    known = await asyncio.to_thread(Recognition, site.config, switches_user=False)
    capturing = Capturing(site.config, owner, Certified(), active, lambda: None, known)  # type: ignore[arg-type]
    before = hold.Hold("SSH_LOST", "an earlier one", 1)
    hold.write(site.config.state_dir, before)
    with pytest.raises(CaptureError, match="nothing to try"):
        await capturing.try_out(HostConfig(), made_for(FLOOR), 60)
    site.trial_over()
    assert hold.read(site.config.state_dir) == before
    assert capturing._trial is not None
    until(capturing._trial.ended, "the timer ended")
    capturing._trial.close()
    owner.close()


async def test_what_is_held_in_memory_alone_ends_with_resume(
    site: CapturingHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError("no space left on device")

    owner, alarms, state_dir = Owner(), Alarms(), site.config.state_dir
    known = await asyncio.to_thread(Recognition, site.config, switches_user=False)
    capturing = Capturing(site.config, owner, Certified(), active, lambda: None, known, alarms=alarms)  # type: ignore[arg-type]
    verbs = capture_verbs.verbs(capturing, lambda: (CONFIG, made_for(FLOOR)), asyncio.Lock())
    monkeypatch.setattr(hold, "write", refuses)
    assert hold.keep(state_dir, hold.Hold("SSH_LOST", "because", 1))
    await capturing.step(CONFIG, made_for(FLOOR))
    assert (capturing.enforced.capture.state, capturing.state().alarm) == ("off", "SSH_LOST")
    assert [each.code for each in alarms] == ["hold.not-written"]
    await verbs[control.RESUME]({})
    await capturing.step(CONFIG, made_for(FLOOR))
    assert (capturing.enforced.capture.state, capturing.state().alarm, list(alarms)) == ("on", "", [])
    owner.close()
