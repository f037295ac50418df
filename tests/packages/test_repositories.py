"""The repositories of `make repo`: apt and dnf take packages from them, older ones too, and nothing touched."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from packages import stub_base
from packages.building import Built, ship
from packages.roots import Root, changes
from packages.test_debs import of_the_host

BY_RPM = (
    "/etc/dnf",
    "/tmp/",
    "/run/",
    "/var/tmp/",
    "/var/lib/rpm",
    "/usr/lib/sysimage",
    "/var/lib/dnf",
    "/root/.rpmdb",
    "/var/lib/hostmesh-base",
)


@pytest.fixture(scope="module")
def served(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What dist/ is with `repo` in it: a directory that any web server would serve."""
    ship("repository")
    stub_base.make(built.dist / "repo/base", tmp_path_factory.mktemp("base"))
    yield built.dist / "repo"
    shutil.rmtree(built.dist / "repo")


def sources(disk: Root) -> None:
    """Write what the operator's guide says, and take nothing from elsewhere."""
    line = "deb [signed-by=/usr/share/keyrings/hostmesh.gpg] file:/packages/repo/apt stable main"
    disk.run(
        "sh",
        "-ec",
        "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*; cp /packages/repo/hostmesh.gpg /usr/share/keyrings/;"
        f"echo '{line}' > /etc/apt/sources.list.d/hostmesh.list; apt-get -qq -o APT::Sandbox::User=root update",
    )


def apt(disk: Root, *words: str) -> "subprocess.CompletedProcess[str]":
    return disk.run("apt-get", "-qq", "-y", "-o", "APT::Sandbox::User=root", *words, check=False)


def test_apt_takes_the_newest_and_goes_back_to_an_older_one(disk: Root, built: Built, served: Path) -> None:
    assert served.is_dir()
    sources(disk)
    done = apt(disk, "install", "--no-install-recommends", "hostmesh-agent", "hostmesh-controller")
    assert done.returncode == 0, done.stderr
    assert disk.run("hostmesh-agent", "--version").stdout.startswith(f"hostmesh-agent {built.following} ")
    back = [f"{each}={built.version}" for each in ("hostmesh-agent", "hostmesh-controller", "hostmesh")]
    done = apt(disk, "install", "--no-install-recommends", "--allow-downgrades", *back)
    assert done.returncode == 0, done.stderr
    assert disk.run("hostmesh-agent", "--version").stdout.startswith(f"hostmesh-agent {built.version} ")
    # unattended-upgrades goes by these (Origins-Pattern "origin=hostmesh").
    assert "o=hostmesh,a=stable" in disk.run("apt-cache", "policy").stdout


def test_apt_takes_nothing_that_was_touched_or_signed_by_another_key(disk: Root, built: Built, served: Path) -> None:
    sources(disk)
    disk.run("sh", "-ec", "mkdir /srv/apt && cp -r /packages/repo/apt/. /srv/apt")
    disk.run("sh", "-ec", "sed -i s,/packages/repo,/srv, /etc/apt/sources.list.d/*")
    disk.run("sh", "-ec", f"cd /srv/apt/pool/main && printf x >> {built.deb('hostmesh-envoy', built.following)}")
    assert apt(disk, "update").returncode == 0
    done = apt(disk, "install", "--no-install-recommends", "hostmesh-envoy")
    assert done.returncode != 0
    assert "/usr/lib/hostmesh-envoy/envoy" not in disk.listing()
    disk.run("sh", "-ec", "sed -i 's/^Date:.*/Date: Thu, 01 Jan 2026 00:00:00 UTC/' /srv/apt/dists/stable/InRelease")
    assert "signature" in apt(disk, "update").stderr
    disk.run("sh", "-ec", "cp /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/hostmesh.gpg")
    assert apt(disk, "update", "-o", "APT::Update::Error-Mode=any").returncode != 0


def dnf(disk: Root, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run this machine's dnf on a root: no distribution of rpm's is to be had here."""
    repos = (
        *(f"--repofrompath=hostmesh,file://{disk.packages}/repo/rpm", "--setopt=hostmesh.gpgcheck=1"),
        *("--setopt=hostmesh.repo_gpgcheck=1", f"--setopt=hostmesh.gpgkey=file://{disk.packages}/repo/hostmesh.asc"),
        *(f"--repofrompath=base,file://{disk.packages}/repo/base", "--setopt=base.gpgcheck=0"),
    )
    top = f"{disk.disk}/root"
    cache = f"--setopt=cachedir={disk.disk}/dnf-cache"
    common = ("--setopt=reposdir=/dev/null", "--setopt=install_weak_deps=False", "--setopt=logdir=/var/log", cache)
    return disk.outside(
        *("dnf", "-y", "-q", f"--installroot={top}", "--releasever=1", "--forcearch=x86_64", *common, *repos, *words)
    )


def test_dnf_installs_upgrades_goes_back_and_removes(built: Built, served: Path, tmp_path: Path) -> None:
    disk = Root.make("bookworm", tmp_path / "disk", built.dist)
    before = disk.listing()
    done = dnf(disk, "install", f"hostmesh-agent-{built.version}", f"hostmesh-controller-{built.version}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert disk.run("hostmesh-agent", "--version").stdout.startswith(f"hostmesh-agent {built.version} ")
    links = {path.rpartition("/")[2] for path in disk.listing() if ".wants/hostmesh" in path}
    enabled = {"hostmesh-agent.service", "hostmesh-guard.service", "hostmesh-controller.service"}
    assert links == {*enabled, "hostmesh-upgrade-recover.service"}
    assert disk.run("getent", "passwd", "hostmesh-envoy").returncode == 0
    disk.run("sh", "-c", "echo '# mine' >> /etc/hostmesh/agent.toml")
    for verb, version in (("upgrade", built.following), ("downgrade", built.version)):
        done = dnf(disk, verb, "hostmesh*")
        assert done.returncode == 0, done.stdout + done.stderr
        assert disk.run("hostmesh-agent", "--version").stdout.startswith(f"hostmesh-agent {version} ")
        assert disk.path("/etc/hostmesh/agent.toml").read_text().endswith("# mine\n")
    assert {each for each in disk.listing() if ".wants/hostmesh" in each}
    done = dnf(disk, "remove", "hostmesh-agent", "hostmesh-envoy", "hostmesh-controller", "hostmesh", "base")
    assert done.returncode == 0, done.stdout + done.stderr
    after = disk.listing()
    left = {path for path in changes(of_the_host(before), of_the_host(after)) if not path.startswith(BY_RPM)}
    # As rpm has it: what the owner changed is kept under another name, and so are the controller's store and user.
    expected = {
        "/etc/hostmesh",
        "/etc/hostmesh/agent.toml.rpmsave",
        "/etc/passwd",
        "/etc/shadow",
        "/etc/group",
        "/etc/gshadow",
    }
    assert left <= expected, left
    assert disk.run("getent", "passwd", "hostmesh-envoy", check=False).returncode != 0


def test_dnf_takes_nothing_that_was_touched(built: Built, served: Path, tmp_path: Path) -> None:
    disk = Root.make("bookworm", tmp_path / "disk", tmp_path / "packages")
    shutil.copytree(served, tmp_path / "packages/repo")
    rpm = tmp_path / "packages/repo/rpm" / built.rpm("hostmesh-envoy", built.following)
    with rpm.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"touched")
    done = dnf(disk, "install", "hostmesh-envoy")
    assert done.returncode != 0
    assert "/usr/lib/hostmesh-envoy/envoy" not in disk.listing()
