"""The units: systemd takes them as they are, they are as closed as was said, and hold the published budget."""

import configparser
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from shipping import parts

from hostmesh_agent import budget

UNITS = Path(__file__).parents[2] / "packaging/systemd"
EXPOSURE = {
    "hostmesh-agent.service": 1.9,
    "hostmesh-controller.service": 1.2,
    "hostmesh-drain.service": 1.2,
    "hostmesh-envoy@.service": 1.5,
    "hostmesh-guard.service": 3.2,
    "hostmesh-privileged@.service": 3.3,
    "hostmesh-ready.service": 1.4,
    "hostmesh-upgrade-recover.service": 5.4,
    "hostmesh-upgrade@.service": 5.4,
}
"""At most, of 10. For comparison: systemd-networkd has 2.8, nginx and haproxy 9.6.

What the agent's unit does without, and why. It has the host's network, its rules and its processes, which are its work:
PrivateNetwork=, RestrictAddressFamilies=, CAP_NET_ADMIN, ProtectProc=, ProcSubset=, IPAddressDeny=.

What upgrades do without. A package manager also ends what it was interrupted in, so the scripts and triggers that run
may be any package's. They write all of the system (ProtectSystem=, ProtectKernelModules=, which hides
/usr/lib/modules from initramfs; PrivateDevices= from grub; ProtectKernelTunables= from triggers of sysctl.d and
udev), give files owners, modes, set-user-ID and capabilities (CAP_CHOWN, CAP_FOWNER, CAP_DAC_*, CAP_FSETID,
CAP_SETFCAP, CAP_MKNOD, CAP_LINUX_IMMUTABLE, RestrictSUIDSGID=), become other users (apt's _apt, man: CAP_SETUID,
CAP_SETGID, CAP_AUDIT_WRITE), change domain and label under SELinux (NoNewPrivileges=, CAP_MAC_*), look whom to
restart (needrestart: CAP_SYS_PTRACE, CAP_KILL, ProtectProc=), and rpm's plugins unshare mounts and network and write
what is protected (CAP_SYS_ADMIN, @mount, mnt and net of RestrictNamespaces=). They run whatever compiles at run time
(MemoryDenyWriteExecute=) and fetch (PrivateNetwork=).
"""
AS_ROOT = {"hostmesh-agent.service": 3.9}
"""With what is in as-root/. It runs as root, so that it starts Envoy as another user, signals it, and owns its files;
and Envoy may be started within the unit's limits (the drop-in says which)."""
_CLOSES = re.compile("(Capability|Lock|NoNew|Private|Protect|Restrict|SystemCall)[A-Za-z]*=")
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


def service(path: Path) -> Mapping[str, str]:
    return section(path, "Service")


