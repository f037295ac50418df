"""A change of capture that does harm undoes itself, whatever becomes of the agent: real rules, a real timer process."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from hostmesh_agent import arming, capture, deadman, hold, widening
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.capture import CaptureError, CaptureRequest, HostFloor, Owner, Scope, kernel, nft, plan
from hostmesh_agent.capture import owner as ownership
from hostmesh_agent.control import ControlError
from hostmesh_agent.dns import Resolver
from hostmesh_agent.enforce import Enforcement
from hostmesh_agent.places import GREEN, PORTS
from hostmesh_agent.process import Process
from hostmesh_agent.sound import (
    CONTROLLER_LOST,
    DEADMAN_DIED,
    SSH_DIVERTED,
    SSH_LOST,
    TRIAL_EXPIRED,
    TRIAL_UNDONE,
    Fault,
)
from netns.capturing_host import (
    CONTROLLER,
    ENVOY_UID,
    RESOLV_CONF,
    SSH,
    CapturingHost,
    agent_process,
    capturing_host,
    until,
)
from netns.conftest import HOST
from netns.space import Servers, Space, ask, run, snapshot
from netns.space import nft as load

FLOOR = HostFloor(envoy_uid=ENVOY_UID)
GOOD = CaptureRequest(
    inbound_ports=frozenset({8080}), virtual_prefixes=frozenset({"240.240.0.0/16", "fd00:f0f0::/112"}), dns=True
)
TAKES_THE_CONTROLLER = CaptureRequest(Scope.ALL, frozenset({8080}), dns=False)
"""The controller's port is none of ours, and the floor does not know its address."""
FOREIGN = """
table ip nat {
    chain PREROUTING { type nat hook prerouting priority dstnat; tcp dport 8088 counter dnat to 172.17.0.2:80; }
}
"""
SILENT = """
table ip silent {
    chain arrivals { type filter hook prerouting priority 0; tcp dport 8443 drop; }
}
"""


@pytest.fixture
def site(peer: Space, servers: Servers, tmp_path: Path) -> Iterator[CapturingHost]:
    with capturing_host(peer, servers, tmp_path) as site:
        yield site


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


def trial(site: CapturingHost, owner: Owner, seconds: int = 60, request: CaptureRequest = GOOD) -> arming.Armed:
    """Do what the agent does for a trial by hand."""
    armed = arming.arm(site.spec(seconds=seconds, owner=owner.lend()))
    capture.apply(plan(request, FLOOR), owner)
    Resolver(site.config.dns.resolv_conf, site.config.state_dir).apply()
    arming.tell(site.config.run_dir, arming.APPLIED)
    return armed


def test_a_trial_that_nobody_confirms_leaves_everything_as_it_was(site: CapturingHost, owner: Owner) -> None:
    load(FOREIGN)
    (site.config.state_dir / hold.OFF).touch()
    before = snapshot()
    armed = trial(site, owner, seconds=1)
    assert nft.read() == plan(GOOD, FLOOR).table
    assert hold.trial(site.config.run_dir) is not None
    site.trial_over()
    until(armed.ended, "the timer ended")
    armed.close()
    assert snapshot() == before
    assert site.config.dns.resolv_conf.read_text() == RESOLV_CONF
    assert site.hold().alarm == TRIAL_EXPIRED
    assert hold.is_off(site.config.state_dir)
    assert list(site.config.run_dir.iterdir()) == []


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    run("mount", "--bind", str(directory), str(directory))
    try:
        run("mount", "-o", "remount,bind,ro", str(directory))
        yield
    finally:
        run("umount", "--lazy", str(directory))


def without_handles() -> str:
    """A rule that comes back is the same, under another number."""
    return re.sub(r" # handle \d+", "", snapshot())


def killed(pid: int, cgroup: Path | None) -> None:
    os.kill(pid, signal.SIGKILL)


def whole_session_killed(pid: int, cgroup: Path | None) -> None:
    os.killpg(pid, signal.SIGHUP)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def stopped(pid: int, cgroup: Path | None) -> None:
    os.kill(pid, signal.SIGSTOP)


def cgroup_killed(pid: int, cgroup: Path | None) -> None:
    assert cgroup is not None
    (cgroup / "cgroup.kill").write_text("1")


