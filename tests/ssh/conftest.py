"""Hosts to register over SSH, and a controller that is a process."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostmesh_controller.cli.ssh import joining
from running_controller import Process, running_process
from ssh.setting import Setting, Told
from ssh.ssh_host import SshHost, key_pair, package


@pytest.fixture(scope="session", autouse=True)
def _can_have_hosts() -> None:
    if os.getuid() != 0:
        pytest.skip("hosts with disks of their own are made as root")
    for program in ("sshd", "sudo", "apt-get", "dpkg-deb", "unshare"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            pytest.skip(f"needs {program}: make test installs it")


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return key_pair(tmp_path_factory.mktemp("key") / "id")


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("deb"))


@pytest.fixture
def host(tmp_path: Path, key: Path) -> Iterator[SshHost]:
    made = SshHost(tmp_path / "host", key)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_process(tmp_path_factory.mktemp("controller")) as process:
        yield process


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home/state"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def setting(host: SshHost, controller: Process, key: Path, deb: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(joining, "_VERIFY_S", 1)
    made = Setting(host, Told(controller), key, deb)
    for each in made.told.real.get("/v1/hosts")["items"]:
        made.told.real.request("DELETE", f"/v1/hosts/{each['name']}", params={"workloads": "true"})
    for each in made.told.real.get("/v1/objects")["items"]:
        made.told.real.delete(f"/v1/objects/{each['kind']}/{each['namespace'] or '-'}/{each['name']}")
    return made