def section(path: Path, name: str) -> Mapping[str, str]:
    found = configparser.RawConfigParser(strict=False, delimiters=("=",))
    found.optionxform = str  # type: ignore[assignment, method-assign]  # systemd minds the case
    found.read(path)
    return found[name]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a command that is there."""
    for each in UNITS.glob("*.*"):
        if each.is_file():
            text = re.sub("/usr/bin/hostmesh-(agent|controller)", "/bin/true", each.read_text())
            text = re.sub("/usr/lib/hostmesh-agent/[a-z-]+", "/bin/true", text)
            (tmp_path / each.name).write_text(text)
    return tmp_path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_systemd
def test_systemd_has_nothing_to_say_of_the_units(units: Path) -> None:
    done = analyze("verify", "--man=no", *map(str, sorted(units.iterdir())))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (units / "hostmesh-ready.service").write_text("[Service]\nTipe=oneshot\n")
    assert "Tipe" in analyze("verify", "--man=no", str(units / "hostmesh-ready.service")).stderr


@needs_systemd
@pytest.mark.parametrize("name", EXPOSURE)
def test_the_units_are_as_closed_as_was_said(units: Path, name: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(units / name))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= EXPOSURE[name]


def test_an_upgrade_that_a_boot_interrupted_ends_as_closed_as_it_was() -> None:
    both = [(UNITS / f"hostmesh-upgrade{each}.service").read_text() for each in ("@", "-recover")]
    closed = [[line for line in text.splitlines() if _CLOSES.match(line)] for text in both]
    assert closed[0] == closed[1]
    assert len(closed[0]) > 12


@needs_systemd
@pytest.mark.parametrize("name", AS_ROOT)
def test_units_of_root_are_as_closed_as_was_said(units: Path, name: str) -> None:
    merged = units / f"merged-{name}"
    drop_in = (UNITS / "as-root" / f"{name}.conf").read_text()
    merged.write_text((units / name).read_text() + drop_in.replace("/usr/lib/hostmesh-agent/own", "/bin/true"))
    done = analyze("security", "--offline=true", "--no-pager", str(merged))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= AS_ROOT[name]
    assert analyze("verify", "--man=no", str(merged)).stderr == ""


def test_the_agent_is_not_root_and_has_one_capability() -> None:
    unit = service(UNITS / "hostmesh-agent.service")
    assert (unit["User"], unit["AmbientCapabilities"]) == ("hostmesh-agent", "CAP_NET_ADMIN")
    assert unit["CapabilityBoundingSet"] == "CAP_NET_ADMIN"


def test_the_guard_may_put_a_link_back_in_the_place_of_resolv_conf_and_change_no_file_of_others() -> None:
    unit = service(UNITS / "hostmesh-guard.service")
    assert "/etc" in unit["ReadWritePaths"].split()
    assert not {"CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_CHOWN"} & set(unit["CapabilityBoundingSet"].split())


def test_every_unit_that_runs_as_the_agent_has_a_drop_in_for_an_agent_of_root() -> None:
    drop_ins = {each.name.removesuffix(".conf") for each in (UNITS / "as-root").iterdir()}
    of_agent = {each.name for each in UNITS.glob("*.service") if service(each).get("User") == "hostmesh-agent"}
    assert drop_ins == of_agent
    assert {service(UNITS / "as-root" / f"{each}.conf")["User"] for each in drop_ins} == {"root"}
    installed = {Path(place).name for _, place in parts.AGENT.files if "/as-root/" in place}
    assert installed == {f"{each}.conf" for each in of_agent}


def test_the_privileged_part_is_reached_by_the_agents_group_alone() -> None:
    socket = section(UNITS / "hostmesh-privileged.socket", "Socket")
    assert (socket["SocketUser"], socket["SocketGroup"], socket["SocketMode"]) == ("root", "hostmesh-agent", "0660")
    unit = service(UNITS / "hostmesh-privileged@.service")
    # It sees nothing of what the agent may write.
    assert unit["InaccessiblePaths"] == "-/var/lib/hostmesh"


def test_the_unit_holds_the_budget_that_is_published() -> None:
    unit = service(UNITS / "hostmesh-agent.service")
    assert unit["LimitNOFILE"].split(":")[0] == str(budget.MAX_FILES)
    assert unit["CPUQuota"] == f"{budget.MAX_CPU_PERCENT}%"
    assert unit["MemoryMax"] == f"{budget.MAX_MEMORY_BYTES >> 20}M"
    assert budget.IDLE_RSS_BYTES < budget.MAX_MEMORY_BYTES
    assert budget.IDLE_CPU_PERCENT < budget.MAX_CPU_PERCENT


def test_a_stop_of_the_agent_leaves_envoy_and_a_hang_ends_in_a_restart() -> None:
    unit = service(UNITS / "hostmesh-agent.service")
    assert (unit["Type"], unit["KillMode"], unit["Restart"]) == ("notify", "process", "always")
    assert unit["WatchdogSec"] == "30s"
    assert unit["RuntimeDirectoryPreserve"] == "yes"  # Envoy's sockets are in it


def test_the_controller_is_watched_and_is_nobody_else() -> None:
    unit = service(UNITS / "hostmesh-controller.service")
    assert (unit["Type"], unit["User"], unit["StateDirectory"]) == ("notify", *["hostmesh-controller"] * 2)
    assert (unit["CapabilityBoundingSet"], unit["StateDirectoryMode"]) == ("", "0700")
    # A start of a large mesh reads its store first, and a hang ends in a restart.
    assert (unit["TimeoutStartSec"], unit["WatchdogSec"], unit["Restart"]) == ("10min", "60s", "always")


def test_programs_that_require_the_mesh_are_not_restarted_with_the_agent() -> None:
    ready = section(UNITS / "hostmesh-ready.service", "Unit")
    # What is required restarts and stops whoever requires it, and so does each of these.
    assert not {"Requires", "Requisite", "BindsTo", "PartOf"} & set(ready)
    assert ready["After"] == "hostmesh-agent.service"


def test_a_host_drains_at_its_shutdown_and_never_because_something_restarts_services() -> None:
    unit = section(UNITS / "hostmesh-drain.service", "Unit")
    assert unit["RefuseManualStop"] == "yes"
    assert {"multi-user.target", "graphical.target", "hostmesh-agent.service"} <= set(unit["After"].split())
    assert "hostmesh-drain.service" in section(UNITS / "hostmesh-agent.service", "Unit")["Wants"].split()


def test_what_a_shutdown_drained_is_called_again_once_the_host_is_up() -> None:
    """/run outlives a boot of programs alone (systemctl soft-reboot)."""
    unit = service(UNITS / "hostmesh-drain.service")
    assert unit["ExecStart"] == "-/usr/bin/hostmesh-agent undrain --until-boot"
    assert unit["ExecStop"].startswith("-/usr/bin/hostmesh-agent drain --until-boot")
