"""The agent under systemd: started, killed, hung, stopped; and what runs meanwhile does not notice."""

from collections.abc import Iterator
from typing import Final

import pytest

from e2e.driver import eventually
from e2e.test_under_load import load
from hosts.calls import outbound
from hosts.machine import Machine
from hosts.mesh import STOCK, VAULT, Mesh

AGENT: Final = "hostmesh-agent.service"
NEEDS_THE_MESH: Final = """
[Unit]
Description=a program that does not start without the mesh
Requires=hostmesh-ready.target
After=hostmesh-ready.target
[Service]
ExecStart=/bin/sleep infinity
"""
FIRST_CALL: Final = f"""
[Unit]
Description=a program that calls once, and does not try again
Wants=hostmesh-ready.target
After=hostmesh-ready.target
[Service]
Type=oneshot
RemainAfterExit=yes
User=www-data
ExecStart=/usr/bin/curl -sS --fail -m 10 http://vault:{VAULT}/seen
[Install]
WantedBy=multi-user.target
"""


def state(machine: Machine) -> dict[str, str]:
    return machine.unit(AGENT, "ActiveState", "SubState", "MainPID", "NRestarts", "Result", "StatusText")


def restarted(machine: Machine, before: dict[str, str], within_s: float = 60) -> dict[str, str]:
    """Return the unit's state once another agent has said that it is ready."""

    def again() -> dict[str, str] | None:
        now = state(machine)
        return now if now["SubState"] == "running" and now["MainPID"] not in {before["MainPID"], "0"} else None

    return machine.eventually(again, "another agent runs", within_s)


def envoy(machine: Machine) -> int:
    found: int = machine.agent()["envoy"]["pid"]
    return found


@pytest.fixture
def needs_the_mesh(mesh: Mesh) -> Iterator[str]:
    """The name of a running unit that requires hostmesh-ready.target."""
    mesh.shop.put("/run/systemd/system/needy.service", NEEDS_THE_MESH)
    mesh.shop.run("systemctl", "daemon-reload")
    mesh.shop.run("systemctl", "start", "needy.service")
    yield "needy.service"
    mesh.shop.run("systemctl", "stop", "needy.service")


def test_the_agent_has_told_systemd_that_it_is_ready_and_how_it_does(each_host: Machine) -> None:
    found = state(each_host)
    assert (found["ActiveState"], found["SubState"], found["Result"]) == ("active", "running", "success")
    assert found["StatusText"].startswith(f"{each_host.name}: ")
    assert each_host.unit("hostmesh-guard.service", "Result", "ActiveState") == {
        "Result": "success",
        "ActiveState": "active",
    }


@pytest.mark.parametrize("how", ["restart", "kill -9", "stop and start"])
def test_no_call_fails_and_envoy_and_programs_go_on_while_the_agent_ends_and_comes_back(
    mesh: Mesh, needs_the_mesh: str, how: str
) -> None:
    shop = mesh.shop
    ours, program, before = envoy(shop), shop.unit(needs_the_mesh, "MainPID"), state(shop)
    with (
        load(mesh.lab, "client", f"http://desk:{STOCK}/") as inbound,
        outbound(shop, f"http://stock:{STOCK}/", STOCK) as calls,
    ):
        if how == "restart":
            shop.run("systemctl", "restart", AGENT)
        elif how == "kill -9":
            shop.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", AGENT)
        else:
            shop.run("systemctl", "stop", AGENT)
            assert mesh.vault() is not None
            shop.run("systemctl", "start", AGENT)
        after = restarted(shop, before)
    assert (inbound["failed"], calls["failed"]) == (0, 0), (inbound, calls)
    assert min(inbound["sent"], calls["sent"]) > 10
    assert envoy(shop) == ours
    assert shop.unit(needs_the_mesh, "MainPID") == program
    if how == "kill -9":
        assert int(after["NRestarts"]) == int(before["NRestarts"]) + 1


