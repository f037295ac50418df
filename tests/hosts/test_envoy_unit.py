"""Envoy as units of systemd's: whose it is, who starts it, what stops before it, and what it may."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from e2e.driver import eventually
from e2e.test_under_load import load
from hosts.calls import outbound
from hosts.machine import Machine
from hosts.mesh import STOCK, Mesh
from hosts.test_life import AGENT, envoy, restarted, state

BLUE: Final = "hostmesh-envoy@blue.service"
GREEN: Final = "hostmesh-envoy@green.service"
SLICE: Final = "/hostmesh.slice/hostmesh-envoy.slice"
_BIND_AND_RAW: Final = "0000000000002400"
_BIND: Final = "0000000000000400"
UPGRADED_WITHIN_S: Final = 120
CONFIG: Final = "/etc/hostmesh/agent.toml"


def serving(machine: Machine) -> str:
    """The unit of the Envoy that serves."""
    return f"hostmesh-envoy@{machine.agent()['envoy']['instance']}.service"


def unit(machine: Machine, name: str) -> dict[str, str]:
    return machine.unit(name, "ActiveState", "MainPID", "User", "Slice", "NRestarts", "ActiveEnterTimestampMonotonic")


@contextmanager
def configured(machine: Machine, text: str) -> Iterator[None]:
    """Run the agent with this agent.toml, and then with the one that was there: the package's."""
    packaged = machine.run("cat", CONFIG).stdout
    before = state(machine)
    machine.put(CONFIG, text)
    machine.run("systemctl", "restart", AGENT)
    restarted(machine, before)
    try:
        yield
    finally:
        before = state(machine)
        machine.put(CONFIG, packaged)
        machine.run("systemctl", "restart", AGENT)
        restarted(machine, before)


def upgrade(machine: Machine) -> None:
    """Exchange the Envoy that runs for what would be started now, to the end."""
    old = serving(machine)
    machine.run("hostmesh-agent", "envoy", "upgrade", timeout_s=UPGRADED_WITHIN_S)
    machine.eventually(
        lambda: serving(machine) != old and machine.agent()["envoy"]["stage"] == "steady",
        "the upgrade is over",
        UPGRADED_WITHIN_S,
    )


def test_envoy_is_a_unit_of_its_own_and_the_rules_know_it_by_its_cgroup(mesh: Mesh, each_host: Machine) -> None:
    name = serving(each_host)
    found = unit(each_host, name)
    pid = envoy(each_host)
    assert (found["ActiveState"], found["MainPID"]) == ("active", str(pid))
    assert (found["User"], found["Slice"]) == ("hostmesh-envoy", "hostmesh-envoy.slice")
    assert f"\n0::{SLICE}/{name}\n" in each_host.run("cat", f"/proc/{pid}/cgroup").stdout
    facts = dict(line.split(":\t", 1) for line in each_host.run("cat", f"/proc/{pid}/status").stdout.splitlines())
    assert (facts["CapBnd"], facts["CapEff"], facts["CapAmb"]) == (_BIND_AND_RAW, _BIND, _BIND)
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    limits = each_host.run("cat", f"/proc/{pid}/limits").stdout
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert "its cgroup hostmesh.slice/hostmesh-envoy.slice" in json.dumps(each_host.agent()["capture"])
    # By the name of the cgroup or, from outside of the host, by its number.
    assert re.search(r'socket cgroupv2 level 2 ("[^"]*hostmesh-envoy\.slice"|\d+)', each_host.rules())
    with outbound(each_host, f"http://stock:{STOCK}/", STOCK) as calls:
        pass
    assert (calls["failed"], calls["sent"] > 0) == (0, True)
    assert mesh.lab.curl("client", f"http://stock:{STOCK}/").status == 200


def test_envoy_is_as_closed_as_was_said_where_it_runs(each_host: Machine) -> None:
    told = each_host.run("systemd-analyze", "security", "--no-pager", serving(each_host)).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert found is not None, told
    print(f"{each_host.suite} {serving(each_host)}: {found[1]}")
    assert float(found[1]) <= 1.5


