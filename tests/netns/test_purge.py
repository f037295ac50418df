"""`leave --purge` with the agent dead: whatever it had put into force, the host is as it was, byte for byte.

A machine of its own as far as network, processes, /run, /etc and names go. The agent is one of the tests: it has done
its work with the parts of the real one and was killed. What is compared is all that `host_snapshot` of e2e sees, and
what it does not know of: rules of iptables' older interface, sets, and what systemd-resolved was told.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns.dying_agent import CASES
from netns.name_machine import UNPACKED, Machine, name_machine, why_no_resolved
from netns.space import Servers, Space, run
from netns.test_name_resolvers import AGENT, stub

SNAPSHOT = str(Path(__file__).parents[1] / "e2e" / "programs" / "host_snapshot.py")
CONFIG = """
state_dir = "/run/hostmesh-state"
run_dir = "/run/hostmesh"
"""
OTHERS = "ip rule add fwmark 7 lookup 77; ip route add 10.77.0.0/16 dev lo table 77; sysctl -qw net.ipv4.ip_forward=1"
SIGNS = {
    "iptables": "HOSTMESH_BYPASSED",
    "tproxy": "lookup 1506",
    "names": "hostmesh0",
    "two envoys": "dnat to :15107",
    "two envoys, iptables": "--to-destination :15107",
}
"""What shows that the agent had done what is to be undone."""


@pytest.fixture(scope="session")
def unpacked() -> str:
    return why_no_resolved()


@pytest.fixture
def machine(unpacked: str, host: Space, peer: Space, servers: Servers) -> Iterator[Machine]:
    if unpacked:
        pytest.skip(unpacked)
    with name_machine() as machine:
        # Groups of the machine's that others use too: what is done about ours is tested in e2e.
        machine.run("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup")
        machine.run("mkdir", "-p", "/etc/hostmesh")
        machine.run("rmdir", "/run/hostmesh")
        machine.write("/etc/hostmesh/agent.toml", CONFIG)
        machine.run("sh", "-c", OTHERS)
        # The kernel still tries this address: it would appear later, and a comparison would see that.
        run("ip", "-6", "address", "flush", "dev", "eth0", "scope", "link")
        yield machine


def snapshot(machine: Machine) -> dict[str, str]:
    found: dict[str, str] = json.loads(machine.run(sys.executable, "-I", "-S", SNAPSHOT))
    # A process that has ended stays, nameless, where the first one of the machine waits for nobody.
    found["processes"] = "\n".join(filter(None, found["processes"].splitlines()))
    saved = "".join(run(f"{each}-legacy-save") for each in ("iptables", "ip6tables"))
    found["older iptables"] = re.sub(r"\[\d+:\d+\]|^#.*$", "", saved, flags=re.MULTILINE)
    found["sets"] = run("ipset", "save")
    found["names"] = machine.snapshot()
    return found


def die(machine: Machine, case: str) -> dict[str, object]:
    """Let an agent live and be killed; return what it told before."""
    command = machine.command(sys.executable, "-m", "netns.dying_agent", case)
    path = os.pathsep.join([str(UNPACKED / "usr" / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("case", CASES)
def test_a_host_is_as_it_was_though_the_agent_died_in_the_middle(machine: Machine, case: str) -> None:
    stub(machine)
    machine.run("iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-s", "10.77.0.0/16", "-j", "MASQUERADE")
    for each in ("iptables", "ip6tables"):
        for table in ("nat", "filter"):
            machine.run(f"{each}-legacy", "-t", table, "-S")
    run("ipset", "create", "somebodys", "hash:ip")
    before = snapshot(machine)
    told = die(machine, case)
    assert told == {
        "backend": "iptables" if "iptables" in case else "nftables",
        "names": "" if "iptables" in case else True,
    }
    between = snapshot(machine)
    assert SIGNS[case] in json.dumps(between)
    assert ("envoy.json" in between["processes"]) is case.startswith("two envoys")
    machine.run(AGENT, "leave", "--purge")
    after = snapshot(machine)
    assert {
        name: (before.get(name), after.get(name)) for name in before | after if before.get(name) != after.get(name)
    } == {}
    machine.run(AGENT, "leave", "--purge")