@pytest.fixture
def cgroup() -> Iterator[Path | None]:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(at) for _, at, kind, *_ in mounts if kind == "cgroup2"]
    if not roots:
        yield None
        return
    made = roots[0] / f"hostmesh-test-{os.getpid()}"
    made.mkdir()
    yield made
    until(lambda: "populated 0" in (made / "cgroup.events").read_text(), "the cgroup is empty")
    made.rmdir()


@pytest.mark.parametrize("fate", [killed, whole_session_killed, stopped, cgroup_killed])
def test_a_trial_is_undone_whatever_becomes_of_the_agent(
    site: CapturingHost, peer: Space, cgroup: Path | None, fate: object
) -> None:
    assert callable(fate)
    if fate is cgroup_killed and (cgroup is None or not (cgroup / "cgroup.kill").exists()):
        pytest.skip("needs cgroup v2 with cgroup.kill")
    before = snapshot()

    def act(owner: Owner) -> object:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text("0")
        return trial(site, owner, seconds=2)

    with agent_process(site.config, act) as agent:
        assert nft.read() == plan(GOOD, FLOOR).table
        assert nft.look().ownership & ownership.OWNED
        fate(agent, cgroup)
        until(lambda: snapshot() == before, "the kernel is as it was")
        with peer():
            assert ask(HOST[0], 22) == SSH
        site.trial_over()
    assert site.config.dns.resolv_conf.read_text() == RESOLV_CONF
    assert site.hold().alarm == TRIAL_EXPIRED


def test_an_agent_that_took_the_rules_over_during_the_trial_and_hangs_is_ended(site: CapturingHost) -> None:
    before = snapshot()

    def first(owner: Owner) -> object:
        return trial(site, owner)

    def second(owner: Owner) -> object:
        nft.write(plan(GOOD, FLOOR).table, owner)
        return nft.look().ownership & ownership.OWNED or None

    with agent_process(site.config, first) as agent:
        os.kill(agent, signal.SIGKILL)
        os.waitpid(agent, 0)
        until(lambda: not nft.look().ownership & ownership.OWNED, "the timer let go of the rules of a dead agent")
        with agent_process(site.config, second) as next_agent:
            os.kill(next_agent, signal.SIGSTOP)
            arming.tell(site.config.run_dir, arming.UNDO)
            until(lambda: os.waitpid(next_agent, os.WNOHANG)[0] == next_agent, "the agent that hangs is ended")
            until(lambda: snapshot() == before, "the kernel is as it was")


def test_a_trial_is_confirmed_only_when_ssh_and_the_controller_answer(site: CapturingHost, owner: Owner) -> None:
    (site.config.state_dir / hold.OFF).touch()
    armed = trial(site, owner)
    taken = site.controller.taken
    site.controller.close()
    site.servers.close()
    reply = arming.tell(site.config.run_dir, arming.CONFIRM)
    assert not reply["confirmed"]
    assert [alarm for alarm, _ in reply["faults"]] == [SSH_LOST, CONTROLLER_LOST]
    assert reply["seconds_left"] > 0
    assert hold.trial(site.config.run_dir) is not None
    assert hold.is_off(site.config.state_dir)
    assert site.controller.taken == taken
    arming.tell(site.config.run_dir, arming.UNDO)
    site.trial_over()
    assert nft.read() is None
    until(armed.ended, "the timer ended")
    armed.close()


def test_a_confirmed_trial_stays_and_capture_is_held_no_longer(site: CapturingHost, owner: Owner) -> None:
    (site.config.state_dir / hold.OFF).touch()
    hold.write(site.config.state_dir, hold.Hold(TRIAL_EXPIRED, "an earlier one", 1))
    armed = trial(site, owner)
    taken = site.controller.taken
    reply = arming.tell(site.config.run_dir, arming.CONFIRM)
    assert reply["confirmed"], reply
    assert f"SSH answers at {HOST[0]} port 22" in reply["proven"]
    assert site.controller.taken > taken
    until(armed.ended, "the timer ended")
    armed.close()
    assert nft.read() == plan(GOOD, FLOOR).table
    assert not hold.is_off(site.config.state_dir)
    assert hold.read(site.config.state_dir) is None


