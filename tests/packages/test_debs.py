"""The .deb packages in roots of Debian 11, 12 and 13: they run, they are upgraded, and a purge leaves nothing."""

import re

import pytest

from packages.building import NAMES, Built
from packages.roots import Root, changes

PROGRAMS = ("hostmesh-agent", "hostmesh", "hostmesh-controller")
BY_DPKG = (
    "/var/lib/dpkg/",
    "/var/log/",
    "/var/cache/",
    "/run/needrestart",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/.pwd.lock",
    "/etc/subuid-",
    "/etc/subgid-",
)
"""What dpkg, needrestart and the programs of users keep for themselves: databases, logs, backups of what was before."""
AGENT_UNITS = ("hostmesh-agent", "hostmesh-guard", "hostmesh-drain", "hostmesh-ready")


def of_the_host(listing: dict[str, list[object]]) -> dict[str, list[object]]:
    return {path: what for path, what in listing.items() if not path.startswith(BY_DPKG)}


def enabled(disk: Root) -> set[str]:
    """Return the enabled units of ours: the links that systemctl makes."""
    return {
        path.rpartition("/")[2]
        for path in disk.listing()
        if path.startswith("/etc/systemd") and ".wants/hostmesh" in path
    }


def test_every_program_runs_where_its_distribution_has_another_python_or_none(disk: Root, built: Built) -> None:
    disk.install(*built.debs())
    assert re.fullmatch(
        rf"hostmesh-agent {re.escape(built.version)} \(Envoy [0-9.]+\)\n",
        disk.run("hostmesh-agent", "--version").stdout,
    )
    assert disk.run("hostmesh-controller", "version").stdout.strip() == built.version
    for program in PROGRAMS:
        assert "sage: " in disk.run(program, "--help").stdout
    assert "agents" in disk.run("hostmesh-controller", "config", "check").stdout
    told = disk.run("/usr/lib/hostmesh-envoy/envoy", "--version").stdout
    assert "version" in told
    # Every module of our own, and with it every library that is packed, can be imported.
    for home, package in (("hostmesh-agent", "hostmesh_agent"), ("hostmesh", "hostmesh_controller")):
        script = (
            f"import importlib, pkgutil, {package} as top\n"
            "for each in pkgutil.walk_packages(top.__path__, top.__name__ + '.'):\n"
            "    if not any(part in each.name for part in ('.lab.', '__main__', '.migrations.')):\n"
            "        importlib.import_module(each.name)\n"
        )
        disk.run(f"/usr/lib/{home}/bin/python3.13", "-I", "-W", "error", "-c", script)
    # Nobody but root writes into any of it, and no bytecode is written at run time.
    listing = disk.listing()
    ours = {path: what for path, what in listing.items() if path.startswith(("/usr/lib/hostmesh", "/usr/bin/hostmesh"))}
    assert all(what[1:3] == [0, 0] for what in ours.values())
    assert not [
        path for path, what in ours.items() if int(str(what[0]), 8) & 0o022 and not str(what[0]).startswith("0o12")
    ]


def test_units_are_enabled_users_are_there_and_manuals_and_completions_are_found(disk: Root, built: Built) -> None:
    disk.install(*built.debs())
    assert enabled(disk) == {"hostmesh-agent.service", "hostmesh-guard.service", "hostmesh-controller.service"}
    for user in ("hostmesh-envoy", "hostmesh-controller"):
        fields = disk.run("getent", "passwd", user).stdout.strip().split(":")
        assert fields[6].endswith("nologin")
        assert int(fields[2]) < 1000
    for page in ("hostmesh-agent.8", "hostmesh.1", "hostmesh-controller.8", "agent.toml.5", "controller.toml.5"):
        name, _, section = page.rpartition(".")
        assert f"/man{section}/{page}" in disk.run("man", "--where", section, name).stdout
    listing = disk.listing()
    for program in PROGRAMS:
        for place in (
            "bash-completion/completions/{}",
            "zsh/vendor-completions/_{}",
            "fish/vendor_completions.d/{}.fish",
        ):
            assert f"/usr/share/{place.format(program)}" in listing
        script = f"/usr/share/bash-completion/completions/{program}"
        assert program in disk.run("bash", "-c", f". {script} && complete -p {program}").stdout
    assert disk.run("perl", "-c", "/etc/needrestart/conf.d/hostmesh.conf").returncode == 0


