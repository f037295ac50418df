"""Several probes of one workload, and systemd as a way to look: against the real thing where it can be had."""

import asyncio
from pathlib import Path

import pytest

from hostmesh_agent.probe_ways import Ways, unit_state
from hostmesh_agent.probes import Look, Memory, Name, ProbeName, Probes
from hostmesh_api.v1.hostmesh_pb2 import NamedProbe, Probe, Workload, WorkloadLease
from waiting import until

HERE = "127.0.0.1"
WEB = Name("shop", "web")


class Program:
    """A program whose probes, told apart by their ports, succeed or not."""

    def __init__(self) -> None:
        self.well: dict[int, bool] = {}
        self.looked = asyncio.Event()

    async def look(self, probe: Probe, _: str) -> Look:
        self.looked.set()
        return Look(True) if self.well.get(probe.tcp_socket.port, True) else Look(False, "refused")


def with_probes(**ports: int) -> Workload:
    more = [
        NamedProbe(name=name, probe=Probe(tcp_socket=Probe.TcpSocket(port=port), period_s=1, failure_threshold=1))
        for name, port in ports.items()
    ]
    return Workload(namespace=WEB.namespace, name=WEB.name, address=HERE, more_probes=more)


def told(probes: Probes) -> WorkloadLease:
    return probes.tell(WorkloadLease(namespace=WEB.namespace, name=WEB.name))


async def judged(probes: Probes, *, healthy: bool) -> WorkloadLease:
    wanted = WorkloadLease.HEALTHY if healthy else WorkloadLease.UNHEALTHY
    await until(lambda: told(probes).health == wanted)
    return told(probes)


async def test_a_workload_is_well_while_all_its_probes_are_and_tells_by_name_which_is_not(tmp_path: Path) -> None:
    program, changes = Program(), list[None]()
    probes = Probes(program.look, Memory(tmp_path / "health", "b1"), lambda: changes.append(None))
    probes.configure([with_probes(web=1, db=2)])
    running = asyncio.ensure_future(probes.run())
    await judged(probes, healthy=True)
    program.well[2] = False
    lease = await judged(probes, healthy=False)
    assert lease.health_reason == "db: refused"
    assert [(each.name, each.healthy, each.reason) for each in lease.probes] == [
        ("web", True, ""),
        ("db", False, "refused"),
    ]
    # A second one that fails changes nothing that others are told; the first one's return is not enough then.
    program.well[1] = False
    await until(lambda: told(probes).health_reason == "web: refused; db: refused")
    assert len(changes) == 2
    program.well.clear()
    await judged(probes, healthy=True)
    assert len(changes) == 3
    running.cancel()


async def test_a_further_probe_leaves_a_workload_as_it_was_until_it_says_otherwise(tmp_path: Path) -> None:
    program = Program()
    memory = Memory(tmp_path / "health", "b1")
    probes = Probes(program.look, memory, lambda: None)
    probes.configure([with_probes(web=1)])
    running = asyncio.ensure_future(probes.run())
    await judged(probes, healthy=True)
    running.cancel()
    probes.configure([with_probes(web=1, db=2)])
    assert (await judged(probes, healthy=True)).health_reason == ""
    # So does an agent that starts anew, whether the one before knew of the probe or not.
    after = Probes(program.look, memory, lambda: None)
    after.configure([with_probes(web=1, db=2, cache=3)])
    assert (await judged(after, healthy=True)).health_reason == ""


def test_what_an_earlier_agent_remembered_of_workloads_counts(tmp_path: Path) -> None:
    path = tmp_path / "health"
    path.write_text('{"boot_id": "b1", "workloads": [["shop", "web", true]]}')
    assert Memory(path, "b1").read() == {ProbeName(WEB, ""): True}


# systemd


@pytest.mark.parametrize(
    ("shown", "well", "reason"),
    [
        ("LoadState=loaded\nActiveState=active\nSubState=running\nResult=success", True, ""),
        ("LoadState=loaded\nActiveState=reloading\nSubState=reload\nResult=success", True, ""),
        (
            "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code",
            False,
            "web.service is failed (failed, exit-code)",
        ),
        (
            "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nResult=success",
            False,
            "web.service is activating (auto-restart)",
        ),
        ("LoadState=not-found\nActiveState=inactive", False, "there is no unit web.service"),
        ("", False, "web.service is in no known state ()"),
    ],
)
def test_a_unit_is_well_while_it_is_active(shown: str, well: bool, reason: str) -> None:
    assert unit_state("web.service", shown) == Look(well, reason)


async def test_systemd_is_asked_for_the_unit_and_where_it_is_not_that_is_the_reason(tmp_path: Path) -> None:
    asked = tmp_path / "systemctl"
    asked.write_text('#!/bin/sh\ntest "$4" = web.service && echo LoadState=loaded && echo ActiveState=active\n')
    asked.chmod(0o755)
    unit = Probe(systemd=Probe.Systemd(unit="web.service"))
    there = Ways("", str(asked), tmp_path)
    assert await there.look(unit, HERE) == Look(well=True)
    other = await there.look(Probe(systemd=Probe.Systemd(unit="db.service")), HERE)
    assert other == Look(False, "systemctl show ended with code 1")
    away = await Ways("", str(asked), tmp_path / "none").look(unit, HERE)
    assert away == Look(False, "web.service cannot be looked at: systemd does not run on this host")
