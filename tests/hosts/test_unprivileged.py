"""The agent without root: switched on and off under load, and all that an agent does for its host."""

import re
from collections.abc import Iterator
from typing import Final

import pytest

from e2e.driver import eventually
from e2e.test_leave import changes
from e2e.test_under_load import load
from hosts import mesh as meshes
from hosts.calls import outbound
from hosts.machine import Machine
from hosts.mesh import STOCK, STOCK_UNIT, VAULT, Mesh
from hosts.repository import Repository
from hosts.test_envoy_unit import configured, serving, unit, upgrade
from hosts.test_leave import WORKLOAD, settled, snapshot
from hosts.test_life import AGENT, envoy, restarted, state

UNITS: Final = ("hostmesh-agent", "hostmesh-drain", "hostmesh-guard", "hostmesh-ready")
_NET_ADMIN: Final = "0000000000001000"
EXPOSURE: Final = 1.9


def switch_on(machine: Machine) -> None:
    for each in UNITS:
        place = f"/etc/systemd/system/{each}.service.d"
        machine.run("mkdir", "-p", place)
        machine.run(
            "ln", "-s", f"/usr/lib/hostmesh-agent/unprivileged/{each}.service.conf", f"{place}/unprivileged.conf"
        )
    machine.run("systemctl", "daemon-reload")


def switch_off(machine: Machine) -> None:
    for each in UNITS:
        machine.run("rm", "-f", f"/etc/systemd/system/{each}.service.d/unprivileged.conf")
        machine.run("sh", "-c", f"rmdir /etc/systemd/system/{each}.service.d 2>/dev/null || true")
    machine.run("systemctl", "daemon-reload")


def anew(machine: Machine) -> None:
    before = state(machine)
    machine.run("systemctl", "restart", AGENT)
    restarted(machine, before)


def owner(machine: Machine, path: str) -> str:
    return machine.run("stat", "-c", "%U:%G", path).stdout.strip()


def well(machine: Machine) -> None:
    def healthy() -> bool:
        return bool(machine.agent().get("healthy"))

    eventually(healthy, f"{machine.name} is well: {machine.agent().get('problems')}", timeout_s=60)


