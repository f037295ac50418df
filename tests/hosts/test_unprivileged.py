"""The agent that is not root: what it does for its host all the same, and hosts on which it has to be root."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from e2e.driver import eventually
from e2e.test_under_load import load
from hosts import mesh as meshes
from hosts.calls import outbound
from hosts.machine import Machine
from hosts.mesh import STOCK, STOCK_UNIT, Mesh
from hosts.repository import Repository
from hosts.test_envoy_unit import configured, serving, unit, upgrade
from hosts.test_leave import WORKLOAD
from hosts.test_life import AGENT, envoy, restarted, state

_NET_ADMIN: Final = "0000000000001000"
_DROP_INS: Final = "/etc/systemd/system/hostmesh-*.service.d"


def owner(machine: Machine, path: str) -> str:
    return machine.run("stat", "-c", "%U:%G", path).stdout.strip()


def well(machine: Machine) -> None:
    def healthy() -> bool:
        return bool(machine.agent().get("healthy"))

    eventually(healthy, f"{machine.name} is well: {machine.agent().get('problems')}", timeout_s=60)


def test_it_has_a_user_of_its_own_and_one_capability(each_host: Machine) -> None:
    pid = state(each_host)["MainPID"]
    facts = dict(line.split(":\t", 1) for line in each_host.run("cat", f"/proc/{pid}/status").stdout.splitlines())
    uid = each_host.run("id", "-u", "hostmesh-agent").stdout.strip()
    assert facts["Uid"].split() == [uid] * 4
    assert uid != "0"
    assert (facts["CapEff"], facts["CapBnd"], facts["CapPrm"]) == (_NET_ADMIN,) * 3
    assert owner(each_host, "/var/lib/hostmesh/host.json") == "hostmesh-agent:hostmesh-agent"


def test_programs_of_all_users_are_known_by_their_units(mesh: Mesh, each_host: Machine) -> None:
    def told() -> set[tuple[str, str]]:
        found = json.loads(mesh.lab.hostmesh("host", "services", each_host.name, "-o", "json").stdout)
        return {(each["program"], each["unit"]) for each in found if each["port"] == STOCK}

    eventually(lambda: told() == {("python3", "stock.service")}, f"known: {told()}", timeout_s=60)


def test_names_and_rules_are_put_and_taken_by_the_verbs_of_root(each_host: Machine) -> None:
    name = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-m", "10", f"http://stock:{STOCK}/")
    assert each_host.run(*name).stdout == "200"
    each_host.run("hostmesh-agent", "capture", "clear")
    assert "hostmesh" not in each_host.rules()
    assert "127.240.240.53" not in each_host.run("cat", "/etc/resolv.conf").stdout
    assert each_host.run(*name, check=False).stdout != "200"
    each_host.run("hostmesh-agent", "capture", "resume")
    eventually(lambda: each_host.run(*name, check=False).stdout == "200", "names are back", timeout_s=30)
    assert "root root" not in each_host.run("ls", "-lan", "/var/lib/hostmesh").stdout
    foreign = each_host.run("find", "/var/lib/hostmesh", "/run/hostmesh", "-user", "root").stdout
    assert foreign == ""


_ASK: Final = """
import sys
from hostmesh_agent.rights import Helped, RightsError
try:
    print(sorted(Helped().ask(sys.argv[1], **dict(each.split("=", 1) for each in sys.argv[2:])).items()))
except RightsError as error:
    print(error)
