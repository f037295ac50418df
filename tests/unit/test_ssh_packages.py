"""What a host's package manager is told, run by a shell over a disk of its own."""

import os
import subprocess
from pathlib import Path

import pytest

from hostmesh_controller.cli.ssh.packages import KEY_FILE, Apt, Dnf, Manager

URL = "https://packages.example.com"
EACH_MANAGER = pytest.mark.parametrize("manager", [Apt(), Dnf()], ids=["apt", "dnf"])


class Disk:
    """Root's disk; `programs` come before this machine's."""

    def __init__(self, top: Path) -> None:
        self.top, self.programs = top, top / "programs"
        self.programs.mkdir()

    def at(self, path: str) -> Path:
        return self.top / path.lstrip("/")

    def here(self, text: str) -> str:
        """A script or a file of that disk, with its paths as they are seen from outside."""
        for folder in ("/etc/", "/var/"):
            text = text.replace(folder, f"{self.top}{folder}")
        return text

    def put(self, path: str, text: str) -> None:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(self.here(text))

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.programs / name).chmod(0o755)

    def run(self, script: str) -> "subprocess.CompletedProcess[str]":
        path = f"{self.programs}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", self.here(script)],
            env={"PATH": path, "HOME": str(self.top), "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        print(done.stdout, done.stderr)
        return done


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path)
    made.program("dnf", "exit 0")
    return made


OWN = {
    "apt": f"deb [signed-by=/usr/share/keyrings/hostmesh.gpg] {URL}/apt stable main\n",
    "dnf": f"[hostmesh]\nbaseurl={URL}/rpm\ngpgkey=file:///etc/pki/rpm-gpg/hostmesh.asc\n",
}
"""What OPERATING.md has operators write, under the very name."""


@EACH_MANAGER
def test_a_repository_that_an_operator_wrote_is_not_forgotten(disk: Disk, manager: Manager) -> None:
    file, text = manager.repository_file(), OWN["apt" if isinstance(manager, Apt) else "dnf"]
    disk.put(file, text)
    disk.put(KEY_FILE, "somebody's")
    assert disk.run(manager.forget_repository()).returncode == 0
    assert disk.at(file).read_text() == disk.here(text)
    assert disk.at(KEY_FILE).exists()


@EACH_MANAGER
@pytest.mark.parametrize("written", ["all", "the key", "the key and an empty file", "nothing"])
def test_a_repository_of_ours_is_forgotten_however_much_of_it_was_written(
    disk: Disk, manager: Manager, written: str
) -> None:
    file = manager.repository_file()
    disk.put(file, manager.repository_text(URL) if written == "all" else "")
    if written in {"the key", "nothing"}:
        disk.at(file).unlink()
    if written != "nothing":
        disk.put(KEY_FILE, "ours")
    assert disk.run(manager.forget_repository()).returncode == 0
    assert not disk.at(file).exists()
    assert not disk.at(KEY_FILE).exists()