@pytest.mark.parametrize("how", ["restart", "kill -9"])
def test_the_agents_end_is_nothing_to_envoys_unit(each_host: Machine, how: str) -> None:
    name = serving(each_host)
    before, ours = state(each_host), unit(each_host, name)
    with outbound(each_host, f"http://stock:{STOCK}/", STOCK) as calls:
        if how == "restart":
            each_host.run("systemctl", "restart", AGENT)
        else:
            each_host.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", AGENT)
        restarted(each_host, before)
    assert (calls["failed"], calls["sent"] > 10) == (0, True)
    assert unit(each_host, name) == ours


def test_an_agent_that_was_killed_before_it_knew_its_envoy_is_followed_by_one_that_does(mesh: Mesh) -> None:
    till = mesh.till
    name, before, pid = serving(till), state(till), envoy(till)
    directory = till.run("readlink", f"/proc/{pid}/cwd").stdout.strip()
    till.run("systemctl", "stop", AGENT)
    till.run("rm", f"{directory}/envoy.pid.json")
    till.run("systemctl", "start", AGENT)
    restarted(till, before)
    assert (envoy(till), serving(till)) == (pid, name)


@pytest.mark.parametrize("number", ["KILL", "SEGV"])
def test_an_envoy_that_crashes_is_seen_with_its_reason_and_started_again_as_a_unit(
    mesh: Mesh, each_host: Machine, number: str
) -> None:
    name, old = serving(each_host), envoy(each_host)
    each_host.run("kill", f"-{number}", str(old))

    def again() -> int | None:
        found = each_host.agent()["envoy"]
        return found["pid"] if found["pid"] not in (None, old) and found["state"] == "live" else None

    new = each_host.eventually(again, "another one serves", 30)
    assert unit(each_host, name)["MainPID"] == str(new)
    assert f"killed by SIG{number}" in each_host.agent()["envoy"]["last_exit"]
    assert f"killed by SIG{number}" in each_host.journal(AGENT, "-n", "50")
    # systemd does not think that something is wrong any more.
    assert each_host.run("systemctl", "is-system-running").stdout == "running\n"
    eventually(lambda: mesh.lab.curl("client", f"http://stock:{STOCK}/").status == 200, "called again", timeout_s=30)


def test_an_envoy_that_cannot_start_is_told_with_what_it_said(mesh: Mesh) -> None:
    till = mesh.till
    with configured(till, '[envoy]\nlog_level = "debug"\n'):
        launcher = "/usr/lib/hostmesh-agent/envoy-exec"
        text = till.run("cat", launcher).stdout
        till.put(launcher, "#!/bin/sh\nexit 3\n")
        try:
            till.run("kill", "-KILL", str(envoy(till)))
            eventually(lambda: "exit code 3" in till.agent()["envoy"]["last_exit"], "it is told", timeout_s=30)
        finally:
            till.put(launcher, text)
        eventually(lambda: till.agent()["envoy"]["state"] == "live", "it serves again", timeout_s=60)
    assert till.run("systemctl", "is-system-running").stdout == "running\n"


def test_an_upgrade_from_blue_to_green_and_back_loses_no_call(mesh: Mesh, each_host: Machine) -> None:
    with (
        load(mesh.lab, "client", f"http://stock:{STOCK}/") as inbound,
        outbound(each_host, f"http://stock:{STOCK}/", STOCK) as calls,
    ):
        with configured(each_host, '[envoy]\nlog_level = "info"\nrehearsal_s = 1\nprobation_s = 2\n'):
            old = serving(each_host)
            upgrade(each_host)
            new = serving(each_host)
            assert {old, new} == {BLUE, GREEN}
            assert unit(each_host, new)["MainPID"] == str(envoy(each_host))
            eventually(lambda: unit(each_host, old)["ActiveState"] == "inactive", "the old one has ended", timeout_s=90)
        upgrade(each_host)
    assert (inbound["failed"], calls["failed"]) == (0, 0), (inbound, calls)
    assert min(inbound["sent"], calls["sent"]) > 50
    assert serving(each_host) == old