@pytest.fixture(scope="module", params=("shop", "till"))
def without_root(mesh: Mesh, request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine: Machine = getattr(mesh, request.param)
    ours = envoy(machine)
    with (
        load(mesh.lab, "client", f"http://stock:{STOCK}/") as inbound,
        outbound(machine, f"http://stock:{STOCK}/", STOCK) as calls,
    ):
        switch_on(machine)
        anew(machine)
        well(machine)
    assert (inbound["failed"], calls["failed"]) == (0, 0), (inbound, calls)
    assert envoy(machine) == ours
    yield machine
    ours = envoy(machine)
    with (
        load(mesh.lab, "client", f"http://stock:{STOCK}/") as inbound,
        outbound(machine, f"http://stock:{STOCK}/", STOCK) as calls,
    ):
        switch_off(machine)
        anew(machine)
        well(machine)
    assert (inbound["failed"], calls["failed"]) == (0, 0), (inbound, calls)
    assert envoy(machine) == ours
    assert owner(machine, "/var/lib/hostmesh/host.json") == "root:root"


def test_it_has_a_user_of_its_own_and_one_capability(without_root: Machine) -> None:
    pid = state(without_root)["MainPID"]
    facts = dict(line.split(":\t", 1) for line in without_root.run("cat", f"/proc/{pid}/status").stdout.splitlines())
    uid = without_root.run("id", "-u", "hostmesh-agent").stdout.strip()
    assert facts["Uid"].split() == [uid] * 4
    assert uid != "0"
    assert (facts["CapEff"], facts["CapBnd"], facts["CapPrm"]) == (_NET_ADMIN,) * 3
    assert owner(without_root, "/var/lib/hostmesh/host.json") == "hostmesh-agent:hostmesh-agent"


def test_it_is_as_closed_as_was_said(without_root: Machine) -> None:
    told = without_root.run("systemd-analyze", "security", "--no-pager", AGENT).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert found is not None, told
    print(f"{without_root.suite} {AGENT}: {found[1]}")
    assert float(found[1]) <= EXPOSURE, told


@pytest.mark.parametrize("how", ["restart", "kill -9"])
def test_its_end_is_seen_by_nobody(mesh: Mesh, without_root: Machine, how: str) -> None:
    before, ours = state(without_root), envoy(without_root)
    with (
        load(mesh.lab, "client", f"http://stock:{STOCK}/") as inbound,
        outbound(without_root, f"http://stock:{STOCK}/", STOCK) as calls,
    ):
        if how == "restart":
            without_root.run("systemctl", "restart", AGENT)
        else:
            without_root.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", AGENT)
        restarted(without_root, before)
    assert (inbound["failed"], calls["failed"]) == (0, 0), (inbound, calls)
    assert envoy(without_root) == ours
    well(without_root)


def test_an_envoy_that_crashes_is_started_again(mesh: Mesh, without_root: Machine) -> None:
    old = envoy(without_root)
    without_root.run("kill", "-SEGV", str(old))

    def again() -> int | None:
        found = without_root.agent()["envoy"]
        return found["pid"] if found["pid"] not in (None, old) and found["state"] == "live" else None

    new = without_root.eventually(again, "another one serves", 30)
    assert unit(without_root, serving(without_root))["MainPID"] == str(new)
    assert "killed by SIGSEGV" in without_root.agent()["envoy"]["last_exit"]
    eventually(lambda: mesh.lab.curl("client", f"http://stock:{STOCK}/").status == 200, "called again", timeout_s=30)
    assert without_root.run("systemctl", "is-system-running").stdout == "running\n"


def test_envoy_is_upgraded_without_a_lost_call(mesh: Mesh, without_root: Machine) -> None:
    old = serving(without_root)
    with (
        load(mesh.lab, "client", f"http://stock:{STOCK}/") as inbound,
        outbound(without_root, f"http://stock:{STOCK}/", STOCK) as calls,
    ):
        with configured(without_root, '[envoy]\nlog_level = "info"\nrehearsal_s = 1\nprobation_s = 2\n'):
            upgrade(without_root)
        upgrade(without_root)
    assert (inbound["failed"], calls["failed"]) == (0, 0), (inbound, calls)
    assert serving(without_root) == old


def test_names_and_rules_are_put_and_taken_by_the_verbs_of_root(without_root: Machine) -> None:
    name = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-m", "10", f"http://stock:{STOCK}/")
    assert without_root.run(*name).stdout == "200"
    without_root.run("hostmesh-agent", "capture", "clear")
    assert "hostmesh" not in without_root.rules()
    assert "127.240.240.53" not in without_root.run("cat", "/etc/resolv.conf").stdout
    assert without_root.run(*name, check=False).stdout != "200"
    without_root.run("hostmesh-agent", "capture", "resume")
    eventually(lambda: without_root.run(*name, check=False).stdout == "200", "names are back", timeout_s=30)
    assert "root root" not in without_root.run("ls", "-lan", "/var/lib/hostmesh").stdout
    foreign = without_root.run("find", "/var/lib/hostmesh", "/run/hostmesh", "-user", "root").stdout
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


def test_who_has_become_the_agent_gets_no_further(without_root: Machine) -> None:
    assert "ActiveState=active" in asked(without_root, "hostmesh-agent", "show-envoy", "instance=blue")
    for words in (
        ("stop-envoy", "instance=../ssh"),
        ("signal-envoy", "pid=1", "number=KILL"),
        ("put-names", "text=nameserver 203.0.113.1"),
        ("tell-resolved", "what=dns", "values=203.0.113.1"),
        ("run", "command=id"),
    ):
        assert "refused: " in asked(without_root, "hostmesh-agent", *words), words
    # Others do not even reach it.
    for user in ("nobody", "www-data", "hostmesh-envoy"):
        assert "Permission denied" in asked(without_root, user, "show-envoy", "instance=blue")
    as_agent = ("setpriv", "--reuid=hostmesh-agent", "--regid=hostmesh-agent", "--init-groups", "--inh-caps=-all")
    for words in (
        ("sh", "-c", "echo >> /etc/resolv.conf"),
        ("sh", "-c", "echo > /usr/lib/hostmesh-agent/envoy-exec"),
        ("sh", "-c", "echo > /etc/systemd/system/x.service"),
        ("systemctl", "restart", "hostmesh-envoy@blue.service"),
    ):
        assert without_root.run(*as_agent, *words, check=False).returncode != 0, words


def test_ports_of_ssh_servers_are_known_that_it_cannot_see_itself(without_root: Machine) -> None:
    without_root.run("ssh-keygen", "-A")
    without_root.run(
        "systemd-run", "--unit=other-ssh", "-p", "RuntimeDirectory=sshd", "/usr/sbin/sshd", "-D", "-p", "2222"
    )
    try:
        eventually(lambda: "2222" in asked(without_root, "hostmesh-agent", "ssh-servers"), "it is told", timeout_s=20)
    finally:
        without_root.run("systemctl", "stop", "other-ssh.service")


def test_verbs_of_root_work_as_before(without_root: Machine) -> None:
    for words in (("doctor",), ("status",), ("capture", "explain", "10.9.9.9:80"), ("config", "show")):
        done = without_root.run("hostmesh-agent", *words, check=False)
        assert "Traceback" not in done.stderr, (words, done.stderr)
        assert "Permission denied" not in done.stdout + done.stderr, (words, done.stdout, done.stderr)


def test_it_boots_as_it_was(mesh: Mesh, without_root: Machine) -> None:
    without_root.reboot()
    well(without_root)
    assert without_root.unit("hostmesh-guard.service", "Result")["Result"] == "success"
    if without_root.name == "shop":  # it has a STRICT port
        assert f"closed until Envoy serves them: {VAULT}" in without_root.journal("hostmesh-guard.service", "-b")
    assert unit(without_root, serving(without_root))["MainPID"] == str(envoy(without_root))
    eventually(lambda: mesh.lab.curl("client", f"http://stock:{STOCK}/").status == 200, "called again", timeout_s=60)


def test_a_host_that_left_is_as_it_was(
    mesh: Mesh, packages: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    guest = Machine(mesh.lab, "guest2", "trixie", 53, tmp_path_factory.mktemp("guest2") / "guest2")
    try:
        meshes.install(packages, guest)
        meshes.program(guest, "stock", STOCK_UNIT.replace("hostmesh-ready", "network").format(name="guest2"))
        switch_on(guest)
        mesh.lab.apply(WORKLOAD.format(address=guest.ip))
        before = settled(guest)
        meshes.join(mesh.lab, guest)
        meshes.captured(guest, STOCK)
        well(guest)
        assert owner(guest, "/var/lib/hostmesh/host.json") == "hostmesh-agent:hostmesh-agent"
        done = guest.run("hostmesh-agent", "leave", "--purge")
        assert "this host has left the mesh" in done.stdout
        guest.eventually(
            lambda: guest.unit(AGENT, "ActiveState")["ActiveState"] in {"inactive", "failed"}, "the unit has ended", 30
        )
        guest.run("systemctl", "stop", "hostmesh-privileged.socket")
        eventually(lambda: not changes(before, snapshot(guest)), f"as it was: {changes(before, snapshot(guest))}", 10)
    finally:
        mesh.lab.hostmesh("delete", "-f", "-", text_in=WORKLOAD.format(address=guest.ip), check=False)
        guest.remove()
