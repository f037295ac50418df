"""What vagrant says of vagrant/Vagrantfile. It needs no provider for that, and no daemon."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "vagrant"
pytestmark = pytest.mark.skipif(
    shutil.which("vagrant") is None, reason="vagrant is not installed: make vagrant-validate installs it"
)


def validate(folder: Path, home: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=folder,
        env={**os.environ, "VAGRANT_HOME": str(home), "VAGRANT_CHECKPOINT_DISABLE": "1", "LC_ALL": "C.UTF-8", **more},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("driver", ["kvm", "qemu"])
def test_the_vagrantfile_is_valid(tmp_path: Path, driver: str) -> None:
    done = validate(FOLDER, tmp_path, HOSTMESH_VM_DRIVER=driver, HOSTMESH_BOX="some/box")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_setting_that_vagrant_does_not_know_is_found(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "vagrant", ignore=shutil.ignore_patterns(".vagrant"))
    file = tmp_path / "vagrant/Vagrantfile"
    text = file.read_text()
    assert "ansible.playbook =" in text
    file.write_text(text.replace("ansible.playbook =", "ansible.plybook ="))
    done = validate(file.parent, tmp_path / "home")
    assert done.returncode != 0
    assert "plybook" in done.stdout + done.stderr