def test_the_agents_own_child_is_taken_over_and_becomes_a_unit_with_its_next_start(mesh: Mesh) -> None:
    till = mesh.till
    name = serving(till)
    with load(mesh.lab, "client", f"http://stock:{STOCK}/") as inbound:
        till.run("hostmesh-agent", "as-root", "on")
        with configured(
            till, '[envoy]\nsupervisor = "builtin"\nlog_level = "info"\nrehearsal_s = 1\nprobation_s = 2\n'
        ):
            upgrade(till)
            child = envoy(till)
            assert f"0::{SLICE}/" in till.run("cat", f"/proc/{child}/cgroup").stdout
            assert unit(till, serving(till))["ActiveState"] == "inactive"
        before = state(till)
        till.run("hostmesh-agent", "as-root", "off")
        restarted(till, before)
        assert envoy(till) == child
        upgrade(till)
    assert inbound["failed"] == 0, inbound
    assert serving(till) == name
    assert unit(till, name)["MainPID"] == str(envoy(till))


def test_what_is_wanted_and_cannot_be_is_an_error_with_the_reason(mesh: Mesh) -> None:
    till = mesh.till
    packaged = till.run("cat", CONFIG).stdout
    till.put(CONFIG, '[envoy]\nsupervisor = "systemd"\nuser = "www-data"\n')
    before, ours = state(till), envoy(till)
    try:
        till.run("systemctl", "restart", AGENT, check=False)
        told = till.journal(AGENT, "-n", "20")
        assert "envoy.user in agent.toml is not hostmesh-envoy" in told
        assert "hostmesh-agent as-root on" in told
    finally:
        till.put(CONFIG, packaged)
        till.run("systemctl", "restart", AGENT)
        restarted(till, before)
    assert envoy(till) == ours


def test_a_change_of_targets_leaves_envoy(mesh: Mesh) -> None:
    till = mesh.till
    ours = unit(till, serving(till))
    till.run("systemctl", "isolate", "multi-user.target")
    assert unit(till, serving(till)) == ours


def test_a_shutdown_ends_programs_then_the_agent_then_envoy_and_the_boot_after_it_has_a_unit_again(mesh: Mesh) -> None:
    shop = mesh.shop
    # Nothing says that it comes after the mesh.
    shop.put("/etc/systemd/system/plain.service", "[Service]\nExecStart=/bin/sleep infinity\n")
    shop.run("systemctl", "daemon-reload")
    shop.run("systemctl", "start", "plain.service")
    name = serving(shop)
    shop.reboot()
    lines = shop.run("journalctl", "-b", "-1", "-o", "json", "--no-pager", "_PID=1").stdout.splitlines()
    told = [json.loads(line) for line in lines]
    at = {
        each: [i for i, entry in enumerate(told) if entry.get("UNIT") == each and entry["MESSAGE"].startswith("Stopp")]
        for each in ("plain.service", "stock.service", AGENT, name)
    }
    assert all(at.values()), at
    stops = {each: (found[0], found[-1]) for each, found in at.items()}
    for program in ("plain.service", "stock.service", AGENT):
        assert stops[program][1] < stops[name][0], stops
    started = [entry for entry in told if entry.get("UNIT") == name and entry["MESSAGE"].startswith("Started")]
    # Stopping, and Stopped: others of that boot came before.
    stopping = told[at[AGENT][-2]]
    assert int(started[-1]["__MONOTONIC_TIMESTAMP"]) < int(stopping["__MONOTONIC_TIMESTAMP"])
    assert "with result 'timeout'" not in " ".join(str(entry["MESSAGE"]) for entry in told)
    eventually(lambda: shop.agent()["envoy"]["state"] == "live", "it serves again", timeout_s=60)
    assert unit(shop, serving(shop))["MainPID"] == str(envoy(shop))
    eventually(lambda: mesh.vault() is not None, "called again", timeout_s=60)
