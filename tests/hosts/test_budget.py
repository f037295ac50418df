"""What the agent takes of a host, against what is published; and that the unit bounds it."""

import os
import resource
import time
from typing import Final

import pytest

from hostmesh_agent import budget
from hosts.machine import Machine

AGENT: Final = "hostmesh-agent.service"
_LOOK_S: Final = 10.0
_LOOKS: Final = 3
"""The least counts: others work on this machine, and hosts of other tests come and go in the mesh."""
_OF_MEMORY: Final = {"memory.max": str(budget.MAX_MEMORY_BYTES), "memory.swap.max": "0"}
_OF_CPU: Final = {"cpu.max": f"{budget.MAX_CPU_PERCENT * 1000} 100000"}
_OF_TASKS: Final = {"pids.max": "512"}


def main(machine: Machine) -> str:
    return machine.unit(AGENT, "MainPID")["MainPID"]


def test_systemd_knows_the_published_budget(each_host: Machine) -> None:
    found = each_host.unit(AGENT, "MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "TasksMax", "OOMScoreAdjust")
    assert found == {
        "MemoryMax": str(budget.MAX_MEMORY_BYTES),
        "MemorySwapMax": "0",
        "CPUQuotaPerSecUSec": f"{budget.MAX_CPU_PERCENT * 10}ms",
        "TasksMax": "512",
        "OOMScoreAdjust": "-500",
    }
    limits = each_host.run("cat", f"/proc/{main(each_host)}/limits").stdout
    (files,) = (line.split() for line in limits.splitlines() if line.startswith("Max open files"))
    # As much as this machine lets its containers have.
    most = min(1 << 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert files[3:5] == [str(budget.MAX_FILES), str(most)]


@pytest.mark.parametrize("controller", ["memory", "cpu", "pids"])
def test_the_kernel_holds_the_budget_where_it_has_the_controllers(each_host: Machine, controller: str) -> None:
    if controller not in each_host.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split():
        pytest.skip(
            f"this kernel has {controller} in a hierarchy of version 1, of which a host in a container has none"
        )
    group = f"/sys/fs/cgroup/system.slice/{AGENT}"
    for name, value in {"memory": _OF_MEMORY, "cpu": _OF_CPU, "pids": _OF_TASKS}[controller].items():
        assert each_host.run("cat", f"{group}/{name}").stdout.strip() == value


def test_envoy_is_bound_by_none_of_it(each_host: Machine) -> None:
    envoy = each_host.agent()["envoy"]["pid"]
    inside = each_host.run("cat", f"/proc/{envoy}/cgroup").stdout
    assert "\n0::/hostmesh.slice/hostmesh-envoy.slice/" in inside
    assert main(each_host) in each_host.run("cat", f"/sys/fs/cgroup/system.slice/{AGENT}/cgroup.procs").stdout.split()


def test_an_agent_keeps_the_memory_and_files_that_are_published(each_host: Machine) -> None:
    pid = main(each_host)
    status = each_host.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    facts = dict(line.split(":\t", 1) for line in status)
    rss_bytes = int(facts["VmRSS"].split()[0]) << 10
    files = len(each_host.run("ls", f"/proc/{pid}/fd").stdout.split())
    threads = int(facts["Threads"])
    print(f"{each_host.suite}: {rss_bytes / (1 << 20):.1f} MiB, {files} files, {threads} threads")
    assert main(each_host) == pid
    assert rss_bytes <= budget.IDLE_RSS_BYTES
    assert files <= budget.ENOUGH_FILES
    assert threads <= 64


def test_an_idle_agent_keeps_the_published_share_of_a_core(each_host: Machine) -> None:
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        pytest.skip("the figure is of a machine that has processors to spare: every switch between programs costs")
    pid = main(each_host)
    used = min(used_percent(each_host, pid) for _ in range(_LOOKS))
    print(f"{each_host.suite}: {used:.2f} % of a core")
    assert main(each_host) == pid
    assert used <= budget.IDLE_CPU_PERCENT


def used_percent(machine: Machine, pid: str) -> float:
    before_s, began = cpu_s(machine, pid), time.monotonic()
    time.sleep(_LOOK_S)  # idling is what is measured
    return (cpu_s(machine, pid) - before_s) / (time.monotonic() - began) * 100


def cpu_s(machine: Machine, pid: str) -> float:
    """What all its threads have had of the processors, in seconds, to the nanosecond."""
    told = machine.run("sh", "-c", f"cat /proc/{pid}/task/*/schedstat").stdout
    return sum(int(line.split()[0]) for line in told.splitlines()) / 1e9