@pytest.fixture
def short_watchdog(mesh: Mesh) -> Iterator[Machine]:
    """Half a minute is the unit's; two seconds show the same."""
    shop = mesh.shop
    place = f"/run/systemd/system/{AGENT}.d"
    shop.put(f"{place}/short.conf", "[Service]\nWatchdogSec=2s\n")
    shop.run("systemctl", "daemon-reload")
    shop.run("systemctl", "restart", AGENT)
    yield shop
    shop.run("rm", "-r", place)
    shop.run("systemctl", "daemon-reload")
    shop.run("systemctl", "restart", AGENT)


def test_an_agent_that_hangs_is_started_anew_and_where_it_hung_is_in_the_journal(
    mesh: Mesh, short_watchdog: Machine
) -> None:
    shop = short_watchdog
    ours, before = envoy(shop), state(shop)
    cursor = shop.run("journalctl", "-n0", "--show-cursor", "--no-pager").stdout.rpartition("cursor: ")[2].strip()
    shop.run("kill", "-STOP", before["MainPID"])
    after = restarted(shop, before)
    assert int(after["NRestarts"]) == int(before["NRestarts"]) + 1
    assert envoy(shop) == ours

    def told() -> bool:
        # journald writes what the one that ended said at its own time.
        said = shop.journal(AGENT, f"--after-cursor={cursor}")
        words = ("Watchdog timeout", "Fatal Python error: Aborted", "asyncio/base_events.py")
        return all(each in said for each in words)

    eventually(told, "the journal tells where it hung", timeout_s=20)
    assert mesh.vault() is not None


def test_a_program_that_comes_after_the_mesh_finds_it_with_its_first_call(mesh: Mesh) -> None:
    till = mesh.till
    till.put("/etc/systemd/system/first-call.service", FIRST_CALL)
    till.run("systemctl", "daemon-reload")
    till.run("systemctl", "--quiet", "enable", "first-call.service")
    try:
        till.reboot()
        found = till.unit("first-call.service", "Result", "ActiveState", "ExecMainStatus")
        assert found == {"Result": "success", "ActiveState": "active", "ExecMainStatus": "0"}
        assert till.unit("hostmesh-ready.target", "ActiveState")["ActiveState"] == "active"
    finally:
        till.run("systemctl", "--quiet", "disable", "--now", "first-call.service")


def test_a_host_that_shuts_down_is_left_by_its_callers_first_and_is_called_again_after_its_boot(mesh: Mesh) -> None:
    till = mesh.till
    eventually(lambda: served_by(mesh) == {"shop", "till"}, "both serve stock", timeout_s=60)
    with load(mesh.lab, "client", f"http://stock:{STOCK}/") as tally:
        till.stop()
        assert served_by(mesh) == {"shop"}
    # Not under load: a workload without a probe is called from the moment its host is back, its program may come later.
    till.start()
    eventually(lambda: served_by(mesh) == {"shop", "till"}, "both serve stock again", timeout_s=60)
    assert tally["failed"] == 0, tally
    assert tally["sent"] > 50
    told = till.journal("hostmesh-drain.service", "-b", "-1")
    assert "nobody calls this host's workloads any more" in told


def served_by(mesh: Mesh) -> set[str]:
    answers = [mesh.lab.curl("client", f"http://stock:{STOCK}/") for _ in range(6)]
    return {answer.json["name"] for answer in answers if answer.status == 200}


def test_the_controller_is_not_waited_for_where_a_host_shuts_down_without_it(mesh: Mesh) -> None:
    mesh.lab.verb("stop", "controller")
    try:
        eventually(lambda: not mesh.till.agent()["controller"]["connected"], "the agent knows it", timeout_s=30)
        mesh.till.reboot()
        seconds = mesh.till.run(
            *("journalctl", "-b", "-1", "-u", "hostmesh-drain.service", "-o", "short-unix", "--no-pager")
        ).stdout.splitlines()
        took_s = float(seconds[-1].split()[0]) - next(float(line.split()[0]) for line in seconds if "Stopping" in line)
        assert took_s < 15, seconds
    finally:
        mesh.lab.verb("start", "controller")