def test_what_is_not_in_force_yet_is_not_confirmed(site: CapturingHost, owner: Owner) -> None:
    armed = arming.arm(site.spec(seconds=60, owner=owner.lend()))
    with pytest.raises(ControlError, match="not in force yet"):
        arming.tell(site.config.run_dir, arming.CONFIRM)
    arming.tell(site.config.run_dir, arming.UNDO)
    site.trial_over()
    until(armed.ended, "the timer ended")
    armed.close()


@pytest.fixture
def timer(site: CapturingHost, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> Iterator[deadman.Timer]:
    """A timer in this process, for what only happens inside one."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        timer = deadman.Timer(site.spec(seconds=60, owner=os.dup(owner.lend())))
        yield timer
        assert timer._lent is not None
        timer._lent.close()
    os.close(writing)


def test_a_confirmation_while_nftables_is_busy_is_told_so_and_the_trial_goes_on(
    site: CapturingHost, owner: Owner, timer: deadman.Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = site.config.run_dir
    watching = threading.Thread(target=timer.watch_person)
    watching.start()
    until(lambda: hold.trial(run_dir) is not None, "the trial runs")
    capture.apply(plan(GOOD, FLOOR), owner)
    arming.tell(run_dir, arming.APPLIED)
    with monkeypatch.context() as patched:
        patched.setattr(kernel, "read", busy)
        with pytest.raises(ControlError, match="another program keeps changing nftables: ask again"):
            arming.tell(run_dir, arming.CONFIRM)
    assert hold.trial(run_dir) is not None
    assert arming.tell(run_dir, arming.CONFIRM)["confirmed"]
    watching.join(20)
    assert nft.read() == plan(GOOD, FLOOR).table
    assert hold.read(site.config.state_dir) is None


def busy(*_: object) -> NoReturn:
    raise CaptureError("another program keeps changing nftables")


def test_a_timer_that_fails_undoes_first_though_nftables_is_busy(
    site: CapturingHost, owner: Owner, timer: deadman.Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture.apply(plan(GOOD, FLOOR), owner)
    tried, remove = [False], kernel.remove

    def busy_once(lent: Owner | None) -> None:
        if not tried[0]:
            tried[0] = True
            busy()
        remove(lent)

    monkeypatch.setattr(deadman, "select", None)
    monkeypatch.setattr(kernel, "remove", busy_once)
    timer.watch_person()
    assert nft.read() is None
    assert site.hold().alarm == DEADMAN_DIED
    assert list(site.config.run_dir.iterdir()) == []


def test_an_asker_that_hung_up_has_confirmed_all_the_same(site: CapturingHost, owner: Owner) -> None:
    armed = trial(site, owner)
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(site.config.run_dir / arming.SOCKET))
        asker.sendall(json.dumps({"verb": arming.CONFIRM}).encode())
    until(armed.ended, "the timer ended")
    armed.close()
    assert nft.read() == plan(GOOD, FLOOR).table
    assert hold.read(site.config.state_dir) is None


def test_a_trial_that_somebody_ends_is_undone_and_says_why(site: CapturingHost, owner: Owner) -> None:
    armed = trial(site, owner)
    arming.tell(site.config.run_dir, arming.UNDO, why="because")
    site.trial_over()
    until(armed.ended, "the timer ended")
    armed.close()
    assert nft.read() is None
    # Nothing else held capture: without a mark the agent would make the change again.
    assert (site.hold().alarm, site.hold().why) == (TRIAL_UNDONE, "because")


# Changes that the agent makes by itself


@pytest.fixture
def widened(site: CapturingHost, owner: Owner) -> widening.Widening:
    enforcement = Enforcement(
        dns=False, resolv_conf=site.config.dns.resolv_conf, state_dir=site.config.state_dir, owner=owner
    )
    return widening.Widening(site.config, owner, enforcement)


def test_a_plan_that_takes_the_controller_away_undoes_itself(site: CapturingHost, widened: widening.Widening) -> None:
    assert widened.put(GOOD, FLOOR, b"good").capture.state == "on"
    before = without_handles()
    enforced = widened.put(TAKES_THE_CONTROLLER, FLOOR, b"bad")
    assert (enforced.capture.state, enforced.capture.error.split(":")[0]) == ("error", CONTROLLER_LOST)
    assert enforced.in_force.inbound_ports == {8080}
    assert without_handles() == before
    held = site.hold()
    assert (held.alarm, held.capture) == (CONTROLLER_LOST, b"good")
    assert ask(*CONTROLLER, uid=ENVOY_UID) != "refused"


def test_a_controller_that_goes_away_by_itself_undoes_nothing(site: CapturingHost, owner: Owner) -> None:
    armed = arming.arm(site.spec(owner=owner.lend()))
    site.controller.close()
    capture.apply(plan(GOOD, FLOOR), owner)
    assert armed.applied() == ()
    assert nft.read() == plan(GOOD, FLOOR).table
    assert hold.read(site.config.state_dir) is None


def test_what_widens_is_captured_though_every_controller_is_silent(
    site: CapturingHost, peer: Space, owner: Owner
) -> None:
    with peer():
        load(SILENT)
    silent = tuple(f"10.77.0.{number}:8443" for number in range(1, 8))
    armed = arming.arm(site.spec(owner=owner.lend(), controllers=silent))
    capture.apply(plan(GOOD, FLOOR), owner)
    assert armed.applied() == ()
    assert nft.read() == plan(GOOD, FLOOR).table


def test_ssh_is_found_at_whichever_of_many_addresses_its_server_listens(site: CapturingHost, owner: Owner) -> None:
    for number in range(1, 31):
        run("ip", "address", "add", f"10.66.0.{number}/32", "dev", "lo" if number > 29 else "eth0")
    site.servers.tcp_at(SSH, "10.66.0.30", 2222)
    armed = arming.arm(site.spec(seconds=60, owner=owner.lend(), ssh_ports=(2222,), ssh_servers=(2222,)))
    capture.apply(plan(GOOD, FLOOR), owner)
    arming.tell(site.config.run_dir, arming.APPLIED)
    assert "SSH answers at 10.66.0.30 port 2222" in arming.tell(site.config.run_dir, arming.CONFIRM)["proven"]
    until(armed.ended, "the timer ended")
    armed.close()


def test_a_rule_that_takes_ssh_at_one_of_many_addresses_is_found(site: CapturingHost, owner: Owner) -> None:
    for number in range(1, 31):
        run("ip", "address", "add", f"10.66.0.{number}/32", "dev", "lo" if number > 29 else "eth0")
    floor = replace(FLOOR, door_port=PORTS[GREEN].door, doorways=frozenset({("10.66.0.30", 2222)}))
    armed = arming.arm(site.spec(owner=owner.lend(), ssh_ports=(22, 2222)))
    capture.apply(plan(GOOD, floor), owner)
    assert [each.why.rpartition(" at ")[2] for each in armed.applied()] == ["10.66.0.30 port 2222"]
    assert nft.read() is None


def test_harm_that_a_disk_refuses_to_note_is_not_done_again(site: CapturingHost, owner: Owner) -> None:
    state_dir, alarms = site.config.state_dir, Alarms()
    enforcement = Enforcement(dns=False, resolv_conf=site.config.dns.resolv_conf, state_dir=state_dir, owner=owner)
    widened = widening.Widening(site.config, owner, enforcement, alarms)
    assert widened.put(GOOD, FLOOR, b"good").capture.state == "on"
    before = without_handles()
    with read_only(state_dir):
        assert widened.put(TAKES_THE_CONTROLLER, FLOOR, b"bad").capture.state == "error"
        widened.write_kept()
        assert not (state_dir / hold.FILE).exists()
        assert (site.hold().alarm, site.hold().capture) == (CONTROLLER_LOST, b"good")
        assert [each.code for each in alarms] == ["hold.not-written"]
        # A timer that died noted nothing: this is ours to do, and no disk's refusal may end the agent.
        assert widened._undone(Fault(DEADMAN_DIED, "it is gone"), b"good").capture.state == "error"
        assert (site.hold().alarm, site.hold().capture) == (DEADMAN_DIED, b"good")
    assert without_handles() == before
    widened.write_kept()
    assert (state_dir / hold.FILE).exists()
    assert site.hold().capture == b"good"
    assert list(alarms) == []


def test_a_plan_that_takes_ssh_undoes_itself(site: CapturingHost, owner: Owner, servers: Servers) -> None:
    servers.tcp(SSH, 2222)
    armed = arming.arm(site.spec(owner=owner.lend(), ssh_ports=(22, 2222)))
    capture.apply(plan(CaptureRequest(inbound_ports=frozenset({2222}), dns=False), FLOOR), owner)
    found = armed.applied()
    assert [each.alarm for each in found] == [SSH_DIVERTED] * 2, found
    assert nft.read() is None
    assert site.hold().capture is None


def test_a_bad_plan_is_undone_though_the_agent_was_killed_at_the_moment_it_was_made(
    site: CapturingHost, peer: Space
) -> None:
    before = snapshot()

    def act(owner: Owner) -> object:
        armed = arming.arm(site.spec(owner=owner.lend()))
        capture.apply(plan(TAKES_THE_CONTROLLER, FLOOR), owner)
        return armed

    with agent_process(site.config, act) as agent:
        os.kill(agent, signal.SIGKILL)
        until(lambda: snapshot() == before, "the kernel is as it was")
    until(lambda: hold.read(site.config.state_dir) is not None, "capture is held")
    assert site.hold().alarm == CONTROLLER_LOST


def test_without_a_timer_nothing_is_widened(
    site: CapturingHost, widened: widening.Widening, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot()
    monkeypatch.setattr("sys.executable", "/bin/false")
    enforced = widened.put(GOOD, FLOOR, b"good")
    assert "could not be armed" in enforced.capture.error
    assert snapshot() == before


def test_what_narrows_and_what_puts_rules_back_waits_for_no_timer(
    site: CapturingHost, widened: widening.Widening, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = CaptureRequest(inbound_ports=frozenset({8080, 8081}), dns=False)
    narrow = CaptureRequest(inbound_ports=frozenset({8080}), dns=False)
    assert widened.put(request, FLOOR, b"good").capture.state == "on"
    monkeypatch.setattr("sys.executable", "/bin/false")
    capture.clear(owner)
    assert widened.put(request, FLOOR, b"good").capture.state == "on"
    assert widened.put(narrow, FLOOR, b"narrow").capture.state == "on"


def test_the_other_of_two_envoys_takes_over_without_a_timer_unless_its_door_is_at_ssh(
    site: CapturingHost, widened: widening.Widening, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = PORTS[GREEN]
    floor = replace(FLOOR, outbound_port=second.outbound, inbound_port=second.inbound, dns_port=second.dns)
    takes_over = replace(floor, door_port=second.door, doorways=frozenset({("", 443)}))
    assert widened.put(GOOD, FLOOR, b"good").capture.state == "on"
    monkeypatch.setattr("sys.executable", "/bin/false")
    for floor in (takes_over, FLOOR):
        assert widened.put(GOOD, floor, b"good").capture.state == "on"
        assert nft.read() == plan(replace(GOOD, dns=False), floor).table
    at_ssh = replace(takes_over, doorways=frozenset({("", 22)}))
    assert "could not be armed" in widened.put(GOOD, at_ssh, b"good").capture.error


def test_the_timer_goes_when_it_is_told_to_and_undoes_first(site: CapturingHost, owner: Owner) -> None:
    armed = trial(site, owner)
    record = json.loads((site.config.run_dir / hold.TRIAL).read_text())
    begun = time.monotonic()
    process = Process(record["pid"])
    process.signal(signal.SIGTERM)
    process.close()
    until(armed.ended, "the timer ended")
    armed.close()
    assert time.monotonic() - begun < 10
    assert nft.read() is None


def test_the_rules_of_others_are_the_same_byte_for_byte(
    site: CapturingHost, widened: widening.Widening, owner: Owner
) -> None:
    load(FOREIGN)
    before = run("nft", "list", "ruleset")
    widened.put(GOOD, FLOOR, b"good")
    widened.put(TAKES_THE_CONTROLLER, FLOOR, b"bad")
    capture.clear(owner)
    assert run("nft", "list", "ruleset") == before
