"""A real host is joined from the controller over SSH, with the built package, and removed again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.driver import Lab, eventually
from hosts.machine import Machine
from hosts.mesh import Mesh
from ssh.ssh_host import key_pair

DIST = Path(__file__).parents[2] / "dist"


@pytest.fixture
def bare(mesh: Mesh, tmp_path: Path) -> Iterator[Machine]:
    """A host with sshd and nothing of ours."""
    if not shutil.which("ssh-keygen") or not list(DIST.glob("hostmesh-agent_*.deb")):
        pytest.skip("needs the packages: make packages")
    made = Machine(mesh.lab, "fresh", "bookworm", 53, tmp_path / "fresh")
    try:
        made.make()
        # The root masks sshd, since no other test needs it.
        (made.written / "etc/systemd/system/ssh.service").unlink()
        made.put("/root/.ssh/authorized_keys", key_pair(tmp_path / "id").with_suffix(".pub").read_text())
        made.start()
        made.run("sh", "-c", "ssh-keygen -A && systemctl start ssh.service")
        yield made
    finally:
        mesh.lab.hostmesh("host", "remove", "fresh", "--yes", check=False)
        made.remove()


def register(lab: Lab, machine: Machine, key: Path) -> dict[str, str]:
    shown = machine.run("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub").stdout
    packages = [f"--package={each}" for name in ("agent", "envoy") for each in DIST.glob(f"hostmesh-{name}_*.deb")]
    (told,) = json.loads(
        lab.hostmesh(
            *("register", "fresh", "--ssh", f"root@{machine.ip}", "--identity", str(key), "-o", "json"),
            *("--host-key", shown.split()[1], "--verify", "http://stock:8095/", *packages),
        ).stdout
    )
    assert isinstance(told, dict)
    return told


def test_a_real_host_is_joined_over_ssh_calls_the_mesh_and_is_removed(
    mesh: Mesh, bare: Machine, tmp_path: Path
) -> None:
    assert register(mesh.lab, bare, tmp_path / "id")["outcome"] == "joined"
    assert register(mesh.lab, bare, tmp_path / "id")["outcome"] == "unchanged"
    bare.reboot()
    bare.run("systemctl", "start", "ssh.service")
    eventually(lambda: bare.agent()["agent"]["running"], "the agent runs after a boot", timeout_s=60)
    key = str(tmp_path / "id")
    mesh.lab.hostmesh("host", "remove", "fresh", "--yes", "--ssh", f"root@{bare.ip}", "--identity", key)
    assert bare.run("sh", "-c", "command -v hostmesh-agent", check=False).returncode != 0
    assert "fresh" not in mesh.lab.hostmesh("host", "list").stdout
