"""The units meet systemd itself: of two versions of Debian, on the hosts where they are installed."""

import re

from hosts.machine import Machine
from unit.test_units import EXPOSURE

UNITS = (
    *("hostmesh-agent.service", "hostmesh-drain.service", "hostmesh-guard.service", "hostmesh-ready.service"),
    *("hostmesh-envoy@blue.service", "hostmesh-envoy@green.service"),
)


def test_systemd_has_nothing_to_say_of_the_units(each_host: Machine) -> None:
    done = each_host.run("systemd-analyze", "verify", "--man=no", *UNITS, "hostmesh-ready.target", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_installed_units_are_as_closed_as_was_said(each_host: Machine) -> None:
    for name, bound in EXPOSURE.items():
        if name == "hostmesh-controller.service":
            continue  # another package's, on hosts of its own (test_controller_package)
        told = each_host.run("systemd-analyze", "security", "--no-pager", name.replace("@.", "@blue.")).stdout
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
        assert found is not None, told
        print(f"{each_host.suite} {name}: {found[1]}")
        assert float(found[1]) <= bound, name


def test_nothing_warns_at_boot(each_host: Machine) -> None:
    each_host.reboot()
    assert each_host.run("systemctl", "is-system-running").stdout == "running\n"
    told = each_host.run("journalctl", "--no-pager", "-b", "-p", "warning", "-o", "short", "-t", "systemd").stdout
    assert "hostmesh" not in told
    assert "cycle" not in told
