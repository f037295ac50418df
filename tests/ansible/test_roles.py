"""The roles' steps, on this machine: programs of its packages are stand-ins."""

import json
from pathlib import Path
from typing import Final

import pytest

from playing import on_this_machine, program, recap, tasks_of

AGENT: Final = ["hostmesh-envoy", "hostmesh-agent"]
INSTALLED: Final = "hostmesh-envoy=0.1.0=ii \nhostmesh-agent=0.1.0=ii \nhostmesh=0.1.0=rc \n"
"""As dpkg-query tells it; the last one was removed."""


def packages(tmp_path: Path, *, known: bool) -> None:
    """Have package managers whose installed packages are in a file; apt-get installs files into it, and is heard."""
    (tmp_path / "installed").write_text(INSTALLED)
    for each in ("dpkg-query", "rpm"):
        program(tmp_path, each, f"cat {tmp_path}/installed\nexit 1")
    program(tmp_path, "apt-cache", "exit 0" if known else "exit 100")
    text = f"""echo "$*" >> {tmp_path}/called
for each; do
    case $each in *.deb) basename "$each" | sed 's/^hostmesh-//; s/_/=/; s/_.*/=ii /' ;; esac
done > {tmp_path}/installed"""
    program(tmp_path, "apt-get", text)


@pytest.mark.parametrize("manager", ["apt", "dnf"])
def test_a_look_at_a_version_that_was_just_published_tells_what_a_run_would_do(tmp_path: Path, manager: str) -> None:
    packages(tmp_path, known=False)
    settings = {"manager": manager, "repository_packages": AGENT, "repository_version": "0.2.0"}
    done = on_this_machine(tmp_path, "", "--check", tasks_of(tmp_path, "repository", "install", **settings))
    assert "would install hostmesh-agent=0.2.0, hostmesh-envoy=0.2.0" in done.stdout
    assert "installed is hostmesh-envoy=0.1.0, hostmesh-agent=0.1.0" in done.stdout
    assert ("apt has not read of it yet" in done.stdout) == (manager == "apt")
    assert recap(done)["here"]["changed"] == 1
    packages(tmp_path, known=True)
    known = on_this_machine(tmp_path, "", "--check", tasks_of(tmp_path, "repository", "install", **settings))
    assert "apt has not read of it yet" not in known.stdout


@pytest.mark.parametrize("manager", ["apt", "dnf"])
@pytest.mark.parametrize("version", ["", "0.1.0"])
def test_a_look_at_what_is_installed_finds_nothing_to_do(tmp_path: Path, manager: str, version: str) -> None:
    packages(tmp_path, known=True)
    settings = {"manager": manager, "repository_packages": AGENT, "repository_version": version}
    done = on_this_machine(tmp_path, "", "--check", tasks_of(tmp_path, "repository", "install", **settings))
    assert recap(done)["here"]["changed"] == 0, done.stdout
    missing = {**settings, "repository_packages": ["hostmesh"], "repository_version": ""}
    done = on_this_machine(tmp_path, "", "--check", tasks_of(tmp_path, "repository", "install", **missing))
    assert "would install hostmesh;" in done.stdout


def test_packages_of_a_folder_come_in_one_transaction(tmp_path: Path) -> None:
    packages(tmp_path, known=False)
    for each in ("dist", "copies"):
        (tmp_path / each).mkdir()
    names = [f"{each}_0.2.0_amd64.deb" for each in AGENT]
    for name in names:
        (tmp_path / "dist" / name).write_text("")
    settings = {
        "repository_packages": AGENT,
        "repository_directory": str(tmp_path / "dist"),
        "repository_copies": str(tmp_path / "copies"),
        "repository_downgrade": True,
    }
    playbook = tasks_of(tmp_path, "repository", "install", **settings)
    assert (
        "would install hostmesh-agent=0.2.0, hostmesh-envoy=0.2.0"
        in on_this_machine(tmp_path, "", "--check", playbook).stdout
    )
    assert not (tmp_path / "called").exists()
    owner = ("-e", json.dumps({"repository_copies": settings["repository_copies"]}))
    done = on_this_machine(tmp_path, "", *owner, playbook)
    (called,) = (tmp_path / "called").read_text().splitlines()
    copied = " ".join(f"{tmp_path}/copies/hostmesh-{name}" for name in names)
    assert called.endswith(f"--allow-downgrades install {copied}")
    again = on_this_machine(tmp_path, "", *owner, playbook)
    assert recap(again)["here"]["changed"] == 0, again.stdout
    assert (tmp_path / "called").read_text().splitlines() == [called]
    assert recap(done)["here"]["changed"] == 2