"""


def asked(machine: Machine, user: str, *words: str) -> str:
    """What a user is told who asks the privileged part."""
    program = machine.run("head", "-1", "/usr/bin/hostmesh-agent").stdout.removeprefix("#!").split()
    group = machine.run("id", "-g", user).stdout.strip()
    become = ("setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups", "--inh-caps=-all")
    return machine.run(*become, *program, "-c", _ASK, *words, check=False).stdout


def test_who_has_become_the_agent_gets_no_further(each_host: Machine) -> None:
    assert "ActiveState=active" in asked(each_host, "hostmesh-agent", "show-envoy", "instance=blue")
    for words in (
        ("stop-envoy", "instance=../ssh"),
        ("signal-envoy", "pid=1", "number=KILL"),
        ("put-names", "text=nameserver 203.0.113.1"),
        ("tell-resolved", "what=dns", "values=203.0.113.1"),
        ("run", "command=id"),
    ):
        assert "refused: " in asked(each_host, "hostmesh-agent", *words), words
    # Others do not even reach it.
    for user in ("nobody", "www-data", "hostmesh-envoy"):
        assert "Permission denied" in asked(each_host, user, "show-envoy", "instance=blue")
    as_agent = ("setpriv", "--reuid=hostmesh-agent", "--regid=hostmesh-agent", "--init-groups", "--inh-caps=-all")
    for words in (
        ("sh", "-c", "echo >> /etc/resolv.conf"),
        ("sh", "-c", "echo > /usr/lib/hostmesh-agent/envoy-exec"),
        ("sh", "-c", "echo > /etc/systemd/system/x.service"),
        ("systemctl", "restart", "hostmesh-envoy@blue.service"),
    ):
        assert each_host.run(*as_agent, *words, check=False).returncode != 0, words


def test_ports_of_ssh_servers_are_known_that_it_cannot_see_itself(each_host: Machine) -> None:
    each_host.run("ssh-keygen", "-A")
    each_host.run(
        "systemd-run", "--unit=other-ssh", "-p", "RuntimeDirectory=sshd", "/usr/sbin/sshd", "-D", "-p", "2222"
    )
    try:
        eventually(lambda: "2222" in asked(each_host, "hostmesh-agent", "ssh-servers"), "it is told", timeout_s=20)
    finally:
        each_host.run("systemctl", "stop", "other-ssh.service")


def test_verbs_of_root_work_as_before(each_host: Machine) -> None:
    for words in (("doctor",), ("status",), ("capture", "explain", "10.9.9.9:80"), ("config", "show")):
        done = each_host.run("hostmesh-agent", *words, check=False)
        assert "Traceback" not in done.stderr, (words, done.stderr)
        assert "Permission denied" not in done.stdout + done.stderr, (words, done.stdout, done.stderr)


def test_a_report_of_root_has_what_only_root_sees(each_host: Machine) -> None:
    each_host.run("sh", "-c", "cd /root && hostmesh-agent bugreport --output /root/report.tar.gz")
    try:
        listed = each_host.run("tar", "-xzOf", "/root/report.tar.gz", "--wildcards", "*/logs/agent.journal.txt").stdout
        assert "hostmesh-agent" in listed
        assert "python3" in each_host.run("tar", "-xzOf", "/root/report.tar.gz", "--wildcards", "*/sockets.txt").stdout
        assert owner(each_host, "/root/report.tar.gz") == "root:root"
    finally:
        each_host.run("rm", "/root/report.tar.gz")


def test_a_host_joins_anew_and_its_agent_is_started(mesh: Mesh) -> None:
    till = mesh.till
    before = state(till)
    till.run("systemctl", "stop", AGENT)
    made = json.loads(mesh.lab.hostmesh("token", "create", till.name, "-o", "json").stdout)
    told = till.run("hostmesh-agent", "join", "-", "--force", text_in=made["join_string"] + "\n").stdout
    assert "hostmesh-agent.service is enabled and runs" in told
    restarted(till, before)
    well(till)
    assert till.run("find", "/var/lib/hostmesh", "/run/hostmesh", "-user", "root").stdout == ""


# Root


@pytest.fixture
def with_root(mesh: Mesh, each_host: Machine) -> Iterator[Machine]:
    """A host whose agent becomes root, and not root again, while it serves and calls. No call is lost by either."""
    for switch in ("on", "off"):
        before, ours = state(each_host), envoy(each_host)
        with (
            load(mesh.lab, "client", f"http://stock:{STOCK}/") as inbound,
            outbound(each_host, f"http://stock:{STOCK}/", STOCK) as calls,
        ):
            each_host.run("hostmesh-agent", "as-root", switch)
            restarted(each_host, before)
            well(each_host)
        assert (inbound["failed"], calls["failed"]) == (0, 0), (inbound, calls)
        assert envoy(each_host) == ours
        if switch == "on":
            yield each_host
    assert owner(each_host, "/var/lib/hostmesh/host.json") == "hostmesh-agent:hostmesh-agent"
    assert each_host.run("sh", "-c", f"ls -d {_DROP_INS}", check=False).stdout == ""


def test_an_agent_of_root_does_all_that_it_does(mesh: Mesh, with_root: Machine) -> None:
    assert owner(with_root, "/var/lib/hostmesh/host.json") == "root:root"
    old = envoy(with_root)
    with_root.run("kill", "-SEGV", str(old))

    def again() -> bool:
        found = with_root.agent()["envoy"]
        return found["pid"] not in (None, old) and found["state"] == "live"

    eventually(again, "another one serves", timeout_s=30)
    well(with_root)
    with load(mesh.lab, "client", f"http://stock:{STOCK}/") as inbound:
        with configured(with_root, '[envoy]\nlog_level = "info"\nrehearsal_s = 1\nprobation_s = 2\n'):
            upgrade(with_root)
        upgrade(with_root)
    assert inbound["failed"] == 0, inbound
    assert unit(with_root, serving(with_root))["MainPID"] == str(envoy(with_root))


def test_a_host_of_iptables_joins_with_an_agent_of_root(mesh: Mesh, packages: Repository, tmp_path: Path) -> None:
    guest = Machine(mesh.lab, "guest2", "bookworm", 55, tmp_path / "guest2")
    try:
        meshes.install(packages, guest)
        meshes.program(guest, "stock", STOCK_UNIT.replace("hostmesh-ready", "network").format(name="guest2"))
        guest.put("/etc/hostmesh/agent.toml", '[capture]\nbackend = "iptables"\n')
        mesh.lab.apply(WORKLOAD.format(address=guest.ip))
        made = meshes.join_string(mesh.lab, guest)
        told = guest.run("hostmesh-agent", "join", "-", text_in=made + "\n").stdout
        assert "the agent is root on this host: the rules are held by iptables" in told
        meshes.captured(guest, STOCK)
        well(guest)
        assert "HOSTMESH_" in guest.run("iptables-legacy-save").stdout
        refused = guest.run("hostmesh-agent", "as-root", "off", check=False)
        assert (refused.returncode, "has to be root" in refused.stderr) == (1, True)
        guest.run("hostmesh-agent", "leave", "--purge")
        assert guest.run("sh", "-c", f"ls -d {_DROP_INS}", check=False).stdout == ""
        assert "HOSTMESH_" not in guest.run("iptables-legacy-save").stdout
    finally:
        mesh.lab.hostmesh("delete", "-f", "-", text_in=WORKLOAD.format(address=guest.ip), check=False)
        guest.remove()


def test_an_agent_that_would_have_to_be_root_says_so_and_what_ran_goes_on(mesh: Mesh) -> None:
    till = mesh.till
    packaged = till.run("cat", "/etc/hostmesh/agent.toml").stdout
    before, ours = state(till), envoy(till)
    till.put("/etc/hostmesh/agent.toml", '[envoy]\nsupervisor = "builtin"\n')
    try:
        till.run("systemctl", "restart", AGENT, check=False)
        assert "hostmesh-agent as-root on" in till.journal(AGENT, "-n", "20")
        assert mesh.lab.curl("client", f"http://stock:{STOCK}/").status == 200
    finally:
        till.put("/etc/hostmesh/agent.toml", packaged)
        till.run("systemctl", "restart", AGENT)
        restarted(till, before)
    assert envoy(till) == ours
