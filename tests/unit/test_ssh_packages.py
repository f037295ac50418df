"""What a host's package manager is told, run by a shell over a disk of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hostmesh_controller.cli.ssh.packages import (
    CONFIG,
    KEY_FILE,
    Apt,
    Dnf,
    Manager,
    configured,
    same_repository,
    sparing,
)

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


def test_what_dnf_has_read_is_asked_and_nothing_is_fetched(disk: Disk) -> None:
    disk.program("dnf", f'case " $* " in *" -C "*) ;; *) : >{disk.top}/fetched ;; esac; echo hostmesh-agent')
    assert disk.run(Dnf().offered()).stdout.strip() == "hostmesh-agent"
    assert not disk.at("fetched").exists()


@pytest.mark.parametrize("older", [False, True], ids=["", "with one of an earlier removal"])
def test_the_owners_files_are_those_that_were_there_whatever_a_removal_does_to_them(disk: Disk, older: bool) -> None:
    disk.put(CONFIG, "mine")
    there = [CONFIG]
    if older:
        disk.put(f"{CONFIG}.rpmnew", "older")
        there.append(f"{CONFIG}.rpmnew")
    assert disk.run(configured()).stdout.splitlines() == list(map(disk.here, there))
    # As rpm does.
    removal = f"mv {CONFIG} {CONFIG}.rpmsave; [ -e {CONFIG}.rpmnew ] || : >{CONFIG}.rpmnew; exit 7"
    assert disk.run(sparing(there, removal)).returncode == 7
    assert disk.at(CONFIG).read_text() == "mine"
    names = ["agent.toml", "agent.toml.rpmnew"] if older else ["agent.toml"]
    assert sorted(each.name for each in disk.at(CONFIG).parent.iterdir()) == names


@pytest.fixture
def rpm(disk: Disk) -> Disk:
    """With a real rpm that has a database of its own, and a dnf that installs nothing but the repository's key."""
    for each in ("rpm", "gpg"):
        if not shutil.which(each):
            pytest.skip(f"needs {each}")
    own = f'exec {shutil.which("rpm")} --dbpath {disk.top}/rpm "$@"'
    disk.program("rpm", f'case $1 in --dbpath) exec {shutil.which("rpm")} "$@" ;; esac\n{own}')
    disk.program("dnf", disk.here(f"case $* in *install*) exec rpm --import {KEY_FILE} ;; esac"))
    return disk


def public_key(disk: Disk, name: str) -> str:
    home = disk.top / f"{name}.gpg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", "--no-tty", "--homedir", str(home)]
    subprocess.run([*gpg, "--passphrase", "", "--quick-generate-key", name, "rsa2048", "sign", "never"], check=True)
    text = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True, text=True).stdout
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    return text


def trusted(disk: Disk) -> list[str]:
    return sorted(disk.run("rpm -qa --qf '%{SUMMARY}\\n' gpg-pubkey").stdout.splitlines())


@pytest.mark.parametrize("known", [False, True], ids=["it came with the repository", "it was trusted before"])
def test_a_key_that_was_not_trusted_before_is_not_trusted_after(rpm: Disk, known: bool) -> None:
    dnf, ours, others = Dnf(), public_key(rpm, "ours"), public_key(rpm, "others")
    rpm.put("/etc/others.asc", others)
    rpm.run("rpm --import /etc/others.asc")
    rpm.put(KEY_FILE, ours)
    if known:
        rpm.run(f"rpm --import {KEY_FILE}")
    before = trusted(rpm)
    text = dnf.repository_text(URL)
    rpm.put(dnf.repository_file(), text)
    assert rpm.run(dnf.note_keys()).returncode == 0
    assert same_repository(rpm.at(dnf.repository_file()).read_text(), rpm.here(text))
    rpm.run(dnf.install([]))
    assert len(trusted(rpm)) == 2
    assert rpm.run(dnf.forget_repository()).returncode == 0
    assert trusted(rpm) == before
    assert not rpm.at(KEY_FILE).exists()