def test_a_purge_leaves_every_file_as_it_was(disk: Root, built: Built) -> None:
    before = disk.listing()
    disk.install(*built.debs())
    disk.run("hostmesh-agent", "--version")
    disk.run("mkdir", "-p", "/var/lib/hostmesh/envoy", "/run/hostmesh", "/var/lib/hostmesh-controller")
    disk.run("touch", "/var/lib/hostmesh/envoy/file", "/run/hostmesh/agent.sock", "/var/lib/hostmesh-controller/store")
    assert changes(of_the_host(before), of_the_host(disk.listing()))
    disk.run("rm", "-r", "/run/hostmesh")
    disk.run("dpkg", "--purge", *NAMES)
    after = disk.listing()
    assert changes(of_the_host(before), of_the_host(after)) == {}
    assert [path for path in after if "hostmesh" in path and not path.startswith("/var/log/")] == []
    for file in ("passwd", "group", "shadow", "gshadow"):
        assert before[f"/etc/{file}"] == after[f"/etc/{file}"]


def test_a_removal_keeps_what_belongs_to_the_owner_and_installs_again(disk: Root, built: Built) -> None:
    disk.install(*built.debs())
    disk.run("sh", "-c", "echo '[log]' >> /etc/hostmesh/agent.toml; systemctl disable -q hostmesh-agent.service")
    disk.run("dpkg", "--remove", *NAMES)
    left = [path for path in disk.listing() if path.startswith(("/usr/lib/hostmesh", "/usr/bin/hostmesh"))]
    assert left == []
    assert disk.path("/etc/hostmesh/agent.toml").read_text().endswith("[log]\n")
    disk.install(*built.debs())
    assert disk.path("/etc/hostmesh/agent.toml").read_text().endswith("[log]\n")
    # What the owner disabled stays disabled.
    assert "hostmesh-agent.service" not in enabled(disk)


def test_an_upgrade_and_the_way_back_ask_nothing(disk: Root, built: Built) -> None:
    disk.install(*built.debs())
    disk.run("sh", "-c", "echo '# mine' >> /etc/hostmesh/agent.toml")
    for version in (built.following, built.version):
        # As unattended-upgrades calls dpkg: whatever would ask fails.
        disk.run(
            "dpkg",
            "--force-unsafe-io",
            "--force-confdef",
            "--install",
            *(f"/packages/{each}" for each in built.debs(version)),
        )
        assert disk.run("hostmesh-agent", "--version").stdout.startswith(f"hostmesh-agent {version} ")
        assert disk.path("/etc/hostmesh/agent.toml").read_text().endswith("# mine\n")
    assert disk.run("dpkg", "--verify", *NAMES, check=False).stdout.splitlines() == [
        "??5?????? c /etc/hostmesh/agent.toml"
    ]


def test_a_removal_touches_no_rule_where_the_host_never_joined(disk: Root, built: Built) -> None:
    """In an image that is being built the kernel is somebody else's: the script must not even look."""
    disk.install(*built.debs())
    disk.run("sh", "-c", "printf '#!/bin/sh\\ntouch /called\\n' > /usr/bin/hostmesh-agent")
    disk.run("dpkg", "--remove", "hostmesh-agent")
    assert "/called" not in disk.listing()


@pytest.mark.parametrize("code", [0, 1])
def test_a_removal_of_a_host_of_the_mesh_is_a_leave_and_waits_for_it(disk: Root, built: Built, code: int) -> None:
    disk.install(*built.debs())
    disk.run("sh", "-c", f"printf '#!/bin/sh\\necho \"$@\" >> /called\\nexit {code}\\n' > /usr/bin/hostmesh-agent")
    disk.run("sh", "-c", "mkdir -p /var/lib/hostmesh && echo '{}' > /var/lib/hostmesh/host.json")
    # An upgrade is no leave.
    disk.run("dpkg-deb", "--fsys-tarfile", f"/packages/{built.deb('hostmesh-agent')}")
    done = disk.run("dpkg", "--remove", "hostmesh-agent", check=False)
    assert disk.path("/called").read_text() == "leave\n"
    status = disk.run("dpkg-query", "-W", "-f", "${Status}", "hostmesh-agent").stdout
    # One that could not leave stays installed: nobody else would own its rules.
    assert (done.returncode == 0, "deinstall ok config-files" in status) == (code == 0, code == 0)
    if code:
        assert "hostmesh-agent is not removed" in done.stderr
